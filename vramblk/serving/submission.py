"""Puts requests of one connection into the ring, and the headers of their replies into the slab.

Every method answers False (or None) while ring, columns or transmit lane have no room, and has
then changed nothing: the caller tries again after something has completed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..nbd.constants import CommandFlag
from ..nbd.replies import ReplyFormat
from ..nbd.transmission import RUN_REQUESTS, Plain, Reads, Request, Writes
from ..shared.counters import READ, WRITE
from ..shared.window import SINGLE_BLOCKS, ZERO_HOLE, Op, Window
from ..shared.written import WrittenMap
from .lanes import Lane
from .pending import LargeRead, LargeWrite, Pending, Submitter, Unit
from .replyqueue import ReplyQueue

#: The largest piece in which a large request travels, bytes.
LARGEST_PIECE = 1 << 20
#: A pending takes at most this many ring entries.
MOST_ENTRIES = 2

_NUMBERS = np.arange(RUN_REQUESTS, dtype=np.int64)

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
        self._arena_bytes = export.arena_bytes
        self._single_arena = export.arenas == 1
        self._format = format
        self._header_bytes = format.read_header_bytes
        self._read_shape = format.read_header_bytes >> 2 << 16
        self._lane = lane
        self._columns = window.columns
        self._base = window.base
        self._slab = window.slab_view
        self._slab_array = window.slab
        self._submitter = submitter
        self._ring = submitter.ring
        self._space = replies.space
        self.piece_bytes = min(LARGEST_PIECE, lane.tx_bytes // 4, lane.rx_bytes // 4)
        self.received_ns = 0

    def reply(self, reply: bytes, accounts: Accounts) -> bool:
        """A reply that needs nothing of the engine, sent behind those of earlier requests."""
        pending = self._pending(len(reply), accounts)
        if pending is None:
            return False
        self._place(pending, reply)
        self._submitter.submit(pending)
        return True

    def run(self, run: Plain) -> bool:
        """A run of plain requests; their payloads stay in the receive lane until it completes."""
        reads, writes = run.reads, run.writes
        format, ring = self._format, self._ring
        read_count = len(reads.offset) if reads is not None else 0
        write_count = len(writes.offset) if writes is not None else 0
        if ring.columns.largest() < read_count + write_count:
            return False
        read_bytes = reads.total_bytes + read_count * self._header_bytes if reads is not None else 0
        total = read_bytes + write_count * format.done_bytes
        pending = self._pending(total, [])
        if pending is None:
            return False
        first = ring.columns.allocate(read_count + write_count)
        pending.columns_end = first + read_count + write_count
        start = pending.segments[0][0]
        if writes is not None:
            pending.has_payload = True
            replies = start + read_bytes
            pending.units.append(Unit(ring.tail, writes, first + read_count, replies))
            pending.accounts.append((WRITE, write_count, writes.total_bytes))
            self._push_writes(writes, first + read_count, write_count, replies)
        if reads is not None:
            pending.units.append(Unit(ring.tail, reads, first, start))
            pending.accounts.append((READ, read_count, read_bytes - read_count * self._header_bytes))
            self._push_reads(reads, first, read_count, start, read_bytes)
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
        pending.units.append(Unit(ring.tail, request, 0, 0))
        lo = self._lane.rx + at
        ring.push(Op.COPY_IN, self._export, 0, 1, lo, lo + length, offset, length)
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
        pending.units.append(Unit(ring.tail, request, 0, 0))
        hole = 0 if request.flags & CommandFlag.NO_HOLE else ZERO_HOLE
        ring.push(Op.ZERO, self._export, 0, 1, 0, 0, request.offset, request.length, hole)
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
        start = self._lane.tx + at
        pending.segments.append((start, start + reply_bytes))
        return pending

    def _place(self, pending: Pending, reply: bytes) -> None:
        start = pending.segments[0][0]
        self._slab[start : start + len(reply)] = reply

    def _push_copy_out(
        self, pending: Pending, request: Request, header: bytes, offset: int, length: int
    ) -> None:
        start, end = pending.segments[0]
        self._place(pending, header)
        ring = self._ring
        pending.units.append(Unit(ring.tail, request, 0, start))
        ring.push(Op.COPY_OUT, self._export, 0, 1, start + len(header), end, offset, length)
        self._submitter.submit(pending)

    def _push_reads(self, reads: Reads, first: int, count: int, start: int, total: int) -> None:
        table = self._columns[:, first : first + count]
        self._fill_place(table, reads, self._read_shape)
        position4 = (self._base + start) >> 2
        if reads.uniform:
            table[1] = _NUMBERS[:count] * ((reads.uniform + self._header_bytes) >> 2) + position4
        else:
            ends = (reads.length + self._header_bytes).cumsum()
            table[1, 0] = position4
            table[1, 1:] = (ends[:-1] >> 2) + position4
        table[3:5] = reads.cookie.T
        self._ring.push(Op.GATHER, self._export, first, count, start, start + total, 0, total)

    def _push_writes(self, writes: Writes, first: int, count: int, replies: int) -> None:
        table = self._columns[:, first : first + count]
        self._fill_place(table, writes, 0)
        payload = writes.payload
        table[1] = (payload + (self._base + self._lane.rx)) >> 2
        lo = self._lane.rx + int(payload[0])
        hi = self._lane.rx + int(payload[-1]) + (writes.uniform or int(writes.length[-1]))
        self._format.fill_done(
            self._slab_array[replies : replies + count * self._format.done_bytes],
            writes.cookie,
            writes.offset,
        )
        flags = SINGLE_BLOCKS if writes.single_blocks else 0
        self._ring.push(Op.SCATTER, self._export, first, count, lo, hi, 0, hi - lo, flags)

    def _fill_place(self, table: npt.NDArray[np.uint32], requests: Reads, shape: int) -> None:
        """Rows 0 and 2: the place within the arena, the length, and which arena."""
        offset = requests.offset
        lengths: Any = requests.uniform or requests.length
        if self._single_arena:
            table[0] = offset >> 4
            table[2] = (lengths >> 4) | shape
        else:
            arena = offset // self._arena_bytes
            table[0] = (offset - arena * self._arena_bytes) >> 4
            table[2] = (lengths >> 4) | (arena.astype(np.int64) << 24) | shape
