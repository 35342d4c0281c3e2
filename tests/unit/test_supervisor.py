"""The pieces of the supervisor: signals, children, the engine's end, drains and the log pipe."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.sharedmemory import fill, make_shared, rings
from vramblk.config.settings import load_settings
from vramblk.errors import PreconditionError, RuntimeFailure, StartupError
from vramblk.shared.context import Shared
from vramblk.shared.control import ControlWord, State
from vramblk.supervisor.children import Child
from vramblk.supervisor.draining import Drain, set_state
from vramblk.supervisor.engineprocess import EngineProcess
from vramblk.supervisor.eventloop import EventLoop
from vramblk.supervisor.failures import startup_error
from vramblk.supervisor.logpipe import LogPipe
from vramblk.supervisor.processtable import ProcessTable
from vramblk.supervisor.signalpipe import SignalPipe, obey

SLAB = 1 << 16
Events = list[dict[str, Any]]


def make(*arguments: str) -> Shared:
    return make_shared(load_settings(["--size", "4M", *arguments], {}), 1, SLAB, SLAB)


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


def test_children_that_end_without_end_leave_others_their_turn(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process can make children of its parent's faster than they are reaped (CLONE_PARENT)."""
    monkeypatch.setattr("vramblk.supervisor.children.MOST_REAPED", 2)
    all_of_them = [nursery.fork(lambda: 0) for _ in range(5)]
    for child in all_of_them:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    nursery.signals.read()
    nursery.table.reap()
    assert len(nursery.ended) == 2
    assert nursery.loop.until(lambda: len(nursery.ended) == 5, 10)


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


def test_a_child_that_prints_without_end_does_not_fill_the_log(nursery: Nursery, events: Events) -> None:
    """A traceback is logged whole, and of a flood the begin."""
    child = nursery.fork(lambda: os.write(2, b"x\n" * 5000))
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    nursery.table.reap()
    assert 100 < sum(event["event"] == "child_stderr" for event in events) <= 200


def test_a_fault_at_one_end_hides_no_other(nursery: Nursery) -> None:
    """What one child's end raises comes through when all are told; what ends the server comes first."""
    told: list[Child] = []

    def raising(error: Exception) -> Callable[[Child], None]:
        def ended(child: Child) -> None:
            told.append(child)
            raise error

        return ended

    errors = (ValueError("nobody foresaw it"), RuntimeFailure("the engine died"), KeyError("neither"))
    children = [
        nursery.table.fork("worker", lambda: 0, lambda: None, raising(error), dies_with_parent=True)
        for error in errors
    ]
    for child in children:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(RuntimeFailure):
        nursery.table.reap()
    assert sorted(child.pid for child in told) == sorted(child.pid for child in children)
    for child in children:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(child.stderr)


