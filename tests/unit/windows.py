"""Some workers' windows and the engine behind them, without workers: entries are pushed as a worker would push them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.unit.plain_memory import PlainMemory
from tests.unit.sharedmemory import make_shared
from vramblk.config.settings import load_settings
from vramblk.engine.executor import EngineWindow, Executor, engine_windows
from vramblk.engine.stagetimes import EngineTiming
from vramblk.memory.base import Batch
from vramblk.shared.descriptors import ZERO_HOLE, Op
from vramblk.shared.ring import SubmissionRing
from vramblk.shared.window import Window, Word

BLOCK = 4096
SIZE = 32 << 20
_SLAB_PART = 2 << 20


class Windows:
    """Windows whose rings tests fill; ``engine`` serves them from ``memory``: what ``open_memory`` opens, or a plain one.

    Attributes:
        corrupt: windows that the engine has reported.
    """

    def __init__(
        self,
        workers: int = 2,
        *options: str,
        before: Callable[[PlainMemory, Batch], None] = lambda memory, batch: None,
        arena_bytes: int | None = None,
        slab_part: int = _SLAB_PART,
        timing: EngineTiming | None = None,
        open_memory: Callable[[Sequence[EngineWindow]], Any] | None = None,
    ) -> None:
        settings = load_settings(["--allow-cpu", "--size", str(SIZE), *options], {})
        self.shared = make_shared(settings, workers, slab_part, slab_part)
        windows = engine_windows(self.shared.windows)
        self.memory: Any = (
            PlainMemory(SIZE, windows, arena_bytes, before) if open_memory is None else open_memory(windows)
        )
        self.written = self.shared.written[0]
        self.written.resize(SIZE)
        self.corrupt: list[int] = []
        self.engine = Executor(self.shared, [self.memory], windows, corrupt=self.corrupt.append, timing=timing)
        self.rings = [
            SubmissionRing(window, self.shared.engine_doorbell, self.shared.control)
            for window in self.shared.windows
        ]
        self._places = [0] * len(self.rings)

    def window(self, index: int) -> Window:
        return self.shared.windows[index]

    def renew(self, index: int) -> None:
        """What engine and supervisor do for the next worker, after one has died."""
        self.engine.drain_window(index)
        window = self.window(index)
        window.reset()
        self.rings[index] = SubmissionRing(window, self.shared.engine_doorbell, self.shared.control)

    def run(self) -> int:
        """Let the engine do what is queued; how many turns it took."""
        turns = 0
        while self.engine.turn():
            turns += 1
            assert turns < 10_000
        return turns

    def push(self, index: int, op: int, *, first: int = 0, count: int = 1, lo: int = 0, hi: int = 0,
             offset: int = 0, length: int = 0, flags: int = 0, export: int = 0) -> int:  # fmt: skip
        """Publish one entry; its number."""
        ring = self.rings[index]
        number = ring.tail
        ring.push(op, export, first, count, lo, hi, offset, length, flags)
        ring.publish()
        return number

    def read(self, index: int, offset: int, length: int) -> tuple[int, int]:
        """A read by itself: its number, and the place in the slab where the bytes will be."""
        place = self.place(index, length)
        number = self.push(
            index, Op.COPY_OUT, lo=place, hi=place + length, offset=offset, length=length
        )
        return number, place

    def write(self, index: int, offset: int, payload: bytes) -> int:
        """A write by itself."""
        place = self.place(index, len(payload))
        self.put(index, place, payload)
        return self.push(
            index, Op.COPY_IN, lo=place, hi=place + len(payload), offset=offset, length=len(payload)
        )

    def zero(self, index: int, offset: int, length: int, flags: int = ZERO_HOLE) -> int:
        return self.push(index, Op.ZERO, offset=offset, length=length, flags=flags)

    def gather(self, index: int, requests: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """A run of reads of (offset, length): number, and the place of the first one's bytes."""
        total = sum(length for _, length in requests)
        place = self.place(index, total)
        first = self.lay(index, requests, place)
        number = self.push(
            index, Op.GATHER, first=first, count=len(requests), lo=place, hi=place + total
        )
        return number, place

    def scatter(self, index: int, requests: Sequence[tuple[int, bytes]]) -> int:
        """A run of writes of (offset, payload)."""
        payload = b"".join(data for _, data in requests)
        place = self.place(index, len(payload))
        self.put(index, place, payload)
        first = self.lay(index, [(offset, len(data)) for offset, data in requests], place)
        return self.push(
            index, Op.SCATTER, first=first, count=len(requests), lo=place, hi=place + len(payload)
        )

    def lay(self, index: int, requests: Sequence[tuple[int, int]], place: int) -> int:
        """Columns of requests whose data lie one behind the other from ``place`` on; the first column."""
        window, arena_bytes = self.window(index), self.memory.arena_bytes
        first = self.rings[index].columns.allocate(len(requests))
        for column, (offset, length) in enumerate(requests, start=first):
            arena, within = divmod(offset, arena_bytes)
            window.columns[:, column] = within // 16, (window.base + place) // 4, length // 16 | arena << 16
            place += length
        return first

    def place(self, index: int, length: int) -> int:
        """Slab bytes that nothing else uses, until all have been used."""
        length = -(-length // 16) * 16
        if self._places[index] + length > len(self.window(index).slab):
            self._places[index] = 0
        self._places[index] += length
        return self._places[index] - length

    def put(self, index: int, place: int, payload: bytes) -> None:
        self.window(index).slab[place : place + len(payload)] = np.frombuffer(payload, np.uint8)

    def slab(self, index: int, place: int, length: int) -> bytes:
        return self.window(index).slab[place : place + length].tobytes()

    def done(self, index: int) -> int:
        return self.window(index).load(Word.DONE)

    def status(self, index: int, number: int) -> int:
        """NBD errno of an entry that must be done, as its worker would take it."""
        ring = self.rings[index]
        assert ring.done() > number
        return ring.take_status(number) if ring.failed() else 0

    def count(self, name: str) -> int:
        """One of the engine's counters."""
        return self.shared.control.engine_counters.scalar(name)

    def marked(self) -> list[int]:
        """Numbers of the blocks that are marked as written."""
        found: list[int] = self.written.blocks.nonzero()[0].tolist()
        return found
