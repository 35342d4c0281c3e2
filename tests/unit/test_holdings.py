"""Memory that is held while an export has clients: the engine and two workers' counts, without processes."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.plain_memory import PlainMemory
from tests.unit.sharedmemory import make_shared, rings
from vramblk.config.settings import load_settings
from vramblk.engine.executor import Executor, engine_windows
from vramblk.engine.holdings import Holdings
from vramblk.memory.base import DeviceError, MissingMemory
from vramblk.shared.descriptors import Op
from vramblk.shared.doorbell import worker_doorbell
from vramblk.shared.holds import HeldWords, HoldWords
from vramblk.shared.ring import SubmissionRing
from vramblk.shared.window import Word

SIZE = 1 << 20
MIB = 1 << 20


class Room:
    """Memory that the exports share."""

    def __init__(self, exports: int) -> None:
        self.left = exports

    def __str__(self) -> str:
        return f"{self.left} left"


class Memory(PlainMemory):
    """A memory that is taken and released in three steps each."""

    def __init__(self, windows: Any, room: Room, log: list[str], name: str) -> None:
        super().__init__(SIZE, windows)
        self.room = room
        self.log = log
        self.name = name
        self.failure: DeviceError | None = None
        self.there = True

    def release(self) -> Iterator[None]:
        self.log.append(f"release {self.name}")
        try:
            for _ in range(3):
                yield
            self.bytes[:] = 0
            if self.failure:
                raise self.failure
        finally:
            self.there = False
            self.room.left += 1

    def take(self) -> Iterator[None]:
        self.log.append(f"take {self.name}")
        if not self.room.left:
            raise MissingMemory("injected", MIB)
        self.room.left -= 1
        try:
            for _ in range(3):
                yield
            if self.failure:
                raise self.failure
            self.there = True
        finally:
            if not self.there:
                self.room.left += 1


class Rig:
    """Two windows and two exports, of which there is room for so many as are given."""

    def __init__(self, room: int = 2) -> None:
        argv = ["--allow-cpu", "--size", str(2 * SIZE), "--slices", "2", "--allocate", "attach"]
        self.shared = make_shared(load_settings(argv, {}), 2, 2 << 20, 2 << 20)
        windows = engine_windows(self.shared.windows)
        self.room = Room(0)
        self.log: list[str] = []
        self.memories = [Memory(windows, self.room, self.log, name) for name in "ab"]
        for written in self.shared.written:
            written.resize(SIZE)
        self.executor = Executor(self.shared, self.memories, windows)
        doorbells = [
            worker_doorbell(window, fd)
            for window, fd in zip(self.shared.client_windows, self.shared.doorbells, strict=False)
        ]
        self.holdings = Holdings(self.shared, self.memories, self.executor, doorbells)
        self.holdings.begin()
        self.room.left = room
        self.log.clear()
        self.words = [HoldWords(window, 2) for window in self.shared.client_windows]
        self.held = HeldWords(self.shared.control)

    def change(self, window: int, export: int, amount: int = 1) -> int:
        return self.words[window].change(export, amount)

    def settle(self) -> int:
        turns = 0
        while self.holdings.turn():
            turns += 1
            assert turns < 100
        return turns

    def state(self) -> list[bool]:
        assert [self.held.held(export) for export in (0, 1)] == [each.there for each in self.memories]
        return [each.there for each in self.memories]

    def read(self, export: int) -> int:
        """The status of a read that a worker sends."""
        ring = SubmissionRing(self.shared.windows[0], self.shared.engine_doorbell, self.shared.control)
        number = ring.tail
        base = self.shared.windows[0].layout.rx_bytes
        ring.push(Op.COPY_OUT, export, 0, 1, base, base + 4096, 0, 4096)
        ring.publish()
        while self.executor.turn():
            pass
        return ring.take_status(number) if ring.failed() else 0


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_nothing_is_held_at_first(rig: Rig) -> None:
    assert rig.state() == [False, False] and not rig.holdings.waiting() and not rig.holdings.turn()


def test_who_can_go_on_is_woken_while_another_export_is_taken(rig: Rig) -> None:
    """The client of the first export need not wait until its worker wakes for that of the second."""
    rig.change(0, 0)
    rig.change(0, 1)
    rig.holdings.turn()
    rig.shared.windows[0].store(Word.WORKER_SLEEPING, 1)
    assert not rings(rig.shared.doorbells[0])
    while not rig.held.held(0):
        assert not rings(rig.shared.doorbells[0])
        rig.holdings.turn()
    assert rings(rig.shared.doorbells[0]) and not rig.held.held(1)


def test_taken_for_the_first_and_released_after_the_last(rig: Rig) -> None:
    """Whichever worker serves them. The change is answered once the memory is there."""
    asked = rig.change(0, 1)
    assert rig.holdings.waiting()
    rig.holdings.turn()
    assert rig.words[0].seen == asked and rig.words[0].answered != asked
    rig.settle()
    assert rig.state() == [False, True] and rig.words[0].answered == asked
    rig.change(1, 1)
    rig.change(0, 1, -1)
    rig.settle()
    assert rig.state() == [False, True]
    rig.change(1, 1, -1)
    rig.settle()
    assert rig.state() == [False, False]
    assert rig.log == ["take b", "release b"]


def test_requests_reach_only_memory_that_is_held(rig: Rig) -> None:
    """Before, while it is taken, and from when it is released on: EIO, for a faulty worker alone."""
    assert rig.read(0) == errno.EIO
    rig.change(0, 0)
    rig.holdings.turn()
    assert rig.read(0) == errno.EIO
    rig.settle()
    assert rig.read(0) == 0 and rig.read(1) == errno.EIO
    rig.change(0, 0, -1)
    rig.holdings.turn()
    assert rig.read(0) == errno.EIO
    rig.settle()
    assert not rig.shared.control.engine_counters.scalar("device_errors")


def test_what_was_written_is_forgotten(rig: Rig) -> None:
    rig.change(0, 0)
    rig.settle()
    rig.shared.written[0].blocks[3] = 1
    rig.executor._suspects[0].failed(0, 4096)
    assert rig.executor.needs_batches(0)
    rig.change(0, 0, -1)
    rig.settle()
    assert not rig.shared.written[0].blocks.any() and not rig.executor.needs_batches(0)


def test_the_next_comes_while_the_last_ones_memory_is_released(rig: Rig) -> None:
    """It is released to its end, then taken: nobody finds what was there."""
    rig.change(0, 0)
    rig.settle()
    rig.change(0, 0, -1)
    rig.holdings.turn()
    asked = rig.change(1, 0)
    rig.holdings.turn()
    assert rig.words[1].seen == asked and not rig.held.held(0)
    rig.settle()
    assert rig.state()[0] and rig.words[1].answered == asked
    assert rig.log == ["take a", "release a", "take a"]


def test_the_next_comes_before_the_last_ones_leaving_is_known(rig: Rig) -> None:
    """Both changes at once: the memory simply stays."""
    rig.change(0, 0)
    rig.settle()
    turn = rig.held.turn(0)
    rig.change(0, 0, -1)
    rig.change(1, 0)
    rig.settle()
    assert rig.held.turn(0) == turn and rig.log == ["take a"]


def test_a_client_that_leaves_while_memory_is_taken(rig: Rig) -> None:
    """Taking is given up at once, and what was taken is free."""
    rig.change(0, 0)
    rig.holdings.turn()
    rig.change(0, 0, -1)
    assert rig.settle() == 1
    assert rig.state() == [False, False] and rig.room.left == 2


def test_too_little_memory() -> None:
    """The answer comes, and tells how much is missing; the other export stays, and the next try is a new one."""
    rig = Rig(room=1)
    rig.change(0, 0)
    rig.settle()
    asked = rig.change(1, 1)
    rig.settle()
    assert rig.words[1].answered == asked
    assert rig.state() == [True, False] and rig.held.missing(1) == MIB
    assert not rig.holdings.waiting(), "it is not tried again and again"
    assert not rig.shared.control.engine_counters.scalar("device_errors")
    rig.change(1, 1, -1)
    rig.change(0, 0, -1)
    rig.settle()
    rig.change(1, 1)
    rig.settle()
    assert rig.state() == [False, True] and rig.held.missing(1) == 0


def test_memory_is_released_before_it_is_taken() -> None:
    """What one export lacks may be what another gives back."""
    rig = Rig(room=1)
    rig.change(0, 0)
    rig.settle()
    rig.change(0, 0, -1)
    rig.change(0, 1)
    rig.settle()
    assert rig.state() == [False, True] and rig.log == ["take a", "release a", "take b"]


def test_a_failed_proof_is_a_device_error(rig: Rig) -> None:
    rig.memories[0].failure = DeviceError(errno.EIO, "injected")
    asked = rig.change(0, 0)
    rig.settle()
    assert rig.words[0].answered == asked
    assert rig.state() == [False, False] and rig.held.missing(0) == 0
    assert rig.shared.control.engine_counters.scalar("device_errors") == 1


def test_memory_that_cannot_be_zeroed_is_free_all_the_same(rig: Rig) -> None:
    rig.change(0, 0)
    rig.settle()
    rig.memories[0].failure = DeviceError(errno.EIO, "injected")
    rig.change(0, 0, -1)
    rig.settle()
    assert rig.state() == [False, False] and rig.room.left == 2


def test_an_exception_that_nobody_foresaw_refuses_one_client(rig: Rig) -> None:
    rig.memories[0].failure = RuntimeError("injected")  # type: ignore[assignment]
    asked = rig.change(0, 0)
    rig.change(0, 1)
    rig.settle()
    assert rig.words[0].answered == asked + 1
    assert rig.state() == [False, True]
    assert rig.shared.control.engine_counters.scalar("internal_errors") == 1


def test_a_dead_workers_clients_count_no_more(rig: Rig) -> None:
    rig.change(0, 0)
    rig.change(1, 1)
    rig.settle()
    rig.holdings.forget(0)
    rig.settle()
    assert rig.state() == [False, True]
    assert rig.change(0, 0) == 1, "its successor counts from the beginning"
    rig.settle()
    assert rig.state() == [True, True] and rig.words[0].answered == 1


def test_a_worker_that_dies_while_others_wait(rig: Rig) -> None:
    """They are answered, whatever it was waiting for."""
    rig.change(0, 0)
    rig.holdings.turn()
    asked = rig.change(1, 1)
    rig.holdings.forget(0)
    rig.settle()
    assert rig.words[1].answered == asked and rig.state() == [False, True]


@pytest.mark.parametrize("turns", [0, 1, 2, 50])
def test_the_end_in_every_state(turns: int) -> None:
    """What is held is left to be zeroed; what is being released is released; what is being taken is given up."""
    rig = Rig()
    rig.change(0, 1)
    rig.settle()
    rig.change(0, 1, -1)
    rig.change(0, 0)
    for _ in range(turns):
        rig.holdings.turn()
    held = rig.holdings.end()
    assert held == [memory for memory in rig.memories if memory.there]
    assert rig.room.left == 2 - len(held)
    assert not rig.memories[1].bytes.any()


def test_counts_of_a_faulty_worker_are_read_once(rig: Rig) -> None:
    """Whatever it writes: the others' memory stays, and every turn ends."""
    rig.change(1, 0)
    rig.settle()
    for cell in range(2):
        rig.words[0]._users[cell] = (1 << 64) - 1
    rig.words[0].change(0, 0)
    rig.settle()
    rig.words[0]._users[0] = 0
    rig.words[0].see(99)
    rig.words[0].answer(99)
    rig.words[0].change(1, 1)
    rig.settle()
    assert rig.memories[0].there
