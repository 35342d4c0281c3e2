"""Cuts a negotiating client's bytes into options, and bounds what a hostile one can cost.

An option's payload is kept up to ``MAXIMUM_OPTION_BYTES``. Up to ``MAXIMUM_DRAINED_BYTES`` it is
skipped without being kept, so that the option can be refused and negotiation go on; beyond that,
and beyond ``MAXIMUM_OPTIONS`` options, following the client any further is refused.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .constants import IHAVEOPT, Option

#: Room for a name and a dozen metadata context queries of the longest kind.
MAXIMUM_OPTION_BYTES = 64 << 10
MAXIMUM_DRAINED_BYTES = 1 << 20
MAXIMUM_OPTIONS = 1024

_HEADER = struct.Struct(">QII")


class FramingError(Exception):
    """The client's bytes cannot, or will not, be followed any further."""


class OptionMessage(NamedTuple):
    """One option; ``data`` is None where it was longer than ``MAXIMUM_OPTION_BYTES``."""

    code: int
    length: int
    data: bytes | None


class OptionReader:
    """Buffers what ``feed`` brings until whole pieces can be taken."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._header: tuple[int, int] | None = None
        self._to_drain = 0
        self._count = 0

    @property
    def pending(self) -> bool:
        """Whether bytes are there that belong to nothing taken so far."""
        return bool(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        self._buffer += data

    def take(self, count: int) -> bytes | None:
        """The next ``count`` bytes, or None until all of them are there."""
        return self._cut(count) if len(self._buffer) >= count else None

    def take_all(self) -> bytes:
        return self._cut(len(self._buffer))

    def take_option(self) -> OptionMessage | None:
        """The next option, or None until all of it is there.

        Raises FramingError for a bad magic and for a client that exceeds the limits.
        """
        if self._header is None:
            header = self.take(_HEADER.size)
            if header is None:
                return None
            self._header = self._open(header)
        code, length = self._header
        data: bytes | None = None
        if length <= MAXIMUM_OPTION_BYTES:
            data = self.take(length)
            if data is None:
                return None
        else:
            self._to_drain -= len(self._cut(self._to_drain))
            if self._to_drain:
                return None
        self._header = None
        return OptionMessage(code, length, data)

    def _open(self, header: bytes) -> tuple[int, int]:
        magic, code, length = _HEADER.unpack(header)
        if magic != IHAVEOPT:
            raise FramingError(f"bad option magic {magic:#018x}")
        self._count += 1
        if self._count > MAXIMUM_OPTIONS:
            raise FramingError(f"more than {MAXIMUM_OPTIONS} options")
        if length <= MAXIMUM_OPTION_BYTES:
            self._to_drain = 0
        elif length <= MAXIMUM_DRAINED_BYTES:
            self._to_drain = length
        elif code == Option.ABORT:
            # Its data is ignored and nothing is read behind it: no need to wait for it to be acknowledged.
            self._to_drain = 0
        else:
            raise FramingError(f"option {code} with {length} bytes of data")
        return code, length

    def _cut(self, count: int) -> bytes:
        piece = bytes(self._buffer[:count])
        del self._buffer[:count]
        return piece
