"""A client's half of the negotiation, written from the specification and not from the server."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest

from vramblk.nbd.constants import Option, OptionReply
from vramblk.nbd.handshake import Event, ExportInfo, Handshake, Send, StartTls, TlsPolicy

EXPORTS = (
    ExportInfo("vram", "GPU memory", 1 << 30, read_only=False),
    ExportInfo("zweite-äöü", "", 3 << 30, read_only=False),
    ExportInfo("frozen", "read-only", 4096, read_only=True),
)

FIXED_NEWSTYLE = 1
NO_ZEROES = 2


class Reply(NamedTuple):
    option: int
    kind: int
    data: bytes


def encode_option(code: int, data: bytes = b"", length: int | None = None) -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", code, len(data) if length is None else length) + data


def encode_go(name: str | bytes, *requests: int) -> bytes:
    raw = name.encode() if isinstance(name, str) else name
    return struct.pack(">I", len(raw)) + raw + struct.pack(f">H{len(requests)}H", len(requests), *requests)


def encode_meta(name: str, *queries: str | bytes) -> bytes:
    raw = name.encode()
    data = struct.pack(">I", len(raw)) + raw + struct.pack(">I", len(queries))
    for query in queries:
        encoded = query.encode() if isinstance(query, str) else query
        data += struct.pack(">I", len(encoded)) + encoded
    return data


def decode_replies(data: bytes) -> list[Reply]:
    replies = []
    while data:
        magic, option, kind, length = struct.unpack(">QIII", data[:20])
        assert magic == 0x3E889045565A9
        assert len(data) >= 20 + length
        replies.append(Reply(option, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return replies


class Client:
    """Talks to one ``Handshake`` that has been greeted and, unless ``flags`` is None, answered."""

    encode_option = staticmethod(encode_option)
    encode_go = staticmethod(encode_go)
    encode_meta = staticmethod(encode_meta)
    decode_replies = staticmethod(decode_replies)

    def __init__(self, exports: Sequence[ExportInfo], tls: TlsPolicy, flags: int | None) -> None:
        self.exports = exports
        self.handshake = Handshake(exports, tls)
        self.greeting = self.handshake.greeting()
        if flags is not None:
            assert self.handshake.receive(struct.pack(">I", flags)) == []

    def option(self, code: int, data: bytes = b"") -> list[Event]:
        return self.handshake.receive(encode_option(code, data))

    def ask(self, code: int, data: bytes = b"") -> list[Reply]:
        """Send an option that neither ends nor changes the connection; its replies, checked for form."""
        events = self.option(code, data)
        assert all(isinstance(event, Send) for event in events), events
        replies = decode_replies(b"".join(event.data for event in events if isinstance(event, Send)))
        assert replies
        assert all(reply.option == code for reply in replies)
        return replies

    def kinds(self, code: int, data: bytes = b"") -> list[int]:
        return [reply.kind for reply in self.ask(code, data)]

    def accept(self, code: int, data: bytes = b"") -> None:
        """Send an option that must be acknowledged."""
        assert self.kinds(code, data)[-1] == OptionReply.ACK

    def start_tls(self) -> None:
        events = self.option(Option.STARTTLS)
        assert [type(event) for event in events] == [Send, StartTls]
        self.handshake.tls_established()


Connect = Callable[..., Client]


@pytest.fixture(scope="session")
def connect() -> Connect:
    """Call with exports, tls and client flags to get a ``Client`` that is ready for options."""

    def make(
        tls: TlsPolicy = TlsPolicy.OFF,
        flags: int | None = FIXED_NEWSTYLE | NO_ZEROES,
        exports: Sequence[ExportInfo] = EXPORTS,
    ) -> Client:
        return Client(exports, tls, flags)

    return make
