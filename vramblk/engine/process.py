"""The engine: the only process that touches the device. It owns the memories and executes batches."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ..errors import StartupError
from ..memory.base import DeviceError, Memory
from ..shared import stages
from ..shared.context import Shared
from ..shared.control import ControlWord
from ..shared.doorbell import engine_doorbell, worker_doorbell
from ..shared.spin import spin_ns
from ..shared.window import Word
from ..swap import prefault, safeguards
from ..system import childsignals, logs
from .executor import Executor, engine_windows
from .holdings import Holdings
from .localclients import LocalClients
from .progressmail import ProgressMail
from .stagetimes import EngineTiming

OpenMemories = Callable[..., Sequence[Memory]]

_ENGINE_MAIL = ControlWord.ENGINE_MAIL * 8


class _Mailbox:
    """The supervisor's messages, and sleep until there is work."""

    def __init__(self, shared: Shared, mail: socket.socket) -> None:
        self._control = shared.control
        self._words = shared.control.words
        self._doorbell = engine_doorbell(shared.control, shared.engine_doorbell)
        self._mail = mail
        self._seen = 0
        self._epoll = select.epoll()
        self._epoll.register(shared.engine_doorbell.reader, select.EPOLLIN)
        self._epoll.register(mail.fileno(), select.EPOLLIN)
        mail.setblocking(False)
        self.orphaned = False

    @property
    def descriptor(self) -> int:
        """Readable while there is a message, or a doorbell rings."""
        return self._epoll.fileno()

    def sleep(self, idle: Callable[[], bool]) -> None:
        """Block until a doorbell rings, unless something came in the meantime."""
        self._doorbell.begin_sleep()
        if idle() and self._words[_ENGINE_MAIL] == self._seen:
            self._epoll.poll(1 if self.orphaned else None)
        self._doorbell.end_sleep()
        self._doorbell.clear()

    def messages(self) -> list[dict[str, Any]]:
        self._seen = self._words[_ENGINE_MAIL]
        found: list[dict[str, Any]] = []
        while not self.orphaned:
            try:
                text = self._mail.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                text = b""
            if not text:
                self.orphaned = True
                self._epoll.unregister(self._mail.fileno())
                break
            found.append(json.loads(text))
        return found

    def pending(self) -> bool:
        return self._words[_ENGINE_MAIL] != self._seen

    def move(self, connection: socket.socket, **message: Any) -> bool:
        """Have the supervisor give a connection to a worker; False if it does not listen now."""
        text = json.dumps({"event": "move", **message}).encode()
        try:
            socket.send_fds(self._mail, [text], [connection.fileno()])
        except OSError:
            return False
        return True

    def answer(self, **message: Any) -> None:
        with suppress(OSError):  # that the supervisor has gone is found by ``messages`` alone
            self._mail.send(json.dumps(message).encode())


def describe(shared: Shared, memories: Sequence[Memory]) -> dict[str, Any]:
    """What all processes need to know of the exports; see ``Control.export_table``."""
    return {
        "exports": [
            {
                "name": export.name,
                "size_bytes": memory.size_bytes,
                "arena_bytes": memory.arena_bytes,
                "read_only": export.read_only,
                "mode": export.mode,
                "allocate": "attach" if export.attaches else "start",
                **memory.description,
            }
            for export, memory in zip(shared.settings.exports, memories, strict=True)
        ]
    }


