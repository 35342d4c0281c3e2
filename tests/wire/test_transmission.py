"""Requests and replies byte by byte, with simple, structured and extended replies."""

from __future__ import annotations

import random
import struct

import pytest

from . import rawclient as nbd
from .conftest import SIZE, Route
from .harness import Server

MIB = 1 << 20
TOP = 1 << 64


def pattern(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def still_works(client: nbd.RawClient) -> None:
    """The connection is in step: a write and a read of odd alignment agree."""
    data = pattern(99, 777)
    client.write(4095, data)
    assert client.read(4095, 777) == data


@pytest.mark.parametrize("offset", (0, 1, 15, 16, 511, 4095, SIZE - 70_001))
@pytest.mark.parametrize("length", (1, 15, 16, 17, 512, 4096, 4097, 65_536, 70_001))
def test_any_alignment(client: nbd.RawClient, offset: int, length: int) -> None:
    """Offsets and lengths of any alignment are correct to the byte, and so are the neighbours."""
    start = max(offset - 8, 0)
    before = client.read(start, length + 8)
    data = pattern(offset * 131 + length, length)
    client.write(offset, data)
    lead = offset - start
    assert client.read(start, length + 8)[: lead + length] == before[:lead] + data


@pytest.mark.parametrize("size", (32 * MIB, 48 * MIB, 64 * MIB))
def test_large_payloads(client: nbd.RawClient, size: int) -> None:
    """Writes and reads of 32, 48 and 64 MiB in one request are served."""
    data = pattern(size, MIB) * (size // MIB)
    client.write(12345, data)
    reply = client.call(nbd.READ, 12345, size)
    assert reply.error == 0 and reply.data == data


def test_too_large_write_is_drained(route: Route) -> None:
    """A write above 64 MiB is refused, its payload is drained, and the connection goes on."""
    with route.client(structured=True) as client:
        reply = client.call(nbd.WRITE, 0, payload=bytes(64 * MIB + 4096))
        assert reply.error == nbd.EINVAL
        still_works(client)


def test_too_large_read_is_refused(client: nbd.RawClient) -> None:
    """A read above what the server sends at once is an error and not a closed connection."""
    assert client.call(nbd.READ, 0, SIZE).error in (nbd.EINVAL, nbd.EOVERFLOW)
    still_works(client)


@pytest.mark.parametrize("length", (512, 4096, 65_536, 100_000, 3 * MIB))
def test_rejected_write_drains_its_payload(route: Route, length: int) -> None:
    """A WRITE past the end is ENOSPC, its payload is taken off the stream, on every transport."""
    for kind in ({}, {"structured": True}, {"extended": True}):
        with route.client(**kind) as client:
            payload = client.header(nbd.READ, 0, 512, 0, 4711) * (length // 28) + bytes(length % 28)
            if client.extended:
                payload = bytes(length)
            cookies = [client.submit(nbd.WRITE, SIZE - length // 2, payload=payload[:length]) for _ in range(4)]
            assert {reply.error for reply in client.gather(cookies).values()} == {nbd.ENOSPC}
            still_works(client)


@pytest.mark.parametrize(
    ("command", "errors"),
    (
        (nbd.READ, {nbd.EINVAL}),
        (nbd.WRITE_ZEROES, {nbd.ENOSPC}),
        (nbd.TRIM, {nbd.EINVAL, nbd.ENOSPC}),
        (nbd.CACHE, {nbd.EINVAL}),
        (nbd.BLOCK_STATUS, {nbd.EINVAL}),
    ),
)
def test_beyond_the_end(client: nbd.RawClient, command: int, errors: set[int]) -> None:
    """Requests that reach past the end, or past 64 bits, fail with the specified error."""
    for offset, length in (
        (SIZE, 1), (SIZE - 1, 2), (SIZE - 512, 4096), (SIZE + 4096, 4096), (TOP - 512, 1024),
        (TOP - 1, 1), (TOP - 4096, 4096), (1 << 63, 4096), (0, (1 << 32) - 1),
    ):  # fmt: skip
        assert client.call(command, offset, length).error in errors, (offset, length)
    still_works(client)


def test_write_beyond_64_bits(client: nbd.RawClient) -> None:
    """A write whose end wraps around at 64 bits is ENOSPC and writes nothing at the start."""
    client.write(0, bytes(512))
    assert client.call(nbd.WRITE, TOP - 512, payload=b"w" * 1024).error == nbd.ENOSPC
    assert client.call(nbd.WRITE, SIZE, payload=b"w").error == nbd.ENOSPC
    assert client.read(0, 512) == bytes(512)


@pytest.mark.parametrize("command", (nbd.READ, nbd.WRITE, nbd.FLUSH, nbd.TRIM, nbd.WRITE_ZEROES, nbd.CACHE))
def test_zero_length_is_answered(client: nbd.RawClient, command: int) -> None:
    """A request of no bytes is answered, and changes nothing."""
    payload = b"" if command == nbd.WRITE else None
    assert client.call(command, 4096, 0, payload=payload).error in (0, nbd.EINVAL)
    still_works(client)


@pytest.mark.parametrize("command", (8, 9, 255, 0xFFFF))
def test_unknown_command_is_invalid(client: nbd.RawClient, command: int) -> None:
    """An unknown command is EINVAL and the connection goes on."""
    assert client.call(command, 0, 4096).error == nbd.EINVAL
    still_works(client)


@pytest.mark.parametrize("command", (nbd.READ, nbd.WRITE, nbd.FLUSH, nbd.TRIM, nbd.CACHE, nbd.WRITE_ZEROES))
def test_unknown_flags_are_invalid(client: nbd.RawClient, command: int) -> None:
    """A flag that the specification does not have for this command is EINVAL; a payload is drained."""
    payload = pattern(1, 4096) if command == nbd.WRITE else None
    for flag in (1 << 6, 1 << 15, nbd.REQ_ONE):
        assert client.call(command, 0, 0 if command == nbd.FLUSH else 4096, flag, payload).error == nbd.EINVAL
    still_works(client)


def test_payload_flag_without_extended_headers(either: Server) -> None:
    """PAYLOAD_LEN is invalid on a connection without extended headers."""
    with either.client(structured=True) as client:
        assert client.call(nbd.WRITE, 0, flags=nbd.PAYLOAD_LEN, payload=bytes(512)).error == nbd.EINVAL
        assert client.call(nbd.READ, 0, 512, flags=nbd.PAYLOAD_LEN).error == nbd.EINVAL
        still_works(client)


def test_payload_flag_on_other_commands(either: Server) -> None:
    """With extended headers a payload on a command that has none is drained and EINVAL."""
    with either.client(extended=True) as client:
        for command in (nbd.READ, nbd.TRIM, nbd.WRITE_ZEROES, nbd.CACHE, nbd.FLUSH):
            cookie, header = client.encode(command, 0, 4096, nbd.PAYLOAD_LEN)
            client.send(header + b"p" * 4096)
            reply = client.wait()
            assert reply.cookie == cookie and reply.error == nbd.EINVAL
        still_works(client)


def test_fua_on_every_command(client: nbd.RawClient) -> None:
    """FUA is accepted on every command, also where it means nothing."""
    client.write(0, pattern(3, 4096), nbd.FUA)
    for command, length in (
        (nbd.READ, 4096), (nbd.FLUSH, 0), (nbd.CACHE, 4096), (nbd.WRITE_ZEROES, 4096), (nbd.TRIM, 4096)
    ):  # fmt: skip
        assert client.call(command, 0, length, nbd.FUA).error == 0, command


def test_block_status_with_fua(either: Server) -> None:
    """FUA on BLOCK_STATUS is accepted."""
    with either.client(structured=True, contexts=("base:allocation",)) as client:
        assert client.call(nbd.BLOCK_STATUS, 0, 4096, nbd.FUA).error == 0


@pytest.mark.parametrize("kind", ("structured", "extended"))
def test_df_reads_are_one_chunk(either: Server, kind: str) -> None:
    """A read with DF is one chunk of content, with zeroes and data mixed; without DF it is complete."""
    with either.client(**{kind: True}) as client:
        assert client.call(nbd.WRITE_ZEROES, 0, 4 * MIB).error == 0
        client.write(MIB, pattern(4, 12_345))
        expected = bytes(MIB) + pattern(4, 12_345) + bytes(MIB)
        reply = client.call(nbd.READ, 0, len(expected), nbd.DF)
        assert reply.data == expected
        assert [chunk for chunk in reply.chunks if chunk != nbd.CHUNK_NONE] == [nbd.CHUNK_DATA]
        assert client.read(0, len(expected)) == expected


def test_df_without_structured_replies_is_invalid(either: Server) -> None:
    """DF on a connection with simple replies is EINVAL."""
    with either.client() as client:
        assert client.call(nbd.READ, 0, 4096, nbd.DF).error == nbd.EINVAL


def test_read_errors_are_structured(client: nbd.RawClient) -> None:
    """An error of a read is an error chunk wherever structured replies are negotiated."""
    reply = client.call(nbd.READ, SIZE, 4096)
    assert reply.error == nbd.EINVAL
    assert reply.simple == (not client.structured and not client.extended)
    assert reply.simple or reply.chunks[-1] in (nbd.CHUNK_ERROR, nbd.CHUNK_ERROR_OFFSET)


@pytest.mark.parametrize("command", (nbd.WRITE_ZEROES, nbd.TRIM))
@pytest.mark.parametrize("flags", (0, nbd.FUA))
def test_zeroing_larger_than_any_buffer(client: nbd.RawClient, command: int, flags: int) -> None:
    """WRITE_ZEROES and TRIM of nearly the whole export, at odd ends, zero just that."""
    client.write(0, b"\xaa" * 8192)
    client.write(100 * MIB + 1, b"\xbb" * 8192)
    client.write(SIZE - 8192, b"\xcc" * 8192)
    assert client.call(command, 4097, SIZE - 2 * 4097, flags).error == 0
    assert client.read(0, 4097) == b"\xaa" * 4097
    assert client.read(SIZE - 4097, 4097) == b"\xcc" * 4097
    if command == nbd.WRITE_ZEROES:
        assert client.read(4097, 4095) == bytes(4095)
        assert client.read(SIZE - 8192, 4095) == bytes(4095)
    assert client.read(8192, 64 * 1024) == bytes(64 * 1024)
    assert client.read(100 * MIB, 16384) == bytes(16384)


def test_zeroing_flags(client: nbd.RawClient) -> None:
    """NO_HOLE and FAST_ZERO, alone and together, are accepted and zero."""
    for flags in (nbd.NO_HOLE, nbd.FAST_ZERO, nbd.NO_HOLE | nbd.FAST_ZERO | nbd.FUA):
        client.write(1000, pattern(5, 20_000))
        assert client.call(nbd.WRITE_ZEROES, 1001, 19_998, flags).error == 0
        data = pattern(5, 20_000)
        assert client.read(1000, 20_000) == data[:1] + bytes(19_998) + data[-1:]
    for command in (nbd.READ, nbd.TRIM, nbd.FLUSH, nbd.CACHE):
        assert client.call(command, 0, 0 if command == nbd.FLUSH else 512, nbd.NO_HOLE).error == nbd.EINVAL
        assert client.call(command, 0, 0 if command == nbd.FLUSH else 512, nbd.FAST_ZERO).error == nbd.EINVAL


@pytest.mark.parametrize("kind", ("structured", "extended"))
def test_block_status(either: Server, kind: str) -> None:
    """Extents cover the request from its start, none is empty, neighbours differ, data is data."""
    with either.client(contexts=("base:allocation",), **{kind: True}) as client:
        assert client.call(nbd.TRIM, 0, SIZE).error == 0
        assert client.call(nbd.BLOCK_STATUS, 0, SIZE).extents == [(SIZE, 3)]
        client.write(8192, b"d")
        assert client.call(nbd.BLOCK_STATUS, 0, MIB).extents == [(8192, 3), (4096, 0), (MIB - 12288, 3)]
        assert client.call(nbd.BLOCK_STATUS, 0, MIB, nbd.REQ_ONE).extents == [(8192, 3)]
        assert client.call(nbd.BLOCK_STATUS, 0, 100, nbd.REQ_ONE).extents == [(100, 3)]
        assert client.call(nbd.BLOCK_STATUS, 8193, 1).extents == [(1, 0)]
        assert client.call(nbd.BLOCK_STATUS, 8193, 5000).extents == [(4095, 0), (905, 3)]
        assert client.call(nbd.BLOCK_STATUS, SIZE - 1, 1).extents == [(1, 3)]
        assert client.call(nbd.BLOCK_STATUS, 0, 0).error == nbd.EINVAL
        assert client.call(nbd.WRITE_ZEROES, 8192, 4096, nbd.NO_HOLE).error == 0
        assert client.call(nbd.BLOCK_STATUS, 8192, 4096).extents[0][1] & 1 == 0
        assert client.call(nbd.WRITE_ZEROES, 8192, 4096).error == 0
        assert client.call(nbd.BLOCK_STATUS, 0, MIB).extents == [(MIB, 3)]


def test_block_status_of_many_extents(either: Server) -> None:
    """Status of a checkerboard, followed to the end by a client, describes every block."""
    with either.client(structured=True, contexts=("base:allocation",)) as client:
        assert client.call(nbd.TRIM, 0, SIZE).error == 0
        blocks = 20_000
        stream = b"".join(client.encode(nbd.WRITE, block * 8192, payload=b"c")[1] for block in range(blocks))
        assert not any(reply.error for reply in client.exchange(stream, blocks).values())
        position, found = 0, []
        while position < blocks * 8192:
            extents = client.call(nbd.BLOCK_STATUS, position, blocks * 8192 - position).extents
            found += extents
            position += sum(length for length, _ in extents)
        assert position == blocks * 8192
        assert found == [(4096, 0), (4096, 3)] * blocks


def test_block_status_needs_a_context(client: nbd.RawClient) -> None:
    """BLOCK_STATUS without a selected context is EINVAL."""
    assert client.call(nbd.BLOCK_STATUS, 0, 4096).error == nbd.EINVAL
    still_works(client)


def test_extended_lengths_beyond_32_bits(either: Server) -> None:
    """With extended headers a 64-bit length is understood, and refused where it passes the end."""
    with either.client(extended=True, contexts=("base:allocation",)) as client:
        for command, error in (
            (nbd.READ, nbd.EINVAL), (nbd.TRIM, nbd.EINVAL), (nbd.WRITE_ZEROES, nbd.ENOSPC),
            (nbd.CACHE, nbd.EINVAL), (nbd.BLOCK_STATUS, nbd.EINVAL),
        ):  # fmt: skip
            for length in ((1 << 32) + 4096, TOP - 1, TOP - 4096):
                assert client.call(command, 4096, length).error in (error, nbd.ENOSPC), (command, length)
        still_works(client)


def test_extended_write_without_payload_flag(either: Server) -> None:
    """With extended headers a WRITE without PAYLOAD_LEN is served: qemu's client leaves the flag out."""
    with either.client(extended=True) as client:
        stream = b""
        for index in range(40):
            _, header = client.encode(nbd.WRITE, index * 4096, 4096, nbd.FUA if index % 3 == 0 else 0)
            stream += header + bytes([index]) * 4096
        assert not any(reply.error for reply in client.exchange(stream, 40).values())
        assert client.read(0, 40 * 4096) == b"".join(bytes([index]) * 4096 for index in range(40))


def test_bad_magic_closes(client: nbd.RawClient) -> None:
    """Bytes that are no request end the connection; another goes on."""
    client.send(struct.pack(">I", 0xDEADBEEF) + bytes(60))
    assert client.at_end()


@pytest.mark.parametrize("wrong", ("extended", "compact"))
def test_the_other_header_closes(either: Server, wrong: str) -> None:
    """A compact header after extended ones were negotiated, or the reverse, ends the connection."""
    with either.client(extended=wrong == "compact") as client:
        client.extended = not client.extended
        client.send(client.header(nbd.READ, 0, 4096, 0, 1) * 2)
        client.extended = not client.extended
        assert client.at_end()


def test_disc_behind_writes(route: Route) -> None:
    """DISC right behind writes that are still in flight loses none of them."""
    for round_number in range(5):
        with route.client(structured=True) as client:
            stream = b"".join(
                client.encode(nbd.WRITE, MIB + index * 8192, payload=pattern(round_number * 100 + index, 8192))[1]
                for index in range(64)
            )
            client.send(stream + client.encode(nbd.DISC)[1])
            while not client.at_end():
                pass
        with route.client() as client:
            for index in range(64):
                assert client.read(MIB + index * 8192, 8192) == pattern(round_number * 100 + index, 8192)


def test_many_requests_in_flight(route: Route) -> None:
    """Hundreds of mixed requests at once are each answered once, with the right data."""
    with route.client(structured=True) as client:
        chance = random.Random(11)
        sizes = [chance.choice((1, 512, 4096, 5000, 65536, 200_000)) for _ in range(300)]
        starts = [sum(sizes[:index]) for index in range(300)]
        stream = b"".join(
            client.encode(nbd.WRITE, start, payload=pattern(start, size))[1]
            for start, size in zip(starts, sizes, strict=True)
        )
        replies = client.exchange(stream, 300)
        assert len(replies) == 300 and not any(reply.error for reply in replies.values())
        stream, expected = b"", {}
        for start, size in zip(starts, sizes, strict=True):
            cookie, request = client.encode(nbd.READ, start, size)
            stream += request
            expected[cookie] = pattern(start, size)
        replies = client.exchange(stream, 300)
        assert {cookie: reply.data for cookie, reply in replies.items()} == expected


def test_requests_byte_by_byte(client: nbd.RawClient) -> None:
    """A request and its payload that arrive in single bytes are understood."""
    _, data = client.encode(nbd.WRITE, 5, payload=b"dribble")
    for byte in data:
        client.send(bytes([byte]))
    assert client.wait().error == 0
    assert client.read(5, 7) == b"dribble"


def test_cookies_are_opaque(either: Server) -> None:
    """Cookies of any value, also equal ones in flight, come back as they were sent."""
    with either.client() as client:
        cookies = [0, 1, TOP - 1, 0x0123456789ABCDEF, 7, 7]
        client.send(b"".join(client.header(nbd.READ, 0, 16, 0, cookie) for cookie in cookies))
        found = []
        for _ in cookies:
            magic, error, cookie = struct.unpack(">IIQ", client.receive(16))
            assert (magic, error) == (nbd.SIMPLE_MAGIC, 0)
            client.receive(16)
            found.append(cookie)
        assert sorted(found) == sorted(cookies)


def test_flush_orders_writes_across_connections(route: Route) -> None:
    """CAN_MULTI_CONN: what one connection wrote and flushed another reads."""
    with route.client() as first, route.client(structured=True) as second:
        for index in range(50):
            data = pattern(index, 4096)
            first.write(index * 4096, data)
            assert first.call(nbd.FLUSH).error == 0
            assert second.read(index * 4096, 4096) == data
