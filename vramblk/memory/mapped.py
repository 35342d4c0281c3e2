"""An export in memory that is mapped: a character device, a PCI BAR, or a file. No OpenCL.

The file is mapped once, whole, from offset 0: some character devices map only there, and their
size cannot be asked for. What lies behind is plain memory to this process, so a batch is a loop of
slice copies.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..units import Size
from .arenas import plan_arenas
from .base import MAXIMUM_ARENA_BYTES, Batch, Pattern, SlabWindow
from .maptarget import MapTarget, open_target
from .patterns import BLOCK_BYTES, bad_ranges, expected_words, prove

_CHUNK = 1 << 20

_SIMPLE = struct.Struct(">II")
_STRUCTURED = struct.Struct(">IHH")
_LENGTH_OFFSET = struct.Struct(">IQ")
_EXTENDED_TAIL = struct.Struct(">QQQ")


class MappedMemory:
    """See ``base.Memory``.

    Args:
        maximum_arena: bytes; less than the columns' own limit for tests of many arenas.

    Raises:
        PreconditionError: the path is refused; says why, and what would show or change it.
    """

    def __init__(
        self, path: str, size: Size, *, map_overwrite: bool = False, maximum_arena: int = MAXIMUM_ARENA_BYTES
    ) -> None:
        self._target: MapTarget = open_target(path, size, map_overwrite=map_overwrite)
        self.size_bytes = self._target.size_bytes
        self.arena_bytes = plan_arenas(self.size_bytes, maximum_arena)[0]
        self._bytes = memoryview(self._target.mapping)[: self.size_bytes]
        self._zeroes = bytes(_CHUNK)
        self._slabs: list[Any] = []
        self._columns: list[Any] = []
        self._bases: list[int] = []
        self.pinned: list[bool] = []
        self.zero_all()

    @property
    def description(self) -> dict[str, Any]:
        return {
            "description": f"{self._target.kind} {self._target.path}",
            "memory": "mapped",
            "device": f"map:{self._target.path}",
            "device_type": self._target.kind,
            "platform": "none",
            "vendor": "none",
            "driver": "none",
            "pci_address": self._target.pci_address,
            "platform_index": None,
            "device_index": None,
            "device_memory_bytes": self.size_bytes,
            "arenas": -(-self.size_bytes // self.arena_bytes),
            "pinned": True,
        }

    def attach(self, windows: Sequence[SlabWindow]) -> None:
        count = max((window.index for window in windows), default=-1) + 1
        self._slabs, self._columns, self._bases = [None] * count, [None] * count, [0] * count
        for window in windows:
            self._slabs[window.index] = memoryview(window.slab.data)
            self._columns[window.index] = window.columns
            self._bases[window.index] = window.base
        self.pinned = [True] * len(windows)

    def execute(self, batch: Batch) -> None:
        memory, slabs = self._bytes, self._slabs
        for window, first, count, _, _ in batch.writes:
            self._scatter(window, first, count)
        for window, lo, hi, offset in batch.copies_in:
            memory[offset : offset + hi - lo] = slabs[window][lo:hi]
        for offset, length in batch.zeroes:
            self._zero(offset, length)
        for window, first, count, _, _ in batch.reads:
            self._gather(window, first, count)
        for window, lo, hi, offset in batch.copies_out:
            slabs[window][lo:hi] = memory[offset : offset + hi - lo]
        for window, lo, hi, to in batch.echoes:
            slabs[window][to : to + hi - lo] = bytes(slabs[window][lo:hi])

    def _scatter(self, window: int, first: int, count: int) -> None:
        memory, arena_bytes = self._bytes, self.arena_bytes
        slab, base = self._slabs[window], self._bases[window]
        off16, pos4, shapes = self._columns[window][:3, first : first + count].tolist()
        for place, position, shape in zip(off16, pos4, shapes, strict=True):
            offset = (shape >> 24 & 0xF) * arena_bytes + place * 16
            length = (shape & 0xFFFF) * 16
            start = position * 4 - base
            memory[offset : offset + length] = slab[start : start + length]

    def _gather(self, window: int, first: int, count: int) -> None:
        memory, arena_bytes = self._bytes, self.arena_bytes
        slab, base = self._slabs[window], self._bases[window]
        columns = self._columns[window][:, first : first + count]
        off16, pos4, shapes = columns[:3].tolist()
        cookies = columns[3:5].T.tobytes()
        for number, (place, position, shape) in enumerate(zip(off16, pos4, shapes, strict=True)):
            offset = (shape >> 24 & 0xF) * arena_bytes + place * 16
            length = (shape & 0xFFFF) * 16
            start = position * 4 - base
            header = shape >> 16 & 0xF
            if header:
                _put_header(slab, start, header, cookies[number * 8 : number * 8 + 8], offset, length)
                start += header * 4
            slab[start : start + length] = memory[offset : offset + length]

    def _zero(self, offset: int, length: int) -> None:
        memory, zeroes = self._bytes, self._zeroes
        end = offset + length
        while offset < end:
            piece = min(_CHUNK, end - offset)
            memory[offset : offset + piece] = zeroes[:piece] if piece < _CHUNK else zeroes
            offset += piece

    def fill(self, offset: int, length: int, pattern: Pattern, seed: int = 0) -> None:
        if pattern is Pattern.ZERO:
            self._zero(offset, length)
            return
        for at in range(offset, offset + length, _CHUNK):
            part = min(_CHUNK, offset + length - at)
            self._bytes[at : at + part] = expected_words(pattern, at, part, seed).data.cast("B")

    def mismatches(self, offset: int, length: int, pattern: Pattern, seed: int = 0) -> list[tuple[int, int]]:
        bad = []
        for at in range(offset, offset + length, _CHUNK):
            part = min(_CHUNK, offset + length - at)
            found = np.frombuffer(self._bytes[at : at + part], np.uint32)
            differs = found != expected_words(pattern, at, part, seed)
            if differs.any():
                bad.append(differs.reshape(-1, BLOCK_BYTES // 4).any(axis=1))
            else:
                bad.append(np.zeros(part // BLOCK_BYTES, bool))
        return bad_ranges(np.concatenate(bad), offset) if bad else []

    def zero_all(self) -> None:
        self._zero(0, self.size_bytes)

    def prove(self) -> None:
        prove(self)

    def close(self) -> None:
        self._bytes.release()
        self._target.close()


def _put_header(slab: memoryview, at: int, words: int, cookie: bytes, offset: int, length: int) -> None:
    if words == 4:
        _SIMPLE.pack_into(slab, at, 0x67446698, 0)
    elif words == 7:
        _STRUCTURED.pack_into(slab, at, 0x668E33EF, 1, 1)
        _LENGTH_OFFSET.pack_into(slab, at + 16, 8 + length, offset)
    else:
        _STRUCTURED.pack_into(slab, at, 0x6E8A278C, 1, 1)
        _EXTENDED_TAIL.pack_into(slab, at + 16, offset, 8 + length, offset)
    slab[at + 8 : at + 16] = cookie
