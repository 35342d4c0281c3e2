"""The checksums of an export on an OpenCL device: 32 bits for each 4 KiB, in a buffer beside it.

All is queued: blocks are signed behind the command that wrote them, and compared ahead of the command
that reads them. What the comparisons of a batch found is two words, which come to the host behind
everything else. See ``checksums`` for what a checksum is and what it catches.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..shared.descriptors import places
from .arenas import split
from .base import ChecksumError, Run
from .checksums import Ranges, edges, touched
from .opendevice import OpenDevice
from .patterns import BLOCK_BYTES

#: What a launch does with the blocks; kernels.cl has the same numbers.
_SIGN, _CHECK, _EDGES = range(3)
#: Arguments of checksum_runs; the arenas come before them, and one between them is the table.
_SUMS, _ARENA_BYTES, _SIZE_BYTES, _FOUND, _TASK = 16, 17, 18, 19, 21


def checksum_bytes(size_bytes: int) -> int:
    """Device memory that the checksums of an export take."""
    return size_bytes // BLOCK_BYTES * 4


class DeviceChecksums:
    """The table of one export; begins, each time it is taken, with the checksums of what the export holds.

    Args:
        arenas: handles of the export's buffers; the list may have others when the table is taken again.

    Attributes:
        sign_runs, check_runs, check_run_edges: kernels over the requests of a run, which lack only
            the table. Edges are the blocks that a request covers in part.

    Raises:
        DeviceError: no memory for the table.
    """

    def __init__(self, device: OpenDevice, arenas: Sequence[int], arena_bytes: int, size_bytes: int) -> None:
        self._device = device
        self._arenas = arenas
        self._arena_bytes = arena_bytes
        self._nothing = np.zeros(2, np.uint32)
        self._seen = np.zeros(2, np.uint32)
        self._places = np.zeros(3, np.uint64)
        self._size_bytes = size_bytes
        self._buffers: list[Any] = []
        self.sign_runs, self.check_runs, self.check_run_edges = (
            device.kernel("checksum_runs") for _ in range(3)
        )
        self._sign, self._check = (device.kernel("checksum_blocks") for _ in range(2))
        self.take()

    def take(self) -> None:
        """Allocate the table and sign all blocks; also after ``close``.

        Raises:
            DeviceError: no memory for the table; nothing stays allocated.
        """
        try:
            for length in (checksum_bytes(self._size_bytes), self._nothing.nbytes):
                self._buffers.append(self._device.allocate(length))
            self._sums, self._found = (int(buffer.int_ptr) for buffer in self._buffers)
            for task, kernel in enumerate((self.sign_runs, self.check_runs, self.check_run_edges)):
                self._prepare_runs(kernel, task)
            for task, kernel in ((_SIGN, self._sign), (_CHECK, self._check)):
                self._prepare_blocks(kernel, task)
            self.forget()
            self.sign([(0, self._size_bytes)])
            self._device.finish()
        except BaseException:
            self.close()
            raise

    def _prepare_runs(self, kernel: int, task: int) -> None:
        device = self._device
        device.set_arenas(kernel, self._arenas)
        device.set_buffer(kernel, _SUMS, self._sums)
        device.set_number(kernel, _ARENA_BYTES, ctypes.c_uint64(self._arena_bytes))
        device.set_number(kernel, _SIZE_BYTES, ctypes.c_uint64(self._size_bytes))
        device.set_buffer(kernel, _FOUND, self._found)
        device.set_number(kernel, _TASK, ctypes.c_uint32(task))

    def _prepare_blocks(self, kernel: int, task: int) -> None:
        device = self._device
        device.set_buffer(kernel, 4, self._sums)
        device.set_buffer(kernel, 5, self._found)
        device.set_number(kernel, 6, ctypes.c_uint32(task))

    def sign(self, ranges: Ranges) -> None:
        """Queue the checksums of all blocks that the ranges touch to be computed and kept."""
        for offset, length in ranges:
            self._queue(self._sign, touched(offset, length))

    def check(self, ranges: Ranges) -> None:
        """Queue the comparison of all blocks that the ranges touch."""
        for offset, length in ranges:
            self._queue(self._check, touched(offset, length))

    def check_edges(self, ranges: Ranges) -> bool:
        """Queue the comparison of the blocks that the ranges cover in part; whether there are any."""
        numbers = [number for each in ranges for number in edges(*each)]
        for number in numbers:
            self._queue(self._check, range(number, number + 1))
        return bool(numbers)

    def partly(self, run: Run) -> bool:
        """Whether a run has requests that begin or end within a block."""
        columns = self._device.columns[run.window][:, run.first : run.first + run.count]
        # Arenas are whole blocks, so that it does not matter in which a request lies.
        offsets, lengths = places(columns, self._arena_bytes)
        return bool(((offsets | lengths) % BLOCK_BYTES).any())

    def _queue(self, kernel: int, blocks: range) -> None:
        device, places = self._device, self._places
        lo, length = blocks.start * BLOCK_BYTES, len(blocks) * BLOCK_BYTES
        for arena, within, piece in split(lo, length, self._arena_bytes):
            places[0] = within // BLOCK_BYTES
            places[1] = piece // BLOCK_BYTES
            places[2] = arena * self._arena_bytes // BLOCK_BYTES
            device.set_buffer(kernel, 0, self._arenas[arena])
            for index in range(3):
                device.set_value(kernel, 1 + index, places.ctypes.data + 8 * index, 8)
            device.launch(kernel, device.block_sizes(piece // BLOCK_BYTES))

    def fetch(self) -> None:
        """Queue the copy of what the comparisons found; ``verdict`` may be asked once it is finished."""
        self._device.read_later(self._found, self._seen)

    def verdict(self) -> None:
        """Say what was fetched.

        Raises:
            ChecksumError: blocks do not hold what was signed; ``forget`` before the next comparison.
        """
        count, number = self._seen.tolist()
        if count:
            raise ChecksumError(count, number * BLOCK_BYTES)

    def forget(self) -> None:
        """Queue that nothing was found."""
        self._device.write_later(self._found, self._nothing)

    def close(self) -> None:
        for buffer in self._buffers:
            self._device.free(buffer)
        self._buffers.clear()
