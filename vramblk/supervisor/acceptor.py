"""Takes connections and hands each to a worker, or closes it before negotiation."""

from __future__ import annotations

import errno
import itertools
import socket
from collections.abc import Sequence

from ..config.settings import Settings
from ..shared.control import Control, ControlWord
from ..system import logs
from .eventloop import EventLoop
from .listeners import Listener
from .workerpool import WorkerPool

_ACCEPTS = 64
_GONE_BEFORE_ACCEPT = (errno.ECONNABORTED, errno.ECONNRESET, errno.ENOTCONN, errno.EINVAL, errno.EPROTO)
_TIMER = "accept {}"


class Acceptor:
    """Accepts from ``open`` until ``close``.

    Args:
        full_pause_s: until it is looked again whether a worker has room.
        exhausted_pause_s: until accept(2) is tried again after it has failed.
    """

    def __init__(
        self,
        settings: Settings,
        control: Control,
        loop: EventLoop,
        pool: WorkerPool,
        listeners: Sequence[Listener],
        *,
        full_pause_s: float = 0.1,
        exhausted_pause_s: float = 0.5,
    ) -> None:
        self._most = settings.max_connections
        self._swap = settings.mode == "swap"
        self._control = control
        self._loop = loop
        self._pool = pool
        self._listeners = listeners
        self._full_pause_s = full_pause_s
        self._exhausted_pause_s = exhausted_pause_s
        self._numbers = itertools.count(1)
        self._log = logs.get()

    def open(self) -> None:
        self._watch(self._listeners)

    def close(self) -> None:
        """Close the sockets: who connects now is refused by the kernel."""
        for listener in self._listeners:
            self._loop.cancel(_timer(listener))
            self._loop.unwatch(listener.sock.fileno())
            listener.sock.close()

    def _watch(self, listeners: Sequence[Listener]) -> None:
        try:
            for listener in listeners:
                self._loop.watch(listener.sock.fileno(), lambda listener=listener: self._accept(listener))  # type: ignore[misc]
        except OSError as error:  # all or none, and later again
            logs.limited(self._log, "accept_failed", detail=str(error))
            self._pause(listeners, self._exhausted_pause_s)

    def _pause(self, listeners: Sequence[Listener], pause_s: float) -> None:
        """Leave clients in the backlog; unwatched, or the loop would turn without end."""
        for listener in listeners:
            self._loop.unwatch(listener.sock.fileno())
            self._loop.after(_timer(listener), pause_s, lambda listener=listener: self._watch([listener]))  # type: ignore[misc]

    def _accept(self, listener: Listener) -> None:
        local = listener.sock.family == socket.AF_UNIX
        for _ in range(_ACCEPTS):
            full = self._pool.attached >= self._most
            if not full and not self._swap and not self._pool.accepts(local=local):
                self._pause([listener], self._full_pause_s)  # a worker is being replaced
                return
            try:
                connection, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _GONE_BEFORE_ACCEPT:
                    continue
                logs.limited(self._log, "accept_failed", detail=str(error))
                self._pause(self._listeners, self._exhausted_pause_s)
                return
            with connection:
                if reason := self._pool.admit(connection, next(self._numbers), peer):
                    self._refuse(peer, reason)

    def _refuse(self, peer: str, reason: str) -> None:
        control = self._control
        control.store(ControlWord.CONNECTIONS_REFUSED, control.load(ControlWord.CONNECTIONS_REFUSED) + 1)
        logs.limited(self._log, "connection_refused", client=peer, reason=reason)


def _timer(listener: Listener) -> str:
    return _TIMER.format(listener.sock.fileno())
