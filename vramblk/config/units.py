"""Sizes, durations and addresses as people write and read them, and text that is safe to print.

Inside, sizes are bytes and times seconds.

Every parser raises ValueError; its text is the short reason, while what is allowed stands in the
constants ``*_ALLOWED``, since only the caller knows which setting was meant.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import Enum

SIZE_ALLOWED = "512M, 2G, 1.5G, 2GiB (K, M, G, T are powers of 1024; at least 4K), 50% or max"
DURATION_ALLOWED = "500ms, 10s, 2m, 1h or a number of seconds, up to 168h"
TCP_ALLOWED = "HOST:PORT such as 127.0.0.1:10809 or [::1]:10809"
HOST_NAME_ALLOWED = "a host name without a port, such as gpuhost.example"
UNIX_ALLOWED = "unix:/absolute/path of at most 107 bytes"

_ALIGNMENT = 4096
_MAXIMUM_SIZE = 1 << 63
_MAXIMUM_DURATION_S = 168 * 3600
_UNIX_PATH_BYTES = 107  # sockaddr_un holds 108 with the final NUL

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?|B)?", re.ASCII | re.IGNORECASE)
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_IPV6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9._-]+)?", re.ASCII)
_SHIFT = {"K": 10, "M": 20, "G": 30, "T": 40}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}


class SizeKind(Enum):
    BYTES = "bytes"
    PERCENT = "percent"
    MAX = "max"


@dataclass(frozen=True)
class Size:
    """A size as given: bytes, a share of what the device can give, or all of that.

    Attributes:
        amount: bytes or percent; 0 for MAX.
        rounded_from: bytes that were asked for, if ``amount`` is more.
        parts: a percentage, or max, is of so many exports together; always 1 for bytes.
    """

    kind: SizeKind
    amount: Decimal = Decimal(0)
    rounded_from: int | None = field(default=None, compare=False)
    parts: int = 1

    def divided(self, parts: int) -> Size:
        """The size of each of so many equal exports; bytes are rounded up to 4 KiB."""
        if self.kind is not SizeKind.BYTES:
            return replace(self, parts=self.parts * parts)
        part = -(-int(self.amount) // (parts * _ALIGNMENT)) * _ALIGNMENT
        asked = -(-(self.rounded_from or int(self.amount)) // parts)
        return Size(SizeKind.BYTES, Decimal(part), None if asked == part else asked)

    def resolve(self, usable_bytes: int, allocation_unit: int = _ALIGNMENT) -> int:
        """Bytes of an export on a device that can give ``usable_bytes``, rounded down to the unit.

        Raises:
            ValueError: more than the device can give, or less than one unit.
        """
        wanted = {
            SizeKind.BYTES: self.amount,
            SizeKind.PERCENT: usable_bytes * self.amount / (100 * self.parts),
            SizeKind.MAX: Decimal(usable_bytes) / self.parts,
        }[self.kind]
        size_bytes = int(wanted) // allocation_unit * allocation_unit
        if wanted > usable_bytes:
            asked, usable = format_sizes(int(wanted), usable_bytes)
            raise ValueError(f"size {asked} is more than the {usable} that can be allocated")
        if size_bytes < allocation_unit:
            raise ValueError(f"size {self} is less than {format_size(allocation_unit)}")
        return size_bytes

    def __str__(self) -> str:
        if self.kind is not SizeKind.BYTES:
            whole = "max" if self.kind is SizeKind.MAX else f"{self.amount.normalize():f}%"
            return whole if self.parts == 1 else f"{whole} / {self.parts}"
        return format_bytes(int(self.amount))


@dataclass(frozen=True)
class TcpAddress:
    """``host`` is a name, an IPv4 or an IPv6 address, the last without its brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class UnixAddress:
    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_size(text: str) -> Size:
    """A size in bytes is rounded up to whole 4 KiB, which is the unit of block status."""
    text = text.strip()
    if text.lower() == "max":
        return Size(SizeKind.MAX)
    if match := _PERCENT.fullmatch(text):
        share = Decimal(match[1])
        if not 0 < share <= 100:
            raise ValueError("a percentage is above 0 and at most 100")
        return Size(SizeKind.PERCENT, share)
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("not a size")
    exact = Decimal(match[1]) * (1 << _SHIFT.get((match[2] or "").upper(), 0))
    if not _ALIGNMENT <= exact <= _MAXIMUM_SIZE - _ALIGNMENT:
        raise ValueError("too small" if exact < _ALIGNMENT else "too large")
    asked = math.ceil(exact)
    size_bytes = -(-asked // _ALIGNMENT) * _ALIGNMENT
    return Size(SizeKind.BYTES, Decimal(size_bytes), None if asked == size_bytes else asked)


def parse_duration(text: str) -> float:
    """Seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError("not a duration")
    seconds = Decimal(match[1]) * _SECONDS[match[2] or "s"]
    if seconds > _MAXIMUM_DURATION_S:
        raise ValueError("too long")
    return float(seconds)


def parse_address(text: str) -> Address:
    """``unix:/path`` or HOST:PORT."""
    if text.startswith("unix:"):
        return UnixAddress(parse_socket_path(text.removeprefix("unix:")))
    return parse_tcp_address(text)


def parse_tcp_address(text: str) -> TcpAddress:
    """Port 0 lets the kernel choose; the event ``ready`` then names the port."""
    host, colon, port = text.strip().rpartition(":")
    if not colon or not re.fullmatch(r"\d{1,5}", port, re.ASCII):
        raise ValueError("no port")
    if int(port) > 65535:
        raise ValueError("a port is at most 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _IPV6.fullmatch(host):
            raise ValueError("not an IPv6 address")
    elif not _HOST.fullmatch(host):
        raise ValueError("not a host name or address")
    return TcpAddress(host, int(port))


def parse_host_name(text: str) -> str:
    """A host name in lower case."""
    text = text.strip()
    if not _HOST.fullmatch(text):
        raise ValueError("not a host name")
    return text.lower()


def parse_socket_path(text: str) -> str:
    """The absolute path of a Unix socket."""
    if not text.startswith("/"):
        raise ValueError("not an absolute path")
    if "\0" in text:
        raise ValueError("a path holds no NUL")
    if text.endswith("/"):
        raise ValueError("names a directory")
    if len(os.fsencode(text)) > _UNIX_PATH_BYTES:
        raise ValueError(f"a socket path is at most {_UNIX_PATH_BYTES} bytes")
    return text


def printable(text: str) -> str:
    """Text of a client, a server or a child, without what could break a line or command a terminal."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def format_size(size_bytes: float) -> str:
    """For people: three digits and a binary unit, such as 1.5 GiB; whole numbers as they are."""
    unit, divisor = _unit(size_bytes)
    size = size_bytes / divisor
    return f"{size:.0f} {unit}" if size >= 100 or size.is_integer() or unit == "B" else f"{size:.1f} {unit}"


def format_part(done_bytes: int, total_bytes: int) -> str:
    """How much is done of how much, in the unit of the whole, such as 1.0/4.0 GiB."""
    unit, divisor = _unit(total_bytes)
    digits = 0 if unit == "B" else 1
    return f"{done_bytes / divisor:.{digits}f}/{total_bytes / divisor:.{digits}f} {unit}"


def _unit(size_bytes: float) -> tuple[str, int]:
    """The binary unit in which a size has at most three digits before the point, and its bytes."""
    divisor = 1
    for unit in _UNITS:
        if size_bytes / divisor < 1000 or unit == _UNITS[-1]:
            break
        divisor <<= 10
    return unit, divisor


def format_sizes(one_bytes: int, other_bytes: int) -> tuple[str, str]:
    """Two sizes that are compared: exact where they would look the same."""
    one, other = format_size(one_bytes), format_size(other_bytes)
    return (one, other) if one != other else (f"{one_bytes} B", f"{other_bytes} B")


def format_bytes(size_bytes: int) -> str:
    """For options: in the largest unit that divides it, so that the text parses back to the same size."""
    for suffix, shift in (("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if size_bytes and size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift}{suffix}"
    return str(size_bytes)


def format_duration(seconds: float) -> str:
    """Text that parses back to the same duration, to the millisecond."""
    milliseconds = math.floor(seconds * 1000 + 0.5)
    return f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms"


def format_latency(seconds: float | None) -> str:
    """For people: microseconds or milliseconds; a dash for None."""
    if seconds is None:
        return "-"
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def format_seconds(seconds: float) -> str:
    """For people, how long something has lasted: such as 42s, 3m10s, 5h02m or 4d07h."""
    whole = int(seconds)
    for size, big, small, part in ((86400, "d", "h", 3600), (3600, "h", "m", 60), (60, "m", "s", 1)):
        if whole >= size:
            return f"{whole // size}{big}{whole % size // part:02d}{small}"
    return f"{whole}s"


def format_days(seconds: float) -> str:
    """For people, how long something will last: such as 3.5 days."""
    return f"{seconds / 86400:.1f} days"
