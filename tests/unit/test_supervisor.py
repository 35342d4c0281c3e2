"""The pieces of the supervisor: signals, children, the engine's end, drains and the log pipe."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from vramblk.errors import PreconditionError, RuntimeFailure, StartupError
from vramblk.settings import load_settings
from vramblk.shared.context import Shared, make_shared
from vramblk.shared.control import ControlWord, State
from vramblk.supervision.children import Child
from vramblk.supervision.draining import Drain, set_state
from vramblk.supervision.engineprocess import EngineProcess
from vramblk.supervision.eventloop import EventLoop
from vramblk.supervision.failures import startup_error
from vramblk.supervision.logpipe import LogPipe
from vramblk.supervision.processtable import ProcessTable
from vramblk.supervision.signalpipe import SignalPipe

SLAB = 1 << 16
Events = list[dict[str, Any]]


@pytest.fixture
def events() -> Iterator[Events]:
    """What this process logs; its children log nothing."""
    structlog.reset_defaults()
    with structlog.testing.capture_logs() as found:
        yield found
    structlog.reset_defaults()


def make(*arguments: str) -> Shared:
    return make_shared(load_settings(["--size", "4M", *arguments], {}), 1, SLAB, SLAB, 2)


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    found = EventLoop()
    yield found
    found.close()


class Nursery:
    """A process table whose children are reaped by the loop, as in the supervisor."""

    def __init__(self, loop: EventLoop) -> None:
        self.loop = loop
        self.pipe = LogPipe(verbose=False)
        self.private: list[int] = []
        self.signals = SignalPipe((signal.SIGCHLD,))
        self.table = ProcessTable(loop, self.pipe, lambda: self.private)
        self.ended: list[Child] = []
        loop.watch(self.signals.descriptor, self._reap)

    def _reap(self) -> None:
        self.signals.read()
        self.table.reap()

    def fork(self, body: Callable[[], int], **options: Any) -> Child:
        return self.table.fork(
            "worker", body, lambda: None, self.ended.append, dies_with_parent=True, **options
        )

    def wait(self, child: Child) -> int:
        assert self.loop.until(lambda: not child.alive, 20)
        return os.waitstatus_to_exitcode(child.status or 0)


@pytest.fixture
def nursery(loop: EventLoop, events: Events) -> Iterator[Nursery]:
    found = Nursery(loop)
    yield found
    found.signals.close()
    os.close(found.pipe.reader)
    os.close(found.pipe.writer)


# Signals


def test_signals_wait_for_the_loop() -> None:
    """A signal is a byte to be read, an ignored one is nothing, and close puts the old handlers back."""
    before = [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)]
    pipe = SignalPipe((signal.SIGHUP, signal.SIGTERM), (signal.SIGUSR1,))
    try:
        assert pipe.read() == set()
        for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert pipe.read() == {signal.SIGHUP, signal.SIGTERM}
        assert pipe.read() == set()
    finally:
        pipe.close()
    assert [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)] == before


# Children


def test_end_of_a_child_is_told_with_its_status(nursery: Nursery) -> None:
    """``ended`` is called once, after the status is known."""
    child = nursery.fork(lambda: 7)
    assert nursery.wait(child) == 7
    assert nursery.ended == [child]


def test_all_that_have_ended_are_known_before_any_consequence(nursery: Nursery) -> None:
    """When two have died, the first one's consequence already sees that the second is dead."""
    alive: list[list[bool]] = []
    children: list[Child] = []
    for _ in range(2):
        children.append(
            nursery.table.fork(
                "worker", lambda: 0, lambda: None, lambda _: alive.append([child.alive for child in children]),
                dies_with_parent=True,
            )
        )  # fmt: skip
    for child in children:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    nursery.table.reap()
    assert alive == [[False, False], [False, False]]


def test_what_a_child_prints_is_logged(nursery: Nursery, events: Events) -> None:
    """Lines on its stdout and stderr become events, the last one too, although it has no line end."""

    def chatter() -> int:
        os.write(1, b"on stdout\n")
        os.write(2, b"on stderr\nabort: without a line end")
        return 0

    child = nursery.fork(chatter)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    nursery.table.reap()
    printed = [event["line"] for event in events if event["event"] == "child_stderr"]
    assert printed == ["on stdout", "on stderr", "abort: without a line end"]


def test_orphans_are_reaped(nursery: Nursery, events: Events) -> None:
    """A process that is not in the table leaves no zombie and costs nobody anything."""
    orphan = os.fork()
    if not orphan:
        os._exit(3)
    assert nursery.loop.until(lambda: any(event["event"] == "orphan_reaped" for event in events), 20)
    with pytest.raises(ChildProcessError):
        os.waitpid(orphan, os.WNOHANG)
    assert nursery.ended == []


