"""The payloads of options and of the replies to them: parsing and encoding, without state.

Parsers take the whole payload of one option and raise ``Refusal`` where the specification asks
for an error reply. A payload must be used up exactly: bytes left over mean that client and server
disagree about its layout, and guessing on would be worse than saying so.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from .constants import MAXIMUM_STRING_BYTES, OPTION_REPLY_MAGIC, InfoType, OptionReply

#: Thousands of empty ones fit into an option, and would take tenths of a second.
MAXIMUM_QUERIES = 256

_REPLY_HEADER = struct.Struct(">QIII")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")


class Refusal(Exception):
    """An option is answered with the error ``reply`` and ``message``; negotiation goes on."""

    def __init__(self, reply: OptionReply, message: str) -> None:
        super().__init__(message)
        self.reply = reply
        self.message = message


class InfoRequest(NamedTuple):
    """Payload of INFO and GO. Section "Option types", `NBD_OPT_INFO`."""

    name: str
    requests: frozenset[int]


class MetaContextRequest(NamedTuple):
    """Payload of LIST_META_CONTEXT and SET_META_CONTEXT. Section "Option types"."""

    name: str
    queries: tuple[str, ...]


class _Cursor:
    """Reads a payload from front to back; reading past its end is a ``Refusal``."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._data):
            raise Refusal(OptionReply.ERR_INVALID, "option data is shorter than the lengths in it")
        piece = self._data[self._position : end]
        self._position = end
        return piece

    @property
    def left(self) -> int:
        return len(self._data) - self._position

    def u16(self) -> int:
        return int(_U16.unpack(self.take(2))[0])

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def string(self, what: str) -> str:
        return parse_string(self.take(self.u32()), what)

    def finish(self) -> None:
        if self._position != len(self._data):
            raise Refusal(OptionReply.ERR_INVALID, "option data is longer than the lengths in it")


def parse_string(data: bytes, what: str) -> str:
    """Decode a string as section "Conventions" has it; ``what`` names it in the refusal."""
    if len(data) > MAXIMUM_STRING_BYTES:
        raise Refusal(OptionReply.ERR_INVALID, f"{what} is longer than {MAXIMUM_STRING_BYTES} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise Refusal(OptionReply.ERR_INVALID, f"{what} is not UTF-8") from None
    if "\0" in text:
        raise Refusal(OptionReply.ERR_INVALID, f"{what} contains a NUL character")
    return text


def parse_info_request(data: bytes) -> InfoRequest:
    """Parse the payload of INFO or GO; information requests that it repeats count once."""
    cursor = _Cursor(data)
    name = cursor.string("export name")
    count = cursor.u16()
    requests = frozenset(struct.unpack(f">{count}H", cursor.take(2 * count)))
    cursor.finish()
    return InfoRequest(name, requests)


def parse_meta_context_request(data: bytes) -> MetaContextRequest:
    """Parse the payload of LIST_META_CONTEXT or SET_META_CONTEXT.

    The count of queries is the client's word only; the loop ends with the data, or is not begun.
    """
    cursor = _Cursor(data)
    name = cursor.string("export name")
    count = cursor.u32()
    if count > MAXIMUM_QUERIES and count <= cursor.left // 4:
        raise Refusal(OptionReply.ERR_TOO_BIG, f"more than {MAXIMUM_QUERIES} metadata context queries")
    queries = tuple(cursor.string("metadata context query") for _ in range(count))
    cursor.finish()
    return MetaContextRequest(name, queries)


def encode_reply(option: int, reply: OptionReply, data: bytes = b"") -> bytes:
    """One reply to an option. Section "Fixed newstyle negotiation"."""
    return _REPLY_HEADER.pack(OPTION_REPLY_MAGIC, option, reply, len(data)) + data


def encode_server(name: str, description: str) -> bytes:
    """Payload of NBD_REP_SERVER."""
    encoded = name.encode()
    return _U32.pack(len(encoded)) + encoded + description.encode()


def encode_info_export(size_bytes: int, flags: int) -> bytes:
    """Payload of NBD_REP_INFO with NBD_INFO_EXPORT; 12 bytes."""
    return struct.pack(">HQH", InfoType.EXPORT, size_bytes, flags)


def encode_info_string(kind: InfoType, text: str) -> bytes:
    """Payload of NBD_REP_INFO with NBD_INFO_NAME or NBD_INFO_DESCRIPTION."""
    return _U16.pack(kind) + text.encode()


def encode_info_block_size(minimum: int, preferred: int, maximum_payload: int) -> bytes:
    """Payload of NBD_REP_INFO with NBD_INFO_BLOCK_SIZE, all in bytes; 14 bytes."""
    return struct.pack(">HIII", InfoType.BLOCK_SIZE, minimum, preferred, maximum_payload)


def encode_meta_context(context_id: int, name: str) -> bytes:
    """Payload of NBD_REP_META_CONTEXT."""
    return _U32.pack(context_id) + name.encode()


def encode_acknowledged(option: int, reply: OptionReply, payloads: Iterable[bytes]) -> bytes:
    """One ``reply`` per payload, in order, then the NBD_REP_ACK that ends them."""
    replies = [encode_reply(option, reply, payload) for payload in payloads]
    return b"".join([*replies, encode_reply(option, OptionReply.ACK)])
