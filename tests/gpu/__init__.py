"""Tests that need a GPU with an OpenCL runtime, and about 8 GiB of free memory on it.

Everything that touches OpenCL is tested on a CPU by tests/unit/memory; this group runs the same
contract on a GPU, and what only a GPU shows: pinned windows, allocation by touching, large exports.
Each test skips by name where there is no GPU. Run them with ``make test-gpu``.
"""
