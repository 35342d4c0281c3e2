"""An export in memory that is mapped: a character device, a PCI BAR, or a file. No OpenCL.

The file is mapped once, whole, from offset 0: some character devices map only there, and their
size cannot be asked for. What lies behind is plain memory to this process, so a batch is a loop of
slice copies. The places of a run's requests are checked before anything of the batch is done.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..units import Size
from .arenas import plan_arenas
from .base import (
    HEADER_EXTENDED,
    HEADER_NONE,
    HEADER_SIMPLE,
    HEADER_STRUCTURED,
    MAXIMUM_ARENA_BYTES,
    Batch,
    DeviceError,
    Pattern,
    Progress,
    Run,
    SlabWindow,
)
from .checksums import MappedChecksums
from .maptarget import MapTarget, open_target
from .patterns import BLOCK_BYTES, bad_ranges, expected_words, prove

_CHUNK = 1 << 20
_EINVAL = 22
_HEADERS = (HEADER_NONE, HEADER_SIMPLE, HEADER_STRUCTURED, HEADER_EXTENDED)

_SIMPLE = struct.Struct(">II")
_STRUCTURED = struct.Struct(">IHH")
_LENGTH_OFFSET = struct.Struct(">IQ")
_EXTENDED_TAIL = struct.Struct(">QQQ")


class _Request(NamedTuple):
    """One of a run, in bytes: of the export, and of the slab where the header or the payload begins."""

    offset: int
    length: int
    start: int
    header: int
    cookie: bytes


class MappedMemory:
    """See ``base.Memory``.

    Args:
        verify_reads: keep checksums; see ``checksums``.
        maximum_arena: bytes; less than the columns' own limit for tests of many arenas.

    Raises:
        PreconditionError: the path is refused; says why, and what would show or change it.
    """

    def __init__(
        self,
        path: str,
        size: Size,
        *,
        map_overwrite: bool = False,
        verify_reads: bool = False,
        maximum_arena: int = MAXIMUM_ARENA_BYTES,
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
        self._zero(0, self.size_bytes)
        self._checksums = MappedChecksums(self._bytes) if verify_reads else None

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
        memory, slabs, checksums = self._bytes, self._slabs, self._checksums
        writes = [(slabs[run.window], self._requests(run)) for run in batch.writes]
        reads = [(slabs[run.window], self._requests(run)) for run in batch.reads]
        if checksums is not None:
            checksums.check_edges(_written(batch, writes))
        for slab, requests in writes:
            for offset, length, start, _, _ in requests:
                memory[offset : offset + length] = slab[start : start + length]
        for window, lo, hi, offset in batch.copies_in:
            memory[offset : offset + hi - lo] = slabs[window][lo:hi]
        for offset, length in batch.zeroes:
            self._zero(offset, length)
        if checksums is not None:
            checksums.sign(_written(batch, writes))
            checksums.check(_read(batch, reads))
        for slab, requests in reads:
            for offset, length, start, header, cookie in requests:
                if header:
                    _put_header(slab, start, header, cookie, offset, length)
                    start += header * 4
                slab[start : start + length] = memory[offset : offset + length]
        for window, lo, hi, offset in batch.copies_out:
            slabs[window][lo:hi] = memory[offset : offset + hi - lo]
        for window, lo, hi, to in batch.echoes:
            slabs[window][to : to + hi - lo] = bytes(slabs[window][lo:hi])

    def _requests(self, run: Run) -> list[_Request]:
        """The requests of a run.

        Raises:
            DeviceError: EINVAL, one of them points outside the export, its arena or the slab.
        """
        arena_bytes, size_bytes = self.arena_bytes, self.size_bytes
        base, slab_bytes = self._bases[run.window], len(self._slabs[run.window])
        # A copy, so that a worker cannot change what was checked.
        columns = self._columns[run.window][:, run.first : run.first + run.count].copy()
        off16, pos4, shapes = columns[:3].tolist()
        cookies = columns[3:5].T.tobytes()
        found = []
        for number, (place, position, shape) in enumerate(zip(off16, pos4, shapes, strict=True)):
            length, header = (shape & 0xFFFF) * 16, shape >> 16 & 0xF
            first, within = (shape >> 24 & 0xF) * arena_bytes, place * 16
            start = position * 4 - base
            if (
                within + length > arena_bytes
                or first + within + length > size_bytes
                or start < 0
                or start + header * 4 + length > slab_bytes
                or header not in _HEADERS
            ):
                raise DeviceError(_EINVAL, f"a request of window {run.window} points outside its memory")
            cookie = cookies[number * 8 : number * 8 + 8]
            found.append(_Request(first + within, length, start, header, cookie))
        return found

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
        else:
            for at in range(offset, offset + length, _CHUNK):
                part = min(_CHUNK, offset + length - at)
                self._bytes[at : at + part] = expected_words(pattern, at, part, seed).data.cast("B")
        if self._checksums is not None:
            self._checksums.sign([(offset, length)])

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
        self.fill(0, self.size_bytes, Pattern.ZERO)

    def prove(self, progress: Progress | None = None) -> None:
        prove(self, progress)

    def close(self) -> None:
        if self._checksums is not None:
            self._checksums.close()
        self._bytes.release()
        self._target.close()


_Requests = Sequence[tuple[memoryview, Sequence[_Request]]]


def _written(batch: Batch, writes: _Requests) -> Iterator[tuple[int, int]]:
    """Ranges (offset, length) of the export that a batch writes."""
    yield from (request[:2] for _, requests in writes for request in requests)
    yield from ((offset, hi - lo) for _, lo, hi, offset in batch.copies_in)
    yield from batch.zeroes


def _read(batch: Batch, reads: _Requests) -> Iterator[tuple[int, int]]:
    """Ranges (offset, length) of the export that a batch reads."""
    yield from (request[:2] for _, requests in reads for request in requests)
    yield from ((offset, hi - lo) for _, lo, hi, offset in batch.copies_out)


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
