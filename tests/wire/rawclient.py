"""A small NBD client in plain Python that lets a test send any bytes it likes.

It speaks simple, structured and extended replies, checks what every reply must obey (magic,
cookie, chunk types, order of DONE), and otherwise takes no decision for the test.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC, EXTENDED_REQUEST_MAGIC = 0x25609513, 0x21E41C71
SIMPLE_MAGIC, STRUCTURED_MAGIC, EXTENDED_MAGIC = 0x67446698, 0x668E33EF, 0x6E8A278C

EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO = 1, 2, 3, 5, 6, 7
STRUCTURED_REPLY, LIST_META_CONTEXT, SET_META_CONTEXT, EXTENDED_HEADERS = 8, 9, 10, 11
ACK, REP_SERVER, REP_INFO, REP_META_CONTEXT = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID = 0x80000001, 0x80000002, 0x80000003
ERR_TLS_REQD, ERR_UNKNOWN, ERR_SHUTDOWN, ERR_TOO_BIG = 0x80000005, 0x80000006, 0x80000007, 0x80000009
ERR_EXT_HEADER_REQD = 0x8000000A
INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SEND_TRIM, SEND_WRITE_ZEROES, SEND_DF, CAN_MULTI_CONN = 1 << 5, 1 << 6, 1 << 7, 1 << 8
SEND_CACHE, SEND_FAST_ZERO = 1 << 10, 1 << 11

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = (1 << bit for bit in range(6))
EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108
DONE = 1
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS, CHUNK_STATUS_EXT = 0, 1, 2, 5, 6
CHUNK_ERROR, CHUNK_ERROR_OFFSET = 0x8001, 0x8002

TIMEOUT_S = 30


class OptionReply(NamedTuple):
    option: int
    type: int
    data: bytes


@dataclass
class Reply:
    """One whole reply. ``error`` is the last error number in it, 0 for success."""

    cookie: int
    error: int = 0
    data: bytearray = field(default_factory=bytearray)
    chunks: list[int] = field(default_factory=list)
    extents: list[tuple[int, int]] = field(default_factory=list)
    context: int | None = None
    simple: bool = False


class _Pending(NamedTuple):
    command: int
    offset: int
    length: int


def string(text: bytes | str) -> bytes:
    """A counted string as INFO, GO and the meta context options carry it."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack(">I", len(raw)) + raw


def info_payload(name: str, requests: tuple[int, ...] = ()) -> bytes:
    return string(name) + struct.pack(f">H{len(requests)}H", len(requests), *requests)


def context_payload(name: str, *queries: str) -> bytes:
    return string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries))


