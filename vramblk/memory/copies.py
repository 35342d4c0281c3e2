"""Copies between an export and the slabs, each by itself and without a batch.

Each call names a range of the export within one arena, and an address in this process. A status is 0 for
success. Compiled, with the types of ``copies.pxd``.
"""

from __future__ import annotations

from collections.abc import Callable

from ..system import calls
from .base import DeviceError

#: CL_INVALID_VALUE: a range that does not lie within one arena.
OUTSIDE = -30


class Copies:
    """What is the same for all memories: where a range lies.

    Args:
        places: of each arena: a buffer's handle, or an address.
        failure: makes an exception of a status, after which nothing is in flight any more.

    Attributes:
        queued: ``read`` and ``write`` only begin the copy, in order; ``finish`` waits.
    """

    def __init__(
        self, size_bytes: int, arena_bytes: int, places: list[int], failure: Callable[[int], DeviceError]
    ) -> None:
        self.size_bytes = size_bytes
        self.arena_bytes = arena_bytes
        self.queued = False
        self._places = memoryview(bytearray(8 * len(places))).cast("Q")
        for index, place in enumerate(places):
            self._places[index] = place
        self.failure = failure

    def within(self, offset: int, length: int) -> bool:
        """Whether a range of the export lies in one arena."""
        if not 0 < length <= self.size_bytes or offset > self.size_bytes - length:
            return False
        return offset // self.arena_bytes == (offset + length - 1) // self.arena_bytes

    def read(self, offset: int, length: int, address: int) -> int:
        """Bytes of the export to an address."""
        return OUTSIDE

    def write(self, offset: int, length: int, address: int) -> int:
        """Bytes from an address into the export; they must stay until ``finish``."""
        return OUTSIDE

    def finish(self) -> int:
        """Wait until all that was begun is done."""
        return 0


class MappedCopies(Copies):
    """Of memory that is mapped; its one place is its address."""

    def read(self, offset: int, length: int, address: int) -> int:
        if not self.within(offset, length):
            return OUTSIDE
        calls.copy(address, self._places[0] + offset, length)
        return 0

    def write(self, offset: int, length: int, address: int) -> int:
        if not self.within(offset, length):
            return OUTSIDE
        calls.copy(self._places[0] + offset, address, length)
        return 0


class QueuedCopies(Copies):
    """Of OpenCL buffers, through an in-order queue.

    Args:
        queue: its handle.
        functions: addresses of clEnqueueReadBuffer, clEnqueueWriteBuffer and clFinish.
    """

    def __init__(
        self,
        size_bytes: int,
        arena_bytes: int,
        places: list[int],
        failure: Callable[[int], DeviceError],
        queue: int,
        functions: tuple[int, int, int],
    ) -> None:
        Copies.__init__(self, size_bytes, arena_bytes, places, failure)
        self.queued = True
        self._queue = queue
        self._read, self._write, self._finish = functions

    def read(self, offset: int, length: int, address: int) -> int:
        if not self.within(offset, length):
            return OUTSIDE
        arena = offset // self.arena_bytes
        offset -= arena * self.arena_bytes
        return calls.transfer(self._read, self._queue, self._places[arena], offset, length, address)

    def write(self, offset: int, length: int, address: int) -> int:
        if not self.within(offset, length):
            return OUTSIDE
        arena = offset // self.arena_bytes
        offset -= arena * self.arena_bytes
        return calls.transfer(self._write, self._queue, self._places[arena], offset, length, address)

    def finish(self) -> int:
        return calls.finish(self._finish, self._queue)
