"""The transmission phase, sans I/O: bytes in, requests out.

Most requests are plain: small aligned reads and writes inside the export. A stream of them is
taken apart with numpy, a whole run at a time, because at several hundred thousand requests a
second nothing can be done per request in Python. Everything else (odd alignment, large payloads,
other commands, bad input) comes out as one ``Request`` at a time.

A request is judged here only as far as parsing needs it. Whether it is allowed is for
``validation``, which every request that is not plain has to pass.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .constants import EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC, Command, CommandFlag

ALIGNMENT = 16
_BLOCK = 4096
#: Plain requests are at most this long, bytes.
PLAIN_BYTES = 1 << 16
#: Bytes before the data of a read in the longest reply format.
LONGEST_READ_HEADER = 40
#: At most this many requests are parsed in one step.
RUN_REQUESTS = 256
#: A payload above this is not read: the connection is closed, bytes.
LARGEST_DRAINED_PAYLOAD = (1 << 32) - 1

#: Magic, flags and command are taken as one 64-bit number, the head.
_HEADERS = {False: struct.Struct(">Q8sQI"), True: struct.Struct(">Q8sQQ")}
_DTYPES = {
    False: np.dtype([("head", ">u8"), ("cookie", "<u4", (2,)), ("offset", ">u8"), ("length", ">u4")]),
    True: np.dtype([("head", ">u8"), ("cookie", "<u4", (2,)), ("offset", ">u8"), ("length", ">u8")]),
}
#: A shorter leading run of one kind is not worth taking apart by itself; it goes with what follows.
_SHORT_RUN = 8

#: Plain integers: flag enumerations cost microseconds where every request passes.
_READ, _WRITE = int(Command.READ), int(Command.WRITE)
_PAYLOAD_LEN = int(CommandFlag.PAYLOAD_LEN)

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]


class TransmissionError(Exception):
    """The stream cannot be followed any further; the connection must be closed."""


class Request(NamedTuple):
    """One request that is not part of a run.

    Attributes:
        cookie: the 8 bytes as they came.
        length: bytes asked for, or of the payload.
        payload: bytes of payload that follow the header on the wire (0 for all but writes).
    """

    command: int
    flags: int
    cookie: bytes
    offset: int
    length: int
    payload: int


class Reads:
    """Plain reads.

    Attributes:
        offset: shape (n,), bytes.
        cookie: shape (n, 2), as on the wire.
        uniform: the one length that all have, or 0.
    """

    __slots__ = ("_length", "cookie", "offset", "uniform")

    def __init__(self, offset: U64, cookie: U32, length: I64 | None, uniform: int = 0) -> None:
        self.offset = offset
        self.cookie = cookie
        self.uniform = uniform
        self._length = length

    @property
    def length(self) -> I64:
        """Shape (n,), bytes."""
        if self._length is None:
            self._length = np.full(len(self.offset), self.uniform, np.int64)
        return self._length

    @property
    def total_bytes(self) -> int:
        return self.uniform * len(self.offset) if self.uniform else int(self.length.sum())


class Writes(Reads):
    """Plain writes with complete payloads.

    Attributes:
        payload: shape (n,), positions in the buffer.
        single_blocks: each lies in one 4 KiB block.
    """

    __slots__ = ("payload", "single_blocks")

    def __init__(
        self,
        offset: U64,
        cookie: U32,
        length: I64 | None,
        uniform: int,
        payload: I64,
        single_blocks: bool = False,
    ) -> None:
        super().__init__(offset, cookie, length, uniform)
        self.payload = payload
        self.single_blocks = single_blocks


class Plain(NamedTuple):
    """A run of plain requests; either side may be None, not both.

    ``end`` is the position behind the last of them.
    """

    reads: Reads | None
    writes: Writes | None
    end: int


class Parser:
    """Takes requests of one connection out of a receive buffer.

    Args:
        buffer: shape (bytes,), uint8: the connection's part of the receive slab.
        extended: extended headers were negotiated.
        size_bytes: the export's size.
        arena_bytes: no plain request crosses a multiple of this.
        read_only: writes are never plain.
        run_bytes: the replies of one run take at most this many bytes.
    """

    def __init__(
        self,
        buffer: npt.NDArray[np.uint8],
        *,
        extended: bool,
        size_bytes: int,
        arena_bytes: int,
        read_only: bool,
        run_bytes: int,
    ) -> None:
        self._buffer = buffer
        self._view = buffer.data
        self.extended = extended
        self._size = size_bytes
        self._arena = arena_bytes
        self._arenas = -(-size_bytes // arena_bytes) if size_bytes else 1
        self._run_bytes = run_bytes
        self._magic = EXTENDED_REQUEST_MAGIC if extended else REQUEST_MAGIC
        self._header = _HEADERS[extended]
        self._dtype = _DTYPES[extended]
        self.header_bytes = self._header.size
        #: What came last was a mixture: it is not tried again whether what follows is all of one kind.
        self._likely_mixed = False
        payload_flag = int(CommandFlag.PAYLOAD_LEN) if extended else 0
        self._read_head = self._head(Command.READ, 0)
        self._write_head = self._write_fua_head = -1
        if not read_only:
            self._write_head = self._head(Command.WRITE, payload_flag)
            self._write_fua_head = self._head(Command.WRITE, payload_flag | CommandFlag.FUA)

    def _head(self, command: int, flags: int) -> int:
        return int(self._magic << 32 | flags << 16 | command)

    def next(self, position: int, have: int) -> Plain | Request | None:
        """The next run or request in buffer[position:have].

        Returns:
            None when no whole header (or, for a plain write, no whole payload) is there.
            A ``Request`` is returned as soon as its header is there; its payload follows at
            ``position + header_bytes``.

        Raises:
            TransmissionError: a magic that is none.
        """
        size = self.header_bytes
        left = have - position
        if left < size:
            return None
        head, cookie, offset, length = self._header.unpack_from(self._view, position)
        if head == self._read_head:
            if left == size or not self._is_plain(offset, length):
                return Request(_READ, 0, cookie, offset, length, 0)
            if self._likely_mixed:
                return self._mixed(position, have)
            return self._read_run(position, min(left // size, RUN_REQUESTS)) or self._mixed(position, have)
        if head == self._write_head or head == self._write_fua_head:
            whole = size + length
            if length <= PLAIN_BYTES and left < whole:
                return None
            if left == whole or not self._is_plain(offset, length):
                return Request(_WRITE, head >> 16 & 0xFFFF, cookie, offset, length, length)
            if head == self._write_head and not self._likely_mixed:
                return self._write_run(position, have, length) or self._mixed(position, have)
            return self._mixed(position, have)
        return self._single(position)

    def _is_plain(self, offset: int, length: int) -> bool:
        if not 0 < length <= PLAIN_BYTES or (offset | length) % ALIGNMENT or offset + length > self._size:
            return False
        return self._arenas == 1 or offset // self._arena == (offset + length - 1) // self._arena

    def _single(self, position: int) -> Request:
        head, cookie, offset, length = self._header.unpack_from(self._view, position)
        if head >> 32 != self._magic:
            raise TransmissionError(f"bad request magic 0x{head >> 32:08x}")
        flags, command = head >> 16 & 0xFFFF, head & 0xFFFF
        payload = length if command == _WRITE or (self.extended and flags & _PAYLOAD_LEN) else 0
        if payload > LARGEST_DRAINED_PAYLOAD:
            raise TransmissionError(f"payload of {payload} bytes")
        return Request(command, flags, cookie, offset, length, payload)

    def _read_run(self, position: int, available: int) -> Plain | None:
        """Leading plain reads as one run, or None if they are too few."""
        size = self.header_bytes
        table = self._buffer[position : position + available * size].view(self._dtype)
        heads = table["head"] == self._read_head
        count = available if heads.all() else int(heads.argmin())
        if count < min(_SHORT_RUN, available):
            return None
        table = table[:count]
        offset = table["offset"].astype(np.uint64)
        lengths = table["length"]
        uniform = int(lengths[0])
        length = None
        longest = uniform
        if not (lengths == uniform).all():
            uniform = 0
            length = lengths.astype(np.int64)
            longest = int(length.max())
        if not self._all_plain(offset, int(np.bitwise_or.reduce(offset)), length, longest):
            return None
        if count * (longest + LONGEST_READ_HEADER) > self._run_bytes:
            ends = np.cumsum(
                (length if length is not None else np.full(count, longest)) + LONGEST_READ_HEADER
            )
            count = max(1, int(ends.searchsorted(self._run_bytes, "right")))
            offset = offset[:count]
            length = length[:count] if length is not None else None
        reads = Reads(offset, table["cookie"][:count], length, uniform)
        return Plain(reads, None, position + count * size)

    def _write_run(self, position: int, have: int, length: int) -> Plain | None:
        """Leading plain writes of one length as one run, or None if they are too few."""
        size = self.header_bytes
        stride = size + length
        available = min((have - position) // stride, RUN_REQUESTS)
        table: npt.NDArray[Any] = np.ndarray((available,), self._dtype, self._buffer, position, (stride,))
        like = (table["head"] == self._write_head) & (table["length"] == length)
        count = available if like.all() else int(like.argmin())
        if count < min(_SHORT_RUN, available):
            return None
        table = table[:count]
        offset = table["offset"].astype(np.uint64)
        bits = int(np.bitwise_or.reduce(offset))
        if not self._all_plain(offset, bits, None, length):
            return None
        start = position + size
        payload = np.arange(start, start + count * stride, stride, dtype=np.int64)
        single_blocks = length <= _BLOCK and not bits % _BLOCK
        writes = Writes(offset, table["cookie"], None, length, payload, single_blocks)
        return Plain(None, writes, position + count * stride)

    def _all_plain(self, offset: U64, bits: int, length: I64 | None, longest: int) -> bool:
        """Whether every request of a run is aligned, small, inside the export and one arena.

        ``bits`` is the union of all offsets; ``length`` None: all are ``longest`` bytes long.
        """
        if longest > PLAIN_BYTES or bits % ALIGNMENT:
            return False
        if length is None:
            if not longest or longest % ALIGNMENT:
                return False
        elif int(length.min()) <= 0 or int(np.bitwise_or.reduce(length)) % ALIGNMENT:
            return False
        if self._arenas == 1 and int(offset.max()) <= self._size - longest:
            return True
        return bool(self._inside(offset, longest if length is None else length).all())

    def _inside(self, offset: U64, length: I64 | int) -> npt.NDArray[np.bool_]:
        """Which requests lie in the export and in one arena; lengths are positive and small."""
        span = np.asarray(length, np.uint64)
        inside = (offset < np.uint64(self._size)) & (offset + span <= np.uint64(self._size))
        if self._arenas > 1:
            arena = np.uint64(self._arena)
            inside &= offset // arena == (offset + span - np.uint64(1)) // arena
        return np.asarray(inside)

    def _mixed(self, position: int, have: int) -> Plain | Request | None:
        """Plain requests of any mixture up to the first that is not, or that one request."""
        size = self.header_bytes
        view, unpack = self._view, self._header.unpack_from
        read_head, write_head, write_fua_head = self._read_head, self._write_head, self._write_fua_head
        # Lists, not numpy: the walk is needed anyway, and for a dozen requests they cost less.
        is_plain = self._is_plain
        read_cookies: list[bytes] = []
        read_offsets: list[int] = []
        read_lengths: list[int] = []
        write_cookies: list[bytes] = []
        write_offsets: list[int] = []
        write_lengths: list[int] = []
        payloads: list[int] = []
        budget = self._run_bytes
        start = position
        for _ in range(RUN_REQUESTS):
            if have - position < size:
                break
            head, cookie, offset, length = unpack(view, position)
            if budget < length + LONGEST_READ_HEADER or not is_plain(offset, length):
                break
            if head == read_head:
                budget -= length + LONGEST_READ_HEADER
                read_cookies.append(cookie)
                read_offsets.append(offset)
                read_lengths.append(length)
                position += size
            elif head == write_head or head == write_fua_head:
                if have - position < size + length:
                    break
                budget -= LONGEST_READ_HEADER
                write_cookies.append(cookie)
                write_offsets.append(offset)
                write_lengths.append(length)
                payloads.append(position + size)
                position += size + length
            else:
                break
        if len(read_offsets) + len(write_offsets) < 2:
            return self._single(start)
        self._likely_mixed = bool(read_offsets and write_offsets)
        reads = writes = None
        if read_offsets:
            reads = Reads(*_columns(read_cookies, read_offsets, read_lengths))
        if write_offsets:
            columns = _columns(write_cookies, write_offsets, write_lengths)
            uniform = columns[3]
            single_blocks = 0 < uniform <= _BLOCK and not any(offset % _BLOCK for offset in write_offsets)
            writes = Writes(*columns, np.array(payloads, np.int64), single_blocks)
        return Plain(reads, writes, position)


def _columns(
    cookies: list[bytes], offsets: list[int], lengths: list[int]
) -> tuple[U64, U32, I64 | None, int]:
    """The arguments of ``Reads``."""
    cookie = np.frombuffer(b"".join(cookies), np.uint32).reshape(-1, 2)
    offset = np.array(offsets, np.uint64)
    uniform = lengths[0]
    if lengths.count(uniform) == len(lengths):
        return offset, cookie, None, uniform
    return offset, cookie, np.array(lengths, np.int64), 0
