"""Writes requests of one connection into the ring, and the headers of their replies into the slab.

Every method answers False (or None) while ring, columns or transmit lane have no room, and has
then changed nothing: the caller tries again after something has completed.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..nbd.constants import Command, CommandFlag
from ..nbd.replies import ReplyFormat
from ..nbd.runs import Plain, Side
from ..nbd.transmission import Request
from ..shared.counters import READ, WRITE
from ..shared.descriptors import GATHER_JOINS, ZERO_HOLE, Op
from ..shared.window import Window
from ..shared.written import WrittenMap
from .columns import RunColumns
from .lanes import Lane
from .pieces import LargeRead, LargeWrite, LargeZero
from .replyqueue import ReplyQueue
from .submissions import PlainUnit, RunUnit, Submission, Submissions, Unit, plain_unit

#: The largest piece in which a large request travels, bytes.
LARGEST_PIECE = 1 << 20
#: A submission takes at most this many ring entries.
MOST_ENTRIES = 2

_GATHER, _SCATTER, _COPY_OUT, _COPY_IN, _ZERO = map(
    int, (Op.GATHER, Op.SCATTER, Op.COPY_OUT, Op.COPY_IN, Op.ZERO)
)
_NO_HOLE = int(CommandFlag.NO_HOLE)
_READ, _WRITE = int(Command.READ), int(Command.WRITE)

Accounts = list[tuple[int, int, int]]


@dataclass(frozen=True)
class ExportView:
    """A worker's description of an export: its name, size and arenas (bytes), and its written-map."""

    index: int
    name: str
    size_bytes: int
    arena_bytes: int
    read_only: bool
    written: WrittenMap

    @property
    def arenas(self) -> int:
        return max(1, -(-self.size_bytes // self.arena_bytes))


class RingWriter:
    """Makes submissions; see the module.

    Args:
        owner: whose submissions they are.

    Attributes:
        columns: of the runs that it has submitted.
        piece_bytes: a longer read or write travels in pieces.
        received_ns: monotonic time at which the request came that is being submitted; latency counts from it.
    """

    def __init__(
        self,
        owner: object,
        export: ExportView,
        format: ReplyFormat,
        lane: Lane,
        window: Window,
        submissions: Submissions,
        replies: ReplyQueue,
    ) -> None:
        self._owner = owner
        self._export = export.index
        self._format = format
        self._header_bytes = format.read_header_bytes
        self._done_bytes = format.done_bytes
        self._lane = lane
        arena_bytes = export.arena_bytes if export.arenas > 1 else 0
        self.columns = RunColumns(
            window, submissions.cookies, arena_bytes, format.read_header_bytes, format.extended
        )
        self._slab = window.slab_view
        self._submissions = submissions
        self._ring = submissions.ring
        self._replies = replies
        self._space = replies.space
        self.piece_bytes = min(LARGEST_PIECE, lane.tx_bytes // 4, lane.rx_bytes // 4)
        self.received_ns = 0
        #: Since the last gathered reads nothing was laid that is not laid again when it is done.
        self._joins = False

    def complete(self, submission: Submission) -> None:
        """Lay all of the replies of plain requests but the data, since the engine may have overwritten it.

        Also when some of a run have failed; these are answered with something else.
        """
        columns = self.columns
        for unit in submission.units:
            if isinstance(unit, RunUnit):
                if unit.op == WRITE:
                    columns.lay_done(unit.first, unit.requests, unit.start)
                else:
                    columns.lay_headers(unit.first, unit.requests, unit.start)
            elif isinstance(unit, PlainUnit):
                start = submission.reply_start
                if unit.command == _WRITE:
                    columns.lay_reply(unit.low, unit.high, unit.offset, start)
                else:
                    columns.lay_header(unit.low, unit.high, unit.offset, unit.length, start)

    def reply(self, reply: bytes, accounts: Accounts) -> bool:
        """A reply that needs nothing of the engine, sent behind those of earlier requests."""
        submission = self._make(len(reply), accounts)
        if submission is None:
            return False
        self._place(submission, reply)
        self._submit(submission)
        return True

    def run(self, run: Plain) -> bool:
        """A run of plain requests, or one; payloads stay in the receive lane until it completes."""
        reads, writes, ring = run.reads, run.writes, self._ring
        read_count, write_count = reads.count, writes.count
        count = read_count + write_count
        if count == 1:
            return self._read_alone(reads) if read_count else self._write_alone(writes)
        if ring.columns.largest() < count:
            return False
        read_bytes = reads.total_bytes + read_count * self._header_bytes
        submission = self._make(read_bytes + write_count * self._done_bytes, [])
        if submission is None:
            return False
        first = ring.columns.allocate(count)
        submission.columns_end = first + count
        start = submission.reply_start
        if write_count:
            submission.has_payload = True
            column, replies = first + read_count, start + read_bytes
            submission.units.append(RunUnit(ring.tail, WRITE, column, write_count, replies))
            submission.accounts.append((WRITE, write_count, writes.total_bytes))
            self.columns.lay_writes(writes, column, self._lane.rx)
            lo = self._lane.rx + writes.payload[0]
            hi = self._lane.rx + writes.payload[write_count - 1] + writes.length[write_count - 1]
            ring.push(_SCATTER, self._export, column, write_count, lo, hi, 0, hi - lo)
        if read_count:
            submission.units.append(RunUnit(ring.tail, READ, first, read_count, start))
            submission.accounts.append((READ, read_count, reads.total_bytes))
            self.columns.lay_reads(reads, first, start)
            # Runs of other clients in between lie elsewhere in the slab.
            flags = GATHER_JOINS if self._joins and self._submissions.gathered_last is self else 0
            self._joins, self._submissions.gathered_last = True, self
            end = start + read_bytes
            ring.push(_GATHER, self._export, first, read_count, start, end, 0, read_bytes, flags)
        self._submit(submission)
        return True

    def read(self, request: Request) -> bool:
        """One read of at most ``piece_bytes``, copied directly behind its header."""
        header = self._format.read_header(request, request.offset, request.length, last=True)
        submission = self._make(len(header) + request.length, [(READ, 1, request.length)])
        if submission is None:
            return False
        self._copy_out(submission, request, header, request.offset, request.length)
        return True

    def read_piece(self, read: LargeRead) -> bool:
        """The next piece of a large read."""
        request = read.request
        length = min(self.piece_bytes, read.remaining)
        last = length == read.remaining
        header = b""
        if not read.single_header:
            header = self._format.read_header(request, read.next_offset, length, last=last)
        elif read.next_offset == request.offset:
            header = self._format.read_header(request, request.offset, request.length, last=True)
        submission = self._make(len(header) + length, [(READ, 1, request.length)] if last else [])
        if submission is None:
            return False
        submission.large_read = read
        self._copy_out(submission, request, header, read.next_offset, length)
        read.next_offset += length
        read.remaining -= length
        return True

    def write(
        self, request: Request, at: int, offset: int, length: int, *, large: LargeWrite | None, last: bool
    ) -> bool:
        """Payload bytes [at, at + length) of the receive lane; the reply goes with the last piece."""
        submission = self._make_piece(request, [(WRITE, 1, request.length)], large, last)
        if submission is None:
            return False
        submission.has_payload = True
        lo = self._lane.rx + at
        self._push(submission, request, _COPY_IN, lo, lo + length, offset, length)
        return True

    def zero(
        self, request: Request, op: int, offset: int, length: int, *, large: LargeZero | None, last: bool
    ) -> bool:
        """A range of a TRIM or WRITE_ZEROES; without NO_HOLE whole blocks become unwritten.

        The reply goes with the last piece.
        """
        submission = self._make_piece(request, [(op, 1, 0)], large, last)
        if submission is None:
            return False
        hole = 0 if request.flags & _NO_HOLE else ZERO_HOLE
        self._push(submission, request, _ZERO, 0, 0, offset, length, hole)
        return True

    def _read_alone(self, reads: Side) -> bool:
        """One plain read: a copy out, which is quicker than a kernel and needs no columns."""
        length = reads.total_bytes
        submission = self._make(self._header_bytes + length, [(READ, 1, length)])
        if submission is None:
            return False
        ring = self._ring
        unit = plain_unit(ring.tail, _READ, reads)
        submission.units.append(unit)
        end = submission.reply_end
        ring.push(_COPY_OUT, self._export, 0, 1, end - length, end, unit.offset, length)
        self._submit(submission)
        return True

    def _write_alone(self, writes: Side) -> bool:
        """One plain write: a copy in."""
        length = writes.total_bytes
        submission = self._make(self._done_bytes, [(WRITE, 1, length)])
        if submission is None:
            return False
        submission.has_payload = True
        ring = self._ring
        unit = plain_unit(ring.tail, _WRITE, writes)
        submission.units.append(unit)
        lo = self._lane.rx + unit.payload
        ring.push(_COPY_IN, self._export, 0, 1, lo, lo + length, unit.offset, length)
        self._submit(submission)
        return True

    def _make(self, reply_bytes: int, accounts: Accounts) -> Submission | None:
        """A submission with room for its replies; the room is a multiple of 4, as kernels need it."""
        size = reply_bytes + 3 & ~3
        at = self._space.allocate(size)
        if at < 0:
            return None
        submission = Submission(self._owner, self.received_ns)
        submission.accounts = accounts
        submission.tx_end = at + size
        submission.reply_start = self._lane.tx + at
        submission.reply_end = submission.reply_start + reply_bytes
        return submission

    def _make_piece(
        self, request: Request, accounts: Accounts, large: LargeWrite | LargeZero | None, last: bool
    ) -> Submission | None:
        """A submission for a part of a request, or all of it; the last one brings reply and accounts."""
        if last:
            reply = self._format.done(request)
            submission = self._make(len(reply), accounts)
            if submission is None:
                return None
            self._place(submission, reply)
        else:
            submission = Submission(self._owner, self.received_ns)
        submission.large_write = large
        return submission

    def _place(self, submission: Submission, reply: bytes) -> None:
        self._joins = False
        start = submission.reply_start
        self._slab[start : start + len(reply)] = reply

    def _copy_out(
        self, submission: Submission, request: Request, header: bytes, offset: int, length: int
    ) -> None:
        self._place(submission, header)
        lo = submission.reply_start + len(header)
        self._push(submission, request, _COPY_OUT, lo, submission.reply_end, offset, length)

    def _push(
        self,
        submission: Submission,
        request: Request,
        op: int,
        lo: int,
        hi: int,
        offset: int,
        length: int,
        flags: int = 0,
    ) -> None:
        """Write the only entry of a submission, and submit it."""
        ring = self._ring
        submission.units.append(Unit(ring.tail, request))
        ring.push(op, self._export, 0, 1, lo, hi, offset, length, flags)
        self._submit(submission)

    def _submit(self, submission: Submission) -> None:
        self._replies.in_flight += 1
        self._submissions.submit(submission)
