"""Fences: what was accepted from clients that are gone is finished, or held, before a new client's first request."""

from __future__ import annotations

from tests.unit.sharedmemory import rings
from tests.unit.windows import BLOCK, Windows
from vramblk.shared.descriptors import Op
from vramblk.shared.window import Word


def make(workers: int = 3) -> Windows:
    windows = Windows(workers)
    for index in range(workers):
        windows.window(index).store(Word.READY, 1)
    return windows


def ask(windows: Windows, index: int) -> None:
    """What a worker does before it answers GO."""
    window = windows.window(index)
    window.store(Word.FENCE_ASKED, window.load(Word.FENCE_PASSED) + 1)


def passed(windows: Windows, index: int) -> bool:
    window = windows.window(index)
    return window.load(Word.FENCE_ASKED) == window.load(Word.FENCE_PASSED)


def see(windows: Windows, index: int) -> None:
    """What a worker does that has looked which of its clients are gone."""
    windows.window(index).store(Word.FENCES_SEEN, windows.window(index).load(Word.FENCES))


def test_a_fence_with_nothing_before_it_passes_at_once() -> None:
    windows = make()
    ask(windows, 0)
    assert not windows.engine.idle()
    assert windows.engine.turn()
    assert passed(windows, 0)
    assert windows.engine.idle()


def test_a_fence_waits_for_all_that_was_published_before_it() -> None:
    """Of every window, its own too; it is not passed in the turn that takes the entries, but after they are done."""
    windows = make()
    numbers = [windows.write(index, index * BLOCK, b"w" * BLOCK) for index in range(3)]
    ask(windows, 1)
    windows.engine.turn()
    assert [windows.done(index) for index in range(3)] == [number + 1 for number in numbers]
    assert not passed(windows, 1) and not windows.engine.idle()
    windows.engine.turn()
    assert passed(windows, 1)


def test_what_others_publish_behind_a_fence_is_held() -> None:
    """It is executed once the worker has seen the fence, however many turns pass before."""
    windows = make()
    windows.write(0, 0, b"1" * BLOCK)
    ask(windows, 1)
    windows.run()
    late = windows.write(0, 0, b"2" * BLOCK)
    windows.run()
    assert windows.done(0) == late and windows.memory.bytes[0] == ord("1")
    assert windows.engine.idle(), "an engine with nothing but held entries may sleep"
    assert windows.window(0).load(Word.FENCE_TAIL) == late
    see(windows, 0)
    assert not windows.engine.idle()
    windows.run()
    assert windows.done(0) == late + 1 and windows.memory.bytes[0] == ord("2")


def test_the_worker_that_asks_is_not_held() -> None:
    """Its other clients' requests go on, before and after the fence passes."""
    windows = make()
    ask(windows, 0)
    number = windows.write(0, 0, b"w" * BLOCK)
    windows.run()
    assert passed(windows, 0) and windows.done(0) == number + 1


def test_a_worker_that_stands_still_holds_up_nobody_else() -> None:
    """The fence passes, new clients are served, and only its own entries wait."""
    windows = make()
    ask(windows, 1)
    windows.run()
    assert passed(windows, 1)
    held = windows.write(0, 0, b"old" * 16)
    for round_number in range(3):
        ask(windows, 1 + round_number % 2)
        windows.run()
        assert passed(windows, 1 + round_number % 2)
        see(windows, 1)
        see(windows, 2)
        number = windows.write(1, 0, b"new" * 16)
        windows.run()
        assert windows.done(1) == number + 1 and windows.done(0) == held


def test_a_held_entry_that_was_taken_back_does_nothing() -> None:
    """The worker finds the client gone: the entry is done without being executed."""
    windows = make()
    ask(windows, 1)
    windows.run()
    old = windows.write(0, 0, b"old" * 16)
    windows.write(1, 0, b"new" * 16)
    windows.run()
    windows.rings[0].cancel(old)
    see(windows, 0)
    windows.run()
    assert windows.done(0) == old + 1 and windows.status(0, old) == 0
    assert windows.memory.bytes[:3].tobytes() == b"new"


