"""Blocks whose requests have failed by themselves, and what they do to others' batches."""

from __future__ import annotations

import pytest

from tests.unit.plain_memory import PlainMemory
from tests.unit.windows import BLOCK, Windows
from vramblk.engine import suspects
from vramblk.engine.intake import Intake
from vramblk.engine.suspects import Suspects
from vramblk.memory.base import Batch, DeviceError

EIO = 5
BAD = 100 * BLOCK


def fail_bad_block(memory: PlainMemory, batch: Batch) -> None:
    """The device fails each batch that touches BAD."""
    ranges = [(copy.offset, copy.hi - copy.lo) for copy in (*batch.copies_in, *batch.copies_out)]
    ranges += list(batch.zeroes)
    for run in (*batch.reads, *batch.writes):
        ranges += [(row[0], row[1]) for row in memory.requests(run.window, run.first, run.count)]
    if any(offset <= BAD < offset + length for offset, length in ranges):
        raise DeviceError(EIO, "a bad block")


def of_an_export() -> Suspects:
    return Suspects(Intake(8 << 20, 8 << 20, memoryview(bytearray(2048))))


class Counting:
    """``fail_bad_block`` that counts calls, so also executions that fail."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, memory: PlainMemory, batch: Batch) -> None:
        self.calls += 1
        fail_bad_block(memory, batch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(suspects.time, "monotonic", lambda: now[0])
    return now


def test_whole_blocks_are_suspected_for_a_minute(clock: list[float]) -> None:
    """Every request that touches a block of the failed one is suspected, and no other."""
    found = of_an_export()
    assert not found.touches(0, 1 << 30)
    found.failed(BLOCK + 100, BLOCK)
    assert found.touches(BLOCK, 1) and found.touches(3 * BLOCK - 1, 1) and found.touches(0, 1 << 30)
    assert not found.touches(0, BLOCK) and not found.touches(3 * BLOCK, BLOCK)
    clock[0] += 59
    assert found.touches(BLOCK, 1)
    clock[0] += 2
    assert not found.touches(BLOCK, 1)


def test_another_failure_keeps_a_block_suspected(clock: list[float]) -> None:
    """A minute from its last failure, whatever failed in between."""
    found = of_an_export()
    found.failed(0, 1)
    clock[0] += 40
    found.failed(BLOCK, 1)
    found.failed(0, 1)
    clock[0] += 40
    assert found.touches(0, 1) and found.touches(BLOCK, 1)
    clock[0] += 21
    assert not found.touches(0, 1) and not found.touches(BLOCK, 1)


def test_a_device_full_of_bad_blocks_costs_no_memory(clock: list[float]) -> None:
    """The oldest ranges are forgotten; a look at those that are kept stays short."""
    found = of_an_export()
    for block in range(1000):
        found.failed(block * BLOCK, BLOCK)
    assert not found.touches(900 * BLOCK, BLOCK) and found.touches(999 * BLOCK, BLOCK)
    assert len(found._until_s) == 64


def test_a_request_of_no_bytes_is_no_error() -> None:
    found = of_an_export()
    found.failed(BLOCK, 0)
    assert found.touches(BLOCK, 0) and not found.touches(0, 0)


@pytest.mark.parametrize("kind", ["read", "run"])
def test_a_polled_bad_block_does_not_make_others_batches_run_twice(kind: str) -> None:
    """After its first failure a bad request fails alone, and the batches of others are executed once."""
    count = Counting()
    windows = Windows(2, before=count)

    def bad() -> int:
        if kind == "read":
            return windows.read(0, BAD, BLOCK)[0]
        return windows.gather(0, [(BAD, BLOCK), (BAD + BLOCK, BLOCK)])[0]

    def poll() -> int:
        """How often the memory was called for one bad request and ten good ones of another client."""
        before = count.calls
        number = bad()
        others = [windows.read(1, block * BLOCK, BLOCK)[0] for block in range(10)]
        windows.run()
        assert windows.status(0, number) == EIO
        assert [windows.status(1, other) for other in others] == [0] * 10
        return count.calls - before

    assert poll() > 10, "the first failure is found by repeating each of the batch"
    each = {"read": 2, "run": 3}[kind] + 1
    assert [poll() for _ in range(20)] == [each] * 20


def test_requests_beside_a_bad_block_are_not_suspected() -> None:
    """A good request of the run that failed stays part of later batches."""
    count = Counting()
    windows = Windows(1, before=count)
    windows.gather(0, [(BAD, BLOCK), (BAD + BLOCK, BLOCK)])
    windows.run()
    before = count.calls
    numbers = [windows.read(0, BAD + BLOCK, BLOCK)[0] for _ in range(5)]
    windows.run()
    assert count.calls - before == 1
    assert [windows.status(0, number) for number in numbers] == [0] * 5


def test_a_batch_that_fails_once_makes_nobody_suspected() -> None:
    """What succeeds when it is repeated alone was not to blame."""
    failures = [DeviceError(EIO, "once")]
    calls = []

    def fail_once(memory: PlainMemory, batch: Batch) -> None:
        calls.append(1)
        if failures:
            raise failures.pop()

    windows = Windows(1, before=fail_once)
    for _ in range(2):
        numbers = [windows.read(0, block * BLOCK, BLOCK)[0] for block in range(5)]
        windows.run()
        assert [windows.status(0, number) for number in numbers] == [0] * 5
    assert len(calls) == 1 + 5 + 1


def test_a_zeroing_over_a_bad_block_is_executed_alone() -> None:
    """Writes and zeroing are looked at like reads."""
    count = Counting()
    windows = Windows(2, before=count)
    windows.written.blocks[90:110] = 1
    for expected in (1 + 2, 2 + 1):  # the batch and each of it; then the other's batch, and the bad one twice
        before = count.calls
        bad = windows.zero(0, 90 * BLOCK, 20 * BLOCK)
        good = windows.write(1, 0, b"w" * BLOCK)
        windows.run()
        assert windows.status(0, bad) == EIO and windows.status(1, good) == 0
        assert count.calls - before == expected
    assert set(range(90, 110)) <= set(windows.marked())


def test_a_lost_device_suspects_nothing() -> None:
    """Everything fails then without being executed, so nothing need be executed alone."""

    def lose(memory: PlainMemory, batch: Batch) -> None:
        raise DeviceError(EIO, "gone", lost=True)

    windows = Windows(1, before=lose)
    windows.read(0, 0, BLOCK)
    windows.run()
    for block in range(5):
        windows.read(0, block * BLOCK, BLOCK)
    assert windows.run() == 1
