"""How far the engine's start is, told to the supervisor, which draws it where there is a terminal.

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
from collections.abc import Callable, Iterator, Sequence
from typing import cast

from .memory.base import Memory, Pattern, Progress
from .memory.patterns import prove

_SHORTEST_S = 0.1
#: A step takes a GPU about a millisecond and a slow mapping about a second.
_STEP_BYTES = 128 << 20
#: Written, read back, zeroed, read back.
_PASSES = 4


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
            pass  # whoever must know that the supervisor is gone finds it out by itself

    def _unread_bytes(self) -> int:
        answer = fcntl.ioctl(self._mail, termios.TIOCOUTQ, bytes(4))
        unread: int = struct.unpack("i", answer)[0]
        return unread


def prove_all(memories: Sequence[Memory], progress: Progress) -> None:
    """Prove each memory, see ``Memory.prove``, in steps between which ``progress`` is called.

    Raises:
        DeviceError: a memory did not hold what was written.
    """
    for memory in memories:
        prove(cast(Memory, _InSteps(memory, progress)))


class _InSteps:
    """The part of a memory that a proof uses, told step by step."""

    def __init__(self, memory: Memory, progress: Progress) -> None:
        self.size_bytes = memory.size_bytes
        self._memory = memory
        self._progress = progress
        self._done = 0

    def fill(self, offset: int, length: int, pattern: Pattern, seed: int = 0) -> None:
        for at, part in self._steps(offset, length):
            self._memory.fill(at, part, pattern, seed)

    def mismatches(self, offset: int, length: int, pattern: Pattern, seed: int = 0) -> list[tuple[int, int]]:
        return [
            found
            for at, part in self._steps(offset, length)
            for found in self._memory.mismatches(at, part, pattern, seed)
        ]

    def _steps(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        end = offset + length
        for at in range(offset, end, _STEP_BYTES):
            part = min(_STEP_BYTES, end - at)
            self._progress("prove", self._done // _PASSES, self.size_bytes)
            yield at, part
            self._done += part