def option_bytes(code: int, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack(">QII", IHAVEOPT, code, len(data) if length is None else length) + data


class RawClient:
    """One connection.

    Attributes:
        size, flags: of the export, once GO or EXPORT_NAME succeeded.
        structured, extended: what was negotiated.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(TIMEOUT_S)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.size = 0
        self.flags = 0
        self.structured = False
        self.extended = False
        self._cookies = count(1)
        self._pending: dict[int, _Pending] = {}
        self._partial: dict[int, Reply] = {}

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes | bytearray | memoryview) -> None:
        self.socket.sendall(data)

    def receive(self, length: int) -> bytes:
        """Exactly ``length`` bytes, or EOFError."""
        buffer = bytearray(length)
        view = memoryview(buffer)
        have = 0
        while have < length:
            got = self.socket.recv_into(view[have:])
            if not got:
                raise EOFError(f"end of stream after {have} of {length} bytes")
            have += got
        return bytes(buffer)

    def at_end(self) -> bool:
        """Wait for the server to close; False if it sends data instead."""
        try:
            return self.socket.recv(1) == b""
        except (ConnectionError, ssl.SSLError):
            return True

    def ends(self) -> bool:
        """Whether the server closes this connection; replies that are on their way are skipped."""
        try:
            while self.socket.recv(1 << 20):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True

    # Negotiation

    def greet(self, client_flags: int = 3) -> int:
        """Take the greeting and answer it; returns the handshake flags."""
        magic, second, flags = struct.unpack(">QQH", self.receive(18))
        assert (magic, second) == (NBDMAGIC, IHAVEOPT)
        self.send(struct.pack(">I", client_flags))
        return int(flags)

    def option_reply(self) -> OptionReply:
        magic, option, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == OPTION_REPLY_MAGIC
        return OptionReply(option, kind, self.receive(length))

    def replies(self, code: int) -> list[OptionReply]:
        """All replies to one option; the last is the ACK or the error."""
        found = []
        while True:
            reply = self.option_reply()
            assert reply.option == code
            found.append(reply)
            if reply.type == ACK or reply.type & 1 << 31:
                return found

    def ask(self, code: int, data: bytes = b"") -> list[OptionReply]:
        self.send(option_bytes(code, data))
        return self.replies(code)

    def start_tls(self, context: ssl.SSLContext, server_hostname: str = "localhost") -> None:
        assert self.ask(STARTTLS)[-1].type == ACK
        self.socket = context.wrap_socket(self.socket, server_hostname=server_hostname)

    def go(self, name: str = "", requests: tuple[int, ...] = ()) -> list[OptionReply]:
        """GO; keeps size and flags if it succeeds."""
        found = self.ask(GO, info_payload(name, requests))
        for reply in found:
            if reply.type == REP_INFO and reply.data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", reply.data[2:])
        return found

    def negotiate(
        self, name: str = "", *, structured: bool = False, extended: bool = False, contexts: tuple[str, ...] = ()
    ) -> RawClient:
        """From behind the greeting to transmission."""
        if structured or extended:
            code = EXTENDED_HEADERS if extended else STRUCTURED_REPLY
            assert self.ask(code)[-1].type == ACK
            self.structured, self.extended = not extended, extended
        if contexts:
            found = self.ask(SET_META_CONTEXT, context_payload(name, *contexts))
            assert found[-1].type == ACK and len(found) == len(contexts) + 1
        assert self.go(name)[-1].type == ACK
        return self

    # Transmission

    def header(self, command: int, offset: int, length: int, flags: int, cookie: int) -> bytes:
        if self.extended:
            return struct.pack(">IHHQQQ", EXTENDED_REQUEST_MAGIC, flags, command, cookie, offset, length)
        return struct.pack(">IHHQQI", REQUEST_MAGIC, flags, command, cookie, offset, length)

    def encode(
        self, command: int, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes | None = None
    ) -> tuple[int, bytes]:
        """Bytes of a request that ``wait`` will know; a write's length is its payload's."""
        cookie = next(self._cookies)
        if payload is not None:
            length = len(payload)
            if self.extended:
                flags |= PAYLOAD_LEN
        self._pending[cookie] = _Pending(command, offset, length)
        return cookie, self.header(command, offset, length, flags, cookie) + (payload or b"")

    def submit(
        self, command: int, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes | None = None
    ) -> int:
        cookie, data = self.encode(command, offset, length, flags, payload)
        self.send(data)
        return cookie

    def wait(self) -> Reply:
        """The next request that completes, whichever it is."""
        while True:
            reply = self._message()
            if reply is not None:
                self._check_complete(reply, self._pending.pop(reply.cookie))
                return reply

    def gather(self, cookies: list[int]) -> dict[int, Reply]:
        found = {}
        while len(found) < len(cookies):
            reply = self.wait()
            found[reply.cookie] = reply
        assert found.keys() == set(cookies)
        return found

    def exchange(self, stream: bytes, count: int) -> dict[int, Reply]:
        """Send encoded requests and take ``count`` replies at the same time, by cookie.

        A server stops reading from a client that does not take its replies, and on a Unix socket
        some 280 small replies fill the buffer, so long streams must not be sent first and read later.
        Over TLS they are: OpenSSL's connection may not be used by two threads, and TCP has more room.
        """
        sender = threading.Thread(target=self.send, args=(stream,), daemon=True)
        sender.start()
        if isinstance(self.socket, ssl.SSLSocket):
            sender.join(TIMEOUT_S)
        try:
            found = [self.wait() for _ in range(count)]
        finally:
            sender.join(TIMEOUT_S)
        return {reply.cookie: reply for reply in found}

    def call(
        self, command: int, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes | None = None
    ) -> Reply:
        """One request and its reply; nothing else may be in flight."""
        cookie = self.submit(command, offset, length, flags, payload)
        reply = self.wait()
        assert reply.cookie == cookie
        return reply

    def read(self, offset: int, length: int, flags: int = 0) -> bytes:
        reply = self.call(READ, offset, length, flags)
        assert reply.error == 0
        return bytes(reply.data)

    def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        assert self.call(WRITE, offset, flags=flags, payload=data).error == 0

    def disconnect(self) -> None:
        self.submit(DISC)

    def _message(self) -> Reply | None:
        """Take one message off the wire; the reply if it is complete with it."""
        (magic,) = struct.unpack(">I", self.receive(4))
        if magic == SIMPLE_MAGIC:
            assert not self.extended, "a simple reply after extended headers were negotiated"
            error, cookie = struct.unpack(">IQ", self.receive(12))
            pending = self._pending[cookie]
            reply = Reply(cookie, error, simple=True)
            if pending.command == READ:
                assert not self.structured, "a simple reply to a read after structured replies were negotiated"
                if not error:
                    reply.data += self.receive(pending.length)
            return reply
        if magic == STRUCTURED_MAGIC:
            assert self.structured and not self.extended
            flags, kind, cookie, length = struct.unpack(">HHQI", self.receive(16))
        elif magic == EXTENDED_MAGIC:
            assert self.extended
            flags, kind, cookie, offset, length = struct.unpack(">HHQQQ", self.receive(28))
            assert offset == self._pending[cookie].offset, "an extended reply carries its request's offset"
        else:
            raise AssertionError(f"bad reply magic 0x{magic:08x}")
        reply = self._partial.setdefault(cookie, Reply(cookie))
        self._chunk(reply, self._pending[cookie], flags, kind, length)
        return self._partial.pop(cookie) if flags & DONE else None

    def _chunk(self, reply: Reply, pending: _Pending, flags: int, kind: int, length: int) -> None:
        assert flags & ~DONE == 0
        reply.chunks.append(kind)
        payload = self.receive(length)
        if kind == CHUNK_NONE:
            assert length == 0 and flags & DONE
        elif kind in (CHUNK_DATA, CHUNK_HOLE):
            assert pending.command == READ
            (offset,) = struct.unpack_from(">Q", payload)
            hole = kind == CHUNK_HOLE
            data = bytes(struct.unpack_from(">I", payload, 8)[0]) if hole else payload[8:]
            start = offset - pending.offset
            assert data and 0 <= start and start + len(data) <= pending.length
            if len(reply.data) < pending.length:
                reply.data = bytearray(pending.length)
            reply.data[start : start + len(data)] = data
        elif kind in (CHUNK_STATUS, CHUNK_STATUS_EXT):
            assert pending.command == BLOCK_STATUS and (kind == CHUNK_STATUS_EXT) == self.extended
            shape, start = (">QQ", 8) if self.extended else (">II", 4)
            (reply.context,) = struct.unpack_from(">I", payload)
            reply.extents = list(struct.iter_unpack(shape, payload[start:]))
            if self.extended:
                assert struct.unpack_from(">I", payload, 4)[0] == len(reply.extents)
        elif kind in (CHUNK_ERROR, CHUNK_ERROR_OFFSET):
            error, message_length = struct.unpack_from(">IH", payload)
            assert error, "an error chunk must carry an error"
            assert length == 6 + message_length + (8 if kind == CHUNK_ERROR_OFFSET else 0)
            reply.error = error
        else:
            raise AssertionError(f"unknown chunk type {kind}")

    def _check_complete(self, reply: Reply, pending: _Pending) -> None:
        if reply.error:
            return
        if pending.command == READ:
            assert len(reply.data) == pending.length
        if pending.command == BLOCK_STATUS:
            assert reply.extents and all(length for length, _ in reply.extents)