def test_a_second_fence_keeps_what_the_first_holds() -> None:
    """A worker that saw the first fence only still has to look again; the second passes without it."""
    windows = make()
    ask(windows, 1)
    windows.run()
    first = windows.window(0).load(Word.FENCES)
    held = windows.write(0, 0, b"w" * BLOCK)
    ask(windows, 2)
    windows.run()
    assert passed(windows, 2)
    windows.window(0).store(Word.FENCES_SEEN, first)
    windows.run()
    assert windows.done(0) == held
    see(windows, 0)
    windows.run()
    assert windows.done(0) == held + 1


def test_two_workers_that_ask_at_once_do_not_wait_for_each_other() -> None:
    """Each holds the other, with entries before and behind; both pass before either has seen the other's fence."""
    windows = make(2)
    for index in (0, 1):
        windows.write(index, index * BLOCK, b"w" * BLOCK)
        ask(windows, index)
    windows.run()
    assert passed(windows, 0) and passed(windows, 1)


def test_a_fence_of_a_worker_whose_own_entries_are_held_waits_until_it_has_looked() -> None:
    """Its own earlier clients count too."""
    windows = make(2)
    ask(windows, 1)
    windows.run()
    own = windows.write(0, 0, b"w" * BLOCK)
    ask(windows, 0)
    windows.run()
    assert not passed(windows, 0) and windows.done(0) == own
    see(windows, 0)
    windows.run()
    assert passed(windows, 0) and windows.done(0) == own + 1


def test_a_worker_that_has_no_connection_yet_is_not_held() -> None:
    """A worker proves its window before it is ready; fences of others must not hold that up."""
    windows = make()
    windows.window(0).store(Word.READY, 0)
    ask(windows, 1)
    windows.run()
    number = windows.push(0, Op.ECHO, hi=BLOCK, offset=BLOCK)
    windows.run()
    assert windows.done(0) == number + 1


def test_a_dead_workers_entries_behind_a_fence_do_not_run() -> None:
    """What was published before the fence is finished, what is held is dropped; its successor is not held."""
    windows = make()
    windows.write(0, 0, b"1" * BLOCK)
    ask(windows, 1)
    windows.run()
    windows.write(0, 0, b"2" * BLOCK)
    windows.renew(0)
    windows.run()
    assert windows.memory.bytes[0] == ord("1")
    number = windows.write(0, 0, b"3" * BLOCK)
    windows.run()
    assert number == 0 and windows.done(0) == 1 and windows.memory.bytes[0] == ord("3")


def test_a_fence_does_not_wait_for_a_worker_that_dies() -> None:
    """Its entries before the fence are finished while its window is made clean; then nothing is waited for."""
    windows = make()
    windows.write(0, 0, b"1" * BLOCK)
    ask(windows, 1)
    windows.engine._fences.serve()
    assert not passed(windows, 1)
    windows.engine.drain_window(0)
    windows.run()
    assert windows.memory.bytes[0] == ord("1")
    assert passed(windows, 1)


def test_a_worker_that_dies_while_it_waits_for_its_fence_leaves_none() -> None:
    """Its successor's fence is a new one."""
    windows = make()
    ask(windows, 0)
    windows.engine._fences._begin(0, 1)
    windows.renew(0)
    assert passed(windows, 0) and windows.engine.idle()
    ask(windows, 0)
    windows.run()
    assert passed(windows, 0)


def test_sleepers_are_woken() -> None:
    """The worker that asked when its fence passes; one with unexecuted entries when it has to look."""
    windows = make()
    windows.write(2, 0, b"w" * BLOCK)
    for index in range(3):
        windows.window(index).store(Word.WORKER_SLEEPING, 1)
    ask(windows, 0)
    windows.engine._fences.serve()
    windows.run()
    assert rings(windows.shared.doorbells[0])
    assert rings(windows.shared.doorbells[2])