def test_private_descriptors_are_closed_in_children(nursery: Nursery) -> None:
    """A child has none of the supervisor's descriptors, nor another child's stderr, but what it keeps."""
    secret, kept = os.eventfd(0), os.eventfd(0)
    nursery.private = [secret, kept]
    hold, release = os.pipe()
    first = nursery.fork(lambda: len(os.read(hold, 1)))

    def is_open(descriptor: int) -> bool:
        try:
            os.fstat(descriptor)
        except OSError:
            return False
        return True

    try:
        second = nursery.fork(
            lambda: is_open(secret) + 2 * is_open(first.stderr) + 4 * (not is_open(kept)), keep=[kept]
        )
        assert nursery.wait(second) == 0
    finally:
        os.write(release, b"x")
        assert nursery.wait(first) == 1
        for descriptor in (secret, kept, hold, release):
            os.close(descriptor)


def test_a_failure_keeps_its_exit_status() -> None:
    """What a child reports ends the program with the status that the contract gives it."""
    for code, kind in ((1, RuntimeFailure), (78, PreconditionError), (99, RuntimeFailure), ("x", RuntimeFailure)):
        error = startup_error({"event": "failed", "exit_code": code, "message": "why"})
        assert type(error) is kind and str(error) == "why"


# The engine


class Engine:
    """An engine whose body a test gives, and a supervisor that is ending or not."""

    def __init__(self, nursery: Nursery, body: Callable[[socket.socket], int]) -> None:
        self.lost: list[StartupError] = []
        self.retired: list[int] = []
        self.progress: list[tuple[str, int, int]] = []
        self.loop = nursery.loop
        self.process = EngineProcess(
            make(),
            nursery.loop,
            nursery.table,
            body,
            lost=self.lost.append,
            retired=self.retired.append,
            progress=lambda *report: self.progress.append(report),
        )
        self.process.start()

    def until_ready(self) -> Engine:
        assert self.loop.until(lambda: self.process.ready, 20)
        return self

    def until_lost(self) -> StartupError:
        assert self.loop.until(lambda: bool(self.lost), 20)
        return self.lost[0]


def say(mail: socket.socket, **message: Any) -> None:
    mail.send(json.dumps(message).encode())


def hear(mail: socket.socket) -> dict[str, Any]:
    mail.setblocking(True)
    return dict(json.loads(mail.recv(4096)))


def obedient(mail: socket.socket) -> int:
    say(mail, event="ready")
    return 0 if hear(mail) == {"event": "stop"} else 9


def die() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def dies_while_zeroing(mail: socket.socket) -> int:
    obedient(mail)
    return die()


def fails_while_zeroing(mail: socket.socket) -> int:
    obedient(mail)
    raise ValueError("the device is gone")


def deaf(mail: socket.socket) -> int:
    say(mail, event="ready")
    time.sleep(60)
    return 0


def names(events: Events) -> list[str]:
    return [event["event"] for event in events if event["event"] != "child_stderr"]


def test_engine_that_ends_in_order_is_nothing_to_tell(nursery: Nursery, events: Events) -> None:
    """It was told to stop and did, with exit status 0."""
    engine = Engine(nursery, obedient).until_ready()
    assert engine.process.stop(20)
    assert names(events) == [] and not engine.lost


def test_engine_that_dies_is_told_and_lost(nursery: Nursery, events: Events) -> None:
    """While it serves: an event with its signal, and an error that says that the data is gone."""

    def serves(mail: socket.socket) -> int:
        say(mail, event="ready")
        hear(mail)
        return die()

    engine = Engine(nursery, serves).until_ready()
    engine.process.retire(0)
    error = engine.until_lost()
    assert type(error) is RuntimeFailure and "signal SIGKILL" in str(error) and "all data" in str(error)
    (event,) = events
    assert (event["event"], event["log_level"], event["signal"]) == ("engine_died", "critical", "SIGKILL")
    assert not engine.process.stop(20), "what follows must not take it for zeroed"
    assert len(events) == len(engine.lost) == 1


def test_engine_that_dies_before_it_is_ready(nursery: Nursery, events: Events) -> None:
    """The error does not speak of data that nobody had yet."""
    error = Engine(nursery, lambda _: die()).until_lost()
    assert "before its memory was ready" in str(error)
    assert names(events) == ["engine_died"]


@pytest.mark.parametrize(("body", "field"), [(dies_while_zeroing, "signal"), (fails_while_zeroing, "detail")])
def test_engine_that_dies_while_zeroing_is_told(
    nursery: Nursery, events: Events, body: Callable[[socket.socket], int], field: str
) -> None:
    """It was told to stop, but did not end in order: exactly one event, and no success."""
    engine = Engine(nursery, body).until_ready()
    assert not engine.process.stop(20)
    assert names(events) == ["engine_died"] and field in events[0]
    assert len(engine.lost) == 1


def test_engine_that_was_killed_did_not_die(nursery: Nursery, events: Events) -> None:
    """An engine that the supervisor gives up while it starts is no event."""
    engine = Engine(nursery, lambda mail: time.sleep(60) or 0)
    engine.process.kill()
    assert not engine.process.stop(20)
    assert names(events) == [] and not engine.lost


