"""The short path: plain reads and writes of one client, from its socket to the memory and back, no batch.

Plain is a READ or WRITE of any alignment that lies in one arena and is no longer than a piece. The payload of
a plain WRITE has arrived. Anything else stays where it is for the general code, which runs in the same
thread. A connection takes the short path only while nothing of it is in flight in the general code.

A *go* is what the socket holds. Each copy begins when its request is parsed, so that it runs while the next
request is received. One ``finish`` and one send end all of them. Copies are done in order, so requests that
overlap keep their order. If a copy fails, nothing has been answered yet: the caller repeats each request of
the go by itself, before anybody else is served. So a go ends before a write that overlaps one of its reads:
repeated, the read would see what was written after it.

Compiled, with the types of ``direct.pxd``: there is no Python object for a request or for a call.
"""

from __future__ import annotations

import errno
import select
import sys

from ..memory.copies import Copies
from ..nbd.constants import (
    EXTENDED_REPLY_MAGIC,
    EXTENDED_REQUEST_MAGIC,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Command,
    CommandFlag,
    ReplyFlag,
    ReplyType,
)
from ..nbd.replies import ReplyFormat
from ..serving.lanes import Lane
from ..serving.tally import Tally
from ..shared.control import Control, ControlWord, State
from ..shared.counters import BATCH_BOUNDS, READ, WRITE, EngineCounters
from ..shared.window import Window
from ..shared.written import BLOCK_BYTES
from ..system import calls

#: A go takes no more requests, or bytes of payload, than this.
_MOST_REQUESTS, _MOST_BYTES = 64, 2 << 20
#: A receive asks for so many bytes at most, so that the first of many copies begins early.
_RECEIVE_BYTES = 256 << 10
#: Of a request, at most.
_HEADER_BYTES = 32
#: ``linger`` returns after so many goes, also if nobody else waits.
_MOST_GOES = 256
#: A go of so many requests is a deep one.
_DEEP = 12
_WEIGHT_SHIFT = 17
#: While it spins and is alone, others are looked at in each so-manieth turn.
_SPINS = 16

_EAGAIN, _ENOMEM, _ENOBUFS = errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS
_BLOCK_SHIFT = BLOCK_BYTES.bit_length() - 1
_REQUEST, _EXTENDED_REQUEST = REQUEST_MAGIC, EXTENDED_REQUEST_MAGIC
_SIMPLE, _STRUCTURED, _EXTENDED = SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, EXTENDED_REPLY_MAGIC
_DATA_DONE = ReplyFlag.DONE << 16 | ReplyType.OFFSET_DATA
_NONE_DONE = ReplyFlag.DONE << 16 | ReplyType.NONE
_READ_HEAD, _WRITE_HEAD = int(Command.READ), int(Command.WRITE)
#: Flags, as they stand in the head, that change nothing here.
_FUA, _DF, _PAYLOAD_LEN = (
    int(CommandFlag[name]) << 16 for name in ("FUA", "DF", "PAYLOAD_LEN")
)  # fmt: skip
_READ, _WRITE, _BOUNDS = READ, WRITE, len(BATCH_BOUNDS)
_SINCE, _EXPORT, _STATE = (
    word * 8 for word in (ControlWord.ENGINE_SINCE_NS, ControlWord.ENGINE_EXPORT, ControlWord.STATE)
)
_DRAINING = int(State.DRAINING)
_BATCHES, _BATCH_REQUESTS, _BUSY, _SLEEPS = (
    EngineCounters.scalar_index(name) for name in ("batches", "batch_requests", "busy_ns", "sleeps")
)
_NOTHING, _THIS = calls.NOTHING, calls.THIS


