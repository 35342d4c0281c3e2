"""Needs nothing. Bad input gets the reply the specification names, or an end, and never an exception."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vramblk.nbd import framing
from vramblk.nbd.constants import Option, OptionReply
from vramblk.nbd.handshake import Begin, Close, Send, StartTls, State, TlsPolicy
from vramblk.nbd.options import MAXIMUM_QUERIES

INVALID = OptionReply.ERR_INVALID


@pytest.mark.parametrize("bit", range(2, 32))
def test_unknown_client_flags_end_the_connection(connect, bit):
    for flags in (1 << bit, 1 << bit | 3):
        client = connect(flags=None)
        assert [type(event) for event in client.handshake.receive(struct.pack(">I", flags))] == [Close]


@pytest.mark.parametrize("magic", [b"IHAVEOPX", b"NBDMAGIC", b"\0\3\xe8\x89\x04\x55\x65\xa9", bytes(8)])
def test_a_bad_option_magic_ends_the_connection(connect, magic):
    client = connect()
    (close,) = client.handshake.receive(magic + bytes(8))
    assert "magic" in close.reason


@pytest.mark.parametrize("option", [o for o in Option if o not in (Option.EXPORT_NAME, Option.ABORT)])
def test_without_fixed_newstyle_any_other_option_ends_the_connection(connect, option):
    for flags in (0, 2):
        assert [type(event) for event in connect(flags=flags).option(option)] == [Close]


@pytest.mark.parametrize("code", [0, Option.PEEK_EXPORT, 12, 255, 1 << 31, 0xFFFFFFFF])
@pytest.mark.parametrize("length", [0, 1, 1 << 16, (1 << 16) + 1, 1 << 20])
def test_unknown_options_are_skipped_with_their_data(connect, code, length):
    client = connect()
    assert client.kinds(code, bytes(length)) == [OptionReply.ERR_UNSUP]
    client.accept(Option.LIST)


MALFORMED_INFO = {
    "empty": b"",
    "cut in the name's length": b"\0\0\0",
    "name longer than the data": b"\0\0\0\5vram",
    "name of 4 GiB": b"\xff\xff\xff\xffvram\0\0",
    "no count of requests": b"\0\0\0\4vram",
    "half a count of requests": b"\0\0\0\4vram\0",
    "fewer requests than counted": b"\0\0\0\4vram\0\2\0\1",
    "more requests than counted": b"\0\0\0\4vram\0\0\0\1",
    "a byte too many": b"\0\0\0\4vram\0\1\0\1\0",
    "name is not UTF-8": b"\0\0\0\4\xff\xfe\xfd\xfc\0\0",
    "name is a surrogate": b"\0\0\0\3\xed\xa0\x80\0\0",
    "name with a NUL": b"\0\0\0\5vram\0\0\0",
    "name of 4097 bytes": b"\0\0\x10\1" + b"x" * 4097 + b"\0\0",
}


@pytest.mark.parametrize("option", [Option.INFO, Option.GO])
@pytest.mark.parametrize("data", MALFORMED_INFO.values(), ids=MALFORMED_INFO.keys())
def test_malformed_info_and_go_are_invalid_and_negotiation_goes_on(connect, option, data):
    client = connect()
    assert client.kinds(option, data) == [INVALID]
    assert isinstance(client.option(Option.GO, client.encode_go("vram"))[1], Begin)


MALFORMED_META = {
    "empty": b"",
    "name longer than the data": b"\0\0\0\5vram",
    "no count of queries": b"\0\0\0\4vram",
    "fewer queries than counted": b"\0\0\0\4vram\0\0\0\2\0\0\0\5base:",
    "4 billion queries": b"\0\0\0\4vram\xff\xff\xff\xff",
    "more queries than counted": b"\0\0\0\4vram\0\0\0\0\0\0\0\5base:",
    "query longer than the data": b"\0\0\0\4vram\0\0\0\1\0\0\0\6base:",
    "query of 4 GiB": b"\0\0\0\4vram\0\0\0\1\xff\xff\xff\xffbase:",
    "query is not UTF-8": b"\0\0\0\4vram\0\0\0\1\0\0\0\6base:\xff",
    "query with a NUL": b"\0\0\0\4vram\0\0\0\1\0\0\0\6base:\0",
    "query of 4097 bytes": b"\0\0\0\4vram\0\0\0\1\0\0\x10\1" + b"x" * 4097,
    "name is not UTF-8": b"\0\0\0\1\xff\0\0\0\0",
}


@pytest.mark.parametrize("option", [Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
@pytest.mark.parametrize("data", MALFORMED_META.values(), ids=MALFORMED_META.keys())
def test_malformed_meta_context_options_are_invalid_and_negotiation_goes_on(connect, option, data):
    client = connect()
    client.accept(Option.STRUCTURED_REPLY)
    assert client.kinds(option, data) == [INVALID]
    client.accept(option, client.encode_meta("vram"))


class TestLimits:
    def test_data_up_to_the_limit_is_read(self, connect):
        client = connect()
        requests = (framing.MAXIMUM_OPTION_BYTES - 4 - 4 - 2) // 2
        data = client.encode_go("vram", *([3] * requests))
        assert len(data) == framing.MAXIMUM_OPTION_BYTES
        client.accept(Option.INFO, data)
        assert client.kinds(Option.INFO, data + b"\0\3") == [OptionReply.ERR_TOO_BIG]

    def test_the_number_of_queries(self, connect):
        """Thousands of empty ones would take the worker tenths of a second."""
        client = connect()
        client.accept(Option.STRUCTURED_REPLY)
        client.accept(Option.SET_META_CONTEXT, client.encode_meta("vram", *[""] * MAXIMUM_QUERIES))
        data = client.encode_meta("vram", *[""] * (MAXIMUM_QUERIES + 1))
        assert client.kinds(Option.SET_META_CONTEXT, data) == [OptionReply.ERR_TOO_BIG]

    def test_data_beyond_it_is_drained_without_being_kept(self, connect):
        client = connect()
        length = framing.MAXIMUM_DRAINED_BYTES
        assert client.handshake.receive(client.encode_option(Option.GO, b"", length=length)) == []
        for _ in range(length // 4096 - 1):
            assert client.handshake.receive(bytes(4096)) == []
            assert not client.handshake._reader.pending
        (sent,) = client.handshake.receive(bytes(4096))
        assert client.decode_replies(sent.data)[0].kind == OptionReply.ERR_TOO_BIG
        assert isinstance(client.option(Option.GO, client.encode_go("vram"))[1], Begin)

    @pytest.mark.parametrize("length", [framing.MAXIMUM_DRAINED_BYTES + 1, 0xFFFFFFFF])
    def test_beyond_what_is_drained_the_connection_ends_at_once(self, connect, length):
        client = connect()
        (close,) = client.handshake.receive(client.encode_option(Option.GO, b"", length=length))
        assert str(length) in close.reason

    def test_the_number_of_options(self, connect):
        client = connect()
        for _ in range(framing.MAXIMUM_OPTIONS):
            client.accept(Option.LIST)
        (close,) = client.option(Option.LIST)
        assert "options" in close.reason

    def test_starttls_does_not_start_the_count_anew(self, connect):
        client = connect(tls=TlsPolicy.ON)
        for _ in range(framing.MAXIMUM_OPTIONS - 1):
            client.accept(Option.LIST)
        client.start_tls()
        assert [type(event) for event in client.option(Option.LIST)] == [Close]

    def test_what_follows_a_close_is_not_kept(self, connect):
        client = connect()
        client.handshake.receive(bytes(16))
        assert client.handshake.receive(bytes(1 << 20)) == []
        assert not client.handshake._reader.pending


def script(encode_option, encode_go, encode_meta):
    """Byte strings of one option each: honest ones, malformed ones, and ones that end negotiation."""
    names = st.sampled_from(["", "vram", "zweite-äöü", "frozen", "nope", "x" * 4096])
    queries = st.sampled_from(["base:", "base:allocation", "qemu:x", "nonsense"])
    info = st.builds(encode_go, names, st.integers(0, 4))
    meta = st.builds(lambda name, some: encode_meta(name, *some), names, st.lists(queries, max_size=3))
    payload = st.one_of(st.just(b""), info, meta, st.binary(max_size=40))
    code = st.one_of(st.sampled_from([int(option) for option in Option]), st.integers(0, 14))
    often = st.sampled_from([Option.STRUCTURED_REPLY, Option.EXTENDED_HEADERS, Option.LIST])
    return st.lists(
        st.one_of(
            st.builds(encode_option, often),
            st.builds(encode_option, st.sampled_from([Option.INFO, Option.GO]), info),
            st.builds(
                encode_option, st.sampled_from([Option.SET_META_CONTEXT, Option.LIST_META_CONTEXT]), meta
            ),
            st.builds(encode_option, code, payload),
            st.integers(65537, 70000).map(lambda length: encode_option(Option.LIST, bytes(length))),
            st.binary(max_size=20),
        ),
        max_size=8,
    )


def feed(client, pieces):
    """What a connection does in the end: bytes sent, how it ended, bytes left for transmission."""
    sent, end, left = b"", None, b""
    for piece in pieces:
        if isinstance(end, Begin):
            left += piece
            continue
        for event in client.handshake.receive(piece):
            if isinstance(event, Send):
                assert end is None
                sent += event.data
            elif isinstance(event, Begin):
                end, left = event, event.leftover
            else:
                assert end is None
                end = event
    if isinstance(end, Begin):
        end = (end.export, end.structured, end.extended, end.base_allocation)
    return sent, end, left


@settings(deadline=None)
@given(
    data=st.data(),
    flags=st.sampled_from([0, 1, 2, 3, 4]),
    tls=st.sampled_from([TlsPolicy.OFF, TlsPolicy.REQUIRE]),
)
def test_any_split_of_the_input_gives_the_same_output(connect, data, flags, tls):
    client = connect(flags=None, tls=tls)
    options = data.draw(script(client.encode_option, client.encode_go, client.encode_meta))
    if tls is TlsPolicy.REQUIRE:
        # What is glued behind STARTTLS cannot be told from TLS but by the read that brings it.
        options = [option for option in options if option[8:12] != struct.pack(">I", Option.STARTTLS)]
    stream = struct.pack(">I", flags) + b"".join(options)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole = feed(client, [stream])
    assert feed(connect(flags=None, tls=tls), pieces) == whole
    if len(stream) < 2000:
        assert feed(connect(flags=None, tls=tls), [bytes([byte]) for byte in stream]) == whole


@settings(deadline=None)
@given(data=st.data(), tls=st.sampled_from(list(TlsPolicy)))
def test_mutated_negotiation_never_raises_and_ends_in_a_known_state(connect, data, tls):
    client = connect(flags=None, tls=tls)
    options = data.draw(script(client.encode_option, client.encode_go, client.encode_meta))
    stream = bytearray(struct.pack(">I", 3) + b"".join(options))
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(stream) - 1), st.integers(0, 255)), max_size=4)
    ):
        stream[position] = value
    handshake = client.handshake
    for start in range(0, len(stream), 1000):
        events = handshake.receive(stream[start : start + 1000])
        if any(isinstance(event, Begin) for event in events):
            assert handshake.state is State.TRANSMISSION
            return
        if any(isinstance(event, StartTls) for event in events):
            handshake.tls_established()
        assert len(handshake._reader._buffer) <= framing.MAXIMUM_OPTION_BYTES
    assert handshake.state in (State.CLIENT_FLAGS, State.OPTIONS, State.CLOSED)
