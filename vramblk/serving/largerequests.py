"""Submits long reads and zeroings, and writes whose payload is still arriving, piece by piece."""

from __future__ import annotations

from collections.abc import Callable

from ..nbd.constants import Command, Error
from ..nbd.replies import ReplyFormat
from ..shared.counters import OPS
from ..shared.written import BLOCK_BYTES, WrittenMap
from .pieces import LargeRead, LargeWrite, LargeZero
from .receive import ReceiveLane
from .ringwriter import RingWriter
from .submissions import Submissions

OP_OF_COMMAND = {int(Command[name.upper()]): number for number, name in enumerate(OPS)}
#: A longer range is zeroed in pieces, bytes. A piece is small if blocks of it are written; the engine passes
#: over unwritten ones.
ZERO_AT_ONCE, _ZERO_PIECE, _ZERO_UNWRITTEN_PIECE = 64 << 10, 8 << 20, 1 << 30


class LargeRequests:
    """Of one connection, which has one at a time: what comes behind it waits.

    Attributes:
        current: the request of which pieces are left to submit.
        blocked: the last step waits for room, or for the others' turn.

    Args:
        report: called with (op or -1, errno, offset, length, received_ns) of a request that is answered with
            an error.
    """

    def __init__(
        self,
        format: ReplyFormat,
        written: WrittenMap,
        received: ReceiveLane,
        writer: RingWriter,
        submissions: Submissions,
        report: Callable[[int, int, int, int, int], None],
    ) -> None:
        self.current: LargeRead | LargeWrite | LargeZero | None = None
        self.blocked = False
        self._format = format
        self._written = written
        self._received = received
        self._writer = writer
        self._submissions = submissions
        self._zeroing = submissions.zeroing
        self._report = report

    @property
    def needs_input(self) -> bool:
        """Nothing can be done before more is received."""
        return self.current is None or isinstance(self.current, LargeWrite)

    def step(self, ended: bool) -> bool:
        """Submit the next piece of the current one; False when it has to wait.

        Args:
            ended: no more will be received.
        """
        self.blocked = False
        current = self.current
        if isinstance(current, LargeWrite):
            return self._take_payload(current, ended)
        if isinstance(current, LargeRead):
            return self._next_piece(current)
        assert current is not None
        return self._zero_piece(current)

    def drop(self) -> None:
        """Submit no more of the current one."""
        if isinstance(self.current, LargeZero):
            self._zeroing.leave(self)
        self.current = None

    def _block(self) -> bool:
        self.blocked = True
        return False

    def _take_payload(self, write: LargeWrite, ended: bool) -> bool:
        """Submit, or drain, the part of a payload that has arrived."""
        received = self._received
        self._writer.received_ns = write.received_ns
        length = min(received.have - received.position, write.remaining)
        last = length == write.remaining
        if ended and not last:
            self.current = None
            received.discard()
            return False
        if write.error:
            if last and not self._writer.reply(self._format.error(write.request, Error(write.error)), []):
                return self._block()
            if last:
                self.current = None
                op = OP_OF_COMMAND.get(write.request.command, -1)
                self._report(op, write.error, write.request.offset, write.request.length, write.received_ns)
        else:
            length = min(length, self._writer.piece_bytes)
            last = length == write.remaining
            if not length or not (last or length == self._writer.piece_bytes or received.closing_in):
                return False
            if not self._writer.write(
                write.request, received.position, write.next_offset, length, large=write, last=last
            ):
                return self._block()
            received.live.append(received.position)
            if last:
                self.current = None
        received.position += length
        write.next_offset += length
        write.remaining -= length
        return length > 0

    def _next_piece(self, read: LargeRead) -> bool:
        self._writer.received_ns = read.received_ns
        if not read.failed and not self._writer.read_piece(read):
            return self._block()
        if read.failed or not read.remaining:
            self.current = None
        return True

    def _zero_piece(self, zero: LargeZero) -> bool:
        """Submit the next piece of a zeroing when it is this connection's turn."""
        if self._zeroing.in_flight is zero:
            return self._block()  # it takes its place in the queue when this piece is done
        request = zero.request
        self._writer.received_ns = zero.received_ns
        if zero.error:
            if not self._writer.reply(self._format.error(request, Error(zero.error)), []):
                return self._block()
            self._report(zero.op, zero.error, request.offset, request.length, zero.received_ns)
        else:
            if not self._zeroing.take(self):
                return self._block()
            length = self._zero_length(zero)
            last = length == zero.remaining
            # Others have their turn, also if the reply has no room.
            self._zeroing.leave(self)
            if not self._writer.zero(
                request, zero.op, zero.next_offset, length, large=zero, last=last
            ):
                return self._block()
            self._zeroing.in_flight = zero
            zero.next_offset += length
            zero.remaining -= length
            if not last:
                return True
        self.current = None
        return True

    def _zero_length(self, zero: LargeZero) -> int:
        """Bytes of the next piece; it ends with a block, so that each block is zeroed at once."""
        start = zero.next_offset
        first, most = start // BLOCK_BYTES, min(zero.remaining, _ZERO_UNWRITTEN_PIECE)
        # What is in flight may be writes whose blocks are not marked yet.
        behind = -(-(start + most) // BLOCK_BYTES)
        if self._submissions.in_flight or self._written.blocks[first:behind].any():
            most = min(zero.remaining, _ZERO_PIECE)
        if most < zero.remaining:
            most = (start + most) // BLOCK_BYTES * BLOCK_BYTES - start
        return most
