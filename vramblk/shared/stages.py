"""Times of the stages that a batch goes through, in shared memory.

Only the server that ``vramblk bench --profile`` starts has such times: it sets ``active`` before it
forks. In every other server ``active`` stays None; each process looks at it once, when it starts, and
the data path holds no instruction of all this. Where it is set, executor, worker and connections are given
a timing at construction (``engine.stagetimes``, ``serving.stagetimes``), and wrap their own calls in it, as
``memory.hotcalls`` does with OpenCL's.

A worker stamps the ring slot of the last entry that it publishes, the engine the last one that it has
done; the other side takes the stamp away and records how old it is.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from .descriptors import ENTRIES


class Stage(IntEnum):
    """In the order in which a batch meets them."""

    RECEIVE = 0
    PARSE = 1
    SUBMIT = 2
    TO_TAKEN = 3
    DECODE = 4
    PLAN = 5
    SET_ARG = 6
    LAUNCH = 7
    COPY = 8
    FINISH = 9
    COMPLETE = 10
    TO_COLLECTED = 11
    COLLECT = 12
    SEND = 13


_SUB_BITS = 4  # sixteen buckets for each power of two: a median is right within 3 %
_SUBS = 1 << _SUB_BITS
_LONGEST_NS = 1 << 40
_BUCKETS = (40 - _SUB_BITS) * _SUBS + _SUBS
_ROW = _BUCKETS + 1  # the buckets of a stage, and the sum of its times
_BATCHES = len(Stage) * _ROW
_REQUESTS = _BATCHES + 1
_RECORDER_CELLS = _REQUESTS + 1


def _bucket(ns: int) -> int:
    if ns < _SUBS:
        return max(ns, 0)
    shift = min(ns, _LONGEST_NS - 1).bit_length() - _SUB_BITS - 1
    return (shift << _SUB_BITS) + (min(ns, _LONGEST_NS - 1) >> shift)


def _middle(bucket: int) -> float:
    """Nanoseconds in the middle of a bucket."""
    if bucket < 2 * _SUBS:
        return bucket
    shift = (bucket >> _SUB_BITS) - 1
    return (((bucket & _SUBS - 1) + _SUBS << shift) + (1 << shift >> 1)) * 1.0


@dataclass(frozen=True)
class StageSummary:
    """One stage over some time: how often it was recorded, and its nanoseconds."""

    samples: int
    total_ns: int
    median_ns: float


class Recorder:
    """The cells of one process.

    Attributes:
        gathered: nanoseconds by stage that belong to the batch at hand; ``close`` records them.
    """

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells
        self.gathered = [0] * len(Stage)

    def record(self, stage: int, ns: int) -> None:
        cells = self._cells
        row = stage * _ROW
        cells[row + _bucket(ns)] += 1
        cells[row + _BUCKETS] += ns

    def close(self, stages: Sequence[int]) -> None:
        """Record what was gathered in these stages as one sample each, where there is any."""
        gathered = self.gathered
        for stage in stages:
            if gathered[stage]:
                self.record(stage, gathered[stage])
                gathered[stage] = 0

    def count_batch(self, requests: int) -> None:
        self._cells[_BATCHES] += 1
        self._cells[_REQUESTS] += requests

    def timed(self, call: Callable[..., Any], stage: int) -> Callable[..., Any]:
        """The same call; its time is gathered under the stage."""
        gathered, clock = self.gathered, time.monotonic_ns

        def wrapper(*arguments: Any, **named: Any) -> Any:
            begin = clock()
            try:
                return call(*arguments, **named)
            finally:
                gathered[stage] += clock() - begin

        return wrapper


class StageTimes:
    """Cells and stamps of all processes in one shared mapping, made before the server forks.

    Args:
        windows: one for each worker, and the canary's.

    Attributes:
        engine: recorder of the engine process.
        workers: recorder of each worker process, by its window.
        submitted, done: per window, one 64-bit cell for each ring slot: the monotonic time at which
            the worker published up to that entry, and at which the engine had done it; 0 for none.
    """

    def __init__(self, windows: int) -> None:
        recorders = windows + 1
        mapping = mmap.mmap(
            -1,
            (recorders * _RECORDER_CELLS + 2 * windows * ENTRIES) * 8,
            flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS,
        )
        self._cells = memoryview(mapping).cast("Q")
        parts = [
            self._cells[index * _RECORDER_CELLS : (index + 1) * _RECORDER_CELLS] for index in range(recorders)
        ]
        self.engine, *self.workers = map(Recorder, parts)
        self._recorded = recorders * _RECORDER_CELLS
        stamps = [
            self._cells[start : start + ENTRIES] for start in range(self._recorded, len(self._cells), ENTRIES)
        ]
        self.submitted, self.done = stamps[:windows], stamps[windows:]

    def snapshot(self) -> Snapshot:
        """What all processes have recorded so far; they go on meanwhile."""
        cells = self._cells[: self._recorded].tolist()
        rows = [cells[start : start + _RECORDER_CELLS] for start in range(0, len(cells), _RECORDER_CELLS)]
        return Snapshot([sum(column) for column in zip(*rows, strict=True)])


class Snapshot:
    """Sums over all processes; ``later - earlier`` is what came in between."""

    def __init__(self, cells: list[int]) -> None:
        self._cells = cells

    def __sub__(self, earlier: Snapshot) -> Snapshot:
        return Snapshot([ours - theirs for ours, theirs in zip(self._cells, earlier._cells, strict=True)])

    @property
    def batches(self) -> int:
        return self._cells[_BATCHES]

    @property
    def requests(self) -> int:
        return self._cells[_REQUESTS]

    def stage(self, stage: Stage) -> StageSummary:
        row = stage * _ROW
        counts = self._cells[row : row + _BUCKETS]
        samples = sum(counts)
        seen, median_ns = 0, 0.0
        for bucket, count in enumerate(counts):
            seen += count
            if samples and 2 * seen >= samples:
                median_ns = _middle(bucket)
                break
        return StageSummary(samples, self._cells[row + _BUCKETS], median_ns)


#: Where the processes of this server record; None: they do not. Set before the first fork.
active: StageTimes | None = None
