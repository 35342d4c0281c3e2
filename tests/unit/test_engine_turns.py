"""How much one turn of the engine takes, and whose turn it is."""

from __future__ import annotations

import pytest

from tests.unit.plain_memory import PlainMemory
from tests.unit.windows import BLOCK, Windows
from vramblk.memory.base import Batch
from vramblk.shared.descriptors import Op

MEBI = 1 << 20
TURN_BYTES, TURN_ZERO_BYTES = 64 * MEBI, 8 * MEBI


class Work:
    """What each execution was given: bytes of payload, and bytes to zero."""

    def __init__(self) -> None:
        self.payload: list[int] = []
        self.zeroed: list[int] = []

    def __call__(self, memory: PlainMemory, batch: Batch) -> None:
        parts = (*batch.reads, *batch.writes, *batch.copies_in, *batch.copies_out)
        self.payload.append(sum(part.hi - part.lo for part in parts))
        self.zeroed.append(sum(zero.length for zero in batch.zeroes))


def test_a_turn_is_bounded_in_payload() -> None:
    """A window full of large reads is served in several turns, none much above 64 MiB."""
    work = Work()
    windows = Windows(1, before=work)
    for number in range(200):
        windows.push(0, Op.COPY_OUT, lo=0, hi=MEBI, offset=number % 32 * MEBI, length=MEBI)
    assert windows.run() == 4
    assert sum(work.payload) == 200 * MEBI
    assert max(work.payload) <= TURN_BYTES + MEBI


def test_a_turn_is_bounded_in_zeroing() -> None:
    """Pieces of 8 MiB are zeroed one in a turn, smaller ones until 8 MiB are reached."""
    work = Work()
    windows = Windows(1, before=work)
    windows.written.blocks[:] = 1
    for number in range(4):
        windows.zero(0, number * 8 * MEBI, 8 * MEBI)
    assert windows.run() == 4 and work.zeroed == [8 * MEBI] * 4
    windows.written.blocks[:] = 1
    for number in range(32):
        windows.zero(0, number * MEBI, MEBI)
    assert windows.run() == 4 and work.zeroed == [8 * MEBI] * 8


def test_a_storm_of_zeroing_leaves_another_window_its_turn() -> None:
    """A read that comes while another window's ring is full of zeroing waits for one turn, at most two."""
    windows = Windows(2)
    for place in (0, 1):
        windows.written.blocks[:] = 1
        for number in range(100):
            windows.zero(place, number % 4 * 8 * MEBI, 8 * MEBI, flags=0)
        windows.engine.turn()
        for block in range(5):
            number, _ = windows.read(1 - place, block * BLOCK, BLOCK)
            turns = 0
            while windows.done(1 - place) <= number:
                windows.written.blocks[:] = 1
                assert windows.engine.turn()
                turns += 1
            assert turns <= 2
        windows.run()


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_turns_rotate_among_windows(workers: int) -> None:
    """Of windows that all have more than a turn's work each gets its share."""
    windows = Windows(workers)
    windows.written.blocks[:] = 1
    for index in range(workers):
        for number in range(20):
            windows.zero(index, number % 4 * 8 * MEBI, 8 * MEBI, flags=0)
    for turn in range(1, 10 * workers + 1):
        windows.written.blocks[:] = 1
        windows.engine.turn()
        done = [windows.done(index) for index in range(workers)]
        assert sum(done) == turn
        assert max(done) - min(done) <= 1


def test_unwritten_blocks_take_nothing_of_the_bound() -> None:
    """A storm of zeroing that has nothing to do is over in one turn."""
    work = Work()
    windows = Windows(1, before=work)
    for _ in range(500):
        windows.zero(0, 0, 32 * MEBI)
    assert windows.run() == 1 and sum(work.zeroed) == 0


def test_a_window_that_has_nothing_costs_no_turn() -> None:
    windows = Windows(3)
    assert not windows.engine.turn() and not windows.engine.waiting()
    windows.push(1, Op.NOTHING)
    assert windows.engine.waiting() and windows.engine.turn()
    assert windows.done(1) == 1 and windows.memory.executed == 0
    assert not windows.engine.waiting() and not windows.engine.turn()


def test_what_comes_while_a_turn_executes_waits_for_the_next() -> None:
    """An entry published meanwhile is neither lost nor done without being executed."""
    late: list[int] = []

    def push(memory: PlainMemory, batch: Batch) -> None:
        if not late:
            late.append(windows.read(0, 0, BLOCK)[0])

    windows = Windows(1, before=push)
    windows.read(0, 0, BLOCK)
    assert windows.engine.turn()
    assert windows.done(0) == late[0] and windows.engine.waiting()
    assert windows.engine.turn() and windows.done(0) == late[0] + 1
    assert windows.memory.executed == 2
