"""What a process of the data path does last before it serves: it takes now what it would take later.

Under swap pressure each page that a process asks for is one that the kernel may not have. So in swap
mode a process makes every page its own that it will write: its private memory, of which a fork has left
shared copies, the windows, its stack, and some memory in hand for Python's and the C library's
allocators, which then neither ask the kernel for memory nor give any back.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
from collections.abc import Iterable
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from ..config.settings import Settings
from ..errors import PreconditionError
from ..system import kernel, proc

#: The largest object that Python's own allocator serves, bytes; larger ones are the C library's.
_SMALL_BYTES = 512
_BYTES_HEADER = bytes.__basicsize__
#: In hand for each of the two allocators; with 128 requests of 4 KiB in flight, and with others of 8 MiB, no
#: process of the data path has taken a page more.
_IN_HAND_BYTES = 256 << 10
#: Python's allocator takes and gives back memory in pieces of this size and alignment.
_ARENA_SHIFT = 20
#: Calls from C to Python and back, each some hundred bytes of stack.
_STACK_CALLS = 150

#: Not larger are Python's own pieces of memory and the data of libraries.
_SMALL_MAPPING_BYTES = 8 << 20

_PAGE = mmap.PAGESIZE
_PRESENT_OR_SWAPPED = np.uint64(3 << 62)

#: One small object in each arena of the reserve, so that none is ever empty and given back.
_pins: list[bytes] = []

Memory = npt.NDArray[np.uint8]


def prefault(settings: Settings, written: Iterable[Memory] = ()) -> None:
    """Collect garbage for the last time over all that lives now, and in swap mode take what will be needed.

    Args:
        written: shared memory that this process or the engine will write, whole.
    """
    gc.collect()
    kernel.malloc_trim()  # what setting up has left: several MiB in the engine
    if settings.mode == "swap":
        keep_allocated()
        _grow_stack(_STACK_CALLS)
        own_private_pages()
        try:
            for memory in written:
                _populate(memory.ctypes.data, memory.nbytes)
        except OSError as error:
            raise PreconditionError(
                f"swap mode needs its windows in memory: {error.strerror}; free memory or use fewer --workers"
            ) from error
    gc.freeze()


def keep_allocated(in_hand_bytes: int = _IN_HAND_BYTES) -> None:
    """Give both allocators that much memory in hand, and have them keep what they have."""
    for parameter, value in (
        (kernel.M_MMAP_MAX, 0),
        (kernel.M_TRIM_THRESHOLD, -1),
        (kernel.M_ARENA_MAX, 1),
    ):
        kernel.mallopt(parameter, value)
    block = ctypes.create_string_buffer(in_hand_bytes)
    ctypes.memset(block, 1, in_hand_bytes)
    del block
    small = [bytes(_SMALL_BYTES - _BYTES_HEADER) for _ in range(in_hand_bytes // _SMALL_BYTES)]
    _pins.extend({id(each) >> _ARENA_SHIFT: each for each in small}.values())


def own_private_pages() -> None:
    """Write to each private page that is here, so that none is shared with a parent or child any more."""
    for mapping in proc.mappings():
        if not mapping.modes.startswith("rw") or mapping.modes[3] != "p":
            continue
        start, end = mapping.start // _PAGE, mapping.end // _PAGE
        for first, behind in _runs(_present(start, end)):
            # What cannot be written is a driver's own affair, or gone meanwhile.
            with suppress(OSError):
                _populate((start + first) * _PAGE, (behind - first) * _PAGE)


def _present(start: int, end: int) -> npt.NDArray[np.bool_]:
    """Which pages of a mapping are here; all of a small one where the kernel does not say."""
    try:
        entries = np.frombuffer(proc.pagemap(start, end - start), np.uint64)
    except OSError:
        return np.full(end - start, (end - start) * _PAGE <= _SMALL_MAPPING_BYTES)
    return np.asarray(entries & _PRESENT_OR_SWAPPED != 0)


def _runs(flags: npt.NDArray[np.bool_]) -> Iterable[tuple[int, int]]:
    """Each run of true values as (first, behind the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False]))))
    return [(int(first), int(behind)) for first, behind in edges.reshape(-1, 2)]


def _populate(address: int, length: int) -> None:
    """Have the pages of a range, their content unchanged, where writing does not have to wait for memory."""
    start = address // _PAGE * _PAGE
    end = -(-(address + length) // _PAGE) * _PAGE
    try:
        kernel.madvise(start, end - start, kernel.MADV_POPULATE_WRITE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        kernel.mlock(start, end - start)  # before Linux 5.14; locked it is in any case


def _grow_stack(calls: int) -> int:
    """As deep as no request goes; the built-in in between makes each call one of C too."""
    return calls and min([calls - 1], key=_grow_stack)
