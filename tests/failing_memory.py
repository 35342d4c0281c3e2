"""A memory that fails on demand, around a real one: for tests of what the engine makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vramblk.memory.base import Batch, DeviceError, Memory, Run, SlabWindow

EIO = 5


class FailingMemory:
    """Behaves like the memory inside it, but for ``execute``, which fails before it touches anything.

    Attributes:
        every: each so-manieth execute fails; 0 for none.
        ranges: a batch that touches one of these ranges [lo, hi) of export offsets fails.
        errno: of the failures.
        lost: from now on every execute fails, as on a device that has gone.
        executed: how often ``execute`` was called.
    """

    def __init__(self, inner: Memory, windows: Sequence[SlabWindow]) -> None:
        self.every = 0
        self.ranges: list[tuple[int, int]] = []
        self.errno = EIO
        self.lost = False
        self.executed = 0
        self._inner = inner
        self._columns = {window.index: window.columns for window in windows}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def execute(self, batch: Batch) -> None:
        self.executed += 1
        if self.lost:
            raise DeviceError(self.errno, "the device is lost", lost=True)
        if self.every and self.executed % self.every == 0:
            raise DeviceError(self.errno, f"execute {self.executed} was to fail")
        for lo, hi in self._touched(batch):
            if any(lo < bad_hi and bad_lo < hi for bad_lo, bad_hi in self.ranges):
                raise DeviceError(self.errno, f"a range that was to fail lies in {lo:#x} to {hi:#x}")
        self._inner.execute(batch)

    def _touched(self, batch: Batch) -> Iterator[tuple[int, int]]:
        for run in (*batch.writes, *batch.reads):
            yield from self._requests(run)
        for copy in (*batch.copies_in, *batch.copies_out):
            yield copy.offset, copy.offset + copy.hi - copy.lo
        for zero in batch.zeroes:
            yield zero.offset, zero.offset + zero.length

    def _requests(self, run: Run) -> Iterator[tuple[int, int]]:
        places, _, shapes = self._columns[run.window][:, run.first : run.first + run.count].tolist()
        for place, shape in zip(places, shapes, strict=True):
            lo = (shape >> 16) * self._inner.arena_bytes + place * 16
            yield lo, lo + (shape & 0xFFFF) * 16
