"""The engine as the supervisor sees it: its start, its mail, its end, and whether that end was in order."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from .. import logs
from ..errors import RuntimeFailure, StartupError
from ..shared.context import Shared
from ..shared.control import ControlWord
from .children import Child
from .eventloop import EventLoop
from .failures import reporting, startup_error
from .processtable import ProcessTable

_KILL_GRACE_S = 1.0


class EngineProcess:
    """The engine. There is one in the life of a server, since the data dies with it.

    Args:
        body: what the engine runs, given its end of the mail socket.
        lost: called when it has failed or died, whatever the supervisor is doing; may raise the error.
        retired: called with a window when the engine has finished what a dead worker had queued in it.
        progress: called with what it is doing before it is ready, bytes done and bytes in all.

    Attributes:
        ready: its memory is allocated, zeroed and proven, and it serves.
    """

    def __init__(
        self,
        shared: Shared,
        loop: EventLoop,
        processes: ProcessTable,
        body: Callable[[socket.socket], int],
        *,
        lost: Callable[[StartupError], None],
        retired: Callable[[int], None],
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.ready = False
        self._shared = shared
        self._loop = loop
        self._processes = processes
        self._body = body
        self._lost = lost
        self._retired = retired
        self._progress = progress
        self._child: Child | None = None
        self._mail: socket.socket | None = None
        self._told_to_stop = False
        self._nothing_to_tell = False
        self._log = logs.get()

    def start(self) -> None:
        """Fork it; ``ready`` tells when it serves."""
        counters = self._shared.control.engine_counters
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._mail = ours
            self._child = self._processes.fork(
                "engine",
                lambda: reporting(theirs, lambda: self._body(theirs)),
                lambda: counters.add("dropped_log_lines"),
                self._ended,
                dies_with_parent=False,  # it zeroes its memory first
            )
        ours.setblocking(False)
        self._loop.watch(ours.fileno(), self._read_mail)
        self._shared.control.store(ControlWord.ENGINE_PID, self._child.pid)

    @property
    def pid(self) -> int:
        return self._child.pid if self._child is not None else 0

    def descriptors(self) -> list[int]:
        """The supervisor's end of the mail."""
        return [self._mail.fileno()] if self._mail is not None else []

    def retire(self, index: int) -> None:
        """Ask it to finish what the dead worker of a window had queued."""
        self._tell(event="retire", window=index)

    def stop(self, grace_s: float) -> bool:
        """Have it zero its memory and end; False if it ended otherwise, before or now."""
        child = self._child
        if child is None:
            return True
        if child.alive:
            self._told_to_stop = True
            self._tell(event="stop")
            if not self._loop.until(lambda: not child.alive, grace_s):
                self._log.critical("engine_killed", after_s=grace_s)
                self.kill()
        return child.status == 0

    def kill(self) -> None:
        """End it at once, its memory as it is, and wait for that."""
        child = self._child
        if child is not None and child.alive:
            self._nothing_to_tell = True
            child.kill()
            self._loop.until(lambda: not child.alive, _KILL_GRACE_S)

    def _tell(self, **message: Any) -> None:
        if self._mail is None:
            return
        try:
            self._mail.send(json.dumps(message).encode())
        except OSError as error:
            self._log.error("engine_does_not_listen", detail=str(error))
            return
        control = self._shared.control
        control.store(ControlWord.ENGINE_MAIL, control.load(ControlWord.ENGINE_MAIL) + 1)
        os.eventfd_write(self._shared.engine_bell, 1)

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
            self._take(json.loads(text))

    def _take(self, message: Mapping[str, Any]) -> None:
        event = message["event"]
        if event == "ready":
            self.ready = True
        elif event == "progress":
            self._progress(message["what"], message["done"], message["total"])
        elif event == "retired":
            self._retired(message["window"])
        elif event == "failed":
            if self.ready:
                self._log.critical("engine_died", **self._name(), detail=message["message"])
            self._nothing_to_tell = True
            self._lost(startup_error(message))

    def _ended(self, child: Child) -> None:
        self._read_mail()  # its last word says more than its status
        if self._nothing_to_tell or (self._told_to_stop and child.status == 0):
            return
        how = child.how_it_ended()
        self._log.critical("engine_died", **self._name(), **how)
        text = " ".join(f"{key} {value}" for key, value in how.items())
        loss = "and with it the memory and all data in it" if self.ready else "before its memory was ready"
        self._lost(RuntimeFailure(f"the engine died ({text}), {loss}; start the server again"))

    def _name(self) -> dict[str, Any]:
        return {"process": "vramblk-engine", "child": self.pid}
