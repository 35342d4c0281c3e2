"""A memory in a numpy array, the obvious way: the model that other memories and the engine are held against.

It overwrites all that a memory may overwrite: what lies between the data of reads becomes ``LEFT_OVER``. What
it may do early it does first: the reads of a batch that is ``apart``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vramblk.memory.base import Batch, Run, SlabWindow

#: What a staging buffer may have held.
LEFT_OVER = 0xEE


class PlainMemory:
    """``before`` is called with each batch and may raise DeviceError."""

    def __init__(
        self,
        size_bytes: int,
        windows: Sequence[SlabWindow],
        arena_bytes: int | None = None,
        before: Callable[[PlainMemory, Batch], None] = lambda memory, batch: None,
    ) -> None:
        self.size_bytes = size_bytes
        self.arena_bytes = arena_bytes or size_bytes
        self.bytes = np.zeros(size_bytes, np.uint8)
        self.description: dict[str, Any] = {"device": "a numpy array"}
        self.pinned = [False for _ in windows]
        self.executed = 0
        self._windows = windows
        self._before = before

    def requests(self, index: int, first: int, count: int) -> list[tuple[int, int, int]]:
        """(export offset, length, slab position) of a run's columns."""
        window = self._windows[index]
        rows = []
        for column in range(first, first + count):
            place, position, shape = (int(value) for value in window.columns[:, column])
            offset = (shape >> 16) * self.arena_bytes + place * 16
            rows.append((offset, (shape & 0xFFFF) * 16, position * 4 - window.base))
        return rows

    def execute(self, batch: Batch) -> None:
        self._before(self, batch)
        self.executed += 1
        if batch.apart:
            self._read(batch)
        for run in batch.writes:
            slab = self._windows[run.window].slab
            for offset, length, at in self.requests(run.window, run.first, run.count):
                self.bytes[offset : offset + length] = slab[at : at + length]
        for copy in batch.copies_in:
            length = copy.hi - copy.lo
            self.bytes[copy.offset : copy.offset + length] = self._windows[copy.window].slab[
                copy.lo : copy.hi
            ]
        for zero in batch.zeroes:
            self.bytes[zero.offset : zero.offset + zero.length] = 0
        if not batch.apart:
            self._read(batch)
        for copy in batch.copies_out:
            length = copy.hi - copy.lo
            self._windows[copy.window].slab[copy.lo : copy.hi] = self.bytes[
                copy.offset : copy.offset + length
            ]
        for copy in batch.echoes:
            slab = self._windows[copy.window].slab
            slab[copy.offset : copy.offset + copy.hi - copy.lo] = slab[copy.lo : copy.hi].copy()

    def _read(self, batch: Batch) -> None:
        before: Run | None = None
        for run in batch.reads:
            joined = run.joins and before is not None and before.window == run.window and before.hi <= run.lo
            lo = before.hi if before is not None and joined else run.lo
            self._windows[run.window].slab[lo : run.hi] = LEFT_OVER
            before = run
        for run in batch.reads:
            slab = self._windows[run.window].slab
            for offset, length, at in self.requests(run.window, run.first, run.count):
                slab[at : at + length] = self.bytes[offset : offset + length]
