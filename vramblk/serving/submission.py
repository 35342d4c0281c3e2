"""Puts requests of one connection into the ring, and the headers of their replies into the slab.

Every method answers False (or None) while ring, columns or transmit lane have no room, and has
then changed nothing: the caller tries again after something has completed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..nbd.constants import CommandFlag
from ..nbd.replies import ReplyFormat
from ..nbd.runs import Plain
from ..nbd.transmission import Request
from ..shared.counters import READ, WRITE
from ..shared.window import GATHER_JOINS, ZERO_HOLE, Op, Window
from ..shared.written import WrittenMap
from .columns import Columns
from .lanes import Lane
from .pending import LargeRead, LargeWrite, Pending, RunUnit, Submitter, Unit
from .replyqueue import ReplyQueue

#: The largest piece in which a large request travels, bytes.
LARGEST_PIECE = 1 << 20
#: A pending takes at most this many ring entries.
MOST_ENTRIES = 2

_GATHER, _SCATTER, _COPY_OUT, _COPY_IN, _ZERO = map(
    int, (Op.GATHER, Op.SCATTER, Op.COPY_OUT, Op.COPY_IN, Op.ZERO)
)
_NO_HOLE = int(CommandFlag.NO_HOLE)

Accounts = list[tuple[int, int, int]]


@dataclass(frozen=True)
class ExportView:
    """What a worker knows of an export: its name, size and arenas (bytes), and its written-map."""

    index: int
    name: str
    size_bytes: int
    arena_bytes: int
    read_only: bool
    written: WrittenMap

    @property
    def arenas(self) -> int:
        return max(1, -(-self.size_bytes // self.arena_bytes))


class Submission:
    """Makes pendings; see the module.

    Attributes:
        piece_bytes: a longer read or write travels in pieces.
        received_ns: monotonic time of the last receive, from which latency counts.
    """

    def __init__(
        self,
        connection: Any,
        export: ExportView,
        format: ReplyFormat,
        lane: Lane,
        window: Window,
        submitter: Submitter,
        replies: ReplyQueue,
    ) -> None:
        self._connection = connection
        self._export = export.index
        self._format = format
        self._header_bytes = format.read_header_bytes
        self._done_bytes = format.done_bytes
        self._lane = lane
        arena_bytes = export.arena_bytes if export.arenas > 1 else 0
        self._columns = Columns(window, arena_bytes, format.read_header_bytes, format.extended)
        self._slab = window.slab_view
        self._submitter = submitter
        self._ring = submitter.ring
        self._space = replies.space
        self.piece_bytes = min(LARGEST_PIECE, lane.tx_bytes // 4, lane.rx_bytes // 4)
        self.received_ns = 0
        #: Since the last gathered reads nothing was laid that is not laid again when it is done.
        self._joins = False

    def complete(self, pending: Pending) -> None:
        """Lay the replies of a run of writes that the engine has done."""
        unit = pending.units[0]
        assert isinstance(unit, RunUnit)
        self._columns.lay_done(unit.first, unit.requests, unit.start)

    def reply(self, reply: bytes, accounts: Accounts) -> bool:
        """A reply that needs nothing of the engine, sent behind those of earlier requests."""
        pending = self._pending(len(reply), accounts)
        if pending is None:
            return False
        self._place(pending, reply)
        self._submitter.submit(pending)
        return True

    def run(self, run: Plain) -> bool:
        """A run of plain requests, or one; payloads stay in the receive lane until it completes."""
        reads, writes, ring = run.reads, run.writes, self._ring
        read_count, write_count = reads.count, writes.count
        count = read_count + write_count
        if ring.columns.largest() < count:
            return False
        read_bytes = reads.total_bytes + read_count * self._header_bytes
        pending = self._pending(read_bytes + write_count * self._done_bytes, [])
        if pending is None:
            return False
        first = ring.columns.allocate(count)
        pending.columns_end = first + count
        start = pending.reply_start
        if write_count:
            pending.has_payload = True
            column, replies = first + read_count, start + read_bytes
            pending.units.append(RunUnit(ring.tail, WRITE, column, write_count, replies))
            pending.accounts.append((WRITE, write_count, writes.total_bytes))
            self._columns.lay_writes(writes, column, self._lane.rx)
            lo = self._lane.rx + writes.payload[0]
            hi = self._lane.rx + writes.payload[write_count - 1] + writes.length[write_count - 1]
            if count == 1:
                ring.push(_COPY_IN, self._export, 0, 1, lo, hi, writes.offset[0], hi - lo)
            else:
                ring.push(_SCATTER, self._export, column, write_count, lo, hi, 0, hi - lo)
        if read_count:
            pending.units.append(RunUnit(ring.tail, READ, first, read_count, start))
            pending.accounts.append((READ, read_count, reads.total_bytes))
            self._columns.lay_reads(reads, first, start)
            end = start + read_bytes
            if count == 1:
                # Alone it is quicker without a kernel, which would have laid the header.
                self._joins = False
                self._columns.lay_header(reads, start)
                ring.push(
                    _COPY_OUT,
                    self._export,
                    0,
                    1,
                    end - reads.total_bytes,
                    end,
                    reads.offset[0],
                    reads.total_bytes,
                )
            else:
                # Runs of other clients in between lie elsewhere in the slab.
                flags = GATHER_JOINS if self._joins and self._submitter.gathered_last is self else 0
                self._joins, self._submitter.gathered_last = True, self
                ring.push(_GATHER, self._export, first, read_count, start, end, 0, read_bytes, flags)
        self._submitter.submit(pending)
        return True

    def read(self, request: Request) -> bool:
        """One read of at most ``piece_bytes``, copied directly behind its header."""
        header = self._format.read_header(request, request.offset, request.length, last=True)
        pending = self._pending(len(header) + request.length, [(READ, 1, request.length)])
        if pending is None:
            return False
        self._push_copy_out(pending, request, header, request.offset, request.length)
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
        pending = self._pending(len(header) + length, [(READ, 1, request.length)] if last else [])
        if pending is None:
            return False
        pending.large_read = read
        self._push_copy_out(pending, request, header, read.next_offset, length)
        read.next_offset += length
        read.remaining -= length
        return True

    def write(
        self, request: Request, at: int, offset: int, length: int, *, large: LargeWrite | None, last: bool
    ) -> bool:
        """Payload bytes [at, at + length) of the receive lane; the reply goes with the last piece."""
        if last:
            reply = self._format.done(request)
            pending = self._pending(len(reply), [(WRITE, 1, request.length)])
            if pending is None:
                return False
            self._place(pending, reply)
        else:
            pending = Pending(self._connection, self.received_ns)
        pending.large_write = large
        pending.has_payload = True
        ring = self._ring
        pending.units.append(Unit(ring.tail, request))
        lo = self._lane.rx + at
        ring.push(_COPY_IN, self._export, 0, 1, lo, lo + length, offset, length)
        self._submitter.submit(pending)
        return True

    def zero(self, request: Request, op: int) -> bool:
        """TRIM or WRITE_ZEROES; without NO_HOLE whole blocks become unwritten."""
        reply = self._format.done(request)
        pending = self._pending(len(reply), [(op, 1, 0)])
        if pending is None:
            return False
        self._place(pending, reply)
        ring = self._ring
        pending.units.append(Unit(ring.tail, request))
        hole = 0 if request.flags & _NO_HOLE else ZERO_HOLE
        ring.push(_ZERO, self._export, 0, 1, 0, 0, request.offset, request.length, hole)
        self._submitter.submit(pending)
        return True

    def _pending(self, reply_bytes: int, accounts: Accounts) -> Pending | None:
        """A pending with room for its replies; the room is a multiple of 4, as kernels need it."""
        size = reply_bytes + 3 & ~3
        at = self._space.allocate(size)
        if at < 0:
            return None
        pending = Pending(self._connection, self.received_ns)
        pending.accounts = accounts
        pending.tx_end = at + size
        pending.reply_start = self._lane.tx + at
        pending.reply_end = pending.reply_start + reply_bytes
        return pending

    def _place(self, pending: Pending, reply: bytes) -> None:
        self._joins = False
        start = pending.reply_start
        self._slab[start : start + len(reply)] = reply

    def _push_copy_out(
        self, pending: Pending, request: Request, header: bytes, offset: int, length: int
    ) -> None:
        start, end = pending.reply_start, pending.reply_end
        self._place(pending, header)
        ring = self._ring
        pending.units.append(Unit(ring.tail, request))
        ring.push(_COPY_OUT, self._export, 0, 1, start + len(header), end, offset, length)
        self._submitter.submit(pending)
