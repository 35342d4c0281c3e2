"""The progress of the engine's start, sent to the supervisor, which draws a bar on a terminal.

The mail socket also carries what must arrive, so a report goes only into an empty one: it never
fills the socket, however long the supervisor does not read, and the next report makes up for it.
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import termios
import time
from collections.abc import Callable

_SHORTEST_S = 0.1


class ProgressMail:
    """Called with what is being done, bytes done and bytes in all; most calls send nothing.

    Args:
        mail: non-blocking.
    """

    def __init__(self, mail: socket.socket, clock: Callable[[], float] = time.monotonic) -> None:
        self._mail = mail
        self._clock = clock
        self._due_s = clock()

    def __call__(self, what: str, done: int, total: int) -> None:
        now_s = self._clock()
        if now_s < self._due_s or self._unread_bytes():
            return
        self._due_s = now_s + _SHORTEST_S
        message = {"event": "progress", "what": what, "done": done, "total": total}
        try:
            self._mail.send(json.dumps(message).encode())
        except OSError:
            pass  # the caller finds out by itself that the supervisor is gone

    def _unread_bytes(self) -> int:
        answer = fcntl.ioctl(self._mail, termios.TIOCOUTQ, bytes(4))
        unread: int = struct.unpack("i", answer)[0]
        return unread
