"""Replies of the transmission phase as bytes: simple, structured and extended.

Source: "Simple reply message", "Structured reply chunk message" and "Extended reply chunk
message" of the NBD specification. The data of a read is not in here: it lies behind the header
that ``ReplyFormat.read_header`` makes. ``runs.fill_done`` lays the replies of many writes at once.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from .constants import (
    EXTENDED_REPLY_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Error,
    ReplyFlag,
    ReplyType,
)
from .transmission import Request

_SIMPLE = struct.Struct(">II8s")
_STRUCTURED = struct.Struct(">IHH8sI")
_EXTENDED = struct.Struct(">IHH8sQQ")
#: Chunk header and the offset before the data; the DONE flag is 1.
_STRUCTURED_DATA = struct.Struct(">IHH8sIQ")
_EXTENDED_DATA = struct.Struct(">IHH8sQQQ")
_OFFSET_DATA = int(ReplyType.OFFSET_DATA)
_ERROR = struct.Struct(">IH")


@dataclass(frozen=True)
class ReplyFormat:
    """How replies look on one connection, as negotiated."""

    structured: bool
    extended: bool

    @property
    def read_header_bytes(self) -> int:
        """Bytes before the data of a successful read: 16, 28 or 40."""
        return 40 if self.extended else 28 if self.structured else 16

    @property
    def done_bytes(self) -> int:
        """Bytes of a reply that says success and nothing else: 16 or 32."""
        return 32 if self.extended else 16

    def _chunk(self, flags: int, kind: int, cookie: bytes, offset: int, payload: bytes) -> bytes:
        length = len(payload)
        if self.extended:
            return _EXTENDED.pack(EXTENDED_REPLY_MAGIC, flags, kind, cookie, offset, length) + payload
        return _STRUCTURED.pack(STRUCTURED_REPLY_MAGIC, flags, kind, cookie, length) + payload

    def done(self, request: Request) -> bytes:
        """Success without data."""
        if self.extended:
            return self._chunk(ReplyFlag.DONE, ReplyType.NONE, request.cookie, request.offset, b"")
        return _SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie)

    def empty_read(self, request: Request) -> bytes:
        """Success of a read of no bytes; with structured replies a chunk must not be empty of data."""
        if self.structured or self.extended:
            return self._chunk(ReplyFlag.DONE, ReplyType.NONE, request.cookie, request.offset, b"")
        return _SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie)

    def error(self, request: Request, error: Error) -> bytes:
        """Failure; a chunk wherever one is allowed, as a structured read must have one."""
        return self.error_for(request.cookie, request.offset, error)

    def error_for(self, cookie: bytes, offset: int, error: int) -> bytes:
        if self.structured or self.extended:
            return self._chunk(ReplyFlag.DONE, ReplyType.ERROR, cookie, offset, _ERROR.pack(error, 0))
        return _SIMPLE.pack(SIMPLE_REPLY_MAGIC, error, cookie)

    def read_header(self, request: Request, offset: int, length: int, *, last: bool) -> bytes:
        """What stands before ``length`` bytes of data from ``offset`` on.

        A simple reply has one header for the whole request: ask for it once.
        """
        if self.extended:
            return _EXTENDED_DATA.pack(
                EXTENDED_REPLY_MAGIC, last, _OFFSET_DATA, request.cookie, request.offset, length + 8, offset
            )
        if self.structured:
            return _STRUCTURED_DATA.pack(
                STRUCTURED_REPLY_MAGIC, last, _OFFSET_DATA, request.cookie, length + 8, offset
            )
        return _SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie)

    def block_status(self, request: Request, context: int, extents: Sequence[tuple[int, int]]) -> bytes:
        """Extents as (bytes, state) for one metadata context."""
        if self.extended:
            payload = struct.pack(">II", context, len(extents)) + b"".join(
                struct.pack(">QQ", length, state) for length, state in extents
            )
            return self._chunk(
                ReplyFlag.DONE, ReplyType.BLOCK_STATUS_EXT, request.cookie, request.offset, payload
            )
        payload = struct.pack(">I", context) + b"".join(
            struct.pack(">II", length, state) for length, state in extents
        )
        return self._chunk(ReplyFlag.DONE, ReplyType.BLOCK_STATUS, request.cookie, request.offset, payload)
