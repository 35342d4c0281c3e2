"""Fences among windows whose words a corrupt or hostile worker writes."""

from __future__ import annotations

import pytest

from tests.unit.child import in_child
from tests.unit.test_fences import ask, make, passed, see
from tests.unit.windows import BLOCK
from vramblk.shared.descriptors import ENTRIES
from vramblk.shared.window import Word

LARGEST = [(1 << 64) - 1, (1 << 63) - 1]


@pytest.mark.parametrize("tail", [ENTRIES + 1, *LARGEST])
def test_a_corrupt_ring_holds_up_a_fence_only_until_it_is_made_clean(tail: int) -> None:
    """It is reported at once; when the supervisor has ended its worker the fence passes."""
    windows = make()
    windows.window(0).store(Word.TAIL, tail)
    ask(windows, 1)
    windows.run()
    assert windows.corrupt == [0]
    windows.engine.drain_window(0)
    windows.run()
    assert passed(windows, 1)


@pytest.mark.parametrize("value", LARGEST)
def test_any_fence_words_of_a_worker_are_survived(value: int) -> None:
    """Fences of others pass, and others' requests are done, whatever one worker has in its words."""
    windows = make()
    for word in (Word.FENCES, Word.FENCES_SEEN, Word.FENCE_TAIL, Word.FENCE_ASKED, Word.FENCE_PASSED, Word.READY):
        windows.window(0).store(word, value)
    windows.window(0).store(Word.FENCE_ASKED, value - 1)
    for _ in range(3):
        ask(windows, 1)
        number = windows.write(2, 0, b"w" * BLOCK)
        for _ in range(5):
            windows.engine.turn()
            see(windows, 2)
        assert passed(windows, 1) and windows.done(2) == number + 1


@pytest.mark.parametrize("tail", [0, 2])
def test_a_tail_that_goes_back_while_a_fence_begins_does_not_stop_the_engine(tail: int) -> None:
    """The tail was behind what is executed only for a moment: nothing is executed again, and the turn ends."""

    def served() -> bool:
        windows = make()
        for value in range(3):
            windows.write(0, 0, bytes([value + 1]) * BLOCK)
        windows.run()
        windows.memory.bytes[0] = 99
        window = windows.window(0)
        window.store(Word.TAIL, tail)
        ask(windows, 1)
        windows.engine._fences.serve()  # the turn's first act
        window.store(Word.TAIL, 3)
        late = windows.write(0, BLOCK, b"w" * BLOCK)
        for _ in range(5):
            windows.engine.turn()
        assert windows.memory.bytes[0] == 99
        assert passed(windows, 1)
        see(windows, 0)
        windows.run()
        return windows.done(0) == late + 1 or windows.corrupt == [0]

    assert in_child(served, limit_s=2)


@pytest.mark.parametrize("tail", [ENTRIES + 1, *LARGEST])
def test_a_tail_that_jumps_while_a_fence_begins_does_not_stop_the_fence(tail: int) -> None:
    """A new client does not wait for entries that cannot be there, and that nobody reports any more."""
    windows = make()
    windows.window(0).store(Word.TAIL, tail)
    ask(windows, 1)
    windows.engine._fences.serve()
    windows.window(0).store(Word.TAIL, 0)
    for _ in range(5):
        windows.engine.turn()
    assert passed(windows, 1) or windows.corrupt == [0]
