"""Submissions: what a worker has in flight, over all its connections, in order.

Compiled, with the types of ``submissions.pxd``: each run and each lone request is one.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

from ..errors import RuntimeFailure
from ..nbd.runs import Side
from ..nbd.transmission import Request
from ..shared.counters import WorkerCounters
from ..shared.ring import SubmissionRing
from ..system import logs
from .columns import make_cookies
from .pieces import LargeRead, LargeWrite, LargeZero
from .zeroing import ZeroingTurns

#: Together some three microseconds, by which a request that comes meanwhile is seen later.
_LOOKS = 32
_COOKIE = struct.Struct("<II")


class Unit:
    """A ring entry of a submission that is one request, or a piece of it; ``number`` is the entry's."""

    def __init__(self, number: int, request: Request) -> None:
        self.number = number
        self.request = request


class PlainUnit:
    """A ring entry of a submission that is one plain read or write alone; it has no columns.

    Attributes:
        number: the entry's number in the ring.
        command: NBD_CMD_READ or NBD_CMD_WRITE.
        offset, length: bytes.
        payload: bytes; where in the receive lane the payload of a write lies.
        low, high: the cookie's two words as they came.
    """

    def __init__(
        self, number: int, command: int, offset: int, length: int, payload: int, low: int, high: int
    ) -> None:
        self.number = number
        self.command = command
        self.offset = offset
        self.length = length
        self.payload = payload
        self.low = low
        self.high = high

    @property
    def request(self) -> Request:
        """The same as a request; only failures need it."""
        return Request(self.command, 0, _COOKIE.pack(self.low, self.high), self.offset, self.length, 0)


def plain_unit(number: int, command: int, side: Side) -> PlainUnit:
    """The only request of a side."""
    cookie = side.cookie
    return PlainUnit(
        number, command, side.offset[0], side.length[0], side.payload[0], cookie[0], cookie[1]
    )


class RunUnit:
    """A ring entry of a submission that is a run of plain reads or writes.

    Attributes:
        number: the entry's number in the ring.
        op: READ or WRITE.
        first: its first column; the columns say all of its requests until the submission is complete.
        requests: how many.
        start: slab position of the first reply.
    """

    def __init__(self, number: int, op: int, first: int, requests: int, start: int) -> None:
        self.number = number
        self.op = op
        self.first = first
        self.requests = requests
        self.start = start


class Submission:
    """Requests that are in flight together: submitted at once, and their replies leave together.

    Attributes:
        owner: the connection whose requests they are.
        end: number of the first ring entry behind its own.
        reply_start, reply_end: slab range to send once it is complete; equal: none.
        columns_end: end of its columns, -1 without any.
        tx_end: end of its space in the transmit lane, -1 without any.
        has_payload: it holds part of the receive lane.
        accounts: (op, requests, bytes) to count when the replies are handed to the socket.
        large_write: the write or zeroing that it is a piece of.
        statuses: NBD errno of each unit's entry once it is complete; None: nothing has failed.
        repaired: replies that take the place of the range after a failure.
    """

    def __init__(self, owner: object, received_ns: int) -> None:
        self.owner: Any = owner
        self.received_ns = received_ns
        self.end = 0
        self.reply_start = 0
        self.reply_end = 0
        self.columns_end = -1
        self.tx_end = -1
        self.has_payload = False
        self.accounts: list[tuple[int, int, int]] = []
        self.units: list[Unit | PlainUnit | RunUnit] = []
        self.large_read: LargeRead | None = None
        self.large_write: LargeWrite | LargeZero | None = None
        self.statuses: list[int] | None = None
        self.repaired: list[memoryview] | None = None


class Submissions:
    """The ring of a worker and, in order, everything that was submitted to it and is in flight.

    Attributes:
        cookies: of the requests in the window's columns; see ``columns``.
        in_flight: oldest first.
        draining: requests parsed from now on are answered ESHUTDOWN.
        gathered_last: whose run of reads was pushed last.
        zeroing: turns of connections that zero something large.
    """

    def __init__(self, ring: SubmissionRing, counters: WorkerCounters) -> None:
        self.ring = ring
        self.counters = counters
        self.cookies = make_cookies()
        self.in_flight: deque[Submission] = deque()
        self.draining = False
        self.gathered_last: object = None
        self.zeroing = ZeroingTurns()
        self._submitted = ring.tail
        self._doorbells = counters.scalar_index("doorbells")
        self._entries = counters.scalar_index("entries")

    def submit(self, submission: Submission) -> None:
        """Take over a submission whose entries were pushed; the engine sees them after ``publish``."""
        self._submitted = submission.end = self.ring.tail
        self.in_flight.append(submission)

    def recover(self, log: Any) -> None:
        """Count and log an exception that nobody foresaw, while it is handled, and undo what it has left.

        Entries and columns of a submission that it has cut short are taken back. Room in the transmit lane is
        not: that connection has to be closed.
        """
        self._abandon()
        self.publish()
        self.counters.add("internal_errors")
        logs.limited(log, "internal_error", level="critical", exc_info=True)

    def _abandon(self) -> None:
        self.ring.rewind(self._submitted)
        live = last_end = 0
        for submission in self.in_flight:
            if submission.columns_end >= 0:
                live, last_end = live + 1, submission.columns_end
        self.ring.columns.restore(live, last_end)

    def publish(self) -> None:
        """Show the engine all that was submitted: together, so that it makes one batch of it."""
        ring = self.ring
        new = ring.tail - ring.published
        if new:
            cells = self.counters.cells
            cells[self._entries] += new
            if ring.publish():
                cells[self._doorbells] += 1

    @property
    def has_complete(self) -> bool:
        """Whether the engine has done the oldest submission."""
        return bool(self.in_flight) and self.in_flight[0].end <= self.ring.done()

    def watch(self) -> None:
        """Look for a moment whether the engine is done: memory costs far less to look at than a socket."""
        if self.in_flight:
            end, ring = self.in_flight[0].end, self.ring
            for _ in range(_LOOKS):
                if end <= ring.done():
                    return

    def take_complete(self) -> Submission | None:
        """Take out the oldest submission if the engine has done it, with its statuses.

        Its columns hold what they did until the next request is written into the ring.

        Raises:
            RuntimeFailure: the engine has done more than was published. This process has lost count of its
                ring, and would send as replies what was never read.
        """
        ring, in_flight = self.ring, self.in_flight
        done = ring.done()
        if done > ring.published:
            raise RuntimeFailure(f"the engine has done {done} entries, and {ring.published} were published")
        if not in_flight:
            return None
        submission = in_flight[0]
        if submission.end > done:
            return None
        in_flight.popleft()
        if submission.columns_end >= 0:
            ring.columns.release(submission.columns_end)
        if ring.failed():
            submission.statuses = [ring.take_status(unit.number) for unit in submission.units]
        ring.taken = submission.end  # its statuses were looked at: the slots may be used again
        return submission
