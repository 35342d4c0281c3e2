"""A running server, spoken to over sockets by real clients and by a raw one.

Needs: Linux, an OpenCL platform (PoCL will do) and the packages of packages.txt, which
``tests/setup.sh wire`` installs on Debian.
"""
