"""Which process may write what of the shared memory, once it has its role.

A worker keeps only its own window, and reads the control page and the written-maps. What a stray pointer
or a hostile client makes of a worker then stays within that worker. The observer, which parses HTTP, reads
everything and writes only the canary's window.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import Any

import numpy.typing as npt

from ..system import kernel, privileges


def make_file(name: str) -> int:
    """An empty memory file that can be sealed; another uid cannot open it anew to write."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.fchmod(descriptor, 0o600)
    return descriptor


def map_shared(memory: npt.NDArray[Any], descriptor: int) -> None:
    """Map a memory file in the place of a mapping. ``mmap.mmap`` would keep a second descriptor of it, which
    children inherit."""
    protection = kernel.PROT_READ | kernel.PROT_WRITE
    kernel.map_fixed(memory.ctypes.data, memory.nbytes, protection, kernel.MAP_SHARED, descriptor)


def read_only(descriptor: int) -> None:
    """Leave this process a descriptor of a memory file with which it can neither write, nor seal, nor cut it.

    It must still be the uid that made the file.

    Raises:
        OSError: /proc is not there.
    """
    privileges.own_file(descriptor, os.O_RDONLY)


def seal(descriptor: int, seals: int) -> None:
    """Seal a memory file as far as this kernel supports the seals; see fcntl(2)."""
    with suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)


def hide(memory: npt.NDArray[Any]) -> None:
    """Take a mapping away from this process for good: nothing can be read or written there any more.

    Something is mapped in its place, so that the range is not used again while Python's objects still
    point there.
    """
    flags = kernel.MAP_PRIVATE | kernel.MAP_ANONYMOUS | kernel.MAP_NORESERVE
    kernel.map_fixed(memory.ctypes.data, memory.nbytes, kernel.PROT_NONE, flags)


def write_protect(memory: npt.NDArray[Any]) -> None:
    """Let this process only read a mapping: a guard against mistakes, which ``mprotect`` can take back."""
    kernel.mprotect(memory.ctypes.data, memory.nbytes, kernel.PROT_READ)


def map_read_only(memory: npt.NDArray[Any], descriptor: int) -> None:
    """Map a sealed memory file anew in its place, where this process can then only read it."""
    kernel.map_fixed(memory.ctypes.data, memory.nbytes, kernel.PROT_READ, kernel.MAP_SHARED, descriptor)
