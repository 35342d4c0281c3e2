"""The canary: a 4 KiB read of each export that goes the way of a client's, through a ring and the engine."""

from __future__ import annotations

import os
import random
import select
import threading
import time
from dataclasses import dataclass

from ..shared.barrier import full_barrier
from ..shared.context import Shared
from ..shared.counters import ERRNO_NAMES
from ..shared.ring import SubmissionRing
from ..shared.window import ENTRIES, Op, Word

READ_BYTES = 4096
TIMEOUT_S = 2.0
#: A result this old is still good, so that many askers cost one read a second.
CACHED_S = 1.0


@dataclass(frozen=True)
class Outcome:
    """One flight of the canary.

    Attributes:
        problem: one line, empty if all was well.
        seconds: how long the engine took; None if it did not answer.
        at: monotonic time at its end, seconds.
    """

    problem: str
    seconds: float | None
    at: float


class Canary:
    """Sends the canary when somebody asks, at most once a second."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._window = shared.canary
        self._bell = shared.bells[-1]
        self._ring = SubmissionRing(shared.canary, shared.engine_bell, shared.control)
        self._lock = threading.Lock()
        self._outcome: Outcome | None = None

    def last(self) -> Outcome | None:
        """The latest outcome however old, without waiting."""
        return self._outcome

    def check(self, oldest_s: float = CACHED_S) -> Outcome:
        """An outcome at most so old; waits two seconds for the engine, and longer only for another asker."""
        asked = time.monotonic()
        with self._lock:
            outcome = self._outcome
            if outcome is None or outcome.at < asked - oldest_s:
                outcome = self._outcome = self._fly()
            return outcome

    def _fly(self) -> Outcome:
        """A read that an earlier flight left behind is waited for first: the engine may be only slow."""
        started = time.monotonic()
        if not self._wait(self._ring.tail, started + TIMEOUT_S):
            return Outcome(f"the engine has not answered for {TIMEOUT_S:g} s", None, time.monotonic())
        self._drop_statuses()
        exports = self._shared.control.geometry().get("exports", [])
        if not exports:
            return Outcome("the engine is still starting", None, time.monotonic())
        first = self._ring.tail
        for index, export in enumerate(exports):
            self._push(index, int(export["size_bytes"]))
        self._ring.publish()
        if not self._wait(self._ring.tail, started + TIMEOUT_S):
            return Outcome(f"the engine has not answered for {TIMEOUT_S:g} s", None, time.monotonic())
        problem = ""
        if self._ring.failed():
            for number, export in enumerate(exports, start=first):
                status = self._ring.take_status(number)
                if status and not problem:
                    name = ERRNO_NAMES.get(status, str(status))
                    problem = f"a read of export {export['name']} fails with {name}"
        ended = time.monotonic()
        return Outcome(problem, ended - started, ended)

    def _push(self, index: int, size_bytes: int) -> None:
        length = min(READ_BYTES, size_bytes)
        layout = self._window.layout
        place = layout.rx_bytes + index * READ_BYTES % layout.tx_bytes
        offset = random.randrange((size_bytes - length) // READ_BYTES + 1) * READ_BYTES
        self._ring.push(Op.COPY_OUT, index, 0, 1, place, place + length, offset, length)

    def _drop_statuses(self) -> None:
        """Take the statuses of flights that nobody waited for."""
        if self._ring.failed():
            for number in range(max(0, self._ring.tail - ENTRIES), self._ring.tail):
                self._ring.take_status(number)

    def _wait(self, target: int, deadline: float) -> bool:
        while self._ring.done() < target:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._window.store(Word.WORKER_SLEEPING, 1)
            full_barrier()
            if self._ring.done() < target:
                select.select([self._bell], [], [], min(left, 0.2))
            self._window.store(Word.WORKER_SLEEPING, 0)
            try:
                os.eventfd_read(self._bell)
            except BlockingIOError:
                pass
        return True
