"""What the engine makes of header words that a corrupt or hostile worker has written."""

from __future__ import annotations

import pytest

from tests.unit.sharedmemory import fill
from tests.unit.windows import BLOCK, Windows
from vramblk.shared.descriptors import ENTRIES
from vramblk.shared.window import Word

EINVAL = 22
LARGEST = [(1 << 64) - 1, (1 << 63) - 1]


@pytest.mark.parametrize("value", LARGEST)
def test_words_of_the_engine_that_a_worker_overwrites_do_not_matter(value: int) -> None:
    """DONE and FAILURES are what the engine has counted, not what stands there."""
    windows = Windows(2)
    window = windows.window(0)
    for word in (Word.DONE, Word.FAILURES, Word.READY, Word.WORKER_SLEEPING, Word.PROVEN, Word.GENERATION):
        window.store(word, value)
    bad = windows.push(0, 77)
    good, _ = windows.read(0, 0, BLOCK)
    windows.run()
    assert window.load(Word.DONE) == 2 and window.load(Word.FAILURES) == 1
    assert windows.window(0).entry_status[bad] == EINVAL
    assert windows.window(0).entry_status[good] == 0


@pytest.mark.parametrize("value", LARGEST)
def test_every_word_of_a_worker_at_once(value: int) -> None:
    """A header page full of ones: the window is left alone, others are served."""
    windows = Windows(2)
    for index in range(len(windows.window(0).words)):
        windows.window(0).words[index] = value
    good, _ = windows.read(1, 0, BLOCK)
    for _ in range(10):
        windows.engine.turn()
    assert windows.status(1, good) == 0
    assert windows.corrupt == [0]


@pytest.mark.parametrize("value", LARGEST)
def test_counters_of_the_engine_are_its_own(value: int) -> None:
    """What somebody has written over the shared cells is neither read nor does it raise."""
    windows = Windows(1)
    windows.read(0, 0, BLOCK)
    windows.run()
    cells = windows.shared.control.engine_counters.cells
    for index in range(len(cells)):
        cells[index] = min(value, (1 << 63) - 1)
    windows.read(0, 0, BLOCK)
    windows.push(0, 77)
    windows.run()
    windows.engine.add("busy_ns", (1 << 63) - 1)
    windows.engine.add("busy_ns", (1 << 63) - 1)
    assert windows.count("batches") == 2 and windows.count("batch_requests") == 2


# Corrupt rings


@pytest.mark.parametrize("tail", [ENTRIES + 4, 1 << 63, (1 << 64) - 1, 2, 0])
def test_a_corrupt_ring_is_left_alone_and_reported_once(tail: int) -> None:
    """A tail ahead of the ring or behind what was executed; other windows are served meanwhile."""
    windows = Windows(2)
    for block in range(3):
        windows.write(0, block * BLOCK, b"w" * BLOCK)
    windows.run()
    windows.window(0).store(Word.TAIL, tail)
    for block in range(5):
        good, _ = windows.read(1, block * BLOCK, BLOCK)
        windows.engine.turn()
        assert windows.status(1, good) == 0
    assert windows.corrupt == [0]
    assert windows.done(0) == 3 and windows.memory.executed == 1 + 5
    assert not windows.engine.waiting()


def test_a_corrupt_ring_is_served_again_after_its_window_was_made_clean() -> None:
    """drain_window ends although the tail is wrong; the next worker begins at zero, and can be reported anew."""
    windows = Windows(2)
    for generation in range(3):
        windows.window(0).store(Word.TAIL, 1 << 60)
        windows.engine.turn()
        assert windows.corrupt == [0] * (generation + 1)
        windows.renew(0)
        number = windows.write(0, 0, bytes([generation + 1]) * BLOCK)
        assert number == 0
        windows.run()
        assert windows.status(0, 0) == 0
        assert windows.memory.bytes[0] == generation + 1


def test_a_full_doorbell_does_not_end_the_engine() -> None:
    """A worker holds its own doorbell and can fill it; what it is owed is done, and others are served."""
    windows = Windows(2)
    fill(windows.shared.doorbells[0])
    windows.window(0).store(Word.WORKER_SLEEPING, 1)
    number, _ = windows.read(0, 0, BLOCK)
    other, _ = windows.read(1, 0, BLOCK)
    windows.run()
    assert windows.status(0, number) == 0 and windows.status(1, other) == 0
