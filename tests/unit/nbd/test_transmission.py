"""Requests out of bytes: runs, mixtures, single requests, and what is allowed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vramblk.nbd.constants import Command, CommandFlag, Error
from vramblk.nbd.replies import ReplyFormat
from vramblk.nbd.replyheaders import fill_done, fill_read_header
from vramblk.nbd.runs import PLAIN_BYTES, Plain
from vramblk.nbd.transmission import Parser, Request, TransmissionError
from vramblk.nbd.validation import validate

SIZE = 1 << 30


def request(
    command: int, offset: int, length: int, *, flags: int = 0, cookie: int = 1, extended: bool = False
) -> bytes:
    if extended:
        return struct.pack(">IHHQQQ", 0x21E41C71, flags, command, cookie, offset, length)
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)


def parser(data: bytes, **options: object) -> Parser:
    buffer = bytearray(max(len(data) + 3 & ~3, 64))
    buffer[: len(data)] = data
    arguments = {
        "extended": False,
        "size_bytes": SIZE,
        "arena_bytes": SIZE,
        "read_only": False,
        "run_bytes": 8 << 20,
        "waited_bytes": 1 << 16,
    }
    return Parser(memoryview(buffer), **(arguments | options))  # type: ignore[arg-type]


def everything(data: bytes, **options: object) -> list[tuple[int, int, int, bytes]]:
    """(command, offset, length, cookie) of all requests that can be parsed, sorted by cookie."""
    taker = parser(data, **options)
    found = []
    position = 0
    while (item := taker.next(position, len(data))) is not None:
        if isinstance(item, Plain):
            for command, side in ((0, item.reads), (1, item.writes)):
                found += [
                    (command, offset, side.length[index], cookie)
                    for index, (cookie, offset) in enumerate(side.identities())
                ]
            position = item.end
        else:
            found.append((item.command, item.offset, item.length, item.cookie))
            position += taker.header_bytes + item.payload
    return sorted(found, key=lambda row: row[3])


def test_a_run_of_reads_comes_out_as_one() -> None:
    """Like reads are taken together, with offsets, lengths and cookies in order."""
    data = b"".join(request(0, i * 4096, 4096, cookie=i) for i in range(32))
    item = parser(data).next(0, len(data))
    assert isinstance(item, Plain) and not item.writes.count
    assert item.end == len(data)
    assert item.reads.identities() == [(struct.pack(">Q", i), i * 4096) for i in range(32)]
    assert (item.reads.count, item.reads.total_bytes) == (32, 32 * 4096)


def test_a_run_of_writes_says_where_each_payload_lies() -> None:
    """Writes of one length are taken together; a payload that has not all come is left for later."""
    data = b"".join(request(1, i * 512, 512, cookie=i) + bytes([i]) * 512 for i in range(20))
    taker = parser(data)
    item = taker.next(0, len(data) - 1)
    assert isinstance(item, Plain) and not item.reads.count
    assert item.writes.count == 19
    assert [item.writes.payload[i] for i in range(19)] == [28 + i * 540 for i in range(19)]


@pytest.mark.parametrize("extended", [False, True])
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([0, 0, 0, 1, 1, 3, 4, 5, 6, 7]),
            st.integers(0, SIZE - 1),
            st.sampled_from([1, 16, 512, 4096, 4096, 4096, 8192, PLAIN_BYTES, PLAIN_BYTES + 16]),
        ),
        max_size=60,
    )
)
@settings(max_examples=150, deadline=None)
def test_nothing_is_lost_or_invented(extended: bool, rows: list[tuple[int, int, int]]) -> None:
    """Whatever the mixture, what comes out is what went in, once each."""
    data = b""
    expected = []
    for number, (command, offset, length) in enumerate(rows):
        if number % 3:
            offset -= offset % 4096
        flags = CommandFlag.PAYLOAD_LEN if extended and command == 1 else 0
        data += request(command, offset, length, cookie=number, flags=flags, extended=extended)
        data += bytes(length) if command == 1 else b""
        expected.append((command, offset, length, struct.pack(">Q", number)))
    for arena in (SIZE, 1 << 16):
        assert everything(data, extended=extended, arena_bytes=arena) == expected


def test_a_request_is_plain_only_inside_one_arena_and_the_export() -> None:
    """Requests over a border or past the end come out one by one, to be split or refused."""
    for offset in (SIZE - 16, (1 << 20) - 16):
        data = request(0, 0, 4096) * 10 + request(0, offset, 4096) * 10
        taker = parser(data, arena_bytes=1 << 20)
        first = taker.next(0, len(data))
        assert isinstance(first, Plain) and first.end == 280
        assert isinstance(taker.next(280, len(data)), Request)


def test_a_run_keeps_to_its_budget() -> None:
    """The replies of one run fit the part of the transmit lane that is meant for a run."""
    data = b"".join(request(0, i * PLAIN_BYTES, PLAIN_BYTES, cookie=i) for i in range(40))
    taker = parser(data, run_bytes=5 * (PLAIN_BYTES + 40))
    item = taker.next(0, len(data))
    assert isinstance(item, Plain) and item.reads.count == 5


def test_a_bad_magic_ends_the_stream() -> None:
    """Nothing can be trusted behind a header that is none, but what came before it is served."""
    data = request(0, 0, 4096) * 3 + b"\0" * 28
    taker = parser(data)
    item = taker.next(0, len(data))
    assert isinstance(item, Plain) and item.end == 84
    with pytest.raises(TransmissionError, match="magic"):
        taker.next(84, len(data))


def test_offset_and_length_wrap_is_refused() -> None:
    """offset + length beyond 64 bits is past the end, not at the start."""
    data = request(0, (1 << 64) - 4096, 8192) + request(0, (1 << 64) - 16, 4096)
    taker = parser(data)
    for position in (0, 28):
        item = taker.next(position, len(data))
        assert isinstance(item, Request)
        assert judge(item) == Error.EINVAL


def judge(item: Request, **options: bool) -> Error | None:
    arguments = {"read_only": False, "structured": True, "extended": False, "base_allocation": True}
    return validate(item, size_bytes=SIZE, **(arguments | options))


@pytest.mark.parametrize(
    ("command", "offset", "length", "flags", "expected"),
    [
        (Command.READ, SIZE - 1, 2, 0, Error.EINVAL),
        (Command.WRITE, SIZE - 1, 2, 0, Error.ENOSPC),
        (Command.WRITE_ZEROES, SIZE - 1, 2, 0, Error.ENOSPC),
        (Command.TRIM, SIZE - 1, 2, 0, Error.EINVAL),
        (Command.TRIM, 0, (1 << 32) - 1, 0, Error.EINVAL),
        (Command.READ, 0, 65 << 20, 0, Error.EINVAL),
        (Command.READ, 0, 65 << 20, CommandFlag.DF, Error.EOVERFLOW),
        (Command.READ, 0, 1, 1 << 15, Error.EINVAL),
        (Command.READ, 0, 1, CommandFlag.NO_HOLE, Error.EINVAL),
        (Command.FLUSH, 0, 0, CommandFlag.FUA, None),
        (Command.CACHE, 0, SIZE, CommandFlag.FUA, None),
        (Command.WRITE_ZEROES, 0, 1, CommandFlag.FAST_ZERO | CommandFlag.NO_HOLE | CommandFlag.FUA, None),
        (Command.BLOCK_STATUS, 0, SIZE, CommandFlag.REQ_ONE, None),
        (Command.BLOCK_STATUS, 0, 0, 0, Error.EINVAL),
        (Command.RESIZE, 0, 1, 0, Error.EINVAL),
        (99, 0, 1, 0, Error.EINVAL),
    ],
)
def test_what_is_allowed(command: int, offset: int, length: int, flags: int, expected: Error | None) -> None:
    """One table decides which requests are refused and with which error."""
    assert judge(Request(command, int(flags), b"c" * 8, offset, length, 0)) == expected


def test_read_only_refuses_whatever_changes_data() -> None:
    """EPERM for writes of all kinds; reads go on."""
    for command in (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES):
        assert judge(Request(command, 0, b"c" * 8, 0, 1, 0), read_only=True) == Error.EPERM
    data = request(1, 0, 512) + bytes(512)
    assert isinstance(parser(data, read_only=True).next(0, len(data)), Request)


def test_extended_writes_may_leave_out_the_payload_flag() -> None:
    """PAYLOAD_LEN is required of an extended write, but qemu leaves it out: both are accepted."""
    assert judge(Request(1, 0, b"c" * 8, 0, 1, 1), extended=True) is None
    assert judge(Request(1, CommandFlag.PAYLOAD_LEN, b"c" * 8, 0, 1, 1), extended=True) is None


def test_reply_headers_have_the_lengths_of_the_specification() -> None:
    """Simple 16, structured 28, extended 40 bytes before the data of a read."""
    asked = Request(0, 0, b"cookie00", 4096, 512, 0)
    for structured, extended, size in ((False, False, 16), (True, False, 28), (True, True, 40)):
        format = ReplyFormat(structured, extended)
        assert format.read_header_bytes == size
        assert len(format.read_header(asked, 4096, 512, last=True)) == size
        assert len(format.done(asked)) == format.done_bytes


@pytest.mark.parametrize(("structured", "extended"), [(False, False), (True, False), (True, True)])
def test_a_header_laid_as_words_equals_one_made_as_bytes(structured: bool, extended: bool) -> None:
    """The header before the data of a read, in each format."""
    format = ReplyFormat(structured, extended)
    offset, length = (5 << 32) + 4096, 65536
    buffer = bytearray(format.read_header_bytes + 8)
    words = memoryview(buffer).cast("I")
    fill_read_header(words, 1, *struct.unpack("<II", b"cookie07"), offset, length, format.read_header_bytes)
    asked = Request(0, 0, b"cookie07", offset, length, 0)
    assert buffer[4:-4] == format.read_header(asked, asked.offset, asked.length, last=True)


def test_filled_replies_equal_single_ones() -> None:
    """The replies of a run of writes are the same bytes as those of single writes."""
    for extended in (False, True):
        format = ReplyFormat(extended, extended)
        cookies = [struct.pack(">Q", i * 77) for i in range(5)]
        buffer = bytearray(5 * format.done_bytes)
        words = memoryview(buffer).cast("I")
        for i, cookie in enumerate(cookies):
            fill_done(words, i * format.done_bytes // 4, *struct.unpack("<II", cookie), i * 4096, extended)
        expected = b"".join(
            format.done(Request(1, 0, cookie, i * 4096, 512, 512)) for i, cookie in enumerate(cookies)
        )
        assert buffer == expected