class DirectPath:
    """The short path of one connection.

    Args:
        descriptor: of the socket, non-blocking.
        blocks: the export's written-map.
        counts: the engine's own counters, shape of ``EngineCounters.cells``.
        drains: while the server drains nothing is plain.
        piece_bytes: longer requests are not plain either.

    Attributes:
        position, have: bytes [position, have) of the receive lane are received and not taken. Set both
            before a go; afterwards they say what is left.
        since_ns: when the first of these bytes came, monotonic.
        left: what is at ``position`` is not plain.
        again: the socket may hold more.
        ended: the client has closed.
        starved: the kernel had no memory for a receive or a send.
        error: errno of a receive or send that failed, or 0.
        failed: status of a copy that failed, or 0; then nothing of the go was answered.
        taken, laid: of a go that failed: its requests stand from ``position`` to ``taken``, and its replies,
            whose data may be wrong, up to the slab position ``laid``.
        unsent, end: slab range of replies that the socket has not taken; reads, writes, read_bytes and
            write_bytes are then still to be counted, as received at ``first_ns``.
        last_ns: when the last go ended.
        goes, deep: that were answered, and how many of them were deep.
        weight: of those goes; each weighs one, and one more for each 128 KiB.
        looked_at: ``linger`` comes back after each go when they weigh so much.
    """

    def __init__(
        self,
        descriptor: int,
        window: Window,
        lane: Lane,
        export: int,
        format: ReplyFormat,
        copies: Copies,
        blocks: memoryview,
        tally: Tally,
        control: Control,
        counts: memoryview,
        *,
        read_only: bool,
        drains: bool,
        piece_bytes: int,
    ) -> None:
        self._descriptor = descriptor
        self._slab = window.slab_view
        self._address = window.slab_address
        self._rx, self._rx_bytes = lane.rx, lane.rx_bytes
        self._tx, self._tx_end = lane.tx, lane.tx + lane.tx_bytes
        self._export = export
        self._extended = format.extended
        self._structured = format.structured
        self._request = 32 if format.extended else 28
        self._read_reply = format.read_header_bytes
        self._done_reply = format.done_bytes
        self._copies = copies
        self._blocks = blocks
        self._tally = tally
        self._control = control.words
        self._counts = counts
        self._cells = control.engine_counters.cells
        self._histogram = control.engine_counters.batch_index(1)
        self._read_only, self._drains = read_only, drains
        self._piece = piece_bytes
        #: Begin and end in the export of each read of a go.
        self._spans = memoryview(bytearray(2 * 8 * _MOST_REQUESTS)).cast("Q")
        self._magic = _EXTENDED_REQUEST if format.extended else _REQUEST
        self._ignored_reading = _FUA | (_DF if format.structured or format.extended else 0)
        self._ignored_writing = _FUA | (_PAYLOAD_LEN if format.extended else 0)
        self.position = self.have = self._first = 0
        self.since_ns = self.first_ns = self.last_ns = 0
        self.left = self.again = self.ended = self.starved = False
        self.error = self.failed = 0
        self.unsent = self.end = 0
        self.reads = self.writes = self.read_bytes = self.write_bytes = 0
        self.taken = self.laid = 0
        self.looked_at = sys.maxsize
        self.count_anew()

    def go(self) -> int:
        """Answer the plain requests that the socket holds, or a bounded part of them; how many they were."""
        self._make_room()
        begin = self._first = self.position
        self.left = self.again = self.ended = self.starved = False
        self.error = self.failed = 0
        self.reads = self.writes = self.read_bytes = self.write_bytes = 0
        self.unsent = self.end = self._tx
        self.first_ns = self.since_ns
        came = True  # what was left may have become plain
        last_ns = self.since_ns
        while True:
            if came and not self._take():
                break
            count = self._rx_bytes - self.have
            if count > _RECEIVE_BYTES:
                count = _RECEIVE_BYTES
            if not count:
                self.again = self.position > begin
                break
            got = calls.receive(self._descriptor, self._slab, self._rx + self.have, count)
            came = got > 0
            if not came:
                self._note_no_input(got)
                break
            self._tally.received(got)
            if self.have == self.position:
                self.since_ns = calls.now_ns()
                last_ns = self.since_ns
            else:
                last_ns = calls.now_ns()
            if self.position == begin:
                self.first_ns = self.since_ns
            self.have += got
            self.again = got == count
            if not self.again and not self._copies.queued:
                if self._take():
                    self.again = False
                break
        if self.position > begin:
            self.since_ns = last_ns
            self._end_go()
        return self.reads + self.writes

    def _make_room(self) -> None:
        """Move what was not taken to the front of the lane if its request may not become whole otherwise."""
        left = self.have - self.position
        if not left:
            self.position = self.have = 0
        elif self._rx_bytes - self.position < self._piece + _HEADER_BYTES:
            calls.move(self._slab, self._rx, self._rx + self.position, left)
            self.position, self.have = 0, left

    def linger(
        self, epoll: select.epoll, epoll_descriptor: int, timeout_ms: int, spin_ns: int, alone: bool
    ) -> int:
        """Go on, and wait for this client, until somebody else has an event or the general code is needed.

        ``epoll`` watches this socket and everybody else's; ``alone``: nobody else is served. Gives the number
        of requests.
        """
        requests = spins = 0
        busy_until_ns = 0
        # Somebody else may just have been served, and have something again soon.
        until_ns = calls.now_ns() + spin_ns
        for _ in range(_MOST_GOES):
            done = self.go()
            requests += done
            if done:
                # What was left by the go before came while that was busy.
                self._add(_BUSY, self.last_ns - max(self.first_ns, busy_until_ns))
                busy_until_ns = self.last_ns
            if (
                self.left or self.ended or self.starved or self.error or self.failed
                or self.unsent != self.end or self.weight >= self.looked_at
            ):  # fmt: skip
                return requests
            timeout = timeout_ms
            if self.again:
                timeout = 0
            elif spin_ns:
                now_ns = calls.now_ns()
                if done:
                    until_ns = now_ns + spin_ns
                if now_ns < until_ns:
                    spins += 1
                    if alone and spins % _SPINS:
                        continue
                    timeout = 0
            if timeout:
                self._counts[_SLEEPS] += 1
                self._cells[_SLEEPS] = self._counts[_SLEEPS]
            found = calls.wait(epoll, epoll_descriptor, self._descriptor, timeout)
            if found != _THIS and (found != _NOTHING or timeout):
                return requests
        return requests

    def _note_no_input(self, got: int) -> None:
        if not got:
            self.ended = True
        elif got == -_ENOMEM or got == -_ENOBUFS:
            self.starved = True
        elif got != -_EAGAIN:
            self.error = -got

    def _take(self) -> bool:
        """Begin the copies of what was received; False if the go must end here."""
        slab, copies = self._slab, self._copies
        request = self._request
        if self._drains and self.have > self.position and self._control[_STATE] >= _DRAINING:
            self.left = True
            return False
        while self.have - self.position >= request:
            if (
                self.reads + self.writes >= _MOST_REQUESTS
                or self.read_bytes + self.write_bytes >= _MOST_BYTES
            ):
                self.again = True
                return False
            at = self._rx + self.position
            head = calls.load32(slab, at + 4)
            offset = calls.load64(slab, at + 16)
            length = calls.load64(slab, at + 24) if self._extended else calls.load32(slab, at + 24)
            reads = not head & ~self._ignored_reading
            if (
                calls.load32(slab, at) != self._magic
                or not (reads or head & ~self._ignored_writing == _WRITE_HEAD)
                or length > self._piece
                or not copies.within(offset, length)
                or (self._read_only and not reads)
            ):
                self.left = True
                return False
            end, size = self.end, length
            if reads:
                data = end + self._read_reply
                if data + size > self._tx_end:
                    self.again = True
                    return False
                self._begin(end)
                self._lay_read(at, end, offset, length)
                status = copies.read(offset, length, self._address + data)
                self.end = data + size
                self.position += request
                self._spans[2 * self.reads] = offset
                self._spans[2 * self.reads + 1] = offset + length
                self.reads += 1
                self.read_bytes += size
            else:
                if self.have - self.position < request + size:
                    return True
                if end + self._done_reply > self._tx_end or (
                    self.reads and self._overtakes(offset, offset + length)
                ):
                    self.again = True
                    return False
                self._begin(end)
                calls.mark(self._blocks, offset >> _BLOCK_SHIFT, (offset + length - 1) >> _BLOCK_SHIFT)
                self._lay_done(at, end, offset)
                status = copies.write(offset, length, self._address + at + request)
                self.end = end + self._done_reply
                self.position += request + size
                self.writes += 1
                self.write_bytes += size
            if status:
                self.failed = status
                return False
        return True

    def _overtakes(self, start: int, stop: int) -> bool:
        """Whether a write meets a read of this go, which would see its data if the go had to be repeated."""
        spans = self._spans
        for index in range(self.reads):
            if spans[2 * index] < stop and start < spans[2 * index + 1]:
                return True
        return False

    def _begin(self, end: int) -> None:
        """Before the first copy: from now on somebody may have to wait for the device."""
        if end == self._tx:
            self._control[_SINCE] = calls.now_ns()
            self._control[_EXPORT] = self._export + 1

    def _lay_read(self, at: int, to: int, offset: int, length: int) -> None:
        """What stands before the data of a read, as ``ReplyFormat.read_header`` makes it."""
        slab = self._slab
        cookie = calls.load64(slab, at + 8)
        calls.store64(slab, to + 8, cookie)
        if self._extended:
            calls.store32(slab, to, _EXTENDED)
            calls.store32(slab, to + 4, _DATA_DONE)
            calls.store64(slab, to + 16, offset)
            calls.store64(slab, to + 24, length + 8)
            calls.store64(slab, to + 32, offset)
        elif self._structured:
            calls.store32(slab, to, _STRUCTURED)
            calls.store32(slab, to + 4, _DATA_DONE)
            calls.store32(slab, to + 16, length + 8)
            calls.store64(slab, to + 20, offset)
        else:
            calls.store32(slab, to, _SIMPLE)
            calls.store32(slab, to + 4, 0)

    def _lay_done(self, at: int, to: int, offset: int) -> None:
        """The reply to a write, as ``ReplyFormat.done`` makes it."""
        slab = self._slab
        cookie = calls.load64(slab, at + 8)
        calls.store64(slab, to + 8, cookie)
        if self._extended:
            calls.store32(slab, to, _EXTENDED)
            calls.store32(slab, to + 4, _NONE_DONE)
            calls.store64(slab, to + 16, offset)
            calls.store64(slab, to + 24, 0)
        else:
            calls.store32(slab, to, _SIMPLE)
            calls.store32(slab, to + 4, 0)

    def _end_go(self) -> None:
        """Wait for the copies and send the replies, or leave all of it to the general code."""
        status = self._copies.finish()
        self._control[_EXPORT] = 0
        if status and not self.failed:
            self.failed = status
        if self.failed:
            self.taken, self.laid = self.position, self.end
            self.position = self._first
            self.since_ns = self.first_ns
            self.end = self._tx
            self.reads = self.writes = self.read_bytes = self.write_bytes = 0
        else:
            self._answer()

    def _answer(self) -> None:
        while self.unsent < self.end:
            sent = calls.send(self._descriptor, self._slab, self.unsent, self.end - self.unsent)
            if sent < 0:
                if sent == -_ENOMEM or sent == -_ENOBUFS:
                    self.starved = True
                elif sent != -_EAGAIN:
                    self.error = -sent
                break
            self._tally.sent(sent)
            self.unsent += sent
        now_ns = self.last_ns = calls.now_ns()
        if self.unsent == self.end:
            if self.reads:
                self._tally.answered(_READ, self.reads, self.read_bytes, now_ns - self.first_ns)
            if self.writes:
                self._tally.answered(_WRITE, self.writes, self.write_bytes, now_ns - self.first_ns)
        self._count(self.reads + self.writes)

    def count_anew(self) -> None:
        """Forget the goes that were counted."""
        self.goes = self.deep = self.weight = 0

    def abandon(self) -> None:
        """After an exception: nothing is in flight any more."""
        self._control[_EXPORT] = 0
        self._copies.finish()

    def _count(self, requests: int) -> None:
        """The go is a batch of the engine's."""
        bucket = 0
        while bucket < _BOUNDS and 1 << bucket < requests:
            bucket += 1
        bucket += self._histogram
        self.goes += 1
        self.weight += 1 + (self.read_bytes + self.write_bytes >> _WEIGHT_SHIFT)
        if requests >= _DEEP:
            self.deep += 1
        self._add(_BATCHES, 1)
        self._add(_BATCH_REQUESTS, requests)
        self._add(bucket, 1)

    def _add(self, index: int, amount: int) -> None:
        self._counts[index] += amount
        self._cells[index] = self._counts[index]
