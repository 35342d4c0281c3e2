"""A running server, spoken to over sockets by real clients and by a raw one.

Needs: Linux, an OpenCL platform (PoCL will do), fio, nbdkit, libnbd and its Python binding,
qemu-utils, nbd-client, e2fsprogs, gnutls-bin. ``tests/setup.sh`` installs them on Debian.
"""
