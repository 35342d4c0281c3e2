"""One NBD connection that never blocks: negotiation, requests with many in flight, replies, and its death."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..wire import rawclient as nbd
from .model import Model
from .operations import Op, Read

_BUFFER = memoryview(bytearray(1 << 20))
_SIMPLE, _STRUCTURED, _EXTENDED = struct.Struct(">IIQ"), struct.Struct(">IHHQI"), struct.Struct(">IHHQQQ")
_REQUEST, _EXTENDED_REQUEST = struct.Struct(">IHHQQI"), struct.Struct(">IHHQQQ")
_SIMPLE_MAGIC = struct.pack(">I", nbd.SIMPLE_MAGIC)
_ERRORS = (nbd.CHUNK_ERROR, nbd.CHUNK_ERROR_OFFSET)
_KINDS = {nbd.WRITE: "write", nbd.TRIM: "trim", nbd.WRITE_ZEROES: "write zeroes"}


class SoakFailure(Exception):
    """Something other than a wrong value: a reply that breaks the protocol or never comes, an end of the server."""


class Pending:
    """A request in flight. ``subject``: its Op or its Read, None where the model has no interest."""

    __slots__ = ("command", "data", "error", "length", "offset", "subject", "submitted_s")

    def __init__(self, command: int, offset: int, length: int, subject: Op | Read | None) -> None:
        self.command, self.offset, self.length, self.subject = command, offset, length, subject
        self.submitted_s = time.monotonic()
        self.data: bytearray | None = None
        self.error = 0


class Connection:
    """Opened at once; requests may be submitted when ``ready``.

    Args:
        address: a path, or a host and a port.
        replies: simple, structured or extended.
        completed: called with each request that has its reply.

    Attributes:
        pending: requests in flight, by cookie.
        ended: nothing more comes: it was closed, or the server has closed it.
        heard_s: when something came last.

    Raises:
        OSError: it could not be opened.
    """

    def __init__(
        self,
        address: Path | tuple[str, int],
        replies: str,
        model: Model,
        name: str,
        completed: Callable[[Pending], None],
    ) -> None:
        self.unix = isinstance(address, Path)
        self.replies, self.name = replies, name
        self.ready = self.ended = self.half_closed = False
        self.pending: dict[int, Pending] = {}
        self.heard_s = self.opened_s = time.monotonic()
        self.out = bytearray()
        self._model = model
        self._completed = completed
        self._in = bytearray()
        self._cookie = 0
        self._greeted = False
        self.opened = model.tick()
        self.socket = socket.socket(socket.AF_UNIX if self.unix else socket.AF_INET)
        try:
            # A TCP connection on loopback is made at once; a Unix socket refuses if its backlog is full.
            self.socket.settimeout(0 if self.unix else 10)
            self.socket.connect(str(address) if self.unix else address)
            self.socket.setblocking(False)
            if not self.unix:
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            self.socket.close()
            raise

    def fileno(self) -> int:
        return self.socket.fileno()

    # Sending

    def submit(self, command: int, offset: int, length: int, flags: int = 0) -> None:
        """Queue a request; ``flush`` sends."""
        subject: Op | Read | None = None
        payload = b""
        if command == nbd.WRITE:
            subject, payload = self._model.write(offset, length, self.name)
            if self.replies == "extended":
                flags |= nbd.PAYLOAD_LEN
        elif command in _KINDS:
            subject = self._model.zero(_KINDS[command], offset, length, self.name)
        elif command in (nbd.READ, nbd.BLOCK_STATUS):
            subject = self._model.submit_read(offset, length)
        self._cookie += 1
        self.pending[self._cookie] = Pending(command, offset, length, subject)
        if self.replies == "extended":
            self.out += _EXTENDED_REQUEST.pack(
                nbd.EXTENDED_REQUEST_MAGIC, flags, command, self._cookie, offset, length
            )
        else:
            self.out += _REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, self._cookie, offset, length)
        self.out += payload

    def flush(self) -> None:
        """Send what the socket takes."""
        while self.out and not self.ended:
            try:
                sent = self.socket.send(memoryview(self.out)[: 1 << 20])
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            del self.out[:sent]

    # Ends

    def close(self, *, reset: bool = False) -> None:
        """Close; requests without a reply may happen or not."""
        if self.ended:
            return
        self.ended = True
        if reset and not self.unix:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
        for pending in self.pending.values():
            if isinstance(pending.subject, Op):
                self._model.orphan(pending.subject)
            elif pending.subject is not None:
                self._model.drop_read(pending.subject)

    def half_close(self) -> None:
        """Send no more, but take replies."""
        self.half_closed = True
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()

    # Receiving

    def receive(self) -> None:
        """Take what has come; completed requests are passed on."""
        while not self.ended:
            try:
                count = self.socket.recv_into(_BUFFER)
            except BlockingIOError:
                return
            except OSError:
                count = 0
            if not count:
                self.close()
                return
            self.heard_s = time.monotonic()
            self._in += _BUFFER[:count]
            taken = self._transmission() if self.ready else self._negotiation()
            if taken:
                del self._in[:taken]
            if count < len(_BUFFER):
                return

    def _negotiation(self) -> int:
        at = 0
        if not self._greeted:
            if len(self._in) < 18:
                return 0
            if self._in[:16] != struct.pack(">QQ", nbd.NBDMAGIC, nbd.IHAVEOPT):
                raise SoakFailure(f"{self.name}: bad greeting {self._in[:18].hex()}")
            self._greeted, at = True, 18
            self.out += struct.pack(">I", 3)
            if self.replies != "simple":
                self.out += nbd.option_bytes(
                    nbd.EXTENDED_HEADERS if self.replies == "extended" else nbd.STRUCTURED_REPLY
                )
                self.out += nbd.option_bytes(nbd.SET_META_CONTEXT, nbd.context_payload("", "base:allocation"))
            self.out += nbd.option_bytes(nbd.GO, nbd.info_payload(""))
            self.flush()
        while len(self._in) - at >= 20:
            magic, option, kind, length = struct.unpack_from(">QIII", self._in, at)
            if magic != nbd.OPTION_REPLY_MAGIC or kind & 1 << 31:
                raise SoakFailure(f"{self.name}: option {option} was answered with {kind:#x}")
            if len(self._in) - at < 20 + length:
                break
            at += 20 + length
            if option == nbd.GO and kind == nbd.ACK:
                self.ready = True
                self._model.negotiated(self.opened)
                break
        return at

    def _transmission(self) -> int:
        take = self._take_simple if self.replies == "simple" else self._take_chunk
        at = 0
        while not self.ended:
            size = take(at)
            if not size:
                break
            at += size
        return at

    def _find(self, cookie: int) -> Pending:
        try:
            return self.pending[cookie]
        except KeyError:
            raise SoakFailure(f"{self.name}: a reply to cookie {cookie}, which is not in flight") from None

    def _take_simple(self, at: int) -> int:
        """Bytes of a whole reply at a position of the input, 0 if it has not come whole."""
        if len(self._in) - at < 16:
            return 0
        magic, error, cookie = _SIMPLE.unpack_from(self._in, at)
        if magic != nbd.SIMPLE_MAGIC:
            raise SoakFailure(f"{self.name}: bad reply magic {magic:#x}")
        pending = self._find(cookie)
        if pending.command == nbd.READ and self.replies != "simple":
            raise SoakFailure(f"{self.name}: a simple reply to a read")
        pending.error = error
        size = 16
        if pending.command == nbd.READ and not error:
            size += pending.length
            if len(self._in) - at < size:
                return 0
            pending.data = self._in[at + 16 : at + size]
        self._complete(cookie, pending)
        return size

    def _take_chunk(self, at: int) -> int:
        """As ``_take_simple``, for a chunk of a structured or extended reply."""
        extended = self.replies == "extended"
        if not extended and self._in.startswith(_SIMPLE_MAGIC, at):
            return self._take_simple(at)  # of a request that is no read
        header = 32 if extended else 20
        if len(self._in) - at < header:
            return 0
        if extended:
            magic, flags, kind, cookie, _, length = _EXTENDED.unpack_from(self._in, at)
        else:
            magic, flags, kind, cookie, length = _STRUCTURED.unpack_from(self._in, at)
        if magic != (nbd.EXTENDED_MAGIC if extended else nbd.STRUCTURED_MAGIC):
            raise SoakFailure(f"{self.name}: bad reply magic {magic:#x}")
        if len(self._in) - at < header + length:
            return 0
        pending = self._find(cookie)
        payload = memoryview(self._in)[at + header : at + header + length]
        self._chunk(pending, kind, payload)
        payload.release()
        if flags & nbd.DONE:
            self._complete(cookie, pending)
        return int(header + length)

    def _chunk(self, pending: Pending, kind: int, payload: memoryview) -> None:
        if kind in (nbd.CHUNK_DATA, nbd.CHUNK_HOLE) and pending.command == nbd.READ:
            (offset,) = struct.unpack_from(">Q", payload)
            if kind == nbd.CHUNK_HOLE:
                data: Any = bytes(struct.unpack_from(">I", payload, 8)[0])
            else:
                data = payload[8:]
            start = offset - pending.offset
            if not 0 <= start <= start + len(data) <= pending.length:
                raise SoakFailure(f"{self.name}: a chunk lies outside its request")
            if len(data) == pending.length:
                pending.data = bytearray(data)
            else:
                if pending.data is None:
                    pending.data = bytearray(b"?" * pending.length)
                pending.data[start : start + len(data)] = data
        elif kind in (nbd.CHUNK_STATUS, nbd.CHUNK_STATUS_EXT) and isinstance(pending.subject, Read):
            shape, start = (">QQ", 8) if self.replies == "extended" else (">II", 4)
            at = pending.offset
            for size, state in struct.iter_unpack(shape, payload[start:]):
                last = min(at + size, pending.offset + pending.length)
                if state & 3:
                    self._model.check_hole(pending.subject, at, last - at)
                at = last
        elif kind in _ERRORS:
            (pending.error,) = struct.unpack_from(">I", payload)
        elif kind != nbd.CHUNK_NONE:
            raise SoakFailure(f"{self.name}: chunk type {kind} in a reply to command {pending.command}")

    def _complete(self, cookie: int, pending: Pending) -> None:
        del self.pending[cookie]
        subject, model = pending.subject, self._model
        if isinstance(subject, Op):
            if pending.error:
                model.fail(subject, pending.error)
            else:
                model.succeed(subject)
        elif subject is not None:
            if pending.command == nbd.READ and not pending.error:
                if pending.data is None:
                    raise SoakFailure(
                        f"{self.name}: a read of {pending.length} bytes was answered without data"
                    )
                model.finish_read(subject, pending.data)
            else:
                model.drop_read(subject)
        self._completed(pending)
