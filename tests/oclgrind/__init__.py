"""The kernels on Oclgrind, a simulator that reports accesses out of bounds and data races.

Oclgrind claims to be a GPU with 128 MiB, so it must not be where a server could find it. ``setup.sh`` unpacks its
wheel to build/oclgrind, and ``conftest.py`` points the OpenCL loader there, if pytest runs this group alone.

In the group's run among the others each promise is tried with few examples. ``make test-oclgrind`` sets
VRAMBLK_TEST_OCLGRIND=all for all of them.
"""
