"""The supervisor: makes everything, starts the other processes, and handles signals.

It does almost nothing while the server serves, so that little can fail in it. It is single-threaded
and never loads OpenCL, so it can fork at any time.

    STARTING -> READY -> DRAINING -> STOPPED

    SIGTERM, SIGINT   drain, then end in order: exit 0; while STARTING, give up at once: exit 0
    SIGQUIT           end at once, whatever is attached: exit 1
    SIGCHLD           reap; a worker or the observer is replaced, without the engine all is lost: exit 1
    SIGHUP            read the TLS files again
    SIGUSR1           nothing
    SIGALRM           nothing; the supervisor's own, see ``EventLoop.alarm_s``
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..config.exposure import GROUP_REMEDY, NBD_REMEDY, exposed_listeners
from ..config.settings import Settings
from ..errors import PreconditionError, RuntimeFailure, StartupError
from ..shared.context import Shared
from ..shared.control import ControlWord, State
from ..shared.window import Word
from ..swap import hostmemory, prefault, safeguards
from ..system import logs, privileges, proc
from ..worker import process as worker
from .acceptor import Acceptor
from .certificates import Certificates
from .children import Child
from .devicelist import with_all_devices
from .draining import Drain, set_state
from .engineprocess import EngineProcess
from .failures import reporting
from .observerprocess import ObserverProcess
from .preparation import Prepared, prepared
from .processtable import ProcessTable
from .signalpipe import obey
from .slots import Slot, make_slots
from .startupbar import StartupBar
from .workerpool import WorkerPool
from .workerprocesses import WorkerProcesses

if TYPE_CHECKING:
    from ..engine.process import OpenMemories
    from ..memory.base import Memory

_WORKER_GRACE_S = 1.0
#: Zeroing tens of gigabytes through a slow mapping takes its time.
_ENGINE_GRACE_S = 120.0
_ABANDONED_ENGINE_GRACE_S = 1.5
_AFTER_FAULT_S = 0.02
#: An attacker in a worker can so often keep the supervisor from its loop, for as long.
_ALARM_S = 0.1


def serve(
    settings: Settings, open_memories: OpenMemories | None = None, startup_warnings: Sequence[str] = ()
) -> int:
    """Run a server until a signal stops it; gives the exit status.

    Args:
        open_memories: what the engine opens its memories with, ``vramblk.memory.open_memories`` by default.
        startup_warnings: logged before anything is started.

    Raises:
        StartupError: it could not start, or the engine was lost, or SIGQUIT ended it.
    """
    with prepared(with_all_devices(settings).named_anew(), startup_warnings) as found:
        Supervisor(found, open_memories).run()
    return 0


class _Interrupted(Exception):
    """Told to stop before it was ready."""


class Supervisor:
    """One server, from its first process to its last."""

    def __init__(self, made: Prepared, open_memories: OpenMemories | None) -> None:
        self._made = made
        self._loop = loop = made.loop
        self._manager = made.manager
        self._shared = shared = made.shared
        self._settings = settings = shared.settings
        self._swap = settings.mode == "swap"
        self._log = logs.get()
        self._bar = StartupBar(loop)
        self._processes = ProcessTable(loop, made.pipe, self._private_descriptors)
        self._observer = ObserverProcess(
            shared,
            loop,
            self._processes,
            made.pipe.reader,
            [listener.sock for listener in made.sockets.status],
            made.sockets.files(),
            made.manager.watchdog_s,
        )
        slots = make_slots(shared)
        local = next((slot for slot in slots if slot.local), None)
        self._pool = WorkerPool(shared, loop, slots)
        self._workers = WorkerProcesses(
            shared,
            loop,
            [slot for slot in slots if slot is not local],
            self._launch_worker,
            drain_window=lambda index: self._engine.drain_window(index),
            pass_on=self._pool.pass_on,
        )
        self._engine = EngineProcess(
            shared,
            loop,
            self._processes,
            lambda mail: _run_engine(shared, mail, local, open_memories),
            slot=local,
            lost=self._engine_lost,
            window_drained=self._workers.window_drained,
            corrupt=self._workers.corrupt,
            progress=self._bar.update,
            moved=self._pool.move,
        )
        self._certificates = Certificates(
            settings, made.tls_files, shared.control, loop, self._workers.renew_tls
        )
        self._acceptor = Acceptor(settings, shared.control, loop, self._pool, made.sockets.nbd)
        self._drain = Drain(shared, loop, self._pool)
        #: What ends from now on was meant to end.
        self._ending = False
        #: The last steps, which nothing can make faster.
        self._giving_up = False

    def run(self) -> None:
        """Start, serve until told to stop, and end in order; raises as ``serve``."""
        try:
            self._start()
            while not self._drain.over:
                self._steady_turn()
            self._stop()
        except _Interrupted:
            self._abandon()
        except BaseException:
            self._abandon()
            raise
        finally:
            self._clean_up()

    def _steady_turn(self) -> None:
        """A turn that an unforeseen error does not end: live swap may hang on this process."""
        try:
            self._loop.turn()
        except Exception as error:
            self._survive(error)

    def _survive(self, error: Exception) -> None:
        """Go on after an error that nobody foresaw; what ends the server comes through."""
        if isinstance(error, StartupError):
            raise error
        logs.limited(self._log, "supervisor_error", level="critical", exc_info=error)
        time.sleep(_AFTER_FAULT_S)

    # Signals

    def _obey(self) -> None:
        actions: dict[int, Callable[[], None]] = {
            signal.SIGQUIT: self._quit,
            signal.SIGCHLD: self._processes.reap,
            signal.SIGHUP: self._renew_certificates,
            signal.SIGTERM: self._begin_drain,
            signal.SIGINT: self._begin_drain,
        }
        obey(self._made.signals.read(), actions)

    @property
    def _state(self) -> State:
        return State(self._shared.control.load(ControlWord.STATE))

    def _renew_certificates(self) -> None:
        if self._ending:
            return
        serving = self._state is State.READY
        if serving:
            self._manager.reloading()
        self._certificates.renew()
        if serving:
            self._manager.ready(self._status())

    def _begin_drain(self) -> None:
        if self._ending or self._drain.begun:
            return
        if self._state is State.STARTING:
            raise _Interrupted
        self._acceptor.close()
        self._manager.stopping("draining: waits for the clients that are attached")
        self._drain.begin()

    def _quit(self) -> None:
        if self._giving_up:
            return
        clients = self._clients()
        self._log.critical("quit", signal="SIGQUIT", clients=clients)
        raise RuntimeFailure(f"ended at once by SIGQUIT; attached clients: {', '.join(clients) or 'none'}")

    def _clients(self) -> list[str]:
        """Who is attached, for people to read; a fault in that is no reason to stay."""
        try:
            return self._pool.clients()
        except Exception:
            logs.limited(self._log, "supervisor_error", level="critical", exc_info=True)
            return []

    # Starting

    def _start(self) -> None:
        shared, loop = self._shared, self._loop
        loop.watch(self._made.signals.descriptor, self._obey)
        self._certificates.watch()
        self._observer.start()
        self._start_engine()
        self._workers.start()
        loop.until(lambda: self._workers.ready)
        locked = self._lock([os.getpid(), self._engine.pid, *self._workers.pids])
        shared.control.store(ControlWord.READY_NS, time.monotonic_ns())
        set_state(shared, State.READY)
        loop.on_error = self._survive
        loop.alarm_s = _ALARM_S
        self._acceptor.open()
        self._manager.ready(self._status())
        self._feed_watchdog()
        self._announce(locked)

    def _start_engine(self) -> None:
        self._engine.start()
        self._bar.begin()
        try:
            self._loop.until(lambda: self._engine.ready)
        finally:
            self._bar.end()

    def _lock(self, data_path: Sequence[int]) -> int:
        """Lock this process, check all of the data path and the host, and give the bytes that are locked."""
        safeguards.lock_memory(self._settings, warn=True)
        if self._swap and (problems := safeguards.verify_threads(data_path)):
            raise PreconditionError(
                f"swap mode needs every thread safe: {problems[0]}; {len(problems)} in all, "
                "so a library has undone it: look for what sets scheduling in this process"
            )
        prefault.prefault(self._settings)
        locked = sum(map(proc.locked_bytes, data_path))
        self._shared.control.store(ControlWord.LOCKED_BYTES, locked)
        for hazard in hostmemory.hazards(locked, data_path) if self._swap else ():
            if not hazard.ok:
                self._log.warning("swap_hazard", name=hazard.name, detail=hazard.detail, remedy=hazard.remedy)
        return locked

    def _announce(self, locked: int) -> None:
        """Log where clients find the exports, and people the page."""
        settings = self._settings
        for address, who in exposed_listeners(settings):
            detail = f"{who} can read and write the exports"
            self._log.warning("nbd_exposed", address=str(address), detail=detail, remedy=NBD_REMEDY)
        for path, group in self._shared.socket_groups:
            detail = "every account of this group can attach a swap export that has no client"
            self._log.warning("swap_socket_group", path=path, group=group, detail=detail, remedy=GROUP_REMEDY)
        self._log.info(
            "ready",
            **self._made.sockets.announcement(),
            mode=settings.mode,
            workers=len(self._shared.worker_windows),
            locked_bytes=locked,
        )

    def _status(self) -> str:
        """One line for the service manager."""
        exports = ", ".join(export.name for export in self._settings.exports)
        addresses = ", ".join(str(listener.address) for listener in self._made.sockets.nbd)
        return f"serves {exports} on {addresses}"

    def _feed_watchdog(self) -> None:
        """Unless the canary fails; without an observer nobody knows, which is no reason to lose all data."""
        if self._manager.watchdog_s is None:
            return
        self._loop.after("watchdog", self._manager.watchdog_s / 4, self._feed_watchdog)
        failing = self._shared.canary.load(Word.CANARY_FAILED_NS)
        if not failing or not self._observer.alive:
            self._manager.alive()

    # What the processes call

    def _engine_lost(self, error: StartupError) -> None:
        if not self._ending:
            raise error

    def _launch_worker(self, index: int, handoff: socket.socket) -> Child:
        shared, tls_files = self._shared, self._certificates.files
        counters = shared.windows[index].counters
        return self._processes.fork(
            "worker",
            lambda: reporting(handoff, lambda: worker.run(shared, index, handoff, tls_files)),
            lambda: counters.add("dropped_log_lines"),
            self._workers.died,
            dies_with_parent=not self._swap,
        )

    def _private_descriptors(self) -> list[int]:
        """Everything open here that is no child's business."""
        made = self._made
        found = [self._loop.descriptor, made.pipe.reader]
        for part in (made.manager, made.signals, made.sockets, self._engine, self._observer, self._workers):
            found += part.descriptors()
        open_now = proc.inherited_files() if made.inherited else {}
        found += [number for number, file in made.inherited.items() if open_now.get(number) == file]
        return [descriptor for descriptor in found if descriptor >= 0]

    # Ending

    def _stop(self) -> None:
        """End in order: the workers, then the engine, which zeroes its memory."""
        if clients := self._clients():
            self._log.warning("drain_timeout", clients=clients)
        self._expect_ends()
        self._workers.dismiss()
        if not self._loop.until(self._workers_gone, _WORKER_GRACE_S):
            self._workers.kill()
            self._loop.until(self._workers_gone, _WORKER_GRACE_S)
        if not self._engine.stop(_ENGINE_GRACE_S):
            raise RuntimeFailure("the engine did not end in order; its memory may not have been zeroed")
        self._log.info("stopped")

    def _abandon(self) -> None:
        """End at once what is left of the server."""
        self._giving_up = True
        self._expect_ends()
        self._workers.kill()
        if self._engine.ready:
            self._engine.stop(_ABANDONED_ENGINE_GRACE_S)
        else:
            self._engine.kill()
        self._loop.until(self._workers_gone, _WORKER_GRACE_S)

    def _expect_ends(self) -> None:
        self._ending = True
        self._observer.dismiss()

    def _workers_gone(self) -> bool:
        return not self._workers.alive

    def _clean_up(self) -> None:
        self._ending = self._giving_up = True
        set_state(self._shared, State.STOPPED)
        try:
            self._made.sockets.remove_files()
            self._observer.stop()
            self._made.sockets.close()
        finally:
            self._loop.stop_alarm()


def _run_engine(
    shared: Shared, mail: socket.socket, local: Slot | None, open_memories: OpenMemories | None
) -> int:
    from ..engine import process as engine

    if open_memories is None:
        from ..memory import open_memories as default

        open_memories = default
    open_as_told = open_memories

    def open_and_gain_none(*arguments: Any, **options: Any) -> Sequence[Memory]:
        memories = open_as_told(*arguments, **options)
        privileges.gain_none()
        return memories

    privileges.stay_this_uid()
    if not os.geteuid():  # otherwise a driver may need a setuid helper that makes its device nodes
        privileges.gain_none()
    handoffs = local.handoffs if local is not None else None
    return engine.run(shared, mail, open_and_gain_none, handoffs.theirs if handoffs is not None else None)
