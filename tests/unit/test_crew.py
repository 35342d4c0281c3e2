"""How many workers there are, how large their slabs, who takes a connection, and when a dead one comes back."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from vramblk import logs
from vramblk.errors import ConfigError, PreconditionError, RuntimeFailure
from vramblk.serving.lanes import Lanes
from vramblk.settings import Settings, load_settings
from vramblk.shared.context import make_shared
from vramblk.shared.control import ControlWord
from vramblk.shared.window import Word
from vramblk.supervision.children import Child
from vramblk.supervision.crew import Backoff, Crew, choose_workers, slab_bytes
from vramblk.supervision.eventloop import EventLoop
from vramblk.worker import lanes_per_worker


def settings(*arguments: str) -> Settings:
    return load_settings(["--size", "64M", *arguments], {})


@pytest.mark.parametrize(("cores", "workers"), [(1, 2), (2, 2), (8, 4), (16, 8), (64, 8)])
def test_workers_follow_the_cores(monkeypatch: pytest.MonkeyPatch, cores: int, workers: int) -> None:
    """Half the cores, at least two so that one may die, at most eight."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert choose_workers(settings()) == workers


def test_workers_in_swap_mode_are_the_connections() -> None:
    """--workers is how many connections a swap server takes."""
    unix = ("--mode", "swap", "--listen-addr", "unix:/run/x")
    assert choose_workers(settings(*unix)) == 2
    assert choose_workers(settings(*unix, "--workers", "5")) == 5


def test_too_few_workers_for_the_connections_is_exit_2() -> None:
    """The message names both ways out."""
    with pytest.raises(ConfigError, match=r"max_connections = 200 .*--workers 4"):
        choose_workers(settings("--workers", "1", "--max-connections", "200"))


@pytest.mark.parametrize("connections", [1, 3, 64, 500, 4096])
@pytest.mark.parametrize("workers", [None, "64"])
def test_every_connection_finds_a_lane(connections: int, workers: str | None) -> None:
    """The slab holds a lane for each connection that a worker may be handed."""
    arguments = ["--max-connections", str(connections), *(["--workers", workers] if workers else [])]
    chosen = settings(*arguments)
    count = choose_workers(chosen)
    size = slab_bytes(chosen, count)
    lanes = Lanes(size, size, lanes_per_worker(connections, count, swap=False))
    assert count * len(list(iter(lanes.take, None))) >= connections


def test_backoff_grows_and_is_forgotten_after_a_good_life() -> None:
    """The first restart is at once; one that dies again and again waits longer, for ever."""
    backoff = Backoff(shortest_s=0.1, longest_s=0.5, good_life_s=1.0)
    assert [backoff.after(0.01) for _ in range(6)] == [0.0, 0.1, 0.2, 0.4, 0.5, 0.5]
    assert backoff.after(30.0) == 0.0


class Family:
    """Workers that are nothing but entries: forked, ready and dead when a test says so."""

    def __init__(self, *arguments: str, workers: int = 2) -> None:
        self.shared = make_shared(settings(*arguments), workers, 1 << 16, 1 << 16, 2)
        self.loop = EventLoop()
        self.crew = Crew(self.shared, self.loop, self._launch, lambda index: self.retiring.append(index))
        self.retiring: list[int] = []
        self.lines: dict[int, socket.socket] = {}
        self.refuse_to_fork = False
        self._pids = itertools.count(1000)

    def _launch(self, index: int, handoff: socket.socket) -> Child:
        if self.refuse_to_fork:
            raise BlockingIOError("no room for another process")
        self.lines[index] = handoff.dup()
        return Child(next(self._pids), "worker", -1)

    def start(self) -> Family:
        self.crew.start()
        for index in self.lines:
            self.be_ready(index)
        assert self.crew.ready
        return self

    def be_ready(self, index: int) -> None:
        self.shared.windows[index].store(Word.READY, 1)

    def die(self, index: int, status: int = signal.SIGKILL) -> None:
        child = self.crew.slots[index].child
        assert child is not None
        child.status = status
        self.lines.pop(index).close()
        self.crew.died(child)

    def hand_over(self, number: int) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            return self.crew.hand_over(connection, number, "tcp:a")

    def handed(self, index: int) -> list[int]:
        """Numbers of the connections that a worker has been given since the last call."""
        found = []
        self.lines[index].setblocking(False)
        while True:
            try:
                text, descriptors, _, _ = socket.recv_fds(self.lines[index], 4096, 1)
            except BlockingIOError:
                return found
            os.close(descriptors[0])
            found.append(json.loads(text)["id"])

    def leave(self, index: int) -> None:
        """A client of this worker closes its connection."""
        window = self.shared.windows[index]
        window.store(Word.CLOSED, window.load(Word.CLOSED) + 1)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    monkeypatch.setattr(logs, "_limiter", logs.Limiter())
    structlog.reset_defaults()
    with structlog.testing.capture_logs() as found:
        yield found
    structlog.reset_defaults()


