"""Sizes, durations and addresses as users write them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramblk.config.units import (
    Size,
    SizeKind,
    TcpAddress,
    UnixAddress,
    format_bytes,
    format_days,
    format_duration,
    format_latency,
    format_part,
    format_seconds,
    format_size,
    format_sizes,
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
        ("4096", 4096), ("4096B", 4096), ("4K", 4096), ("5000", 8192), ("4097", 8192), ("1T", 1 << 40), (" 64 M ", 64 * M),
        ("1.3G", 1395867648), ("0.5M", M // 2),
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
    with pytest.raises(ValueError, match="size 2 GiB is more than the 1 GiB that can be allocated"):
        parse_size("2G").resolve(G)
    with pytest.raises(ValueError, match="size 1% is less than 4 KiB"):
        parse_size("1%").resolve(4096)


@pytest.mark.parametrize(
    ("text", "asked"), [("5000", 5000), ("8192", None), ("1.3G", 1395864372), ("50%", None), ("max", None)]
)
def test_a_size_remembers_what_was_asked_for_if_it_was_rounded(text: str, asked: int | None) -> None:
    assert parse_size(text).rounded_from == asked


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


def test_sizes_that_would_look_the_same_are_exact() -> None:
    assert format_sizes(2 << 30, 1 << 30) == ("2 GiB", "1 GiB")
    assert format_sizes((18 << 30) + 4096, (18 << 30) + 1) == ("19327356928 B", "19327352833 B")
    assert format_sizes(100 << 30, 19824595 << 10) == ("100 GiB", "18.9 GiB")


def test_sizes_and_times_for_people() -> None:
    """Three figures and a unit; how much of how much is in the unit of the whole."""
    assert [format_size(size) for size in (0, 999, 1024, 1536, 10**6, 150 << 20, 1 << 50)] == [
        "0 B", "999 B", "1 KiB", "1.5 KiB", "977 KiB", "150 MiB", "1024 TiB",
    ]  # fmt: skip
    assert [format_part(*part) for part in ((1, 999), (512, 1024), (64 << 20, 128 << 20), (G, 4 * G))] == [
        "1/999 B", "0.5/1.0 KiB", "64.0/128.0 MiB", "1.0/4.0 GiB",
    ]  # fmt: skip
    assert [format_latency(value) for value in (None, 12e-6, 2.5e-3)] == ["-", "12 us", "2.5 ms"]
    assert [format_seconds(value) for value in (5, 190, 18120, 363600)] == ["5s", "3m10s", "5h02m", "4d05h"]
    assert format_days(302400) == "3.5 days"
