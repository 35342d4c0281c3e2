"""Moves log lines from the pipe that all processes share to stdout, which may be slow."""

from __future__ import annotations

import errno
import os
import select
import threading

from ..system import logs
from . import threads

_CHUNK = 1 << 16
_POLL_MS = 200
_FULL_MS = 1000


class LogPump:
    """One thread; when stdout is gone it goes on reading and throws away, so that the pipe never fills.

    Args:
        source: read end of the pipe.
        target: where to, stdout.
    """

    def __init__(self, source: int, target: int = 1) -> None:
        self._source = source
        self._target = target
        self._closing = threading.Event()
        self._broken = False
        self._thread = threads.start(self._run, "log-pump")

    def close(self, timeout_s: float = 2.0) -> None:
        """Pump what is left; returns earlier when that is done, later never."""
        self._closing.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        while True:
            closing = self._closing.is_set()
            if not poll.poll(0 if closing else _POLL_MS):
                if closing:
                    return
                continue
            try:
                chunk = os.read(self._source, _CHUNK)
            except BlockingIOError:
                continue
            if not chunk:
                return
            if not self._broken:
                self._write(logs.without_control(chunk))

    def _write(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while rest:
            try:
                rest = rest[os.write(self._target, rest) :]
            except BlockingIOError:
                # A terminal that another program has made non-blocking.
                room = select.poll()
                room.register(self._target, select.POLLOUT)
                room.poll(_FULL_MS)
            except OSError as error:
                # A full disk may have room again; a reader that is gone does not come back.
                self._broken = error.errno in (errno.EPIPE, errno.EBADF)
                return
