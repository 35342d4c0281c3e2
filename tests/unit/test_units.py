"""Sizes, durations and addresses as users write them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramblk.units import (
    Size,
    SizeKind,
    TcpAddress,
    UnixAddress,
    format_bytes,
    format_duration,
    parse_address,
    parse_duration,
    parse_size,
    parse_socket_path,
    parse_tcp_address,
)

M, G = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("2048M", 2 * G), ("512M", 512 * M), ("2G", 2 * G), ("1.5G", 3 * G // 2), ("2GiB", 2 * G), ("2gb", 2 * G),
        ("4096", 4096), ("4096B", 4096), ("4K", 4096), ("5000", 4096), ("1T", 1 << 40), (" 64 M ", 64 * M),
        ("1.3G", 1395863552), ("0.5M", M // 2),
    ],
)  # fmt: skip
def test_size_in_bytes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == Size(SizeKind.BYTES, Decimal(size_bytes))
    assert parse_size(text).resolve(1 << 41) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "", "0", "4095", "-1M", "+1M", "M", "1X", "1MM", "1 M B", "1e9", "0x1000", "1,5G", "1_000M", ".5G", "5.G",
        "nan", "inf", "50", "0%", "100.1%", "-5%", "%", "8388608T", "maximum", "٣M", "1M\n2", "9" * 5000,
    ],
)  # fmt: skip
def test_bad_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "usable", "size_bytes"), [("50%", G, G // 2), ("max", 4097, 4096), ("12.5%", G, G // 8)]
)
def test_share_of_a_device(text: str, usable: int, size_bytes: int) -> None:
    assert parse_size(text).resolve(usable) == size_bytes


def test_size_beyond_the_device_names_both() -> None:
    with pytest.raises(ValueError, match="size 2G is more than the 1G that can be allocated"):
        parse_size("2G").resolve(G)
    with pytest.raises(ValueError, match="size 1% is less than 4K"):
        parse_size("1%").resolve(4096)


@given(st.integers(1, 1 << 50))
def test_formatted_size_parses_back(blocks: int) -> None:
    size = parse_size(str(blocks * 4096))
    assert parse_size(str(size)) == size
    assert parse_size(format_bytes(blocks * 4096)) == size


@given(st.integers(1, 1 << 50), st.integers(1, 10000))
def test_share_never_exceeds_the_device(usable: int, hundredths: int) -> None:
    size = parse_size(f"{hundredths / 100:.2f}%")
    try:
        resolved = size.resolve(usable)
    except ValueError:
        assert usable * hundredths // 10000 < 4096
    else:
        assert resolved % 4096 == 0
        assert 0 < resolved <= usable


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("3", 3), ("0s", 0), ("1.5s", 1.5)],
)
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1d", "10 seconds", "1e3", "inf", "169h"])
def test_bad_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:10809", TcpAddress("127.0.0.1", 10809)),
        ("[::1]:10809", TcpAddress("::1", 10809)),
        ("localhost:0", TcpAddress("localhost", 0)),
        ("gpu-1.example.org:65535", TcpAddress("gpu-1.example.org", 65535)),
        ("[fe80::1%eth0]:1", TcpAddress("fe80::1%eth0", 1)),
        ("unix:/run/vramblk/nbd.sock", UnixAddress("/run/vramblk/nbd.sock")),
    ],
)
def test_address(text: str, address: TcpAddress | UnixAddress) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "10809", "127.0.0.1", "127.0.0.1:", ":10809", "127.0.0.1:65536", "127.0.0.1:-1", "::1:10809", "[::1]",
        "[localhost]:1", "a b:1", "unix:", "unix:nbd.sock", "unix:/a/", "unix:/" + "x" * 107, "unix:/a\0b", "tcp:1:2",
    ],
)  # fmt: skip
def test_bad_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_address(text)


def test_unix_path_limit_counts_bytes() -> None:
    assert parse_socket_path("/" + "x" * 106)
    with pytest.raises(ValueError, match="107"):
        parse_socket_path("/" + "ä" * 54)


def test_tcp_only() -> None:
    with pytest.raises(ValueError, match="port"):
        parse_tcp_address("unix:/run/x")
