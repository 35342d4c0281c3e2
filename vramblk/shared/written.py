"""The written-map of an export: one byte per 4 KiB block, 1 where something was written.

The engine alone writes it, in the order in which it gives commands to the device; a block is
marked before a write is submitted and cleared after zeroing has succeeded, so a block that is
not marked always reads as zero. Workers read it for block status, the observer for its metrics.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..system import kernel
from .protection import make_file, read_only, seal

BLOCK_BYTES = 4096
#: Blocks looked at in one step, 64 MiB of export: a caller that needs few runs does not wait for all of them.
_STEP = 1 << 14


class WrittenMap:
    """Made by the supervisor as an empty memory file, sized by the engine, mapped by all others."""

    def __init__(self) -> None:
        self._fd = make_file("vramblk-written")
        self.blocks: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)

    def resize(self, size_bytes: int) -> None:
        """Give the map its size and map it here; ``size_bytes`` is the export's."""
        length = -(-size_bytes // BLOCK_BYTES)
        os.ftruncate(self._fd, length)
        self.blocks = np.frombuffer(mmap.mmap(self._fd, length), np.uint8)

    def seal(self) -> None:
        """From here on nobody else can map it writable, write to it, or change its size."""
        seal(self._fd, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | kernel.F_SEAL_FUTURE_WRITE)

    def write_protect(self) -> None:
        """From here on this process can only read it."""
        read_only(self._fd)

    def open(self) -> None:
        """Map it in this process to read it, after the engine has sized it."""
        length = os.fstat(self._fd).st_size
        self.blocks = np.frombuffer(mmap.mmap(self._fd, length, prot=mmap.PROT_READ), np.uint8)

    def written_bytes(self) -> int:
        """Bytes in blocks that hold data; a block counts whole."""
        return int(np.count_nonzero(self.blocks)) * BLOCK_BYTES

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """Runs of like blocks over [offset, offset + length): (bytes, written), lazily.

        Neighbouring runs differ, the bytes add up to ``length``, none is zero.
        """
        end = offset + length
        last = -(-end // BLOCK_BYTES)
        block = offset // BLOCK_BYTES
        start = offset
        current: bool | None = None
        while block < last:
            stop = min(block + _STEP, last)
            part = self.blocks[block:stop] != 0
            if current is None:  # from the same look as what follows, since the engine marks meanwhile
                current = bool(part[0])
            elif bool(part[0]) != current:
                yield block * BLOCK_BYTES - start, current
                start, current = block * BLOCK_BYTES, not current
            for change in np.flatnonzero(part[1:] != part[:-1]).tolist():
                border = (block + change + 1) * BLOCK_BYTES
                yield border - start, current
                start, current = border, not current
            block = stop
        yield end - start, bool(current)
