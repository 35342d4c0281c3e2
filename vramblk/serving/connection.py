"""One connection in the transmission phase: it takes requests out of the receive lane, in order.

A reply is sent only after the engine has completed the request's entry without a status.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from .. import logs
from ..nbd.constants import Command, CommandFlag, Error
from ..nbd.replies import ReplyFormat
from ..nbd.runs import Plain
from ..nbd.transmission import Parser, Request, TransmissionError
from ..nbd.validation import validate
from ..shared.counters import OPS, READ, WRITE
from ..shared.window import Window
from . import blockstatus
from .lanes import Lane
from .pending import LargeRead, LargeWrite, Pending, Submitter
from .receive import ReceiveLane
from .repair import repair
from .replyqueue import ReplyQueue
from .submission import MOST_ENTRIES, ExportView, Submission
from .tally import Tally

#: With so many pendings in flight a run waits until one of them is done, or until it is no longer small.
_ENOUGH_IN_FLIGHT = 2
_FEW_REQUESTS, _FEW_BYTES = 8, 1 << 16
#: Runs, requests or pieces of one connection, or nanoseconds, before others have their turn.
_MOST_STEPS, _MOST_STEPS_NS = 64, 200_000
_OP_OF_COMMAND = {int(Command[name.upper()]): number for number, name in enumerate(OPS)}
#: Plain integers: enumerations cost microseconds where every large request passes.
_DISC, _READ, _WRITE, _FLUSH, _TRIM, _WRITE_ZEROES, _BLOCK_STATUS = (
    int(Command[name]) for name in ("DISC", "READ", "WRITE", "FLUSH", "TRIM", "WRITE_ZEROES", "BLOCK_STATUS")
)
_DF = int(CommandFlag.DF)


class Connection:
    """Serves one client until it leaves.

    Attributes:
        ended: no request will follow: the client said DISC, closed, or broke the protocol.
        again: the socket may hold more although it does not say so.
        blocked: a request waits for room, or for the others' turn; pump again after something has moved.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        lane: Lane,
        window: Window,
        submitter: Submitter,
        export: ExportView,
        format: ReplyFormat,
        base_allocation: int | None,
        leftover: bytes,
        log: Any,
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
            sock, lane, window.slab_view, leftover, partial(window.counters.add, "copied_bytes")
        )
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._export = export
        self._format = format
        self._base_allocation = base_allocation
        self._window = window
        self._submitter = submitter
        self._ring = submitter.ring
        self._log = log
        self._submission = Submission(self, export, format, lane, window, submitter, self.replies)
        self._parser = Parser(
            window.slab_view[lane.rx : lane.rx + lane.rx_bytes],
            extended=format.extended,
            size_bytes=export.size_bytes,
            arena_bytes=export.arena_bytes,
            read_only=export.read_only,
            run_bytes=lane.tx_bytes // 2,
            waited_bytes=lane.waited_bytes,
        )
        self._header_bytes = self._parser.header_bytes
        self._held: Plain | Request | None = None
        self._large_read: LargeRead | None = None
        self._large_write: LargeWrite | None = None

    @property
    def finished(self) -> bool:
        """Nothing is in flight, unsent or to come: the lane can serve another connection."""
        replies = self.replies
        if replies.in_flight or not (self.ended or replies.broken):
            return False
        if self.blocked and not replies.broken:
            return False  # requests came before the end that had no room yet
        return bool(replies.broken) or (
            not replies.waiting and self._held is None and self._large_read is None
        )

    @property
    def idle(self) -> bool:
        """No request is in flight and every reply was taken by the socket."""
        return not self.replies.in_flight and not self.replies.waiting

    @property
    def wants_input(self) -> bool:
        if self.ended or self.replies.broken:
            return False
        return self.received.room(may_move=self._held is None) > 0

    def pump(self) -> bool:
        """Receive, parse and submit what can be; True if anything moved."""
        self.again = False
        progress = False
        if not self.ended and not self.replies.broken:
            progress = self._receive()
        return self.resume() or progress

    def resume(self) -> bool:
        """Parse and submit what can be of all that was received; True if anything moved."""
        self.blocked = False
        progress = False
        received = self.received
        steps, until = 0, time.monotonic_ns() + _MOST_STEPS_NS
        while not self.replies.broken and self._step():
            progress = True
            if received.position == received.have and self._large_read is None:
                break  # nothing is left, and the engine need not wait until that is found out
            steps += 1
            if steps == _MOST_STEPS or time.monotonic_ns() > until:
                self.blocked = True
                break
        self._submitter.publish()
        return progress

    def complete(self, pending: Pending, statuses: Sequence[int] | None) -> None:
        """Queue the replies of a pending that the engine has completed."""
        if pending.has_payload:
            self.received.live.popleft()
            if pending.columns_end >= 0:
                self._submission.complete(pending)
        read, write = pending.large_read, pending.large_write
        if statuses is None and ((read is not None and read.failed) or (write is not None and write.error)):
            statuses = [0] * len(pending.units)
        if statuses is not None and pending.units:
            reason = repair(
                pending, statuses, self._format, self._window, self._export.arena_bytes, self._report
            )
            if reason:
                self.fail("read_failed", reason)
        elif read is not None:
            read.header_sent = True
        self.replies.queue(pending)

    def fail(self, event: str, reason: str) -> None:
        """Close without a word to the client."""
        if not self.replies.broken:
            self._log.warning(event, reason=reason)
        self.ended = True
        self._held = self._large_read = self._large_write = None
        self.replies.fail(reason)

    def note_closed(self) -> None:
        """Log the end of the connection with what went over it."""
        requests, received, sent = self._traffic.tolist()
        self._log.info("client_disconnected", requests=requests, received_bytes=received, sent_bytes=sent)

    def _receive(self) -> bool:
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
        self._submission.received_ns = time.monotonic_ns()
        self._tally.received(count)
        self.again = more or self._tls
        return True

    def _step(self) -> bool:
        """Handle one run, request or piece; False when there is nothing to do, or no room for it."""
        if self._ring.room() < MOST_ENTRIES:
            return self._block()
        if self._large_write is not None:
            return self._take_payload(self._large_write)
        if self._large_read is not None:
            return self._next_piece(self._large_read)
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
        if isinstance(item, Plain):
            done = self._submit_run(item)
        else:
            done = self._submit_request(item, received.position + self._header_bytes)
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

    def _submit_run(self, run: Plain) -> bool:
        received = self.received
        if self._submitter.draining:
            if not self._refuse_run(run):
                return False
        else:
            if not self._submission.run(run):
                return False
            if run.writes.count:
                received.live.append(received.position)
        received.position = run.end
        return True

    def _refuse_run(self, run: Plain) -> bool:
        """Answer each request of a run with ESHUTDOWN."""
        sides = ((READ, run.reads), (WRITE, run.writes))
        reply = b"".join(
            self._format.error_for(cookie, offset, Error.ESHUTDOWN)
            for _, side in sides
            for cookie, offset in side.identities()
        )
        if not self._submission.reply(reply, []):
            return False
        for op, side in sides:
            if side.count:
                self.replies.count_error(op, Error.ESHUTDOWN, self._submission.received_ns, side.count)
        return True

    def _submit_request(self, request: Request, payload_at: int) -> bool:
        command = request.command
        received = self.received
        if command == _DISC:
            self.ended = True
            received.discard()
            return True
        error = self._judge(request)
        if error is not None:
            return self._refuse(request, error, payload_at)
        op = _OP_OF_COMMAND[command]
        if command == _WRITE and request.length:
            return self._submit_write(request, payload_at)
        if not request.length and command != _FLUSH:
            reply = self._format.empty_read(request) if op == READ else self._format.done(request)
            done = self._submission.reply(reply, [(op, 1, 0)])
        elif command == _READ:
            if request.length > self._submission.piece_bytes:
                single = bool(request.flags & _DF) or not self._format.structured
                self._large_read = LargeRead(request, single)
                done = True
            else:
                done = self._submission.read(request)
        elif command in (_TRIM, _WRITE_ZEROES):
            done = self._submission.zero(request, op)
        elif command == _BLOCK_STATUS:
            if self.replies.space.largest() < blockstatus.LONGEST_BYTES:
                return False  # before the map is read in vain
            written, context = self._export.written, self._base_allocation or 0
            reply = blockstatus.answer(request, written, self._format, context)
            done = self._submission.reply(reply, [(op, 1, 0)])
        else:
            done = self._submission.reply(self._format.done(request), [(op, 1, 0)])
        if done:
            received.position = payload_at
        return done

    def _judge(self, request: Request) -> int | None:
        if self._submitter.draining:
            return Error.ESHUTDOWN
        return validate(
            request,
            size_bytes=self._export.size_bytes,
            read_only=self._export.read_only,
            structured=self._format.structured,
            extended=self._format.extended,
            base_allocation=self._base_allocation is not None,
        )

    def _refuse(self, request: Request, error: int, payload_at: int) -> bool:
        if request.payload:
            self._large_write = LargeWrite(request, error)
        elif self._submission.reply(self._format.error(request, Error(error)), []):
            self._report(_OP_OF_COMMAND.get(request.command, -1), error, request.offset, request.length)
        else:
            return False
        self.received.position = payload_at
        return True

    def _submit_write(self, request: Request, payload_at: int) -> bool:
        received = self.received
        length = request.length
        if length > self._submission.piece_bytes or received.have - payload_at < length:
            self._large_write = LargeWrite(request, 0)
            received.position = payload_at
            return True
        if not self._submission.write(request, payload_at, request.offset, length, large=None, last=True):
            return False
        received.live.append(received.position)
        received.position = payload_at + length
        return True

    def _take_payload(self, write: LargeWrite) -> bool:
        """Submit, or drain, the part of a payload that has arrived."""
        received = self.received
        length = min(received.have - received.position, write.remaining)
        last = length == write.remaining
        if self.ended and not last:
            self._large_write = None
            received.discard()
            return False
        if write.error:
            if last and not self._submission.reply(self._format.error(write.request, Error(write.error)), []):
                return self._block()
            if last:
                self._large_write = None
                op = _OP_OF_COMMAND.get(write.request.command, -1)
                self._report(op, write.error, write.request.offset, write.request.length)
        else:
            length = min(length, self._submission.piece_bytes)
            last = length == write.remaining
            if not length or not (last or length == self._submission.piece_bytes or received.closing_in):
                return False
            if not self._submission.write(
                write.request, received.position, write.next_offset, length, large=write, last=last
            ):
                return self._block()
            received.live.append(received.position)
            if last:
                self._large_write = None
        received.position += length
        write.next_offset += length
        write.remaining -= length
        return length > 0

    def _next_piece(self, read: LargeRead) -> bool:
        if not read.failed and not self._submission.read_piece(read):
            return self._block()
        if read.failed or not read.remaining:
            self._large_read = None
        return True

    def _report(self, op: int, errno: int, offset: int, length: int) -> None:
        """Count and log a request that is answered with an error."""
        if op >= 0:
            self.replies.count_error(op, errno, self._submission.received_ns)
        logs.limited(
            self._log,
            "request_error",
            key=(op, errno),
            command=OPS[op] if op >= 0 else "unknown",
            offset=offset,
            length=length,
            error=Error(errno).name,
        )
