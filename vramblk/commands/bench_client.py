"""An NBD client that measures: one connection, a fixed number of requests always in flight.

Requests are sent in batches, as many as replies have come in, so that the client costs little beside
the server. Latency is what a caller would see, this client's own time included. Only simple replies
are negotiated.
"""

from __future__ import annotations

import functools
import os
import random
import socket
import ssl
import struct
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from ..config.units import printable
from ..errors import ConfigError, RuntimeFailure
from ..nbd.constants import (
    IHAVEOPT,
    NBDMAGIC,
    OPTION_REPLY_MAGIC,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    ClientFlag,
    Command,
    HandshakeFlag,
    InfoType,
    Option,
    OptionReply,
    TransmissionFlag,
)

URI_ALLOWED = "nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH, nbds for TLS"

_GREETING = struct.Struct(">QQH")
_OPTION = struct.Struct(">QII")
_OPTION_REPLY = struct.Struct(">QIII")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_SILENCE_S = 30  # a server that answers nothing for so long has stopped
_SOCKET_BUFFER = 4 << 20
_RECEIVE_BUFFER = 16 << 20
_MAXIMUM_OPTION_REPLY = 1 << 20
_WANTED = (InfoType.BLOCK_SIZE, InfoType.DESCRIPTION)


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Target:
    """A parsed NBD URI.

    Attributes:
        address: (host, port), or the path of a Unix socket.
        certificates: directory with ca-cert.pem and, where there are such, client-cert.pem, client-key.pem.
    """

    uri: str
    address: tuple[str, int] | str
    export: str
    tls: bool = False
    hostname: str = "localhost"
    certificates: str = ""


