"""Takes connections and hands each to a worker, or closes it before negotiation."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Sequence

from .. import logs
from ..settings import Settings
from ..shared.control import Control, ControlWord
from .crew import Crew
from .eventloop import EventLoop
from .listeners import Listener

_ACCEPTS = 64
_FULL_PAUSE_S = 0.1
_EXHAUSTED_PAUSE_S = 0.5
_GONE_BEFORE_ACCEPT = (errno.ECONNABORTED, errno.ECONNRESET, errno.ENOTCONN, errno.EINVAL, errno.EPROTO)
_TIMER = "accept"


class Acceptor:
    """Accepts from ``open`` until ``close``."""

    def __init__(
        self, settings: Settings, control: Control, loop: EventLoop, crew: Crew, listeners: Sequence[Listener]
    ) -> None:
        self._most = settings.max_connections
        self._swap = settings.mode == "swap"
        self._control = control
        self._loop = loop
        self._crew = crew
        self._listeners = listeners
        self._numbers = itertools.count(1)
        self._log = logs.get()

    def open(self) -> None:
        for listener in self._listeners:
            self._loop.watch(listener.sock.fileno(), lambda listener=listener: self._accept(listener))  # type: ignore[misc]

    def close(self) -> None:
        """Close the sockets: who connects now is refused by the kernel."""
        self._loop.cancel(_TIMER)
        self._unwatch()
        for listener in self._listeners:
            listener.sock.close()

    def _unwatch(self) -> None:
        for listener in self._listeners:
            self._loop.unwatch(listener.sock.fileno())

    def _pause(self, pause_s: float) -> None:
        """Leave clients in the backlog; unwatched, or the loop would turn without end."""
        self._unwatch()
        self._loop.after(_TIMER, pause_s, self.open)

    def _accept(self, listener: Listener) -> None:
        for _ in range(_ACCEPTS):
            full = self._crew.attached >= self._most
            if not full and not self._swap and not self._crew.has_room:
                self._pause(_FULL_PAUSE_S)  # a worker is being replaced
                return
            try:
                connection, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _GONE_BEFORE_ACCEPT:
                    continue
                logs.limited(self._log, "accept_failed", detail=str(error))
                self._pause(_EXHAUSTED_PAUSE_S)
                return
            with connection:
                if full:
                    self._refuse(peer, f"{self._most} connections are open (--max-connections)")
                elif not self._crew.hand_over(connection, next(self._numbers), peer):
                    self._refuse(peer, "no worker is free (--workers)" if self._swap else "no worker answers")

    def _refuse(self, peer: str, reason: str) -> None:
        control = self._control
        control.store(ControlWord.CONNECTIONS_REFUSED, control.load(ControlWord.CONNECTIONS_REFUSED) + 1)
        logs.limited(self._log, "connection_refused", client=peer, reason=reason)
