"""The canary, and what health makes of it: an engine that is busy is not one that stands still."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.unit.plain_memory import PlainMemory
from tests.unit.windows import BLOCK, Windows
from vramblk.engine.process import describe
from vramblk.memory.base import Batch, DeviceError
from vramblk.observer import canary as canaries
from vramblk.observer.canary import Canary, Outcome
from vramblk.observer.health import HealthCheck
from vramblk.observer.sampler import Sampler
from vramblk.observer.socketfiles import SocketFiles
from vramblk.observer.stall import StallWatch
from vramblk.shared.control import ControlWord, State
from vramblk.shared.window import Word

TIMEOUT_S = 0.3


class Server:
    """An engine whose turns are taken by a thread while ``turning`` is set."""

    def __init__(self) -> None:
        self.windows = windows = Windows(1, before=lambda memory, batch: self.before(memory, batch))
        self.before: Callable[[PlainMemory, Batch], None] = lambda memory, batch: None
        shared = windows.shared
        self.control = shared.control
        self.control.publish_export_table(describe(shared, [windows.memory]))
        self.control.store(ControlWord.STATE, State.READY)
        self.canary = Canary(shared)
        stalls = StallWatch(shared)
        self.health_check = HealthCheck(shared, self.canary, Sampler(shared, stalls), stalls, SocketFiles(shared.control, {}))
        self.turning = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._turn)
        self._thread.start()

    def _turn(self) -> None:
        while not self._ended.is_set():
            if not self.turning.is_set() or not self.windows.engine.turn():
                time.sleep(0.001)

    def make_progress(self) -> None:
        """What the engine does after each execution, while it does not come to the canary."""
        self.control.store(ControlWord.ENGINE_PROGRESS, self.control.load(ControlWord.ENGINE_PROGRESS) + 1)

    def close(self) -> None:
        self._ended.set()
        self._thread.join(10)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(canaries, "TIMEOUT_S", TIMEOUT_S)
    made = Server()
    yield made
    made.close()


def check_with(server: Server, during: Callable[[], None]) -> Outcome:
    """A check during which something happens in another thread."""
    helper = threading.Timer(TIMEOUT_S / 3, during)
    helper.start()
    outcome = server.canary.check(0)
    helper.join()
    return outcome


def test_an_answer_has_a_time_and_no_problem(server: Server) -> None:
    server.turning.set()
    outcome = server.canary.check()
    assert outcome.problem == "" and not outcome.busy
    assert outcome.seconds is not None and 0 < outcome.seconds < TIMEOUT_S
    assert server.canary.last() is outcome


def test_an_engine_that_executes_nothing_stands_still(server: Server) -> None:
    begun = time.monotonic()
    outcome = server.canary.check()
    assert "has not answered" in outcome.problem and not outcome.busy and outcome.seconds is None
    assert TIMEOUT_S <= time.monotonic() - begun < TIMEOUT_S + 2


def test_an_engine_that_executes_others_requests_is_busy(server: Server) -> None:
    """Its progress moves while the canary waits: that is no problem."""
    outcome = check_with(server, server.make_progress)
    assert outcome.problem == "" and outcome.busy and outcome.seconds is None


def test_progress_before_the_check_does_not_count(server: Server) -> None:
    server.make_progress()
    assert server.canary.check().problem


def test_busy_turns_into_standing_still(server: Server) -> None:
    """The next check looks at its own time only; a read that an earlier one left behind is waited for."""
    assert check_with(server, server.make_progress).busy
    assert server.canary.check(0).problem
    server.turning.set()
    assert server.canary.check(0).seconds is not None


def test_a_read_that_was_left_behind_and_failed_is_not_the_next_ones_problem(server: Server) -> None:
    """Nobody waited for it; its status is dropped."""

    def fail(memory: PlainMemory, batch: Batch) -> None:
        raise DeviceError(5, "injected")

    server.canary.check()
    server.before = fail
    server.turning.set()
    deadline = time.monotonic() + 5
    while server.windows.shared.canary.load(Word.DONE) < 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    server.before = lambda memory, batch: None
    assert server.canary.check(0).problem == ""


def test_a_read_that_fails_is_a_problem_with_its_export_and_error(server: Server) -> None:
    def fail(memory: PlainMemory, batch: Batch) -> None:
        raise DeviceError(12, "injected")

    server.before = fail
    server.turning.set()
    problem = server.canary.check().problem
    assert "export vram" in problem and "ENOMEM" in problem


def test_health_is_well_while_the_engine_is_busy(server: Server) -> None:
    """One line, which says so."""
    helper = threading.Timer(TIMEOUT_S / 3, server.make_progress)
    helper.start()
    health = server.health_check.examine(0)
    helper.join()
    assert health.ok and "busy" in health.text and "\n" not in health.text


def test_health_fails_while_the_engine_stands_still(server: Server) -> None:
    health = server.health_check.examine(0)
    assert not health.ok and "has not answered" in health.text


def test_a_storm_of_others_requests_is_busy_to_health(server: Server) -> None:
    """A real engine that executes slow requests of a client all the time."""

    def slow(memory: PlainMemory, batch: Batch) -> None:
        time.sleep(0.02)

    server.before = slow
    for _ in range(20):
        server.windows.scatter(0, [(0, b"w" * 16), (BLOCK, b"w" * 16)])  # each overlaps the last: a turn each
    server.turning.set()
    health = server.health_check.examine(0)
    assert health.ok


def test_a_device_that_stands_still_is_named_by_health(server: Server) -> None:
    """At once, without waiting for a canary: which export, for how long, and where to look."""
    server.control.store(ControlWord.ENGINE_SINCE_NS, time.monotonic_ns() - 42_500_000_000)
    server.control.store(ControlWord.ENGINE_EXPORT, 1)
    begun = time.monotonic()
    health = server.health_check.examine(0)
    assert time.monotonic() - begun < TIMEOUT_S
    assert not health.ok
    assert "export vram" in health.text and "batch for 4" in health.text and "dmesg" in health.text
