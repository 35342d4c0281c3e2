"""Intel's OpenCL runtime for processors: the contracts of memories, and a server.

``setup.sh`` unpacks 700 MB to build/intel-cpu, so the group runs only by its name: ``make test-intel-cpu``.
"""
