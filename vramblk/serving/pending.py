"""What a worker has in flight: pendings in the order of submission, over all its connections."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from ..nbd.transmission import Request
from ..shared.counters import WorkerCounters
from ..shared.ring import SubmissionRing

#: Together some three microseconds, by which a request that comes meanwhile is seen later.
_LOOKS = 32

if TYPE_CHECKING:
    from .connection import Connection


class LargeRead:
    """A read whose reply leaves in pieces.

    Attributes:
        single_header: one header stands before all the data (simple reply, or DF).
        header_sent: data may follow no more with an error, only with a closed connection.
    """

    __slots__ = ("failed", "header_sent", "next_offset", "remaining", "request", "single_header")

    def __init__(self, request: Request, single_header: bool) -> None:
        self.request = request
        self.next_offset = request.offset
        self.remaining = request.length
        self.single_header = single_header
        self.header_sent = False
        self.failed = False


class LargeWrite:
    """A write whose payload is still arriving; once ``error`` is set it is only drained."""

    __slots__ = ("error", "next_offset", "remaining", "request")

    def __init__(self, request: Request, error: int) -> None:
        self.request = request
        self.next_offset = request.offset
        self.remaining = request.payload
        self.error = error


class Unit(NamedTuple):
    """A ring entry of a pending that is one request, or a piece of it; ``number`` is the entry's."""

    number: int
    request: Request


class RunUnit(NamedTuple):
    """A ring entry of a pending that is a run of plain reads or writes.

    Attributes:
        number: the entry's number in the ring.
        op: READ or WRITE.
        first: its first column; the columns say all of its requests until the pending is complete.
        requests: how many.
        start: slab position of the first reply.
    """

    number: int
    op: int
    first: int
    requests: int
    start: int


class Pending:
    """Requests submitted together, whose replies leave together.

    Attributes:
        end: number of the first ring entry behind its own.
        reply_start, reply_end: slab range to send once it is complete; equal: none.
        columns_end: end of its columns, -1 without any.
        tx_end: end of its space in the transmit lane, -1 without any.
        has_payload: it holds part of the receive lane.
        accounts: (op, requests, bytes) to count when the replies are handed to the socket.
        repaired: replies that take the place of the range after a failure.
    """

    def __init__(self, connection: Connection, received_ns: int) -> None:
        self.connection = connection
        self.received_ns = received_ns
        self.end = 0
        self.reply_start = 0
        self.reply_end = 0
        self.columns_end = -1
        self.tx_end = -1
        self.has_payload = False
        self.accounts: list[tuple[int, int, int]] = []
        self.units: list[Unit | RunUnit] = []
        self.large_read: LargeRead | None = None
        self.large_write: LargeWrite | None = None
        self.repaired: list[memoryview] | None = None


class Submitter:
    """The worker's ring and, in order, everything that was submitted to it.

    Attributes:
        draining: requests parsed from now on are answered ESHUTDOWN.
        gathered_last: whose run of reads was pushed last.
    """

    def __init__(self, ring: SubmissionRing, counters: WorkerCounters) -> None:
        self.ring = ring
        self.counters = counters
        self.in_flight: deque[Pending] = deque()
        self.draining = False
        self.gathered_last: object = None
        self._published = ring.tail
        self._doorbells = counters.scalar_index("doorbells")
        self._entries = counters.scalar_index("entries")

    def submit(self, pending: Pending) -> None:
        """Take over a pending whose entries were pushed; the engine sees them after ``publish``."""
        pending.end = self.ring.tail
        pending.connection.replies.in_flight += 1
        self.in_flight.append(pending)

    def publish(self) -> None:
        """Show the engine all that was submitted: together, so that it makes one batch of it."""
        ring = self.ring
        new = ring.tail - self._published
        if new:
            self._published = ring.tail
            cells = self.counters.cells
            cells[self._entries] += new
            if ring.publish():
                cells[self._doorbells] += 1

    def watch(self) -> None:
        """Look for a moment whether the engine is done: memory costs far less to look at than a socket."""
        if self.in_flight:
            end, ring = self.in_flight[0].end, self.ring
            for _ in range(_LOOKS):
                if end <= ring.done():
                    return

    def collect(self) -> set[Connection]:
        """Complete what the engine has done; the connections that have replies to send."""
        touched: set[Connection] = set()
        in_flight = self.in_flight
        ring = self.ring
        while in_flight and in_flight[0].end <= ring.done():
            pending = in_flight.popleft()
            if pending.columns_end >= 0:
                ring.columns.release(pending.columns_end)
            statuses = None
            if ring.failed():
                statuses = [ring.take_status(unit.number) for unit in pending.units]
            ring.taken = pending.end  # its statuses were looked at: the slots may be used again
            connection = pending.connection
            connection.complete(pending, statuses)
            touched.add(connection)
        return touched
