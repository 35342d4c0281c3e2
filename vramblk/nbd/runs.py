"""Runs of plain requests: taken out of a receive buffer, and acknowledged.

At several hundred thousand requests a second nothing can be done per request in interpreted Python, and
numpy costs more than it saves for the dozen requests that come at a time. So these loops are compiled
(``runs.pxd`` gives the types); as plain Python they do the same, slower.

Words are 32 bits wide and little-endian, as this machine reads them; what the protocol counts in is
big-endian, so numbers are turned around.
"""

from __future__ import annotations

import struct

from .constants import (
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

ALIGNMENT = 16
#: Plain requests are at most this long, bytes.
PLAIN_BYTES = 1 << 17
#: At most this many requests are taken in one step.
RUN_REQUESTS = 256
#: Bytes before the data of a read in the longest reply format.
LONGEST_READ_HEADER = 40
#: The same once more as what the compiler may hold in a register.
_ALIGNED, _LONGEST, _MOST, _HEADER = ALIGNMENT - 1, PLAIN_BYTES, RUN_REQUESTS, LONGEST_READ_HEADER
_COOKIE = struct.Struct("<II")


def turned(word: int) -> int:
    """A 32-bit word with its bytes in the other order."""
    return (word & 0xFF) << 24 | (word & 0xFF00) << 8 | (word >> 8 & 0xFF00) | word >> 24


class Side:
    """The reads or the writes of a run; the first ``count`` places of each column are valid.

    Attributes:
        offset: bytes, shape (RUN_REQUESTS,).
        length: bytes, shape (RUN_REQUESTS,).
        cookie: two words for each, as on the wire, shape (2 * RUN_REQUESTS,).
        payload: bytes; where in the buffer the payload of a write lies, shape (RUN_REQUESTS,).
        total_bytes: sum of the lengths.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total_bytes = 0
        self.offset = memoryview(bytearray(8 * RUN_REQUESTS)).cast("Q")
        self.length = memoryview(bytearray(4 * RUN_REQUESTS)).cast("I")
        self.payload = memoryview(bytearray(4 * RUN_REQUESTS)).cast("I")
        self.cookie = memoryview(bytearray(8 * RUN_REQUESTS)).cast("I")

    def identities(self) -> list[tuple[bytes, int]]:
        """Cookie and offset of each request."""
        words = range(0, 2 * self.count, 2)
        return [(_COOKIE.pack(self.cookie[at], self.cookie[at + 1]), self.offset[at // 2]) for at in words]


class Plain:
    """The plain requests at the front of a buffer, as a run.

    Plain is what needs no judgement: reads and writes (FUA or not) of aligned, small ranges within the
    export and within one arena, writes with their whole payload.

    Args:
        words: the buffer as 32-bit words.
        size_bytes, arena_bytes, read_only, run_bytes: as for ``transmission.Parser``.

    Attributes:
        reads, writes: what the last ``take`` has found.
        end: bytes; the position behind the last request that was taken.
    """

    def __init__(
        self,
        words: memoryview,
        *,
        extended: bool,
        size_bytes: int,
        arena_bytes: int,
        read_only: bool,
        run_bytes: int,
    ) -> None:
        self.reads = Side()
        self.writes = Side()
        self.end = 0
        self._words = words
        self._size = size_bytes
        self._arena = arena_bytes if size_bytes > arena_bytes else 0
        self._run_bytes = run_bytes
        self._extended = extended
        self._magic = turned(EXTENDED_REQUEST_MAGIC if extended else REQUEST_MAGIC)
        payload = CommandFlag.PAYLOAD_LEN if extended else 0
        self._read = turned(Command.READ)
        self._write = self._write_fua = -1
        if not read_only:
            self._write = turned(payload << 16 | Command.WRITE)
            self._write_fua = turned((payload | CommandFlag.FUA) << 16 | Command.WRITE)

    def take(self, position: int, have: int) -> int:
        """Take plain requests from buffer[position:have], of any mixture; their number.

        ``position`` is a multiple of 4. What is taken fits into RUN_REQUESTS columns, and its replies into
        ``run_bytes``.
        """
        words, reads, writes = self._words, self.reads, self.writes
        read_offset, read_length, read_cookie = reads.offset, reads.length, reads.cookie
        write_offset, write_length, write_cookie = writes.offset, writes.length, writes.cookie
        payload = writes.payload
        header = 32 if self._extended else 28
        budget = self._run_bytes
        read_count = write_count = 0
        read_bytes = write_bytes = 0
        while read_count + write_count < _MOST and have - position >= header:
            at = position >> 2
            kind = words[at + 1]
            if words[at] != self._magic:
                break
            offset = turned(words[at + 4])
            offset = offset << 32 | turned(words[at + 5])
            length = turned(words[at + 6])
            if self._extended:
                if length:
                    break
                length = turned(words[at + 7])
            if length == 0 or length > _LONGEST or (offset | length) & _ALIGNED:
                break
            if length > self._size or offset > self._size - length:
                break
            if self._arena and offset // self._arena != (offset + length - 1) // self._arena:
                break
            if kind == self._read:
                budget -= length + _HEADER
                if budget < 0:
                    break
                read_offset[read_count] = offset
                read_length[read_count] = length
                read_cookie[2 * read_count] = words[at + 2]
                read_cookie[2 * read_count + 1] = words[at + 3]
                read_count += 1
                read_bytes += length
                position += header
            elif kind == self._write or kind == self._write_fua:
                budget -= _HEADER
                if budget < 0 or have - position < header + length:
                    break
                write_offset[write_count] = offset
                write_length[write_count] = length
                write_cookie[2 * write_count] = words[at + 2]
                write_cookie[2 * write_count + 1] = words[at + 3]
                payload[write_count] = position + header
                write_count += 1
                write_bytes += length
                position += header + length
            else:
                break
        reads.count, reads.total_bytes = read_count, read_bytes
        writes.count, writes.total_bytes = write_count, write_bytes
        self.end = position
        return read_count + write_count


_SIMPLE_MAGIC = turned(SIMPLE_REPLY_MAGIC)
_EXTENDED_MAGIC = turned(EXTENDED_REPLY_MAGIC)
_DONE_NONE = turned(ReplyFlag.DONE << 16 | ReplyType.NONE)


def fill_done(words: memoryview, at: int, low: int, high: int, offset: int, extended: bool) -> None:
    """Lay a reply of success without data from word ``at`` on, as ``ReplyFormat.done`` makes it.

    ``low`` and ``high`` are the cookie's two words as they came.
    """
    words[at + 2] = low
    words[at + 3] = high
    if not extended:
        words[at] = _SIMPLE_MAGIC
        words[at + 1] = 0
        return
    words[at] = _EXTENDED_MAGIC
    words[at + 1] = _DONE_NONE
    words[at + 4] = turned(offset >> 32)
    words[at + 5] = turned(offset & 0xFFFFFFFF)
    words[at + 6] = 0
    words[at + 7] = 0


_STRUCTURED_MAGIC = turned(STRUCTURED_REPLY_MAGIC)
_DONE_DATA = turned(ReplyFlag.DONE << 16 | ReplyType.OFFSET_DATA)


def fill_read_header(words: memoryview, at: int, side: Side, header_bytes: int) -> None:
    """Lay what stands before the data of the first read from word ``at`` on, as ``ReplyFormat.read_header``.

    ``header_bytes`` is 16 for a simple, 28 for a structured, 40 for an extended reply.
    """
    offset = side.offset[0]
    high, low, chunk = turned(offset >> 32), turned(offset & 0xFFFFFFFF), turned(side.length[0] + 8)
    words[at + 2] = side.cookie[0]
    words[at + 3] = side.cookie[1]
    if header_bytes == 16:
        words[at] = _SIMPLE_MAGIC
        words[at + 1] = 0
        return
    words[at + 1] = _DONE_DATA
    if header_bytes == 28:
        words[at] = _STRUCTURED_MAGIC
        words[at + 4] = chunk
        words[at + 5] = high
        words[at + 6] = low
        return
    words[at] = _EXTENDED_MAGIC
    words[at + 4] = high
    words[at + 5] = low
    words[at + 6] = 0
    words[at + 7] = chunk
    words[at + 8] = high
    words[at + 9] = low
