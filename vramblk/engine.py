"""The engine: the only process that touches the device. It owns the memories and executes batches."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from . import childsignals, logs, steadystate, swapsafety
from .errors import StartupError
from .executor import Executor
from .memory.base import DeviceError, Memory
from .progressmail import ProgressMail
from .shared import stages
from .shared.barrier import full_barrier
from .shared.context import Shared
from .shared.control import ControlWord
from .shared.spin import spin_ns
from .shared.window import Word
from .stagetimes import watch_engine

OpenMemories = Callable[..., Sequence[Memory]]

_ENGINE_SLEEPING = ControlWord.ENGINE_SLEEPING * 8
_ENGINE_MAIL = ControlWord.ENGINE_MAIL * 8


class _Mailbox:
    """The supervisor's messages, and sleep until there is work."""

    def __init__(self, shared: Shared, mail: socket.socket) -> None:
        self._control = shared.control
        self._words = shared.control.words
        self._bell = shared.engine_bell
        self._mail = mail
        self._seen = 0
        self._epoll = select.epoll()
        self._epoll.register(shared.engine_bell, select.EPOLLIN)
        self._epoll.register(mail.fileno(), select.EPOLLIN)
        mail.setblocking(False)
        self.orphaned = False

    def sleep(self, executor: Executor) -> None:
        """Block until a bell rings, unless something came in the meantime."""
        self._words[_ENGINE_SLEEPING] = 1
        full_barrier()
        if not executor.waiting() and self._words[_ENGINE_MAIL] == self._seen:
            self._epoll.poll(1 if self.orphaned else None)
        self._words[_ENGINE_SLEEPING] = 0
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            pass

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

    def answer(self, **message: Any) -> None:
        try:
            self._mail.send(json.dumps(message).encode())
        except OSError:
            self.orphaned = True


def describe(shared: Shared, memories: Sequence[Memory]) -> dict[str, Any]:
    """What all processes need to know of the exports; see ``Control.geometry``."""
    return {
        "exports": [
            {
                "name": export.name,
                "size_bytes": memory.size_bytes,
                "arena_bytes": memory.arena_bytes,
                "read_only": export.read_only,
                "mode": export.mode,
                **memory.description,
            }
            for export, memory in zip(shared.settings.exports, memories, strict=True)
        ]
    }


def run(shared: Shared, mail: socket.socket, open_memories: OpenMemories) -> int:
    """The engine process: open the memories, say ready, serve until told to stop."""
    log = logs.get()
    mailbox = _Mailbox(shared, mail)
    progress = ProgressMail(mail)
    settings = shared.settings
    try:
        memories = open_memories(
            settings.exports,
            shared.windows,
            allow_cpu=settings.allow_cpu,
            map_overwrite=settings.map_overwrite,
            verify_reads=settings.verify_reads,
            progress=progress,
        )
        for memory, written in zip(memories, shared.written, strict=True):
            memory.prove(progress)
            written.resize(memory.size_bytes)
        shared.control.publish_geometry(describe(shared, memories))
        _warn(shared)
        executor = Executor(shared, memories)
        childsignals.ignore()
        swapsafety.lock_memory(settings)
        every_window = [window.whole for window in shared.windows]
        steadystate.settle(settings, [*every_window, *(written.blocks for written in shared.written)])
    except StartupError as error:
        mailbox.answer(event="failed", exit_code=error.exit_code, message=str(error))
        return error.exit_code
    except DeviceError as error:
        mailbox.answer(
            event="failed", exit_code=1, message=f"the device failed while it was being set up: {error}"
        )
        return 1
    mailbox.answer(event="ready")
    _serve(shared, executor, mailbox)
    for memory in memories:
        try:
            memory.zero_all()
        except DeviceError as error:
            log.error("zero_failed", detail=str(error))
        memory.close()
    mailbox.answer(event="stopped")
    return 0


def _warn(shared: Shared) -> None:
    """Log what nobody should learn only from a slow disk."""
    for export in shared.control.geometry()["exports"]:
        what = {"export": export["name"], "device": export["device"]}
        if export["device_type"] == "CPU":
            logs.get().warning("serving_system_ram", **what)
        if not export["pinned"]:
            logs.get().warning("unpinned", **what)


def _serve(shared: Shared, executor: Executor, mailbox: _Mailbox) -> None:
    spin = spin_ns(shared.settings)
    cells = shared.control.engine_counters.cells
    busy = shared.control.engine_counters.scalar_index("busy_ns")
    sleeps = shared.control.engine_counters.scalar_index("sleeps")
    clock = time.monotonic_ns
    started = clock()
    if stages.active is not None:
        watch_engine(executor, stages.active)
    while True:
        if executor.turn():
            now = clock()
            cells[busy] += now - started
            started = now
            if not mailbox.pending():
                continue
        elif not mailbox.pending() and not mailbox.orphaned:
            if spin:
                last, started = started, clock()
                until = last + spin
                while started < until and not executor.waiting() and not mailbox.pending():
                    started = clock()
                if started < until:
                    continue
            cells[sleeps] += 1
            mailbox.sleep(executor)
            started = clock()
        for message in mailbox.messages():
            if message["event"] == "retire":
                executor.retire(message["window"])
                mailbox.answer(event="retired", window=message["window"])
            elif message["event"] == "stop":
                return
        if mailbox.orphaned and (shared.settings.mode != "swap" or not _clients(shared)):
            return
        if mailbox.orphaned:
            mailbox.sleep(executor)


def _clients(shared: Shared) -> bool:
    """Whether a living worker still has connections, for an engine without a supervisor."""
    for window in shared.worker_windows:
        pid = window.load(Word.WORKER_PID)
        if pid and window.load(Word.CONNECTIONS):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                continue
            return True
    return False
