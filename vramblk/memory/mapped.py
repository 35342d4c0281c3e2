"""An export in memory that is mapped: a character device, a PCI BAR, or a file. No OpenCL.

The file is mapped once, whole, from offset 0: some character devices map only there, and their
size cannot be asked for. What lies behind is plain memory to this process, so a batch is a loop of
slice copies. The places of a run's requests are checked before anything of the batch is done.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..config.units import Size
from ..shared.descriptors import Columns
from . import systemram
from .arenas import plan_arenas
from .base import (
    MAXIMUM_ARENA_BYTES,
    Batch,
    DeviceError,
    MissingMemory,
    Pattern,
    Progress,
    Run,
    SlabWindow,
)
from .checksums import MappedChecksums
from .copies import Copies, MappedCopies
from .maptarget import MapTarget, open_target
from .patterns import (
    BLOCK_BYTES,
    SHORT_STEP_BYTES,
    bad_ranges,
    expected_words,
    proof,
    prove,
    zeroing,
)

_CHUNK = 1 << 20
#: Of patterns at once: in swap mode what that takes has to be in hand, also while clients are served.
_PATTERN_CHUNK = 1 << 16


class _Request(NamedTuple):
    """One of a run, in bytes: of the export, and where in the slab its data lie."""

    offset: int
    length: int
    start: int


class MappedMemory:
    """See ``base.Memory``.

    Args:
        target: what is mapped already for other slices of the same path; None: map it.
        slices: how many exports share the path; this is number ``slice``.
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
        target: MapTarget | None = None,
        slices: int = 1,
        slice: int = 0,
    ) -> None:
        self.target = target or open_target(path, size, map_overwrite=map_overwrite, slices=slices)
        self.size_bytes = self.target.size_bytes
        self.arena_bytes = plan_arenas(self.size_bytes, maximum_arena)[0]
        self._start = slice * self.size_bytes
        self._bytes = memoryview(self.target.mapping)[self._start : self._start + self.size_bytes]
        self._zeroes = bytes(_CHUNK)
        self._slabs: list[Any] = []
        self._columns: list[Any] = []
        self._bases: list[int] = []
        self.pinned: list[bool] = []
        self._zero(0, self.size_bytes)
        self._checksums = MappedChecksums(self._bytes) if verify_reads else None
        #: Ranges that were or are being written under their old checksums.
        self._unsigned: list[tuple[int, int]] = []
        #: The last release has zeroed all of it, and given nothing back.
        self._kept = False

    @property
    def description(self) -> dict[str, Any]:
        return {
            "description": f"{self.target.kind} {self.target.path}",
            "memory": "mapped",
            "device": f"map:{self.target.path}",
            "device_type": self.target.kind,
            "platform": "none",
            "vendor": "none",
            "driver": "none",
            "pci_address": self.target.pci_address,
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
            self._columns[window.index] = Columns(window.columns.data)
            self._bases[window.index] = window.base
        self.pinned = [True] * len(windows)

    def copies(self) -> Copies | None:
        if self._checksums is not None:
            return None
        address = np.frombuffer(self.target.mapping, np.uint8).ctypes.data + self._start
        return MappedCopies(
            self.size_bytes, self.arena_bytes, [address],
            lambda status: DeviceError(errno.EINVAL, f"a copy outside of the memory ({status})"),
        )  # fmt: skip

    def execute(self, batch: Batch) -> None:
        memory, slabs, checksums = self._bytes, self._slabs, self._checksums
        writes = [(slabs[run.window], self._requests(run)) for run in batch.writes]
        reads = [(slabs[run.window], self._requests(run)) for run in batch.reads]
        if checksums is not None:
            if self._unsigned:
                checksums.sign(self._unsigned)
                self._unsigned.clear()
            checksums.check_edges(_written(batch, writes))
            # Until they are signed, whatever happens.
            self._unsigned += _written(batch, writes)
        for slab, requests in writes:
            for offset, length, start in requests:
                memory[offset : offset + length] = slab[start : start + length]
        for window, lo, hi, offset in batch.copies_in:
            memory[offset : offset + hi - lo] = slabs[window][lo:hi]
        for offset, length in batch.zeroes:
            self._zero(offset, length)
        if checksums is not None:
            checksums.sign(self._unsigned)
            self._unsigned.clear()
            checksums.check(_read(batch, reads))
        for slab, requests in reads:
            for offset, length, start in requests:
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
        columns = self._columns[run.window]
        found = []
        for column in range(run.first, run.first + run.count):
            length, start = columns.length(column), columns.position(column) - base
            first, within = columns.arena(column) * arena_bytes, columns.offset(column)
            if (
                within + length > arena_bytes
                or first + within + length > size_bytes
                or start < 0
                or start + length > slab_bytes
            ):
                raise DeviceError(errno.EINVAL, f"a request of window {run.window} points outside its memory")
            found.append(_Request(first + within, length, start))
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
            for at in range(offset, offset + length, _PATTERN_CHUNK):
                part = min(_PATTERN_CHUNK, offset + length - at)
                self._bytes[at : at + part] = expected_words(pattern, at, part, seed).data.cast("B")
        if self._checksums is not None:
            self._checksums.sign([(offset, length)])

    def mismatches(self, offset: int, length: int, pattern: Pattern, seed: int = 0) -> list[tuple[int, int]]:
        bad = []
        for at in range(offset, offset + length, _PATTERN_CHUNK):
            part = min(_PATTERN_CHUNK, offset + length - at)
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

    def release(self) -> Iterator[None]:
        """As ``base.Memory``; only a file gives memory back, a device keeps it, zeroed."""
        self._kept = False
        yield from zeroing(self)
        # Batches of echoes go on: signing would have the kernel take pages again.
        self._unsigned.clear()
        given = False
        for place in self.target.steps(self._start, self.size_bytes):
            given |= self.target.give_back(*place)
            yield
        self._kept = not given

    def take(self) -> Iterator[None]:
        """As ``base.Memory``; what was kept is zero and was proven at start."""
        if self._kept:
            return  # to read a PCI BAR back takes minutes, for which no client would wait
        if self.target.in_ram and (missing := systemram.missing_bytes(self.size_bytes)):
            raise MissingMemory(f"map:{self.target.path}: system RAM for {self.size_bytes} bytes", missing)
        taken = False
        try:
            yield from self.target.reserve_again(self._start, self.size_bytes)
            for _ in proof(self, SHORT_STEP_BYTES):
                yield
            taken = True
        finally:
            if not taken:
                self._unsigned.clear()
                self.target.give_back(self._start, self.size_bytes)

    def close(self) -> None:
        if self._checksums is not None:
            self._checksums.close()
        self._bytes.release()
        self.target.close()


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