@dataclass(frozen=True)
class Measurement:
    """``latencies_ns`` is sorted and holds one value for each answered request."""

    seconds: float
    block_bytes: int
    latencies_ns: array[int]

    @property
    def iops(self) -> float:
        return len(self.latencies_ns) / self.seconds

    @property
    def bytes_per_s(self) -> float:
        return self.iops * self.block_bytes

    @property
    def mean_us(self) -> float:
        return sum(self.latencies_ns) / len(self.latencies_ns) / 1000

    def percentile_us(self, percent: float) -> float:
        """The smallest latency that so many percent of the requests did not exceed."""
        rank = -(-len(self.latencies_ns) * percent // 100)
        return self.latencies_ns[max(0, int(rank) - 1)] / 1000


def parse_uri(uri: str) -> Target:
    """Raises ConfigError. Source: doc/uri.md of the NBD project."""
    try:
        parts = urlsplit(uri)
        port = parts.port or 10809
    except ValueError as error:
        raise ConfigError(f"URI {uri!r}: {error}; allowed: {URI_ALLOWED}") from None
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    export = unquote(parts.path.removeprefix("/"))
    tls = parts.scheme.startswith("nbds")
    certificates = query.get("tls-certificates", "")
    if parts.scheme in ("nbd+unix", "nbds+unix") and query.get("socket"):
        hostname = query.get("tls-hostname", "localhost")
        return Target(uri, query["socket"], export, tls, hostname, certificates)
    if parts.scheme in ("nbd", "nbds") and parts.hostname:
        hostname = query.get("tls-hostname", parts.hostname)
        return Target(uri, (parts.hostname, port), export, tls, hostname, certificates)
    raise ConfigError(f"URI {uri!r}: not an NBD URI; allowed: {URI_ALLOWED}")


def _in_one_line(
    method: Callable[Concatenate[Client, _Arguments], _Result],
) -> Callable[Concatenate[Client, _Arguments], _Result]:
    """Turns errors of the socket into one line that names the server."""

    @functools.wraps(method)
    def guarded(client: Client, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        try:
            return method(client, *args, **kwargs)
        except TimeoutError:
            raise RuntimeFailure(f"{client.target.uri}: no answer for {_SILENCE_S} s") from None
        except OSError as error:
            raise RuntimeFailure(f"{client.target.uri}: {error.strerror or error}") from None

    return guarded


class Client:
    """One connection in transmission; a context manager.

    Attributes:
        description: the server's description of the export's memory, empty without one.

    Raises:
        RuntimeFailure: from any method, if the server does not answer, refuses, or breaks the protocol.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.size_bytes = 0
        self.description = ""
        self.flags = TransmissionFlag(0)
        self._socket = _connect(target)
        try:
            self._negotiate()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._socket.sendall(_REQUEST.pack(REQUEST_MAGIC, 0, Command.DISC, 0, 0, 0))
        except OSError:
            pass
        self._socket.close()

    @property
    def read_only(self) -> bool:
        return bool(self.flags & TransmissionFlag.READ_ONLY)

    @_in_one_line
    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes, in one request."""
        self._socket.sendall(_REQUEST.pack(REQUEST_MAGIC, 0, Command.READ, 0, offset, length))
        self._check(_REPLY.unpack(self._receive(_REPLY.size)), Command.READ, offset)
        return self._receive(length)

    @_in_one_line
    def measure(
        self,
        reads: float,
        block_bytes: int,
        depth: int,
        seconds: float,
        sequential: bool,
        tick: Callable[[float], None],
    ) -> Measurement:
        """Keep ``depth`` requests in flight for so many seconds.

        Args:
            reads: share of reads, from 0 to 1; the others are writes, chosen by chance.
            tick: hears how many seconds have passed.
        """
        blocks = self.size_bytes // block_bytes
        payload = os.urandom(block_bytes) if reads < 1 else b""
        commands: list[Command] = [Command.READ] * depth
        buffer = bytearray(max(_RECEIVE_BUFFER, 2 * (_REPLY.size + block_bytes)))
        view = memoryview(buffer)
        sent_ns, offsets, latencies = [0] * depth, [0] * depth, array("Q")
        chance, clock = random.Random(), time.perf_counter_ns
        counter, begin, filled, taken = 0, clock(), 0, 0
        end_ns, next_tick = begin + int(seconds * 1e9), begin
        free, in_flight = list(range(depth)), 0
        now = begin
        while True:
            if free and now < end_ns:
                parts: list[bytes] = []
                for slot in free:
                    block = counter % blocks if sequential else int(chance.random() * blocks)
                    counter += 1
                    offsets[slot] = block * block_bytes
                    sent_ns[slot] = now
                    command = commands[slot] = (
                        Command.READ if reads == 1 or chance.random() < reads else Command.WRITE
                    )
                    parts.append(_REQUEST.pack(REQUEST_MAGIC, 0, command, slot, offsets[slot], block_bytes))
                    if command is Command.WRITE:
                        parts.append(payload)
                in_flight += len(free)
                free = []
                self._send(parts)
            if not in_flight:
                break
            if len(buffer) - filled < _REPLY.size + block_bytes:
                view[: filled - taken] = bytes(view[taken:filled])
                filled, taken = filled - taken, 0
            got = self._socket.recv_into(view[filled:])
            if not got:
                raise RuntimeFailure(f"{self.target.uri}: the server closed the connection; see its log")
            filled += got
            now = clock()
            while filled - taken >= _REPLY.size:
                reply = _REPLY.unpack_from(buffer, taken)
                slot = reply[2]
                if slot >= depth:
                    raise RuntimeFailure(
                        f"{self.target.uri}: a reply for cookie {slot:#x}, which was never sent"
                    )
                command = commands[slot]
                self._check(reply, command, offsets[slot])
                reply_bytes = _REPLY.size + (block_bytes if command is Command.READ else 0)
                if filled - taken < reply_bytes:
                    break
                taken += reply_bytes
                latencies.append(now - sent_ns[slot])
                free.append(slot)
                in_flight -= 1
            if taken == filled:
                taken = filled = 0
            if now >= next_tick:
                tick(min(seconds, (now - begin) / 1e9))
                next_tick = now + 100_000_000
        tick(seconds)
        return Measurement((now - begin) / 1e9, block_bytes, array("Q", sorted(latencies)))

    def _send(self, parts: list[bytes]) -> None:
        """Payloads go out without a copy, except through TLS, which has no gathering send."""
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.sendall(b"".join(parts))
            return
        sent = self._socket.sendmsg(parts)
        for part in parts:
            if sent < len(part):
                self._socket.sendall(memoryview(part)[sent:])
            sent = max(0, sent - len(part))

    def _check(self, reply: tuple[int, ...], command: Command, offset: int) -> None:
        magic, error, _ = reply
        if magic != SIMPLE_REPLY_MAGIC:
            raise RuntimeFailure(
                f"{self.target.uri}: a reply begins with {magic:#x} instead of a magic number"
            )
        if error:
            raise RuntimeFailure(
                f"{self.target.uri}: {command.name} at {offset}: {os.strerror(error)}; see the server's log"
            )

    def _receive(self, length: int) -> bytes:
        received = bytearray()
        while len(received) < length:
            part = self._socket.recv(min(length - len(received), 1 << 20))
            if not part:
                raise RuntimeFailure(f"{self.target.uri}: the server closed the connection; see its log")
            received += part
        return bytes(received)

    @_in_one_line
    def _negotiate(self) -> None:
        magic, style, offered = _GREETING.unpack(self._receive(_GREETING.size))
        if (magic, style) != (NBDMAGIC, IHAVEOPT) or not offered & HandshakeFlag.FIXED_NEWSTYLE:
            raise RuntimeFailure(f"{self.target.uri}: no fixed newstyle NBD server answers there")
        answer = ClientFlag(offered & (ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES))
        self._socket.sendall(struct.pack(">I", answer))
        if self.target.tls:
            self._start_tls()
        name = self.target.export.encode()
        if self._go(name):
            return
        self._socket.sendall(_OPTION.pack(IHAVEOPT, Option.EXPORT_NAME, len(name)) + name)
        self.size_bytes, flags = struct.unpack(">QH", self._receive(10))
        self.flags = TransmissionFlag(flags)
        if not answer & ClientFlag.NO_ZEROES:
            self._receive(124)

    def _go(self, name: bytes) -> bool:
        """Whether the server supports NBD_OPT_GO."""
        wanted = struct.pack(">I", len(name)) + name + struct.pack(">HHH", 2, *_WANTED)
        self._socket.sendall(_OPTION.pack(IHAVEOPT, Option.GO, len(wanted)) + wanted)
        while True:
            kind, data = self._option_reply(Option.GO)
            if kind == OptionReply.ACK:
                return True
            if kind == OptionReply.ERR_UNSUP:
                return False
            if kind == OptionReply.INFO and len(data) == 12 and data[:2] == bytes((0, InfoType.EXPORT)):
                self.size_bytes, flags = struct.unpack(">QH", data[2:])
                self.flags = TransmissionFlag(flags)
            elif kind == OptionReply.INFO and data[:2] == bytes((0, InfoType.DESCRIPTION)):
                self.description = printable(data[2:].decode(errors="replace"))
            elif kind != OptionReply.INFO:
                raise RuntimeFailure(self._refusal(f"export {self.target.export!r}", kind, data))

    def _start_tls(self) -> None:
        self._socket.sendall(_OPTION.pack(IHAVEOPT, Option.STARTTLS, 0))
        kind, data = self._option_reply(Option.STARTTLS)
        if kind != OptionReply.ACK:
            raise RuntimeFailure(self._refusal("TLS", kind, data))
        directory = self.target.certificates
        context = ssl.create_default_context(
            cafile=os.path.join(directory, "ca-cert.pem") if directory else None
        )
        own = os.path.join(directory, "client-cert.pem")
        if directory and os.path.exists(own):
            context.load_cert_chain(own, os.path.join(directory, "client-key.pem"))
        self._socket = context.wrap_socket(self._socket, server_hostname=self.target.hostname)

    def _option_reply(self, option: Option) -> tuple[int, bytes]:
        magic, answered, kind, length = _OPTION_REPLY.unpack(self._receive(_OPTION_REPLY.size))
        if magic != OPTION_REPLY_MAGIC or answered != option or length > _MAXIMUM_OPTION_REPLY:
            raise RuntimeFailure(f"{self.target.uri}: the answer to {option.name} is no option reply")
        return kind, self._receive(length)

    def _refusal(self, what: str, kind: int, data: bytes) -> str:
        known = kind in OptionReply.__members__.values()
        words = data.decode(errors="replace") or (OptionReply(kind).name if known else f"{kind:#x}")
        remedy = "; use an nbds:// URI" if kind == OptionReply.ERR_TLS_REQD else ""
        return f"{self.target.uri}: the server refuses {what}: {words}{remedy}"


def _connect(target: Target) -> socket.socket:
    try:
        if isinstance(target.address, str):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(_SILENCE_S)
            connection.connect(target.address)
        else:
            connection = socket.create_connection(target.address, _SILENCE_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RuntimeFailure(f"{target.uri}: {reason}; is the server running?") from None
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
    return connection
