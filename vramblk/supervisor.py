"""The supervisor: makes everything, starts the other processes, hands out connections, and obeys signals.

It does almost nothing while the server serves, so that little can fail in it. It is single-threaded
and never loads OpenCL, so it can fork at any time.

    STARTING -> READY -> DRAINING -> STOPPED

In scratch mode a drain ends with the last client or at its deadline; in swap mode only with the
last client, since the memory must never be freed under one.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from . import children, listeners, logs, swapsafety, worker
from .children import Channel, Child
from .crew import Backoff, Crew, choose_workers, slab_bytes, startup_error
from .errors import PreconditionError, RuntimeFailure, StartupError
from .eventloop import EventLoop
from .listeners import Listener
from .settings import Settings
from .shared.barrier import require_ordered_stores
from .shared.context import Shared, make_shared
from .shared.control import ControlWord, State
from .tls import make_context
from .units import TcpAddress, UnixAddress

if TYPE_CHECKING:
    from .engine import OpenMemories

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD)
_LOG_PIPE_BYTES = 1 << 20
_POLL_S = 0.02
_DRAIN_POLL_S = {"scratch": 0.05, "swap": 0.5}
_REPORT_S = 10.0
_WORKER_GRACE_S = 1.0
_OBSERVER_GRACE_S = 1.0
#: Zeroing tens of gigabytes through a slow mapping takes its time.
_ENGINE_GRACE_S = 120.0
_ABANDONED_ENGINE_GRACE_S = 1.5
_FLUSH_S = 1.0
_ACCEPTS = 64
_FULL_PAUSE_S = 0.1
_EXHAUSTED_PAUSE_S = 0.5
_GONE_BEFORE_ACCEPT = (errno.ECONNABORTED, errno.ECONNRESET, errno.ENOTCONN, errno.EINVAL, errno.EPROTO)


def serve(
    settings: Settings, open_memories: OpenMemories | None = None, startup_warnings: Sequence[str] = ()
) -> int:
    """Run a server until it is told to stop; gives the exit status.

    Args:
        open_memories: what the engine opens its memories with, ``vramblk.memory.open_memories`` by default.
        startup_warnings: logged before anything is started.

    Raises:
        StartupError: it could not start, or the engine was lost, or SIGQUIT ended it.
    """
    return Supervisor(settings, open_memories).run(startup_warnings)


class _Interrupted(Exception):
    """Told to stop before it was ready."""


class Supervisor:
    """One server, from the first check to the last process."""

    def __init__(self, settings: Settings, open_memories: OpenMemories | None) -> None:
        self._settings = settings
        self._open_memories = open_memories
        self._swap = settings.mode == "swap"
        self._log = logs.get()
        self._loop = EventLoop()
        self._wakeup: tuple[int, int] | None = None
        self._handlers: dict[int, Any] = {}
        self._listeners: list[Listener] = []
        self._status_listeners: list[Listener] = []
        self._log_pipe: tuple[int, int] | None = None
        self._shared: Shared | None = None
        self._channel: Channel | None = None
        self._crew: Crew | None = None
        self._engine: Child | None = None
        self._mail: socket.socket | None = None
        self._engine_ready = False
        self._observer: Child | None = None
        self._observer_socket: socket.socket | None = None
        self._observer_started_s = 0.0
        self._observer_backoff = Backoff(shortest_s=1.0, longest_s=30.0, good_life_s=60.0)
        self._numbers = itertools.count(1)
        self._ending = False

    def run(self, startup_warnings: Sequence[str] = ()) -> int:
        """See ``serve``."""
        try:
            self._start(startup_warnings)
            while not self._drained():
                self._steady_turn()
            self._stop()
        except _Interrupted:
            self._abandon()
        except BaseException:
            self._abandon()
            raise
        finally:
            self._clean_up()
        return 0

    # Starting

    def _start(self, startup_warnings: Sequence[str]) -> None:
        settings = self._settings
        require_ordered_stores()
        group = listeners.socket_group(os.environ)
        make_context(settings)
        workers = choose_workers(settings)
        swapsafety.prepare(settings)
        children.set_process_name("vramblk-supervisor", command_line=False)
        self._install_signals()
        for warning in startup_warnings:
            self._log.warning("startup_warning", detail=warning)
        for address in settings.listen_addr:
            self._listeners += listeners.bind(address, "listen_addr", group)
        self._bind_status(group)
        slab = slab_bytes(settings, workers)
        self._shared = make_shared(settings, workers, slab, slab, self._open_log_pipe())
        self._shared.control.store(ControlWord.SUPERVISOR_PID, os.getpid())
        self._channel = self._make_channel(self._count_dropped)
        logs.configure(
            self._channel.descriptor,
            self._channel.json,
            self._channel.on_drop,
            "supervisor",
            settings.verbose,
        )
        self._log = logs.get()
        self._start_observer()
        self._start_engine()
        self._until(lambda: self._engine_ready)
        self._crew = Crew(self._shared, self._loop, self._launch_worker, self._retire)
        self._crew.start()
        self._until(lambda: self._crew is not None and self._crew.ready)
        locked = self._lock()
        self._shared.control.store(ControlWord.READY_NS, time.monotonic_ns())
        self._set_state(State.READY)
        self._watch_listeners()
        self._log.info("ready", uris=self._uris(), mode=settings.mode, workers=workers, locked_bytes=locked)

    def _bind_status(self, group: int | None) -> None:
        settings = self._settings
        path = settings.status_socket
        if path is not None:
            if path == "/run/vramblk/status.sock" and not settings.status_socket_given:
                try:
                    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
                except OSError:
                    pass  # bind says why
            try:
                self._status_listeners += listeners.bind(UnixAddress(path), "status_socket", group)
            except StartupError as error:
                if settings.status_socket_given:
                    raise
                self._log.warning("no_status_socket", detail=str(error))
        if settings.metrics_addr is not None:
            self._status_listeners += listeners.bind(settings.metrics_addr, "metrics_addr")

    def _open_log_pipe(self) -> int:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(writer, False)
        try:
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _LOG_PIPE_BYTES)
        except OSError:
            pass  # a smaller one only drops earlier
        self._log_pipe = reader, writer
        return writer

    def _make_channel(self, on_drop: Callable[[], None]) -> Channel:
        assert self._log_pipe is not None
        return Channel(self._log_pipe[1], not logs.stdout_is_terminal(), self._settings.verbose, on_drop)

    def _count_dropped(self) -> None:
        if self._shared is not None:
            control = self._shared.control
            control.store(ControlWord.DROPPED_LOG_LINES, control.load(ControlWord.DROPPED_LOG_LINES) + 1)

    def _lock(self) -> int:
        """Lock this process, check all of them, and give the bytes that all have locked."""
        assert self._crew and self._engine and self._shared
        swapsafety.lock_memory(self._settings, warn=True)
        pids = [os.getpid(), self._engine.pid, *self._crew.pids]
        if self._swap and (problems := swapsafety.verify_threads(pids)):
            raise PreconditionError(
                f"swap mode needs every thread safe: {problems[0]}; {len(problems)} in all, "
                "so a library has undone it: look for what sets scheduling in this process"
            )
        locked = sum(map(swapsafety.locked_bytes, pids))
        self._shared.control.store(ControlWord.LOCKED_BYTES, locked)
        return locked

    def _uris(self) -> list[str]:
        scheme = "nbds" if self._settings.tls == "require" else "nbd"
        name = quote(self._settings.exports[0].name, safe="")
        uris = []
        for listener in self._listeners:
            if isinstance(listener.address, TcpAddress):
                uris.append(f"{scheme}://{listener.address}/{name}")
            else:
                uris.append(f"{scheme}+unix:///{name}?socket={quote(listener.address.path)}")
        return uris

    # Processes

    def _fork(
        self,
        role: str,
        body: Callable[[], int],
        on_drop: Callable[[], None],
        keep: Sequence[int] = (),
        *,
        dies_with_parent: bool,
    ) -> Child:
        child = children.fork(
            role, body, self._make_channel(on_drop), set(self._own_descriptors()) - set(keep),
            dies_with_parent=dies_with_parent, keeps_stdout=role == "observer",
        )  # fmt: skip
        self._loop.watch(child.stderr, lambda: self._read_stderr(child))
        return child

    def _own_descriptors(self) -> list[int]:
        """Everything open here that is not shared with every child."""
        found = [self._loop.descriptor, *(self._wakeup or ())]
        found += [listener.sock.fileno() for listener in (*self._listeners, *self._status_listeners)]
        found += [sock.fileno() for sock in (self._mail, self._observer_socket) if sock is not None]
        found += [child.stderr for child in self._all_children()]
        if self._crew is not None:
            found += self._crew.descriptors()
        if self._log_pipe is not None:
            found.append(self._log_pipe[0])
        return [descriptor for descriptor in found if descriptor >= 0]

    def _all_children(self) -> list[Child]:
        crew = [slot.child for slot in self._crew.slots if slot.child] if self._crew is not None else []
        return [child for child in (self._engine, self._observer) if child is not None] + crew

    def _start_engine(self) -> None:
        assert self._shared is not None
        shared, counters = self._shared, self._shared.control.engine_counters
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._mail = ours
            self._engine = self._fork(
                "engine",
                lambda: _reporting(theirs, lambda: _run_engine(shared, theirs, self._open_memories)),
                lambda: counters.add("dropped_log_lines"),
                dies_with_parent=False,  # it zeroes its memory first
            )
        ours.setblocking(False)
        self._loop.watch(ours.fileno(), self._read_mail)
        shared.control.store(ControlWord.ENGINE_PID, self._engine.pid)

    def _launch_worker(self, index: int, handoff: socket.socket) -> Child:
        assert self._shared is not None
        shared, counters = self._shared, self._shared.windows[index].counters
        return self._fork(
            "worker",
            lambda: _reporting(handoff, lambda: worker.run(shared, index, handoff)),
            lambda: counters.add("dropped_log_lines"),
            dies_with_parent=not self._swap,
        )

    def _start_observer(self) -> None:
        assert self._shared and self._log_pipe
        shared, reader, counters = self._shared, self._log_pipe[0], self._shared.canary.counters
        sockets = [listener.sock for listener in self._status_listeners]
        swap = self._swap
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._observer_socket = ours
            self._observer_started_s = time.monotonic()
            self._observer = self._fork(
                "observer",
                lambda: _run_observer(shared, reader, sockets, theirs, swap=swap),
                lambda: counters.add("dropped_log_lines"),
                keep=[reader, *(sock.fileno() for sock in sockets)],
                dies_with_parent=not self._swap,
            )

    def _restart_observer(self) -> None:
        if self._ending:
            return
        try:
            self._start_observer()
        except OSError as error:
            self._close_observer_socket()
            self._log.warning("observer_not_started", detail=str(error))
            self._loop.after("observer", self._observer_backoff.after(0), self._restart_observer)

    def _close_observer_socket(self) -> None:
        if self._observer_socket is not None:
            self._observer_socket.close()
            self._observer_socket = None

    def _read_stderr(self, child: Child) -> None:
        lines, ended = child.read_lines()
        for line in lines:
            self._log.warning("child_stderr", role=child.role, child=child.pid, line=line)
        if ended:
            self._loop.unwatch(child.stderr)

    def _reap(self) -> None:
        known = {child.pid: child for child in self._all_children()}
        ended = []
        for pid, status in children.reap():
            if pid in known:
                known[pid].status = status  # before any consequence: that one's may be the end of this loop
                ended.append(known[pid])
            else:
                self._log.debug("orphan_reaped", child=pid)
        for child in ended:
            self._read_stderr(child)
            self._loop.unwatch(child.stderr)
            os.close(child.stderr)
            if child is self._engine:
                self._engine_ended(child)
            elif child is self._observer:
                self._observer_ended(child)
            elif self._crew is not None:
                self._crew.died(child)

    def _engine_ended(self, child: Child) -> None:
        self._engine = None
        self._read_mail()
        if not self._ending or child.status:
            how = child.how_it_ended()
            self._log.critical("engine_died", process="vramblk-engine", child=child.pid, **how)
            if not self._ending:
                text = " ".join(f"{key} {value}" for key, value in how.items())
                raise RuntimeFailure(
                    f"the engine died ({text}), and with it the memory and all data in it; "
                    "start the server again"
                )

    def _observer_ended(self, child: Child) -> None:
        self._observer = None
        self._close_observer_socket()
        if not self._ending:
            delay_s = self._observer_backoff.after(time.monotonic() - self._observer_started_s)
            self._log.warning("observer_died", child=child.pid, restart_in_s=delay_s, **child.how_it_ended())
            self._loop.after("observer", delay_s, self._restart_observer)

    # Mail

    def _read_mail(self) -> None:
        while self._mail is not None:
            try:
                text = self._mail.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                text = b""
            if not text:
                self._loop.unwatch(self._mail.fileno())
                self._mail.close()
                self._mail = None
                return
            message = json.loads(text)
            if message["event"] == "ready":
                self._engine_ready = True
            elif message["event"] == "retired" and self._crew is not None:
                self._crew.retired(message["window"])
            elif message["event"] == "failed" and not self._ending:
                raise startup_error(message)

    def _tell_engine(self, **message: Any) -> None:
        if self._mail is None or self._shared is None:
            return
        try:
            self._mail.send(json.dumps(message).encode())
        except OSError as error:
            self._log.error("engine_does_not_listen", detail=str(error))
            return
        control = self._shared.control
        control.store(ControlWord.ENGINE_MAIL, control.load(ControlWord.ENGINE_MAIL) + 1)
        os.eventfd_write(self._shared.engine_bell, 1)

    def _retire(self, index: int) -> None:
        self._tell_engine(event="retire", window=index)

    # Connections

    def _watch_listeners(self) -> None:
        for listener in self._listeners:
            if listener.sock.fileno() >= 0:
                self._loop.watch(listener.sock.fileno(), lambda listener=listener: self._accept(listener))  # type: ignore[misc]

    def _unwatch_listeners(self) -> None:
        for listener in self._listeners:
            self._loop.unwatch(listener.sock.fileno())

    def _pause_accepting(self, pause_s: float) -> None:
        self._unwatch_listeners()
        self._loop.after("accept", pause_s, self._watch_listeners)

    def _accept(self, listener: Listener) -> None:
        assert self._crew is not None
        for _ in range(_ACCEPTS):
            full = self._crew.attached >= self._settings.max_connections
            if not full and not self._swap and not self._crew.has_room:
                self._pause_accepting(
                    _FULL_PAUSE_S
                )  # a worker is being replaced; clients wait in the backlog
                return
            try:
                connection, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _GONE_BEFORE_ACCEPT:
                    continue
                logs.limited(self._log, "accept_failed", detail=str(error))
                self._pause_accepting(_EXHAUSTED_PAUSE_S)
                return
            with connection:
                if full:
                    self._refuse(
                        peer, f"{self._settings.max_connections} connections are open (--max-connections)"
                    )
                elif not self._crew.hand_over(connection, next(self._numbers), peer):
                    self._refuse(peer, "no worker is free (--workers)" if self._swap else "no worker answers")

    def _refuse(self, peer: str, reason: str) -> None:
        assert self._shared is not None
        control = self._shared.control
        control.store(ControlWord.CONNECTIONS_REFUSED, control.load(ControlWord.CONNECTIONS_REFUSED) + 1)
        logs.limited(self._log, "connection_refused", client=peer, reason=reason)

    # Signals

    def _install_signals(self) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup = reader, writer
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in _SIGNALS:
            self._handlers[number] = signal.signal(number, _noticed)
        self._handlers[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self._loop.watch(reader, self._obey)

    def _obey(self) -> None:
        assert self._wakeup is not None
        came = set(os.read(self._wakeup[0], 4096))
        if signal.SIGQUIT in came and not self._ending:
            clients = self._crew.clients() if self._crew is not None else []
            self._log.critical("quit", signal="SIGQUIT", clients=clients)
            attached = ", ".join(clients) or "none"
            raise RuntimeFailure(f"ended at once by SIGQUIT; attached clients: {attached}")
        if signal.SIGCHLD in came:
            self._reap()
        if signal.SIGHUP in came:
            self._log.info("signal_ignored", signal="SIGHUP", reason="settings are read only at start")
        if came & {signal.SIGTERM, signal.SIGINT}:
            self._drain()

    # Stopping

    def _set_state(self, state: State) -> None:
        assert self._shared is not None
        self._shared.control.store(ControlWord.STATE, state)
        for bell in self._shared.bells:
            os.eventfd_write(bell, 1)

    def _drain(self) -> None:
        if self._ending:
            return
        if self._crew is None or self._shared is None or self._shared.control.state == State.STARTING:
            raise _Interrupted
        if self._shared.control.state != State.READY:
            return
        self._loop.cancel("accept")
        self._unwatch_listeners()
        for listener in self._listeners:
            listener.sock.close()
        if not self._swap:
            deadline_ns = time.monotonic_ns() + int(self._settings.drain_timeout_s * 1e9)
            self._shared.control.store(ControlWord.DRAIN_DEADLINE_NS, deadline_ns)
        self._set_state(State.DRAINING)
        self._log.info("draining", clients=self._crew.clients())
        self._look_again()
        if self._swap:
            self._report_attached()

    def _look_again(self) -> None:
        """Workers do not say when a client leaves, so the loop has to wake up by itself."""
        self._loop.after("drain", _DRAIN_POLL_S[self._settings.mode], self._look_again)

    def _report_attached(self) -> None:
        assert self._crew is not None
        if clients := self._crew.clients():
            self._log.warning("still_attached", clients=clients, detach="vramblk-swap down")
        self._loop.after("report", _REPORT_S, self._report_attached)

    def _drained(self) -> bool:
        assert self._shared is not None and self._crew is not None
        if self._shared.control.state != State.DRAINING:
            return False
        if not self._crew.attached:
            return True
        return not self._swap and time.monotonic_ns() >= self._shared.control.load(
            ControlWord.DRAIN_DEADLINE_NS
        )

    def _stop(self) -> None:
        """End in order: the workers, then the engine, which zeroes its memory."""
        assert self._crew is not None
        if clients := self._crew.clients():
            self._log.warning("drain_timeout", clients=clients)
        self._ending = True
        self._crew.dismiss()
        if not self._until(lambda: self._crew is None or not self._crew.alive, _WORKER_GRACE_S):
            self._crew.kill()
            self._until(lambda: self._crew is None or not self._crew.alive, _WORKER_GRACE_S)
        if not self._end_engine(_ENGINE_GRACE_S):
            raise RuntimeFailure("the engine did not end in order; its memory may not have been zeroed")
        self._log.info("stopped")

    def _end_engine(self, grace_s: float) -> bool:
        """Tell the engine to zero its memory and end; False if it failed in that."""
        engine = self._engine
        if engine is None:
            return True
        self._tell_engine(event="stop")
        if not self._until(lambda: not engine.alive, grace_s):
            self._log.critical("engine_killed", after_s=grace_s)
            engine.kill()
            self._until(lambda: not engine.alive, _WORKER_GRACE_S)
        return engine.status == 0

    def _abandon(self) -> None:
        """End at once what is left of the server."""
        self._ending = True
        if self._crew is not None:
            self._crew.kill()
        if self._engine_ready:
            self._end_engine(_ABANDONED_ENGINE_GRACE_S)
        elif self._engine is not None:
            self._engine.kill()
        self._until(lambda: not self._engine and not (self._crew and self._crew.alive), _WORKER_GRACE_S)

    def _clean_up(self) -> None:
        self._ending = True
        if self._shared is not None:
            self._set_state(State.STOPPED)
        for listener in (*self._listeners, *self._status_listeners):
            listener.remove_file()
        self._close_observer_socket()
        if observer := self._observer:
            if not self._until(lambda: not observer.alive, _OBSERVER_GRACE_S):
                observer.kill()
                self._until(lambda: not observer.alive, _OBSERVER_GRACE_S)
        for listener in (*self._listeners, *self._status_listeners):
            listener.sock.close()
        if self._log_pipe is not None:
            logs.configure_direct("supervisor", self._settings.verbose)
            _flush(*self._log_pipe)
        if self._wakeup is not None:
            signal.set_wakeup_fd(-1)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            for descriptor in self._wakeup:
                os.close(descriptor)
        self._loop.close()

    # The loop

    def _until(self, condition: Callable[[], bool], timeout_s: float = float("inf")) -> bool:
        """Run the loop until the condition holds; False if the time is over first."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() >= deadline_s:
                return False
            self._loop.turn(_POLL_S)
        return True

    def _steady_turn(self) -> None:
        """A turn that an unforeseen error does not end: live swap may hang on this process."""
        try:
            self._loop.turn()
        except StartupError:
            raise
        except Exception:
            logs.limited(self._log, "supervisor_error", level="critical", exc_info=True)
            time.sleep(_POLL_S)


