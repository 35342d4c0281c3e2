"""The pipe through which all processes log: the observer takes the lines out, and the supervisor the rest."""

from __future__ import annotations

import fcntl
import os
import select
import time
from collections.abc import Callable

from ..system import logs, privileges
from .children import Channel

_BYTES = 1 << 20
_FLUSH_S = 1.0


class LogPipe:
    """Both ends of the pipe.

    Attributes:
        reader: for the observer.
        writer: non-blocking, for everybody.
    """

    def __init__(self, *, verbose: bool) -> None:
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        self._verbose = verbose
        os.set_blocking(self.writer, False)
        self._enlarge()

    def channel(self, on_drop: Callable[[], None]) -> Channel:
        """How a process logs into the pipe; ``on_drop`` is called for each line that did not go in."""
        self._enlarge()  # one that was taken over may have made it small
        return Channel(self.writer, not logs.stdout_is_terminal(), self._verbose, on_drop)

    def _enlarge(self) -> None:
        try:
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, _BYTES)
        except OSError:
            pass  # a smaller one only drops earlier

    def flush(self) -> None:
        """Close it, and write what the observer has left to stdout, as far as that takes it in time."""
        os.close(self.writer)
        poller = select.poll()
        poller.register(1, select.POLLOUT)
        deadline_s = time.monotonic() + _FLUSH_S
        try:
            # An attacker in the observer may have left a process that makes the shared one block.
            privileges.own_end(self.reader, os.O_RDONLY)
            while (left_s := deadline_s - time.monotonic()) > 0 and (
                data := os.read(self.reader, select.PIPE_BUF)
            ):
                data = logs.without_control(data)
                while data:
                    if not poller.poll(left_s * 1000):
                        return
                    data = data[os.write(1, data) :]
        except OSError:
            pass  # nothing left, or nobody reads any more
        finally:
            os.close(self.reader)
