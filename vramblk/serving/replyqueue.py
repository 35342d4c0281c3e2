"""Replies of one connection on their way into the socket."""

from __future__ import annotations

import socket
import ssl
import time
from collections import deque

from ..shared.contiguousfifo import ContiguousFifo
from ..shared.counters import WorkerCounters
from ..shared.window import Window
from .lanes import Lane
from .sockets import SHORT_OF_MEMORY
from .submissions import Submission
from .tally import Tally

_MOST_VIEWS = 256
_LARGEST_TLS_WRITE = 1 << 20
_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantWriteError)


class ReplyQueue:
    """Sends ranges of the slab as they lie, and frees the transmit lane behind them.

    Attributes:
        space: allocator of the transmit lane.
        in_flight: submissions submitted and not complete.
        waiting: bytes queued and not taken by the socket.
        broken: why nothing can be sent any more, or None.
        starved: the kernel had no memory for a send; try again a little later.
        wants_read: TLS has to receive before it can send.
    """

    def __init__(self, sock: socket.socket, lane: Lane, window: Window, export: int, tally: Tally) -> None:
        self._sock = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._slab = window.slab_view
        self._counters: WorkerCounters = window.counters
        self._export = export
        self._tally = tally
        self.space = ContiguousFifo(lane.tx_bytes)
        self.in_flight = 0
        self.waiting = 0
        self.broken: str | None = None
        self.starved = self.wants_read = False
        self._views: deque[memoryview] = deque()
        self._marks: deque[tuple[int, Submission]] = deque()
        self._queued = 0
        self._sent = 0

    def queue(self, submission: Submission) -> None:
        """Take over a complete submission."""
        before = self._queued
        if submission.repaired is not None:
            for view in submission.repaired:
                self._views.append(view)
                self._queued += len(view)
        elif submission.reply_end > submission.reply_start:
            self._views.append(self._slab[submission.reply_start : submission.reply_end])
            self._queued += submission.reply_end - submission.reply_start
        self.waiting += self._queued - before
        self._marks.append((self._queued, submission))
        if self.broken:
            self._drop()

    def flush(self) -> bool:
        """Hand the socket as much as it takes; never blocks. False if that broke the connection."""
        views = self._views
        self.starved = self.wants_read = False
        while views and not self.broken:
            try:
                if self._tls:
                    count = self._sock.send(views[0][:_LARGEST_TLS_WRITE])
                elif len(views) == 1:
                    count = self._sock.send(views[0])
                else:
                    count = self._sock.sendmsg(
                        [views[index] for index in range(min(len(views), _MOST_VIEWS))]
                    )
            except ssl.SSLWantReadError:
                self.wants_read = True
                break
            except _WOULD_BLOCK:
                break
            except OSError as error:
                if error.errno not in SHORT_OF_MEMORY:
                    self.fail(str(error))
                    return False
                self.starved = True
                break
            self._tally.sent(count)
            self._sent += count
            self.waiting -= count
            while count:
                first = len(views[0])
                if count < first:
                    views[0] = views[0][count:]
                    break
                count -= first
                views.popleft()
        if self._marks and self._marks[0][0] <= self._sent:
            now = time.monotonic_ns()
            while self._marks and self._marks[0][0] <= self._sent:
                self._finish(self._marks.popleft()[1], now)
        return True

    def fail(self, reason: str) -> None:
        """Nothing can be sent any more: drop what waits, free its space."""
        if not self.broken:
            self.broken = reason
        self._drop()

    def count_error(self, op: int, errno: int, received_ns: int, count: int = 1) -> None:
        """Count requests that are answered with an error; they are answered requests too."""
        self._counters.cells[self._counters.error_index(self._export, op, errno)] += count
        self._tally.answered(op, count, 0, time.monotonic_ns() - received_ns)

    def _drop(self) -> None:
        self._views.clear()
        self.waiting = 0
        self._sent = self._queued
        while self._marks:
            submission = self._marks.popleft()[1]
            if submission.tx_end >= 0:
                self.space.release(submission.tx_end)

    def _finish(self, submission: Submission, now_ns: int) -> None:
        if submission.tx_end >= 0:
            self.space.release(submission.tx_end)
        elapsed = now_ns - submission.received_ns
        for op, count, amount in submission.accounts:
            self._tally.answered(op, count, amount, elapsed)