def _noticed(_: int, __: FrameType | None) -> None:
    """Python writes the number to the wake-up descriptor; there is nothing more to do."""


def _run_engine(shared: Shared, mail: socket.socket, open_memories: OpenMemories | None) -> int:
    from . import engine

    if open_memories is None:
        from .memory import open_memories as default

        open_memories = default
    return engine.run(shared, mail, open_memories)


def _run_observer(
    shared: Shared, log_reader: int, sockets: list[socket.socket], supervisor: socket.socket, *, swap: bool
) -> int:
    if swap:
        swapsafety.leave_data_path()
    from . import observer

    return observer.run(shared, log_reader, sockets, supervisor)


def _reporting(line: socket.socket, body: Callable[[], int]) -> int:
    """Run a child; what ends it is told to the supervisor, which may have to say it on stderr."""
    try:
        return body()
    except StartupError as error:
        _report(line, error.exit_code, str(error))
        return error.exit_code
    except Exception as error:
        _report(line, RuntimeFailure.exit_code, f"{type(error).__name__}: {error}")
        raise


def _report(line: socket.socket, exit_code: int, message: str) -> None:
    try:
        line.send(json.dumps({"event": "failed", "exit_code": exit_code, "message": message}).encode())
    except OSError:
        pass  # the supervisor is gone


def _flush(reader: int, writer: int) -> None:
    """Write what the observer has left in the log pipe to stdout, as far as stdout takes it in time."""
    os.close(writer)
    os.set_blocking(reader, False)
    poller = select.poll()
    poller.register(1, select.POLLOUT)
    deadline_s = time.monotonic() + _FLUSH_S
    try:
        while (left_s := deadline_s - time.monotonic()) > 0 and (data := os.read(reader, select.PIPE_BUF)):
            while data:
                if not poller.poll(left_s * 1000):
                    return
                data = data[os.write(1, data) :]
    except OSError:
        pass  # nothing left, or nobody reads any more
    finally:
        os.close(reader)
