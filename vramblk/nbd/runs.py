"""Runs of plain requests, taken out of a receive buffer.

At several hundred thousand requests a second nothing can be done per request in interpreted Python, and
numpy costs more than it saves for the dozen requests that come at a time. So these loops are compiled
(``runs.pxd`` gives the types); as plain Python they do the same, slower.

Words are 32 bits wide and little-endian, as this machine reads them; what the protocol counts in is
big-endian, so numbers are byte_swapped around.
"""

from __future__ import annotations

import struct

from .constants import EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC, Command, CommandFlag
from .replyheaders import byte_swapped

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
#: Requests may overlap if they share a block of this size, or two whose numbers agree in their last bits.
_BLOCK_SHIFT = 12
_STAMPS = 1 << 14
_STAMP_MASK = _STAMPS - 1


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

    A run is executed with its writes first, in no order among themselves. So it ends before a write that
    overlaps an earlier request of the run.

    Args:
        words: the buffer as 32-bit words.
        size_bytes, arena_bytes, read_only, run_bytes: as for ``transmission.Parser``.

    Attributes:
        reads, writes: what the last ``take`` has found.
        end: bytes; the position behind the last request that was taken.
        runs: calls of ``take``, begun anew at 2^32; a block's stamp is the last that has met it.
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
        self._stamps = memoryview(bytearray(4 * _STAMPS)).cast("I")
        self.runs = 0
        self._magic = byte_swapped(EXTENDED_REQUEST_MAGIC if extended else REQUEST_MAGIC)
        payload = CommandFlag.PAYLOAD_LEN if extended else 0
        self._read = byte_swapped(Command.READ)
        self._write = self._write_fua = -1
        if not read_only:
            self._write = byte_swapped(payload << 16 | Command.WRITE)
            self._write_fua = byte_swapped((payload | CommandFlag.FUA) << 16 | Command.WRITE)

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
        stamps = self._stamps
        self.runs += 1
        if self.runs >> 32:
            for index in range(_STAMPS):
                stamps[index] = 0
            self.runs = 1
        run = self.runs
        read_count = write_count = 0
        read_bytes = write_bytes = 0
        while read_count + write_count < _MOST and have - position >= header:
            at = position >> 2
            kind = words[at + 1]
            if words[at] != self._magic:
                break
            offset = byte_swapped(words[at + 4])
            offset = offset << 32 | byte_swapped(words[at + 5])
            length = byte_swapped(words[at + 6])
            if self._extended:
                if length:
                    break
                length = byte_swapped(words[at + 7])
            if length == 0 or length > _LONGEST or (offset | length) & _ALIGNED:
                break
            if length > self._size or offset > self._size - length:
                break
            if self._arena and offset // self._arena != (offset + length - 1) // self._arena:
                break
            first = offset >> _BLOCK_SHIFT
            last = (offset + length - 1) >> _BLOCK_SHIFT
            if kind == self._read:
                budget -= length + _HEADER
                if budget < 0:
                    break
                for block in range(first, last + 1):
                    stamps[block & _STAMP_MASK] = run
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
                overlaps = False
                for block in range(first, last + 1):
                    if stamps[block & _STAMP_MASK] == run:
                        overlaps = True
                        break
                if overlaps:
                    overlaps = False
                    end = offset + length
                    for index in range(read_count):
                        if read_offset[index] < end and offset < read_offset[index] + read_length[index]:
                            overlaps = True
                    for index in range(write_count):
                        if write_offset[index] < end and offset < write_offset[index] + write_length[index]:
                            overlaps = True
                    if overlaps:
                        break
                for block in range(first, last + 1):
                    stamps[block & _STAMP_MASK] = run
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
