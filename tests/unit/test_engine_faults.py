"""What one client, or a worker with corrupt memory, must not do to the engine and to others."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.unit.plain_memory import PlainMemory
from tests.unit.sharedmemory import make_shared
from tests.unit.uncompiled import load
from vramblk.config.settings import load_settings
from vramblk.engine.executor import Executor, engine_windows
from vramblk.memory.base import Batch, DeviceError
from vramblk.shared.descriptors import COLUMN_ROWS, Op
from vramblk.shared.ring import SubmissionRing
from vramblk.shared.window import Word

SIZE = 4 << 20
SLAB = 1 << 20
BLOCK = 4096


class Engine:
    """An executor behind two workers' rings, on a plain memory."""

    def __init__(self, before: Any = lambda memory, batch: None) -> None:
        self.shared = make_shared(load_settings(["--allow-cpu", "--size", "4M"], {}), 2, SLAB, SLAB)
        windows = engine_windows(self.shared.windows)
        self.memory = PlainMemory(SIZE, windows, None, before)
        self.shared.written[0].resize(SIZE)
        self.executor = Executor(self.shared, [self.memory], windows)
        self.rings = [
            SubmissionRing(window, self.shared.engine_doorbell, self.shared.control) for window in self.shared.windows
        ]
        for window in self.shared.client_windows:
            window.store(Word.READY, 1)

    def read(self, worker: int, offset: int) -> None:
        self.rings[worker].push(Op.COPY_OUT, 0, 0, 1, SLAB, SLAB + BLOCK, offset, BLOCK)

    def write(self, worker: int, offset: int, value: int = 1) -> None:
        self.shared.windows[worker].slab[:BLOCK] = value
        self.rings[worker].push(Op.COPY_IN, 0, 0, 1, 0, BLOCK, offset, BLOCK)

    def lay(self, worker: int, first: int, offset: int, position: int) -> None:
        """One column of a run: 4 KiB at ``offset``, whose payload or data lies at ``position`` of the slab."""
        window = self.shared.windows[worker]
        window.columns[:, first] = offset >> 4, window.base + position >> 2, BLOCK >> 4

    def publish(self) -> None:
        for ring in self.rings:
            ring.publish()

    def done(self, worker: int) -> int:
        return self.rings[worker].done()


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    faulthandler.dump_traceback_later(10, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("writer", [0, 1])
def test_a_write_does_not_wait_for_ever_behind_another_workers_reads_of_its_block(writer: int) -> None:
    engine = Engine()
    reader = 1 - writer
    engine.read(reader, 0)
    engine.publish()
    assert engine.executor.turn()
    engine.write(writer, 0)
    turns = 0
    while not engine.done(writer) and turns < 100:
        engine.read(reader, 0)  # a client that keeps one read of the block in the queue at any time
        engine.publish()
        assert engine.executor.turn()
        turns += 1
    assert turns < 5, f"the write was not executed within {turns} turns"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_request_for_a_range_that_has_failed_is_executed_though_another_worker_is_busy(victim: int) -> None:
    def fail_once(memory: PlainMemory, batch: Batch) -> None:
        if failures and any(copy.offset == 0 for copy in batch.copies_out):
            failures.pop()
            raise DeviceError(5, "injected")

    failures = [1, 1]  # of the batch, and of the request alone
    engine = Engine(fail_once)
    other = 1 - victim
    engine.read(victim, 0)
    engine.publish()
    assert engine.executor.turn()
    assert not failures
    engine.read(victim, 0)
    turns = 0
    while engine.done(victim) < 2 and turns < 100:
        engine.read(other, 1 << 20)
        engine.publish()
        assert engine.executor.turn()
        turns += 1
    assert turns < 5, f"the read was not executed within {turns} turns"


def test_a_fence_passes_although_another_workers_ring_is_corrupt() -> None:
    """Otherwise no client could connect any more."""
    engine = Engine()
    engine.shared.windows[1].store(Word.TAIL, (1 << 64) - 1)
    engine.executor.turn()
    words = engine.shared.windows[0]
    words.store(Word.FENCE_ASKED, 1)
    for _ in range(10):
        engine.executor.turn()
    assert words.load(Word.FENCE_PASSED) == 1


def test_a_tail_that_was_behind_when_a_fence_began_does_not_make_the_engine_run_for_ever() -> None:
    engine = Engine()
    for number in range(5):
        engine.read(1, number * BLOCK)
    engine.publish()
    while engine.executor.turn():
        pass
    assert engine.done(1) == 5
    corrupt = engine.shared.windows[1]
    corrupt.entries[:] = bytes([int(Op.NOTHING), *bytes(63)]) * (len(corrupt.entries) // 64)
    engine.shared.windows[0].store(Word.FENCE_ASKED, 1)
    corrupt.store(Word.TAIL, 0)
    engine.executor._fences.serve()  # what a turn begins with; the corrupt worker goes on writing meanwhile
    corrupt.store(Word.TAIL, 6)
    assert engine.executor.waiting() in (True, False)
    engine.executor.turn()  # exits after 10 s, with a traceback, if it does not return


def test_whatever_a_worker_writes_is_marked_although_two_runs_name_the_same_columns() -> None:
    """TRIM passes over unmarked blocks: data there would come back as if it had never been discarded."""
    engine = Engine()
    window, ring = engine.shared.windows[0], engine.rings[0]
    window.slab[:BLOCK] = 0x5A
    engine.lay(0, 0, 0, 0)
    ring.push(Op.SCATTER, 0, 0, 1, 0, BLOCK, 0, BLOCK)
    ring.push(Op.GATHER, 0, 0, 1, BLOCK, 2 * BLOCK, 0, BLOCK)
    executor = engine.executor
    plain = load("vramblk.shared.descriptors")
    theirs = window.columns
    taken = 0

    class Changing:
        """The columns of a worker that writes them while the engine copies: the second run is for another block and place."""

        def __getitem__(self, place: Any) -> int:
            nonlocal taken
            taken += 1
            if taken == COLUMN_ROWS + 1:
                engine.lay(0, 0, 1 << 20, BLOCK)
            return int(theirs[place])

    executor._columns = plain.Columns(executor._columns.cells)
    executor._theirs[0] = plain.Columns(Changing())
    executor._intakes[0] = load("vramblk.engine.intake").Intake(SIZE, SIZE, engine.shared.written[0].blocks.data)
    engine.publish()
    engine.executor.turn()
    marked = {int(block) for block in np.flatnonzero(engine.shared.written[0].blocks)}
    holds = {int(block) for block in np.flatnonzero(engine.memory.bytes.reshape(-1, BLOCK).any(axis=1))}
    assert taken == 2 * COLUMN_ROWS and holds, "the columns of both runs were read"
    assert holds <= marked, f"blocks {holds - marked} hold data and are not marked"


def test_an_exception_while_a_run_is_repeated_leaves_no_request_answered_as_success() -> None:
    """The worker sends what lies in the slab for every column whose status is 0."""

    def fail(memory: PlainMemory, batch: Batch) -> None:
        raise DeviceError(5, "injected")

    def raise_once(*arguments: Any) -> None:
        raise MemoryError("injected")

    engine = Engine(fail)
    for column in range(4):
        engine.lay(0, column, column * BLOCK, SLAB + column * BLOCK)
    engine.rings[0].push(Op.GATHER, 0, 0, 4, SLAB, SLAB + 4 * BLOCK, 0, 4 * BLOCK)
    engine.executor._blame = raise_once  # type: ignore[method-assign]
    engine.publish()
    engine.executor.turn()
    assert engine.rings[0].take_status(0) == 5
    assert engine.shared.windows[0].statuses[:4].tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize("op", [Op.ECHO, Op.ZERO, Op.GATHER])
def test_a_turn_is_bounded_in_bytes_whatever_a_workers_entries_say(op: Op) -> None:
    engine = Engine()
    ring = engine.rings[0]
    engine.shared.written[0].blocks[:] = 1
    for column in range(8192):
        engine.lay(0, column, 0, SLAB)
    for _ in range(200):
        if op == Op.ECHO:
            ring.push(op, 0, 0, 1, 0, SLAB, SLAB, SLAB)
        elif op == Op.ZERO:
            ring.push(op, 0, 0, 1, 0, 0, 0, SIZE)
        else:
            ring.push(op, 0, 0, 8192, SLAB, SLAB + BLOCK, 0, BLOCK)
    moved = 0

    def count(memory: PlainMemory, batch: Batch) -> None:
        nonlocal moved
        moved += sum(copy.hi - copy.lo for copy in batch.echoes)
        moved += sum(zero.length for zero in batch.zeroes)
        moved += sum(run.count * BLOCK for run in batch.reads)
        raise DeviceError(5, "counted", lost=True)

    engine.memory._before = count
    engine.publish()
    engine.executor.turn()
    assert moved <= 128 << 20, f"one turn moves {moved >> 20} MiB"
