"""The supervisor: makes everything, starts the other processes, and obeys signals.

It does almost nothing while the server serves, so that little can fail in it. It is single-threaded
and never loads OpenCL, so it can fork at any time.

    STARTING -> READY -> DRAINING -> STOPPED

    SIGTERM, SIGINT   drain, then end in order: exit 0; while STARTING, give up at once: exit 0
    SIGQUIT           end at once, whatever is attached: exit 1
    SIGCHLD           reap; a worker or the observer is replaced, without the engine all is lost: exit 1
    SIGHUP, SIGUSR1   nothing
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import hostmemory, logs, steadystate, swapsafety, worker
from .errors import PreconditionError, RuntimeFailure, StartupError
from .settings import Settings
from .shared.barrier import require_ordered_stores
from .shared.context import Shared, make_shared
from .shared.control import ControlWord, State
from .supervision import children, listeners
from .supervision.acceptor import Acceptor
from .supervision.children import Child
from .supervision.crew import Crew, choose_workers, slab_bytes
from .supervision.draining import Drain, set_state
from .supervision.engineprocess import EngineProcess
from .supervision.eventloop import EventLoop
from .supervision.failures import reporting
from .supervision.listeners import Listener
from .supervision.logpipe import LogPipe
from .supervision.observerprocess import ObserverProcess
from .supervision.processtable import ProcessTable
from .supervision.signalpipe import SignalPipe
from .supervision.startupbar import StartupBar
from .tls import make_context
from .units import UnixAddress

if TYPE_CHECKING:
    from .engine import OpenMemories

_NOTICED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD)
_IGNORED = (signal.SIGUSR1,)
_WORKER_GRACE_S = 1.0
#: Zeroing tens of gigabytes through a slow mapping takes its time.
_ENGINE_GRACE_S = 120.0
_ABANDONED_ENGINE_GRACE_S = 1.5
_AFTER_FAULT_S = 0.02


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
        self._signals: SignalPipe | None = None
        self._listeners: list[Listener] = []
        self._status_listeners: list[Listener] = []
        self._log_pipe: LogPipe | None = None
        self._shared: Shared | None = None
        self._processes: ProcessTable | None = None
        self._observer: ObserverProcess | None = None
        self._engine: EngineProcess | None = None
        self._crew: Crew | None = None
        self._acceptor: Acceptor | None = None
        self._drain: Drain | None = None
        #: What ends from now on was meant to end.
        self._ending = False
        #: The last steps, which nothing can make faster.
        self._giving_up = False

    def run(self, startup_warnings: Sequence[str] = ()) -> int:
        """See ``serve``."""
        try:
            self._start(startup_warnings)
            while self._drain is None or not self._drain.over:
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

    def _steady_turn(self) -> None:
        """A turn that an unforeseen error does not end: live swap may hang on this process."""
        try:
            self._loop.turn()
        except StartupError:
            raise
        except Exception:
            logs.limited(self._log, "supervisor_error", level="critical", exc_info=True)
            time.sleep(_AFTER_FAULT_S)

    # Signals

    def _obey(self, signals: SignalPipe) -> None:
        came = signals.read()
        if signal.SIGQUIT in came:
            self._quit()
        if signal.SIGCHLD in came and self._processes is not None:
            self._processes.reap()
        if signal.SIGHUP in came:
            self._log.info("signal_ignored", signal="SIGHUP", reason="settings are read only at start")
        if came & {signal.SIGTERM, signal.SIGINT}:
            self._begin_drain()

    def _begin_drain(self) -> None:
        if self._ending or self._drain is not None:
            return
        if self._acceptor is None:
            raise _Interrupted
        assert self._shared is not None and self._crew is not None
        self._acceptor.close()
        self._drain = Drain(self._shared, self._loop, self._crew)
        self._drain.begin()

    def _quit(self) -> None:
        if self._giving_up:
            return
        clients = self._crew.clients() if self._crew is not None else []
        self._log.critical("quit", signal="SIGQUIT", clients=clients)
        raise RuntimeFailure(f"ended at once by SIGQUIT; attached clients: {', '.join(clients) or 'none'}")

    # Starting

    def _start(self, startup_warnings: Sequence[str]) -> None:
        settings, loop = self._settings, self._loop
        require_ordered_stores()
        group = listeners.socket_group(os.environ)
        make_context(settings)
        workers = choose_workers(settings)
        swapsafety.prepare(settings)
        children.set_process_name("vramblk-supervisor", command_line=False)
        self._signals = signals = SignalPipe(_NOTICED, _IGNORED)
        loop.watch(signals.descriptor, lambda: self._obey(signals))
        for warning in startup_warnings:
            self._log.warning("startup_warning", detail=warning)
        self._bind(group)
        pipe, shared = self._make_shared(workers)
        processes = self._processes = ProcessTable(loop, pipe, self._private_descriptors)
        status = [listener.sock for listener in self._status_listeners]
        self._observer = ObserverProcess(shared, loop, processes, pipe.reader, status)
        self._observer.start()
        self._engine = self._start_engine(shared, processes)
        crew = self._crew = Crew(shared, loop, self._launch_worker, self._engine.retire)
        crew.start()
        loop.until(lambda: crew.ready)
        locked = self._lock(shared, [os.getpid(), self._engine.pid, *crew.pids])
        shared.control.store(ControlWord.READY_NS, time.monotonic_ns())
        set_state(shared, State.READY)
        self._acceptor = Acceptor(settings, shared.control, loop, crew, self._listeners)
        self._acceptor.open()
        secure, export = settings.tls == "require", settings.exports[0].name
        uris = [listener.uri(export, secure=secure) for listener in self._listeners]
        self._log.info("ready", uris=uris, mode=settings.mode, workers=workers, locked_bytes=locked)

    def _bind(self, group: int | None) -> None:
        settings = self._settings
        for address in settings.listen_addr:
            self._listeners += listeners.bind(address, "listen_addr", group)
        path = settings.status_socket
        if path is not None:
            try:
                self._status_listeners += listeners.bind(UnixAddress(path), "status_socket", group)
            except StartupError as error:
                if settings.status_socket_given:
                    raise
                self._log.warning("no_status_socket", detail=str(error))
        if settings.metrics_addr is not None:
            self._status_listeners += listeners.bind(settings.metrics_addr, "metrics_addr")

    def _make_shared(self, workers: int) -> tuple[LogPipe, Shared]:
        """The log pipe, through which this process logs from here on, and the shared memory."""
        settings = self._settings
        pipe = self._log_pipe = LogPipe(verbose=settings.verbose)
        slab = slab_bytes(settings, workers)
        shared = self._shared = make_shared(settings, workers, slab, slab, pipe.writer)
        control = shared.control
        control.store(ControlWord.SUPERVISOR_PID, os.getpid())

        def count_dropped() -> None:
            control.store(ControlWord.DROPPED_LOG_LINES, control.load(ControlWord.DROPPED_LOG_LINES) + 1)

        channel = pipe.channel(count_dropped)
        logs.configure(channel.descriptor, channel.json, channel.on_drop, "supervisor", channel.verbose)
        return pipe, shared

    def _start_engine(self, shared: Shared, processes: ProcessTable) -> EngineProcess:
        bar = StartupBar(self._loop)
        engine = self._engine = EngineProcess(
            shared,
            self._loop,
            processes,
            lambda mail: _run_engine(shared, mail, self._open_memories),
            lost=self._engine_lost,
            retired=lambda index: self._crew.retired(index) if self._crew is not None else None,
            progress=bar.update,
        )
        engine.start()
        bar.begin()
        try:
            self._loop.until(lambda: engine.ready)
        finally:
            bar.end()
        return engine

    def _engine_lost(self, error: StartupError) -> None:
        if not self._ending:
            raise error

    def _launch_worker(self, index: int, handoff: socket.socket) -> Child:
        assert self._shared is not None and self._crew is not None and self._processes is not None
        shared, counters = self._shared, self._shared.windows[index].counters
        return self._processes.fork(
            "worker",
            lambda: reporting(handoff, lambda: worker.run(shared, index, handoff)),
            lambda: counters.add("dropped_log_lines"),
            self._crew.died,
            dies_with_parent=not self._swap,
        )

    def _private_descriptors(self) -> list[int]:
        """Everything open here that is no child's business."""
        found = [self._loop.descriptor]
        for part in (self._signals, self._engine, self._observer, self._crew):
            found += part.descriptors() if part is not None else []
        found += [listener.sock.fileno() for listener in (*self._listeners, *self._status_listeners)]
        found += [self._log_pipe.reader] if self._log_pipe is not None else []
        return [descriptor for descriptor in found if descriptor >= 0]

    def _lock(self, shared: Shared, data_path: Sequence[int]) -> int:
        """Lock this process, check all of the data path and the host, and give the bytes that are locked."""
        swapsafety.lock_memory(self._settings, warn=True)
        if self._swap and (problems := swapsafety.verify_threads(data_path)):
            raise PreconditionError(
                f"swap mode needs every thread safe: {problems[0]}; {len(problems)} in all, "
                "so a library has undone it: look for what sets scheduling in this process"
            )
        steadystate.settle(self._settings)
        locked = sum(map(swapsafety.locked_bytes, data_path))
        shared.control.store(ControlWord.LOCKED_BYTES, locked)
        for hazard in hostmemory.hazards(locked, data_path) if self._swap else ():
            if not hazard.ok:
                self._log.warning("swap_hazard", name=hazard.name, detail=hazard.detail, remedy=hazard.remedy)
        return locked

    # Ending

    def _stop(self) -> None:
        """End in order: the workers, then the engine, which zeroes its memory."""
        assert self._crew is not None and self._engine is not None
        if clients := self._crew.clients():
            self._log.warning("drain_timeout", clients=clients)
        self._expect_ends()
        self._crew.dismiss()
        if not self._loop.until(self._workers_gone, _WORKER_GRACE_S):
            self._crew.kill()
            self._loop.until(self._workers_gone, _WORKER_GRACE_S)
        if not self._engine.stop(_ENGINE_GRACE_S):
            raise RuntimeFailure("the engine did not end in order; its memory may not have been zeroed")
        self._log.info("stopped")

    def _abandon(self) -> None:
        """End at once what is left of the server."""
        self._giving_up = True
        self._expect_ends()
        if self._crew is not None:
            self._crew.kill()
        if self._engine is not None:
            if self._engine.ready:
                self._engine.stop(_ABANDONED_ENGINE_GRACE_S)
            else:
                self._engine.kill()
        self._loop.until(self._workers_gone, _WORKER_GRACE_S)

    def _expect_ends(self) -> None:
        self._ending = True
        if self._observer is not None:
            self._observer.dismiss()

    def _workers_gone(self) -> bool:
        return self._crew is None or not self._crew.alive

    def _clean_up(self) -> None:
        self._ending = self._giving_up = True
        if self._shared is not None:
            set_state(self._shared, State.STOPPED)
        every = (*self._listeners, *self._status_listeners)
        for listener in every:
            listener.remove_file()
        if self._observer is not None:
            self._observer.stop()
        for listener in every:
            listener.sock.close()
        if self._log_pipe is not None:
            logs.configure_direct("supervisor", self._settings.verbose)
            self._log_pipe.flush()
        if self._signals is not None:
            self._signals.close()
        self._loop.close()


def _run_engine(shared: Shared, mail: socket.socket, open_memories: OpenMemories | None) -> int:
    from . import engine

    if open_memories is None:
        from .memory import open_memories as default

        open_memories = default
    return engine.run(shared, mail, open_memories)
