"""Decides how each run and each request of one connection is executed, in the order in which they came."""

from __future__ import annotations

from typing import Any

from ..nbd.constants import Command, CommandFlag, Error
from ..nbd.replies import ReplyFormat
from ..nbd.runs import Plain
from ..nbd.transmission import Request
from ..nbd.validation import validate
from ..shared.counters import OPS, READ, WRITE
from ..system import logs
from . import blockstatus
from .largerequests import OP_OF_COMMAND, ZERO_AT_ONCE, LargeRequests
from .pieces import LargeRead, LargeWrite, LargeZero
from .receive import ReceiveLane
from .replyqueue import ReplyQueue
from .ringwriter import ExportView, RingWriter
from .submissions import Submissions

#: Plain integers: enumerations cost microseconds where every large request passes.
_READ, _WRITE, _FLUSH, _TRIM, _WRITE_ZEROES, _BLOCK_STATUS = (
    int(Command[name]) for name in ("READ", "WRITE", "FLUSH", "TRIM", "WRITE_ZEROES", "BLOCK_STATUS")
)
_DF = int(CommandFlag.DF)


class Dispatch:
    """Answers a request, submits it, or hands it to ``large``; the receive lane's position follows.

    Attributes:
        large: what is left of a request that travels in pieces.
    """

    def __init__(
        self,
        export: ExportView,
        format: ReplyFormat,
        base_allocation: int | None,
        header_bytes: int,
        received: ReceiveLane,
        writer: RingWriter,
        replies: ReplyQueue,
        submissions: Submissions,
        log: Any,
    ) -> None:
        self._export = export
        self._format = format
        self._base_allocation = base_allocation
        self._header_bytes = header_bytes
        self._received = received
        self._writer = writer
        self._replies = replies
        self._submissions = submissions
        self._log = log
        self.large = LargeRequests(format, export.written, received, writer, submissions, self.report)

    def take_run(self, run: Plain) -> bool:
        """Submit the run at the front of the receive lane; False, with nothing changed, without room."""
        received = self._received
        if self._submissions.draining:
            if not self._refuse_run(run):
                return False
        else:
            if not self._writer.run(run):
                return False
            if run.writes.count:
                received.live.append(received.position)
        received.position = run.end
        return True

    def take_request(self, request: Request) -> bool:
        """The same of a request, whose header is at the front of the receive lane."""
        payload_at = self._received.position + self._header_bytes
        error = self._judge(request)
        if error is not None:
            return self._refuse(request, error, payload_at)
        if request.command == _WRITE and request.length:
            return self._take_write(request, payload_at)
        done = self._take(request)
        if done:
            self._received.position = payload_at
        return done

    def report(self, op: int, errno: int, offset: int, length: int, received_ns: int) -> None:
        """Count and log a request that is answered with an error; ``op`` -1 is an unknown command."""
        if op >= 0:
            self._replies.count_error(op, errno, received_ns)
        logs.limited(
            self._log,
            "request_error",
            key=(op, errno),
            command=OPS[op] if op >= 0 else "unknown",
            offset=offset,
            length=length,
            error=Error(errno).name,
        )

    def _judge(self, request: Request) -> int | None:
        if self._submissions.draining:
            return Error.ESHUTDOWN
        return validate(
            request,
            size_bytes=self._export.size_bytes,
            read_only=self._export.read_only,
            structured=self._format.structured,
            extended=self._format.extended,
            base_allocation=self._base_allocation is not None,
        )

    def _take(self, request: Request) -> bool:
        """What brings no payload."""
        command, writer = request.command, self._writer
        op = OP_OF_COMMAND[command]
        if not request.length and command != _FLUSH:
            reply = self._format.empty_read(request) if op == READ else self._format.done(request)
            return writer.reply(reply, [(op, 1, 0)])
        if command == _READ:
            if request.length <= writer.piece_bytes:
                return writer.read(request)
            single = bool(request.flags & _DF) or not self._format.structured
            self.large.current = LargeRead(request, single, writer.received_ns)
            return True
        if command in (_TRIM, _WRITE_ZEROES):
            if request.length <= ZERO_AT_ONCE:
                return writer.zero(request, op, request.offset, request.length, large=None, last=True)
            self.large.current = LargeZero(request, op, writer.received_ns)
            return True
        if command == _BLOCK_STATUS:
            if self._replies.space.largest() < blockstatus.LONGEST_BYTES:
                return False  # before the map is read in vain
            written, context = self._export.written, self._base_allocation or 0
            reply = blockstatus.answer(request, written, self._format, context)
            return writer.reply(reply, [(op, 1, 0)])
        return writer.reply(self._format.done(request), [(op, 1, 0)])

    def _take_write(self, request: Request, payload_at: int) -> bool:
        received, writer = self._received, self._writer
        length = request.length
        if length > writer.piece_bytes or received.have - payload_at < length:
            self.large.current = LargeWrite(request, 0, writer.received_ns)
            received.position = payload_at
            return True
        if not writer.write(request, payload_at, request.offset, length, large=None, last=True):
            return False
        received.live.append(received.position)
        received.position = payload_at + length
        return True

    def _refuse(self, request: Request, error: int, payload_at: int) -> bool:
        received_ns = self._writer.received_ns
        if request.payload:
            self.large.current = LargeWrite(request, error, received_ns)
        elif self._writer.reply(self._format.error(request, Error(error)), []):
            op = OP_OF_COMMAND.get(request.command, -1)
            self.report(op, error, request.offset, request.length, received_ns)
        else:
            return False
        self._received.position = payload_at
        return True

    def _refuse_run(self, run: Plain) -> bool:
        """Answer each request of a run with ESHUTDOWN."""
        sides = ((READ, run.reads), (WRITE, run.writes))
        reply = b"".join(
            self._format.error_for(cookie, offset, Error.ESHUTDOWN)
            for _, side in sides
            for cookie, offset in side.identities()
        )
        if not self._writer.reply(reply, []):
            return False
        for op, side in sides:
            if side.count:
                self._replies.count_error(op, Error.ESHUTDOWN, self._writer.received_ns, side.count)
        return True