def run(
    shared: Shared, mail: socket.socket, open_memories: OpenMemories, handoff: socket.socket | None = None
) -> int:
    """The engine process: open the memories, say ready, serve until told to stop.

    Args:
        handoff: over which the engine is given clients that it serves itself, if there are such.
    """
    log = logs.get()
    mailbox = _Mailbox(shared, mail)
    progress = ProgressMail(mail)
    settings = shared.settings
    windows = engine_windows(shared.windows)
    try:
        memories = open_memories(
            settings.exports,
            windows,
            allow_cpu=settings.allow_cpu,
            map_overwrite=settings.map_overwrite,
            verify_reads=settings.verify_reads,
            progress=progress,
        )
        for memory, written in zip(memories, shared.written, strict=True):
            memory.prove(progress)
            written.resize(memory.size_bytes)
            written.seal()
        shared.control.publish_export_table(describe(shared, memories))
        _warn(shared)
        executor = Executor(
            shared,
            memories,
            windows,
            corrupt=lambda window: mailbox.answer(
                event="window_corrupt", window=window, reason="its ring holds what no ring can"
            ),
            timing=EngineTiming(stages.active) if stages.active is not None else None,
        )
        doorbells = [
            worker_doorbell(window, fd)
            for window, fd in zip(shared.client_windows, shared.doorbells, strict=False)
        ]
        holdings = Holdings(shared, memories, executor, doorbells)
        holdings.begin()
        clients = _local_clients(
            shared, executor, handoff, mailbox, lambda: executor.idle() and not holdings.waiting()
        )
        if clients is not None:
            clients.prepare()
        childsignals.ignore()
        safeguards.lock_memory(settings)
        every_window = [window.whole for window in shared.windows]
        prefault.prefault(settings, [*every_window, *(written.blocks for written in shared.written)])
        if settings.mode == "swap":
            holdings.rehearse()  # behind prefault, which has both allocators keep what that takes
    except StartupError as error:
        mailbox.answer(event="failed", exit_code=error.exit_code, message=str(error))
        return error.exit_code
    except DeviceError as error:
        mailbox.answer(
            event="failed", exit_code=1, message=f"the device failed while it was being set up: {error}"
        )
        return 1
    if clients is not None:
        clients.open()
    mailbox.answer(event="ready")
    _serve(shared, executor, holdings, mailbox, clients)
    if clients is not None:
        clients.close()
    held = holdings.end()
    for memory in memories:
        try:
            if any(memory is each for each in held):
                memory.zero_all()
        except DeviceError as error:
            log.error("zero_failed", detail=str(error))
        memory.close()
    mailbox.answer(event="stopped")
    return 0


def _local_clients(
    shared: Shared,
    executor: Executor,
    handoff: socket.socket | None,
    mailbox: _Mailbox,
    idle: Callable[[], bool],
) -> LocalClients | None:
    if handoff is None:
        return None
    move = mailbox.move if shared.worker_windows else None
    return LocalClients(shared, executor, handoff, mailbox.descriptor, idle, move)


def _warn(shared: Shared) -> None:
    """Log what nobody should learn only from a slow disk."""
    for export in shared.control.export_table()["exports"]:
        what = {"export": export["name"], "device": export["device"]}
        if export["device_type"] == "CPU":
            logs.get().warning("serving_system_ram", **what)
        if not export["pinned"]:
            logs.get().warning("unpinned", **what)


def _serve(
    shared: Shared,
    executor: Executor,
    holdings: Holdings,
    mailbox: _Mailbox,
    clients: LocalClients | None,
) -> None:
    def idle() -> bool:
        return executor.idle() and not holdings.waiting()

    def abandoned() -> bool:
        """Whether neither the supervisor nor a client whose swap lies here is left."""
        if not mailbox.orphaned:
            return False
        return not (swap and (_workers_clients(shared) or (clients is not None and clients.attached)))

    swap = shared.settings.mode == "swap"
    spin = spin_ns(shared.settings)
    busy = shared.control.engine_counters.scalar_index("busy_ns")
    sleeps = shared.control.engine_counters.scalar_index("sleeps")
    clock = time.monotonic_ns
    started = clock()
    while True:
        moved = executor.turn()
        if clients is not None and clients.turn():
            moved = True
        if holdings.turn():
            moved = True
        if moved:
            now = clock()
            executor.count(busy, now - started)
            started = now
            if not mailbox.pending() and not (clients is not None and clients.called()):
                continue
        elif not mailbox.pending() and not abandoned():
            if spin and (clients is None or not clients.attached):
                last, started = started, clock()
                until = last + spin
                while started < until and not (
                    executor.waiting() or mailbox.pending() or holdings.waiting()
                ):
                    started = clock()
                if started < until:
                    continue
            executor.count(sleeps)
            if clients is not None:
                clients.sleep()
            else:
                mailbox.sleep(idle)
            started = clock()
        for message in mailbox.messages():
            if message["event"] == "drain_window":
                executor.drain_window(message["window"])
                holdings.forget(message["window"])
                mailbox.answer(event="window_drained", window=message["window"])
            elif message["event"] == "stop":
                return
        if abandoned():
            return


def _workers_clients(shared: Shared) -> bool:
    """Whether a living worker still has connections, for an engine without a supervisor."""
    for window in shared.worker_windows:
        pid = window.load(Word.WORKER_PID)
        if pid and window.load(Word.CONNECTIONS):
            try:
                os.kill(pid, 0)
            except (ProcessLookupError, OverflowError):
                continue
            except PermissionError:
                pass  # it lives, under another uid
            return True
    return False
