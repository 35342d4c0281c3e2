"""The canary: a 4 KiB read of each export that goes through a ring and the engine, as a client's read does.

Of an export whose memory is not held, as many bytes go to its device and back instead.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass

from ..shared.context import Shared
from ..shared.control import ControlWord
from ..shared.counters import ERRNO_NAMES
from ..shared.descriptors import ENTRIES, Op
from ..shared.doorbell import worker_doorbell
from ..shared.holds import HeldWords
from ..shared.ring import SubmissionRing
from ..shared.window import Word
from . import threads

READ_BYTES = 4096
TIMEOUT_S = 2.0
#: A result this old is still good, so that many askers cost one read a second.
CACHED_S = 1.0
#: Looks within one interval of a service manager's watchdog, and the longest pause between them.
_WATCHDOG_LOOKS = 4
_WATCHDOG_LONGEST_S = 30.0


@dataclass(frozen=True)
class Outcome:
    """One flight of the canary.

    Attributes:
        problem: one line, empty if all was well.
        seconds: how long the engine took; None if it did not answer.
        at: monotonic time at its end, seconds.
        busy: the engine did not come to it in time, but has executed other requests meanwhile.
    """

    problem: str
    seconds: float | None
    at: float
    busy: bool = False


class Canary:
    """Sends the canary when somebody asks, at most once a second."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._window = shared.canary
        self._doorbell = worker_doorbell(shared.canary, shared.doorbells[-1])
        self._ring = SubmissionRing(shared.canary, shared.engine_doorbell, shared.control)
        self._held = HeldWords(shared.control)
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
        progress = self._progress()
        if not self._wait(self._ring.tail, started + TIMEOUT_S):
            return self._late(progress)
        self._drop_statuses()
        exports = self._shared.control.export_table().get("exports", [])
        if not exports:
            return Outcome("the engine is still starting", None, time.monotonic())
        first = self._ring.tail
        turns = [self._held.turn(index) for index in range(len(exports))]
        for index, export in enumerate(exports):
            if self._held.held(index):
                self._read(index, int(export["size_bytes"]))
            else:
                self._echo(index)
        self._ring.publish()
        if not self._wait(self._ring.tail, started + TIMEOUT_S):
            return self._late(progress)
        problem = ""
        if self._ring.failed():
            for number, export in enumerate(exports, start=first):
                status = self._ring.take_status(number)
                changed = self._held.turn(number - first) != turns[number - first]
                if status and not changed and not problem:
                    name = ERRNO_NAMES.get(status, str(status))
                    problem = f"a read of export {export['name']} fails with {name}"
        ended = time.monotonic()
        return Outcome(problem, ended - started, ended)

    def _progress(self) -> int:
        return self._shared.control.load(ControlWord.ENGINE_PROGRESS)

    def _late(self, progress: int) -> Outcome:
        """No answer in time: the engine is busy if it has executed anything meanwhile, or stands still."""
        busy = self._progress() != progress
        problem = "" if busy else f"the engine has not answered for {TIMEOUT_S:g} s"
        return Outcome(problem, None, time.monotonic(), busy)

    def _place(self, index: int) -> int:
        layout = self._window.layout
        return layout.rx_bytes + index * READ_BYTES % layout.tx_bytes

    def _echo(self, index: int) -> None:
        """Bytes to the device of an export whose memory is not held, and back."""
        place = self._place(index)
        self._ring.push(Op.ECHO, index, 0, 1, 0, READ_BYTES, place, READ_BYTES)

    def _read(self, index: int, size_bytes: int) -> None:
        length = min(READ_BYTES, size_bytes)
        place = self._place(index)
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
            self._doorbell.wait(lambda: self._ring.done() >= target, min(left, 0.2))
        return True


def publish_for_watchdog(canary: Canary, shared: Shared, interval_s: float) -> None:
    """Look from now on, and publish since when the canary has not come back.

    The supervisor, which feeds a service manager's watchdog, reads that.

    Args:
        interval_s: of the watchdog.
    """
    pause_s = min(interval_s / _WATCHDOG_LOOKS, _WATCHDOG_LONGEST_S)

    def watch() -> None:
        window = shared.canary  # the only one that this process may write
        while True:
            if not shared.control.export_table() or not canary.check(pause_s / 2).problem:
                window.store(Word.CANARY_FAILED_NS, 0)
            elif not window.load(Word.CANARY_FAILED_NS):
                window.store(Word.CANARY_FAILED_NS, time.monotonic_ns())
            time.sleep(pause_s)

    threads.start(watch, "watchdog")