def test_child_whose_pipe_cannot_be_watched_is_known(
    nursery: Nursery, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs, so it must not be forked a second time; what it printed is logged at its end."""

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(nursery.loop, "watch", no_room)
        child = nursery.fork(lambda: os.write(2, b"on stderr\n"))
    nursery.wait(child)
    assert nursery.ended == [child] and [event["line"] for event in events] == ["on stderr"]


def test_error_of_one_callback_keeps_no_other_from_its_turn(loop: EventLoop) -> None:
    """The errors are handed over; without anybody to take them the first comes through."""
    doorbells = [os.eventfd(1, os.EFD_NONBLOCK) for _ in range(3)]
    seen: list[int] = []
    errors: list[Exception] = []

    def ring(number: int) -> None:
        seen.append(number)
        raise ValueError(number)

    for number, doorbell in enumerate(doorbells):
        loop.watch(doorbell, lambda number=number: ring(number))  # type: ignore[misc]
        loop.after(number, 0, lambda number=number: ring(10 + number))  # type: ignore[misc]
    with pytest.raises(ValueError, match="0"):
        loop.turn(1)
    seen.clear()
    loop.on_error = errors.append
    loop.turn(1)
    assert sorted(seen) == [0, 1, 2, 10, 11, 12] and len(errors) == 6
    for doorbell in doorbells:
        os.close(doorbell)


def test_signal_is_obeyed_although_the_one_before_it_has_failed() -> None:
    """SIGTERM came together with a SIGCHLD whose consequence raises: it must not get lost."""
    begun: list[str] = []
    actions = {signal.SIGCHLD: lambda: 1 / 0, signal.SIGTERM: lambda: begun.append("drain")}
    with pytest.raises(ZeroDivisionError):
        obey({signal.SIGTERM, signal.SIGCHLD}, actions)  # type: ignore[arg-type]
    assert begun == ["drain"]


def test_signal_that_ends_the_server_is_the_last_that_is_obeyed() -> None:
    """SIGQUIT, or the end of the engine: nothing that came with it delays that."""
    begun: list[str] = []

    def quit_now() -> None:
        raise RuntimeFailure("ended at once")

    actions = {signal.SIGQUIT: quit_now, signal.SIGTERM: lambda: begun.append("drain")}
    with pytest.raises(RuntimeFailure, match="ended at once"):
        obey({signal.SIGTERM, signal.SIGQUIT}, actions)  # type: ignore[arg-type]
    assert begun == []


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
        self.window_drained: list[int] = []
        self.corrupt: list[int] = []
        self.progress: list[tuple[str, int, int]] = []
        self.moved: list[tuple[Any, ...]] = []
        self.loop = nursery.loop
        self.process = EngineProcess(
            make(),
            nursery.loop,
            nursery.table,
            body,
            lost=self.lost.append,
            window_drained=self.window_drained.append,
            corrupt=self.corrupt.append,
            progress=lambda *report: self.progress.append(report),
            moved=lambda connection, *report: self.moved.append((os.dup(connection.fileno()), *report)),
            tell_again_s=0.05,
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


def test_a_connection_that_the_engine_gives_away(nursery: Nursery, events: Events) -> None:
    """It is passed on. Descriptors that come with anything else are closed, whatever a faulty engine sends."""
    begun = {"export": 0, "structured": True}

    def gives(mail: socket.socket) -> int:
        say(mail, event="ready")
        ours, theirs = socket.socketpair()
        for text in (
            b"nonsense", b"[1]", b'{"event": "stopped"}', b'{"event": "move", "id": "x", "peer": 1, "begun": {}}',
            json.dumps({"event": "move", "id": 7, "peer": "unix:pid=1,uid=0", "begun": begun}).encode(),
        ):  # fmt: skip
            socket.send_fds(mail, [text], [theirs.fileno()])
        theirs.close()
        ours.recv(1)
        return 0 if hear(mail) == {"event": "stop"} else 9

    engine = Engine(nursery, gives).until_ready()
    assert engine.loop.until(lambda: bool(engine.moved), 20)
    [(descriptor, number, peer, found)] = engine.moved
    assert (number, peer, found) == (7, "unix:pid=1,uid=0", begun)
    os.close(descriptor)  # the last one: the engine sees the end
    assert engine.process.stop(20)
    assert set(names(events)) == {"mail_ignored"}


def test_engine_that_dies_is_told_and_lost(nursery: Nursery, events: Events) -> None:
    """While it serves: an event with its signal, and an error that says that the data is gone."""

    def serves(mail: socket.socket) -> int:
        say(mail, event="ready")
        hear(mail)
        return die()

    engine = Engine(nursery, serves).until_ready()
    engine.process.drain_window(0)
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
    """Windows that it has drained or found corrupt, and how far its start is, reach those concerned."""

    def talks(mail: socket.socket) -> int:
        say(mail, event="progress", what="prove", done=1, total=2)
        say(mail, event="ready")
        say(mail, event="window_corrupt", window=3)
        say(mail, event="window_drained", window=hear(mail)["window"])
        return 0 if hear(mail) == {"event": "stop"} else 9

    engine = Engine(nursery, talks).until_ready()
    engine.process.drain_window(5)
    assert engine.loop.until(lambda: engine.window_drained == [5], 20)
    assert engine.progress == [("prove", 1, 2)] and engine.corrupt == [3]
    assert engine.process.stop(20)


@pytest.mark.parametrize(
    "text",
    [
        b"\xff", b"[]", b"null", b"[" * 60000, b"9" * 60000, b"{}", b'{"event": ["ready"]}', b'{"event": "unknown"}',
        b'{"event": "window_drained"}', b'{"event": "window_corrupt", "window": null}', b'{"event": "window_drained", "window": "1"}', b'{"event": "progress", "what": "zero"}',
        b'{"event": "progress", "what": "zero", "done": 2, "total": 1}',
        b'{"event": "progress", "what": "zero", "done": 1, "total": 1%s}' % (b"0" * 400),
    ],
)  # fmt: skip
def test_engines_mail_may_be_anything(nursery: Nursery, events: Events, text: bytes) -> None:
    """What is no message is logged and ignored, and the next one is read."""

    def garbles(mail: socket.socket) -> int:
        mail.send(text)
        return obedient(mail)

    engine = Engine(nursery, garbles).until_ready()
    assert engine.process.stop(20)
    assert names(events) == ["mail_ignored"] and not engine.window_drained and not engine.progress and not engine.lost


def test_engine_that_reads_no_mail_is_told_later(nursery: Nursery, events: Events) -> None:
    """A window is not left undrained because the socket was full."""
    begin, finish = os.pipe()

    def late(mail: socket.socket) -> int:
        say(mail, event="ready")
        os.read(begin, 1)
        heard = set()
        while (message := hear(mail))["event"] == "drain_window":
            heard.add(message["window"])
            if len(heard) == 2000:
                say(mail, event="window_drained", window=max(heard))
        return 0

    engine = Engine(nursery, late).until_ready()
    for window in range(2000):
        engine.process.drain_window(window)
    assert "engine_does_not_listen" in names(events)
    os.write(finish, b"x")
    assert engine.loop.until(lambda: engine.window_drained == [1999], 20)
    assert engine.process.stop(20)
    os.close(begin)
    os.close(finish)


# Drains


class Clients:
    """The part of a worker_pool that a drain looks at."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)

    @property
    def attached(self) -> int:
        return len(self.names)

    def clients(self) -> list[str]:
        return self.names


SWAP = ("--mode", "swap", "--listen-addr", "unix:/run/x.sock")


def test_full_doorbells_and_a_garbled_state_hold_up_no_drain(loop: EventLoop, events: Events) -> None:
    """A doorbell may be full, and a worker once could write the state."""
    shared = make()
    for doorbell in shared.doorbells:
        fill(doorbell)
    drain = Drain(shared, loop, Clients())  # type: ignore[arg-type]
    drain.begin()
    shared.control.store(ControlWord.STATE, 99)
    assert drain.over and shared.doorbells


@pytest.mark.parametrize("mode", [(), SWAP])
def test_drain_ends_with_the_last_client(loop: EventLoop, events: Events, mode: tuple[str, ...]) -> None:
    """Not before the signal, not while a client is attached, and at once when none is."""
    shared, worker_pool = make(*mode), Clients("tcp:a vram", "tcp:b vram")
    drain = Drain(shared, loop, worker_pool)  # type: ignore[arg-type]
    set_state(shared, State.READY)
    worker_pool_before, worker_pool.names = worker_pool.names, []
    assert not drain.over, "nobody told it to stop"
    worker_pool.names = worker_pool_before
    drain.begin()
    assert shared.control.state == State.DRAINING
    assert all(rings(doorbell) for doorbell in shared.doorbells), "every worker is woken"
    assert not drain.over
    worker_pool.names = ["tcp:b vram"]
    assert not drain.over
    worker_pool.names = []
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
    shared, worker_pool = make(*SWAP), Clients("unix:pid=7,uid=0 vram")
    drain = Drain(shared, loop, worker_pool, report_s=0.05)  # type: ignore[arg-type]
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


def test_each_child_finds_the_log_as_large_as_it_was_made(nursery: Nursery) -> None:
    """One that was taken over can make the pipe small, and nobody else's lines would find room."""
    as_made = fcntl.fcntl(nursery.pipe.writer, fcntl.F_GETPIPE_SZ)

    def body() -> int:
        return fcntl.fcntl(nursery.pipe.writer, fcntl.F_SETPIPE_SZ, 4096) - 4096

    assert nursery.wait(nursery.fork(body)) == 0
    assert fcntl.fcntl(nursery.pipe.writer, fcntl.F_GETPIPE_SZ) == 4096
    assert nursery.wait(nursery.fork(lambda: 0)) == 0
    assert fcntl.fcntl(nursery.pipe.writer, fcntl.F_GETPIPE_SZ) == as_made


def test_a_child_makes_the_log_block_for_nobody_else(nursery: Nursery) -> None:
    """Else one that was taken over could hold up all others at their next line."""

    def body() -> int:
        os.set_blocking(nursery.pipe.writer, True)
        return os.write(nursery.pipe.writer, b"{}\n")

    assert nursery.wait(nursery.fork(body)) == 3
    assert not os.get_blocking(nursery.pipe.writer)
    assert os.read(nursery.pipe.reader, 4) == b"{}\n"