def test_engine_that_does_not_stop_is_killed(nursery: Nursery, events: Events) -> None:
    """One event says so; the end by that kill is no further one."""
    engine = Engine(nursery, deaf).until_ready()
    assert not engine.process.stop(0.2)
    assert names(events) == ["engine_killed"] and not engine.lost


def test_engine_that_fails_at_start_says_why(nursery: Nursery, events: Events) -> None:
    """Its own error comes out, of its own kind; the exit that follows is no death."""

    def fails(mail: socket.socket) -> int:
        raise PreconditionError("no such device")

    engine = Engine(nursery, fails)
    error = engine.until_lost()
    assert type(error) is PreconditionError and str(error) == "no such device"
    engine.process.kill()
    assert not engine.process.stop(20)
    assert names(events) == [] and len(engine.lost) == 1


def test_engines_mail(nursery: Nursery) -> None:
    """Windows that it has retired, and how far its start is, reach those who asked."""

    def talks(mail: socket.socket) -> int:
        say(mail, event="progress", what="prove", done=1, total=2)
        say(mail, event="ready")
        say(mail, event="retired", window=hear(mail)["window"])
        return 0 if hear(mail) == {"event": "stop"} else 9

    engine = Engine(nursery, talks).until_ready()
    engine.process.retire(5)
    assert engine.loop.until(lambda: engine.retired == [5], 20)
    assert engine.progress == [("prove", 1, 2)]
    assert engine.process.stop(20)


# Drains


class Clients:
    """The part of a crew that a drain looks at."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)

    @property
    def attached(self) -> int:
        return len(self.names)

    def clients(self) -> list[str]:
        return self.names


SWAP = ("--mode", "swap", "--listen-addr", "unix:/run/x.sock")


@pytest.mark.parametrize("mode", [(), SWAP])
def test_drain_ends_with_the_last_client(loop: EventLoop, events: Events, mode: tuple[str, ...]) -> None:
    """Not before the signal, not while a client is attached, and at once when none is."""
    shared, crew = make(*mode), Clients("tcp:a vram", "tcp:b vram")
    drain = Drain(shared, loop, crew)  # type: ignore[arg-type]
    set_state(shared, State.READY)
    crew_before, crew.names = crew.names, []
    assert not drain.over, "nobody told it to stop"
    crew.names = crew_before
    drain.begin()
    assert shared.control.state == State.DRAINING
    assert all(os.eventfd_read(bell) for bell in shared.bells), "every worker is woken"
    assert not drain.over
    crew.names = ["tcp:b vram"]
    assert not drain.over
    crew.names = []
    assert drain.over
    assert events[0] == {"event": "draining", "log_level": "info", "clients": ["tcp:a vram", "tcp:b vram"]}


def test_drain_of_scratch_ends_at_the_deadline(loop: EventLoop, events: Events) -> None:
    """After --drain-timeout it leaves, whoever is attached, and workers know when that is."""
    shared = make("--drain-timeout", "300ms")
    drain = Drain(shared, loop, Clients("tcp:a vram"))  # type: ignore[arg-type]
    drain.begin()
    left_ns = shared.control.load(ControlWord.DRAIN_DEADLINE_NS) - time.monotonic_ns()
    assert 0 < left_ns <= 300_000_000
    assert not drain.over
    assert loop.until(lambda: drain.over, 20)
    assert shared.control.load(ControlWord.DRAIN_DEADLINE_NS) <= time.monotonic_ns()


def test_drain_of_swap_has_no_deadline(
    loop: EventLoop, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late it is, live swap is waited for, and the log names who and the command again and again."""
    monkeypatch.setattr("vramblk.supervision.draining._REPORT_S", 0.05)
    shared, crew = make(*SWAP), Clients("unix:pid=7,uid=0 vram")
    drain = Drain(shared, loop, crew)  # type: ignore[arg-type]
    drain.begin()

    def reports() -> Events:
        return [event for event in events if event["event"] == "still_attached"]

    later_ns = time.monotonic_ns() + 10**15
    monkeypatch.setattr(time, "monotonic_ns", lambda: later_ns)
    assert loop.until(lambda: len(reports()) >= 3, 20)
    assert not drain.over
    assert reports()[0]["clients"] == ["unix:pid=7,uid=0 vram"]
    assert reports()[0]["detach"] == "vramblk-swap down"


# The log pipe


def test_rest_of_the_log_reaches_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    """Lines that the observer did not take any more are written at the end."""
    pipe = LogPipe(verbose=False)
    for number in range(3000):
        os.write(pipe.writer, b'{"line":%d}\n' % number)
    pipe.flush()
    assert capfd.readouterr().out == "".join(f'{{"line":{number}}}\n' for number in range(3000))


def test_log_pipe_never_blocks() -> None:
    """A writer gets an error instead of having to wait for the observer."""
    pipe = LogPipe(verbose=True)
    try:
        with pytest.raises(BlockingIOError):
            for _ in range(1 << 12):
                os.write(pipe.writer, bytes(4096))
        assert pipe.channel(lambda: None).verbose
    finally:
        os.close(pipe.reader)
        os.close(pipe.writer)
