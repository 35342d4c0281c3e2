"""The transmission phase, sans I/O: bytes in, requests out.

Most requests are plain: small aligned reads and writes inside the export. A stream of them comes out as
runs (``runs.Plain``), whatever the mixture. Everything else (odd alignment, large payloads, other commands,
bad input) comes out as one ``Request`` at a time.

A request is judged here only as far as parsing needs it. Whether it is allowed is for
``validation``, which every request that is not plain has to pass.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .constants import EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC, Command, CommandFlag
from .runs import Plain

#: A payload above this is not read: the connection is closed, bytes.
LARGEST_DRAINED_PAYLOAD = (1 << 32) - 1

#: Magic, flags and command are taken as one 64-bit number, the head.
HEADERS = {False: struct.Struct(">Q8sQI"), True: struct.Struct(">Q8sQQ")}

#: Plain integers: flag enumerations cost microseconds where every request passes.
_WRITE = int(Command.WRITE)
_PAYLOAD_LEN = int(CommandFlag.PAYLOAD_LEN)


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


class Parser:
    """Takes requests of one connection out of a receive buffer.

    Args:
        buffer: the connection's part of the receive slab, a multiple of 4 bytes.
        extended: extended headers were negotiated.
        size_bytes: the export's size.
        arena_bytes: no plain request crosses a multiple of this.
        read_only: writes are never plain.
        run_bytes: the replies of one run take at most this many bytes.
        waited_bytes: a write is not begun before its whole payload is there if that is no longer than this.
    """

    def __init__(
        self,
        buffer: memoryview,
        *,
        extended: bool,
        size_bytes: int,
        arena_bytes: int,
        read_only: bool,
        run_bytes: int,
        waited_bytes: int,
    ) -> None:
        self._view = buffer
        self._waited = waited_bytes
        self.extended = extended
        self._read_only = read_only
        self._magic = EXTENDED_REQUEST_MAGIC if extended else REQUEST_MAGIC
        self._unpack = HEADERS[extended].unpack_from
        self.header_bytes = HEADERS[extended].size
        self._plain = Plain(
            buffer.cast("I"),
            extended=extended,
            size_bytes=size_bytes,
            arena_bytes=arena_bytes,
            read_only=read_only,
            run_bytes=run_bytes,
        )

    def next(self, position: int, have: int) -> Plain | Request | None:
        """The next run or request in buffer[position:have]; a run is valid until the next call.

        Returns:
            None when no whole header (or, for a write that is waited for, no whole payload) is there.
            A ``Request`` is returned as soon as its header is there; its payload follows at
            ``position + header_bytes``.

        Raises:
            TransmissionError: a magic that is none.
        """
        left = have - position - self.header_bytes
        if left < 0:
            return None
        if not position & 3 and self._plain.take(position, have):
            return self._plain
        request = self._single(position)
        payload = request.payload
        if left < payload <= self._waited and not self._read_only:
            return None
        return request

    def _single(self, position: int) -> Request:
        head, cookie, offset, length = self._unpack(self._view, position)
        if head >> 32 != self._magic:
            raise TransmissionError(f"bad request magic 0x{head >> 32:08x}")
        flags, command = head >> 16 & 0xFFFF, head & 0xFFFF
        payload = length if command == _WRITE or (self.extended and flags & _PAYLOAD_LEN) else 0
        if payload > LARGEST_DRAINED_PAYLOAD:
            raise TransmissionError(f"payload of {payload} bytes")
        return Request(command, flags, cookie, offset, length, payload)
