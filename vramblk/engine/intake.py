"""Checks of each request before a batch takes it: places, order, marks.

Compiled, with the types of ``intake.pxd``: every request of every client passes here.

A batch does its parts in a fixed order, by rank (see ``base.Memory.execute``). A write that comes behind a
part of a higher rank and overlaps it would be done too early, so it has to wait for the next batch. Which
blocks the batch touches is kept in a table of stamps, one for each 4 KiB block or, in a large export, for
several: so two requests may seem to overlap that do not, never the reverse.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..shared.descriptors import Columns
from ..shared.written import BLOCK_BYTES

#: What a request may meet: it must wait for the next batch, it may be for a range that fails, it is refused.
WAIT, SUSPECT, REFUSED = -1, -2, -3

#: 4 bytes each; up to 4 GiB of export every block has a stamp of its own.
_MOST_STAMPS = 1 << 20
_FLAGS = 1 << 12
_FLAG_MASK = _FLAGS - 1
_SHIFT = BLOCK_BYTES.bit_length() - 1
#: A stamp is the number of the batch, times eight, and 1 + the highest rank that touched the block.
_STEP, _LAST = 8, (1 << 32) - 16


class Entry:
    """A ring entry as it was read, once.

    Attributes:
        first: first column in the worker's window, whose statuses are the run's.
        at: first column in the engine's table.
        ranges: of a zeroing: (offset, length) of what needs it.
    """

    def __init__(
        self,
        window: int,
        number: int,
        op: int,
        first: int,
        at: int,
        count: int,
        lo: int,
        hi: int,
        offset: int,
        length: int,
        flags: int,
        ranges: Sequence[tuple[int, int]],
    ) -> None:
        self.window = window
        self.number = number
        self.op = op
        self.first = first
        self.at = at
        self.count = count
        self.lo = lo
        self.hi = hi
        self.offset = offset
        self.length = length
        self.flags = flags
        self.ranges = ranges


class Intake:
    """The requests of one export.

    Args:
        blocks: the written-map, one byte for each block.
        batch: the number from which batches count, times eight.
    """

    def __init__(self, size_bytes: int, arena_bytes: int, blocks: memoryview, batch: int = _STEP) -> None:
        count = max(1, -(-size_bytes // BLOCK_BYTES))
        stamps = min(_MOST_STAMPS, 1 << (count - 1).bit_length())
        self._size = size_bytes
        self._arena = arena_bytes
        self._blocks = blocks
        self._stamps = memoryview(bytearray(4 * stamps)).cast("I")
        self._mask = stamps - 1
        self._batch = batch
        self._flags = memoryview(bytearray(_FLAGS))
        self._flagged = False

    def begin(self) -> None:
        """The next batch: nothing is noted yet."""
        if self._batch >= _LAST:
            for index in range(self._mask + 1):
                self._stamps[index] = 0
            self._batch = 0
        self._batch += _STEP

    def scan(self, offset: int, length: int, rank: int) -> int:
        """Look at a range of the export, bytes: 0, WAIT or SUSPECT.

        Args:
            rank: it must not overlap what was noted with at least this rank; more than 6 for no matter.
        """
        if not length:
            return 0
        if rank >= _STEP and not self._flagged:
            return 0
        suspect = False
        least = self._batch + rank + 1
        for block in range(offset >> _SHIFT, ((offset + length - 1) >> _SHIFT) + 1):
            if rank < _STEP and self._stamps[block & self._mask] >= least:
                return WAIT
            if self._flagged and self._flags[block & _FLAG_MASK]:
                suspect = True
        return SUSPECT if suspect else 0

    def commit(self, offset: int, length: int, rank: int, mark: bool) -> None:
        """The batch takes a range with this rank, 0 to 6; ``mark``: it writes there."""
        if not length:
            return
        stamp = self._batch + rank + 1
        for block in range(offset >> _SHIFT, ((offset + length - 1) >> _SHIFT) + 1):
            if self._stamps[block & self._mask] < stamp:
                self._stamps[block & self._mask] = stamp
            if mark:
                self._blocks[block] = 1

    def take_run(
        self,
        theirs: Columns,
        ours: Columns,
        first: int,
        at: int,
        count: int,
        lo: int,
        hi: int,
        rank: int,
    ) -> int:
        """Copy the columns of a run and look at what they name.

        Args:
            theirs, ours: see ``base.Memory``. Columns [first, first + count) of the worker's become columns
                from ``at`` on of the engine's, and only these are looked at.
            lo, hi: bytes, counted as the columns count their places: where the data must lie.
            rank: as for ``scan``.

        Returns:
            Bytes of payload, or WAIT, SUSPECT or REFUSED.
        """
        total = 0
        suspect = wait = False
        ours.copy(at, theirs, first, count)
        least = self._batch + rank + 1
        for column in range(at, at + count):
            length = ours.length(column)
            before = ours.arena(column) * self._arena
            offset = ours.offset(column)
            place = ours.position(column)
            if (
                offset + length > self._arena
                or before + offset + length > self._size
                or place < lo
                or place + length > hi
            ):
                return REFUSED
            total += length
            if length and (rank < _STEP or self._flagged):
                offset += before
                for block in range(offset >> _SHIFT, ((offset + length - 1) >> _SHIFT) + 1):
                    if rank < _STEP and self._stamps[block & self._mask] >= least:
                        wait = True
                    if self._flagged and self._flags[block & _FLAG_MASK]:
                        suspect = True
        if wait:
            return WAIT
        return SUSPECT if suspect else total

    def meets(self, ours: Columns, at: int, count: int, rank: int) -> bool:
        """Whether the run in columns [at, at + count) overlaps what was noted with any rank but this one."""
        same = self._batch + rank + 1
        for column in range(at, at + count):
            length = ours.length(column)
            if length:
                offset = ours.arena(column) * self._arena + ours.offset(column)
                for block in range(offset >> _SHIFT, ((offset + length - 1) >> _SHIFT) + 1):
                    stamp = self._stamps[block & self._mask]
                    if stamp > self._batch and stamp != same:
                        return True
        return False

    def commit_run(self, ours: Columns, at: int, count: int, rank: int, mark: bool) -> None:
        """The batch takes the run in columns [at, at + count) with this rank; ``mark``: it writes."""
        for column in range(at, at + count):
            before = ours.arena(column) * self._arena
            self.commit(before + ours.offset(column), ours.length(column), rank, mark)

    def place(self, ours: Columns, column: int) -> tuple[int, int]:
        """Offset and length, bytes, of the request in a column of the engine's."""
        return ours.place(column, self._arena)

    def flag(self, first: int, last: int) -> None:
        """Blocks [first, last] may fail: ``scan`` reports SUSPECT for them, and for some others."""
        self._flagged = True
        for block in range(first, min(last, first + _FLAG_MASK) + 1):
            self._flags[block & _FLAG_MASK] = 1

    def unflag(self) -> None:
        """No block is suspect any more."""
        self._flagged = False
        for index in range(_FLAGS):
            self._flags[index] = 0
