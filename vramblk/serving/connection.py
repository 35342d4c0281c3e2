"""One connection in the transmission phase: it takes requests out of the receive lane, in order.

A reply is sent only after the engine has completed the request's entry without a status.
"""

from __future__ import annotations

import socket
import ssl
import time
from functools import partial
from typing import Any

from ..nbd.constants import Command
from ..nbd.replies import ReplyFormat
from ..nbd.runs import Plain
from ..nbd.transmission import Parser, Request, TransmissionError
from ..shared.window import Window
from .dispatch import Dispatch
from .lanes import Lane
from .receive import ReceiveLane
from .repair import repair
from .replyqueue import ReplyQueue
from .ringwriter import MOST_ENTRIES, ExportView, RingWriter
from .sockets import is_gone
from .stagetimes import WorkerTiming
from .submissions import Submission, Submissions
from .tally import Tally

#: With so many submissions in flight a run waits until one of them is done, or until it is no longer small.
_ENOUGH_IN_FLIGHT = 2
_FEW_REQUESTS, _FEW_BYTES = 8, 1 << 16
#: Runs, requests or pieces of one connection, or nanoseconds, before others have their turn.
_MOST_STEPS, _MOST_STEPS_NS = 64, 200_000
_DISC = int(Command.DISC)


class Connection:
    """Serves one client until it leaves.

    Args:
        timing: times the stages of each batch; without it nothing is wrapped.

    Attributes:
        ended: no request will follow: the client sent DISC, closed, or broke the protocol.
        again: the socket may hold more although epoll does not report it.
        blocked: a request waits for room, or for the others' turn; pump again after something has moved.
        large: what is left of a request that travels in pieces.
        number: the connection's id at the supervisor.
    """

    number = 0

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        lane: Lane,
        window: Window,
        submissions: Submissions,
        export: ExportView,
        format: ReplyFormat,
        base_allocation: int | None,
        leftover: bytes,
        log: Any,
        leftover_ns: int = 0,
        timing: WorkerTiming | None = None,
    ) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.peer = peer
        self.lane = lane
        self.ended = self.again = self.blocked = False
        self._traffic = window.traffic(lane.slot)
        self._tally = Tally(window.counters, self._traffic, export.index)
        self.replies = ReplyQueue(sock, lane, window, export.index, self._tally)
        self.received = ReceiveLane(
            sock, lane, window.slab_view, leftover, leftover_ns, partial(window.counters.add, "copied_bytes")
        )
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._export = export
        self._format = format
        self._base_allocation = base_allocation
        self._window = window
        self._submissions = submissions
        self._ring = submissions.ring
        self._log = log
        self._writer = RingWriter(self, export, format, lane, window, submissions, self.replies)
        self._parser = Parser(
            window.slab_view[lane.rx : lane.rx + lane.rx_bytes],
            extended=format.extended,
            size_bytes=export.size_bytes,
            arena_bytes=export.arena_bytes,
            read_only=export.read_only,
            run_bytes=lane.tx_bytes // 2,
            waited_bytes=lane.waited_bytes,
        )
        if timing is not None:
            timing.watch_connection(self, self.received, self._parser, self._writer, self.replies)
        self._held: Plain | Request | None = None
        self._dispatch = Dispatch(
            export, format, base_allocation, self._parser.header_bytes, self.received, self._writer,
            self.replies, submissions, log,
        )  # fmt: skip
        self.large = self._dispatch.large

    @property
    def finished(self) -> bool:
        """Nothing is in flight, unsent or to come: the lane can serve another connection."""
        replies = self.replies
        if replies.in_flight or not (self.ended or replies.broken):
            return False
        if self.blocked and not replies.broken:
            return False  # requests came before the end that had no room yet
        return bool(replies.broken) or (
            not replies.waiting and self._held is None and self.large.needs_input
        )

    @property
    def idle(self) -> bool:
        """No request is in flight and every reply was taken by the socket."""
        return not self.replies.in_flight and not self.replies.waiting

    @property
    def starved(self) -> bool:
        """The kernel had no memory for a send or a receive: try both again a little later."""
        if self.replies.broken:
            return False
        return self.replies.starved or (self.received.starved and not self.ended)

    @property
    def wants_input(self) -> bool:
        if self.ended or self.replies.broken:
            return False
        return self.received.room(may_move=self._held is None) > 0

    def is_gone(self) -> bool:
        """Ask the kernel whether the client is gone."""
        return is_gone(self.sock)

    def pump(self) -> bool:
        """Receive, parse and submit what can be; True if anything moved."""
        try:
            self.again = False
            progress = False
            if not self.ended and not self.replies.broken:
                progress = self._receive()
            return self._resume() or progress
        except Exception:
            return self._fail_internally()

    def resume(self) -> bool:
        """Parse and submit what can be of all that was received; True if anything moved."""
        try:
            return self._resume()
        except Exception:
            return self._fail_internally()

    def flush(self) -> None:
        """Send what the socket takes of the replies."""
        try:
            if not self.replies.flush():
                self._log.warning("connection_lost", reason=self.replies.broken)
                self._forget()
        except Exception:
            self._fail_internally()

    def complete(self, submission: Submission) -> None:
        """Queue the replies of a submission that the engine has completed; see ``complete``."""
        self.replies.in_flight -= 1
        try:
            self._complete(submission)
        except Exception:
            self._fail_internally()

    def _resume(self) -> bool:
        self.blocked = False
        progress = False
        received = self.received
        if self._all_taken():
            return False
        steps = until_ns = 0
        while not self.replies.broken and self._step():
            progress = True
            if received.position == received.have and self.large.needs_input:
                break  # nothing is left, and the engine need not wait until that is found out
            steps += 1
            now_ns = time.monotonic_ns()
            until_ns = until_ns or now_ns + _MOST_STEPS_NS
            if steps == _MOST_STEPS or now_ns > until_ns:
                self.blocked = True
                break
        self._submissions.publish()
        return progress

    def _complete(self, submission: Submission) -> None:
        if submission.has_payload:
            self.received.live.popleft()
        self._writer.complete(submission)
        read, write, statuses = submission.large_read, submission.large_write, submission.statuses
        zeroing = self._submissions.zeroing
        if write is zeroing.in_flight:
            zeroing.in_flight = None
        if statuses is None and ((read is not None and read.failed) or (write is not None and write.error)):
            statuses = [0] * len(submission.units)
        if statuses is not None and submission.units:
            report = partial(self._dispatch.report, received_ns=submission.received_ns)
            reason = repair(
                submission, statuses, self._format, self._window, self._writer.columns, report
            )
            if reason:
                self.fail("read_failed", reason)
        elif read is not None:
            read.header_sent = True
        self.replies.queue(submission)

    def _all_taken(self) -> bool:
        """Whether all that the client has sent is submitted."""
        received = self.received
        return received.position == received.have and self._held is None and self.large.current is None

    def lose(self) -> None:
        """The client is gone: nothing more of what it has sent is executed."""
        if not self._all_taken():
            self._log.info("requests_dropped", reason="the client has gone before they were taken")
        self.ended = True
        self.received.discard()
        self._forget()

    def _forget(self) -> None:
        """Drop what was parsed and not submitted."""
        self.blocked = False
        self._held = None
        self.large.drop()

    def _fail_internally(self) -> bool:
        """Close this connection after an exception that nobody foresaw; called while it is handled."""
        self._submissions.recover(self._log)
        self.fail("connection_lost", "an internal error")
        return True

    def fail(self, event: str, reason: str) -> None:
        """Close; the client gets no answer."""
        if not self.replies.broken:
            self._log.warning(event, reason=reason)
        self.ended = True
        self._forget()
        self.replies.fail(reason)

    def note_closed(self) -> None:
        """Log the end of the connection with what went over it."""
        requests, received, sent = self._traffic.tolist()
        self._log.info("client_disconnected", requests=requests, received_bytes=received, sent_bytes=sent)

    def _receive(self) -> bool:
        self.received.starved = False
        try:
            count, more = self.received.receive(may_move=self._held is None)
        except OSError as error:
            self.fail("connection_lost", str(error))
            return True
        if count < 0:
            self.again = more
            return False
        if not count:
            self.ended = True
            return True
        self._tally.received(count)
        self.again = more or self._tls
        return True

    def _step(self) -> bool:
        """Handle one run, request or piece; False when there is nothing to do, or no room for it."""
        if self._ring.room() < MOST_ENTRIES:
            return self._block()
        large = self.large
        if large.current is not None:
            return large.step(self.ended) or (large.blocked and self._block())
        received = self.received
        item = self._held
        if item is None:
            if received.position & 3 and not received.realign():
                return self._block()
            try:
                item = self._parser.next(received.position, received.have)
            except TransmissionError as error:
                self._log.warning("protocol_error", reason=str(error))
                self.ended = True
                received.discard()
                return False
            if item is None:
                return False
            if isinstance(item, Plain) and self._gathers(item):
                return self._block()
            self._held = item
        self._writer.received_ns = received.arrived_ns
        if isinstance(item, Plain):
            done = self._dispatch.take_run(item)
        elif item.command == _DISC:
            self.ended = done = True
            received.discard()
        else:
            done = self._dispatch.take_request(item)
        if not done:
            return self._block()
        self._held = None
        return True

    def _gathers(self, run: Plain) -> bool:
        """Whether a run should wait and grow, since the engine has enough to do for this client.

        A batch costs the engine nearly the same for one request as for fifty.
        """
        return (
            self.replies.in_flight >= _ENOUGH_IN_FLIGHT
            and run.reads.count + run.writes.count < _FEW_REQUESTS
            and run.reads.total_bytes + run.writes.total_bytes < _FEW_BYTES
            and not self.ended
        )

    def _block(self) -> bool:
        self.blocked = True
        return False


def complete(submissions: Submissions) -> set[Connection]:
    """Hand what the engine has done to its connections; those that may have replies to send now.

    None of them may submit anything meanwhile: the columns of what is complete are free already.
    """
    touched: set[Connection] = set()
    while (submission := submissions.take_complete()) is not None:
        connection: Connection = submission.owner
        connection.complete(submission)
        touched.add(connection)
    return touched
