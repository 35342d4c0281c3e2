"""Entries that have to wait for the next turn come to it, whatever the others keep queuing."""

from __future__ import annotations

import pytest

from tests.unit.plain_memory import PlainMemory
from tests.unit.windows import BLOCK, Windows
from vramblk.memory.base import Batch, DeviceError

EIO = 5
MOST_TURNS = 20


def turns_until_done(windows: Windows, index: int, number: int, busy: list[int]) -> int:
    """Turns that an entry takes while the windows of ``busy`` always have reads of the first block queued."""
    for turn in range(1, MOST_TURNS):
        for other in busy:
            for _ in range(3):
                windows.read(other, 0, BLOCK)
        windows.engine.turn()
        if windows.done(index) > number:
            return turn
    return MOST_TURNS


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_write_comes_to_its_turn_among_reads_of_its_block(index: int) -> None:
    """A write that overlaps what was taken before it is first in the next turn, not behind new reads again."""
    windows = Windows(3)
    number = windows.write(index, 0, b"w" * BLOCK)
    assert turns_until_done(windows, index, number, [other for other in range(3) if other != index]) <= 3


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_suspected_request_comes_to_its_turn(index: int) -> None:
    """A request that is to be executed alone is first in the next turn."""
    failures = [DeviceError(EIO, "once")] * 2

    def fail(memory: PlainMemory, batch: Batch) -> None:
        if failures:
            raise failures.pop()

    windows = Windows(3, before=fail)
    windows.read(index, 8 * BLOCK, BLOCK)
    windows.run()
    assert not failures
    number, _ = windows.read(index, 8 * BLOCK, BLOCK)
    assert turns_until_done(windows, index, number, [other for other in range(3) if other != index]) <= 3


def test_a_client_that_overlaps_itself_takes_no_turns_of_others() -> None:
    """Writes of one block end a turn each; others' requests do not wait for all of them."""
    windows = Windows(3)
    for _ in range(50):
        windows.scatter(0, [(0, b"a" * 16), (16, b"b" * 16)])
    for index in (1, 2):
        number = windows.write(index, 8 * BLOCK * index, b"w" * BLOCK)
        turns = 0
        while windows.done(index) <= number:
            windows.engine.turn()
            turns += 1
        assert turns <= 3
    windows.run()
    assert windows.done(0) == 50
