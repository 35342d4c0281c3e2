"""A memory in a numpy array, the obvious way: the model that other memories and the engine are held against."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vramblk.memory.base import Batch
from vramblk.shared.window import Window

_HEADERS: dict[int, Callable[[bytes, int, int], bytes]] = {
    0: lambda cookie, offset, length: b"",
    4: lambda cookie, offset, length: struct.pack(">II8s", 0x67446698, 0, cookie),
    7: lambda cookie, offset, length: struct.pack(">IHH8sIQ", 0x668E33EF, 1, 1, cookie, length + 8, offset),
    10: lambda cookie, offset, length: struct.pack(
        ">IHH8sQQQ", 0x6E8A278C, 1, 1, cookie, offset, length + 8, offset
    ),
}


class PlainMemory:
    """``before`` is called with each batch and may raise DeviceError."""

    def __init__(
        self,
        size_bytes: int,
        windows: Sequence[Window],
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

    def requests(self, index: int, first: int, count: int) -> list[tuple[int, int, int, int, bytes]]:
        """(export offset, length, slab position, header words, cookie) of a run's columns."""
        window = self._windows[index]
        rows = []
        for column in range(first, first + count):
            place, position, shape, lo, hi = (int(value) for value in window.columns[:, column])
            offset = (shape >> 24) * self.arena_bytes + place * 16
            rows.append(
                (
                    offset,
                    (shape & 0xFFFF) * 16,
                    position * 4 - window.base,
                    shape >> 16 & 0xF,
                    struct.pack("<II", lo, hi),
                )
            )
        return rows

    def execute(self, batch: Batch) -> None:
        self._before(self, batch)
        self.executed += 1
        for run in batch.writes:
            slab = self._windows[run.window].slab
            for offset, length, at, _, _ in self.requests(run.window, run.first, run.count):
                self.bytes[offset : offset + length] = slab[at : at + length]
        for copy in batch.copies_in:
            length = copy.hi - copy.lo
            self.bytes[copy.offset : copy.offset + length] = self._windows[copy.window].slab[
                copy.lo : copy.hi
            ]
        for zero in batch.zeroes:
            self.bytes[zero.offset : zero.offset + zero.length] = 0
        for run in batch.reads:
            slab = self._windows[run.window].slab
            for offset, length, at, words, cookie in self.requests(run.window, run.first, run.count):
                reply = (
                    _HEADERS[words](cookie, offset, length) + self.bytes[offset : offset + length].tobytes()
                )
                slab[at : at + len(reply)] = np.frombuffer(reply, np.uint8)
        for copy in batch.copies_out:
            length = copy.hi - copy.lo
            self._windows[copy.window].slab[copy.lo : copy.hi] = self.bytes[
                copy.offset : copy.offset + length
            ]
        for copy in batch.echoes:
            slab = self._windows[copy.window].slab
            slab[copy.offset : copy.offset + copy.hi - copy.lo] = slab[copy.lo : copy.hi].copy()