def test_connections_go_to_the_least_loaded() -> None:
    """A worker whose client has left gets the next one; attached counts who is still there."""
    family = Family().start()
    assert [family.hand_over(number) for number in range(4)] == [True] * 4
    assert (family.handed(0), family.handed(1)) == ([0, 2], [1, 3])
    family.leave(1)
    assert family.crew.attached == 3
    assert family.hand_over(4)
    assert (family.handed(0), family.handed(1)) == ([], [4])


def test_full_crew_takes_nobody() -> None:
    """Each worker has room for its share of --max-connections."""
    family = Family("--max-connections", "4").start()
    assert [family.hand_over(number) for number in range(5)] == [True] * 4 + [False]
    assert not family.crew.has_room
    family.leave(0)
    assert family.crew.has_room


def test_worker_that_is_not_ready_gets_nobody() -> None:
    """Connections wait for a worker that can take them."""
    family = Family()
    family.crew.start()
    assert not family.crew.ready and not family.crew.has_room and not family.hand_over(1)
    family.be_ready(1)
    assert family.hand_over(2) and family.handed(1) == [2]


def test_dead_worker_is_replaced_once_its_window_is_finished(log: list[Any]) -> None:
    """Not before the engine has finished what it had queued: its window must not change under the engine."""
    family = Family().start()
    family.hand_over(1)
    family.die(0)
    assert family.retiring == [0] and family.crew.attached == 0
    family.loop.turn(0.01)
    assert 0 not in family.lines
    family.crew.retired(0)
    assert 0 in family.lines
    assert [event["event"] for event in log] == ["worker_died", "worker_restarted"]
    assert log[0]["signal"] == "SIGKILL" and log[0]["replaced"]
    assert (log[0]["child"], log[1]["child"]) == (1000, 1002), "pid is the supervisor's own"
    assert not family.shared.windows[0].load(Word.READY), "its window was made clean"


def test_worker_that_dies_again_and_again_comes_back_later_each_time(log: list[Any]) -> None:
    """The delays grow; the engine's word alone does not start it early."""
    family = Family().start()
    for _ in range(3):
        family.die(0)
        family.crew.retired(0)
        assert family.loop.until(lambda: 0 in family.lines, 20)
    delays = [event["restart_in_s"] for event in log if event["event"] == "worker_died"]
    assert delays == [0.0, 0.05, 0.1]
    family.die(0)
    family.crew.retired(0)
    assert 0 not in family.lines


def test_worker_that_cannot_be_forked_is_tried_again(log: list[Any]) -> None:
    """No room for a process is told, and is no end of the server."""
    family = Family().start()
    family.die(0)
    family.loop.turn(0.01)
    family.refuse_to_fork = True
    family.crew.retired(0)
    assert log[-1]["event"] == "worker_not_started"
    family.refuse_to_fork = False
    assert family.loop.until(lambda: 0 in family.lines, 20)


def test_dead_worker_in_swap_mode_is_not_replaced(log: list[Any]) -> None:
    """Its device is lost; it is counted, and the others go on."""
    family = Family("--mode", "swap", "--listen-addr", "unix:/run/x").start()
    family.die(0)
    family.loop.until(lambda: False, 0.1)
    assert 0 not in family.lines and not family.retiring
    assert log[-1]["log_level"] == "critical" and not log[-1]["replaced"]
    assert family.shared.control.load(ControlWord.WORKERS_LOST) == 1
    assert family.hand_over(1) and family.handed(1) == [1]


def test_worker_that_dies_while_it_starts_fails_the_start(log: list[Any]) -> None:
    """What it says itself comes before how it ended."""
    family = Family()
    family.crew.start()
    family.lines[1].send(b'{"event": "failed", "exit_code": 78, "message": "no lock"}')
    with pytest.raises(PreconditionError, match=r"^no lock$"):
        family.die(1, 78 << 8)
    with pytest.raises(RuntimeFailure, match="worker 0 died while it started: signal SIGKILL"):
        family.die(0)


def test_dismissed_workers_may_die(log: list[Any]) -> None:
    """Their sockets are at their end, and their ends are nothing to tell or to mend."""
    family = Family().start()
    family.crew.dismiss()
    assert family.lines[0].recv(1) == b""
    family.die(0, 0)
    family.die(1)
    family.loop.until(lambda: False, 0.05)
    assert not family.crew.alive and not family.lines and not log
