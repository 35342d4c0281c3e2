"""Replies of the transmission phase as bytes: simple, structured and extended.

Source: "Simple reply message", "Structured reply chunk message" and "Extended reply chunk
message" of the NBD specification. The data of a read is not in here: it lies behind the header
that ``ReplyFormat.read_header`` makes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
_SIMPLE_DONE = np.frombuffer(_SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, bytes(8)), np.uint32)
_EXTENDED_TABLE = np.dtype(
    [
        ("magic", ">u4"),
        ("flags", ">u2"),
        ("type", ">u2"),
        ("cookie", "<u4", (2,)),
        ("offset", ">u8"),
        ("length", ">u8"),
    ]
)


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

    def fill_done(
        self, buffer: npt.NDArray[np.uint8], cookie: npt.NDArray[np.uint32], offset: npt.NDArray[np.uint64]
    ) -> None:
        """Write n success replies into ``buffer`` of shape (n * done_bytes,); cookie: shape (n, 2)."""
        if self.extended:
            table = buffer.view(_EXTENDED_TABLE)
            table["magic"] = EXTENDED_REPLY_MAGIC
            table["flags"] = ReplyFlag.DONE
            table["type"] = ReplyType.NONE
            table["offset"] = offset
            table["length"] = 0
            table["cookie"] = cookie
        else:
            words = buffer.view(np.uint32).reshape(-1, 4)
            words[:] = _SIMPLE_DONE
            words[:, 2:] = cookie
