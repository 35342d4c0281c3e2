"""Needs nothing. What an honest client is promised by negotiation, compared byte by byte."""

from __future__ import annotations

import itertools
import struct

import pytest

from vramblk.nbd.constants import InfoType, Option, OptionReply, TransmissionFlag
from vramblk.nbd.handshake import (
    Begin,
    Close,
    ExportInfo,
    Handshake,
    Send,
    State,
    TlsPolicy,
    transmission_flags,
)

ACK = OptionReply.ACK
INVALID = OptionReply.ERR_INVALID
UNKNOWN = OptionReply.ERR_UNKNOWN

READ_WRITE = (1 << 0) | (1 << 2) | (1 << 3) | (1 << 5) | (1 << 6) | (1 << 8) | (1 << 10) | (1 << 11)
READ_ONLY = (1 << 0) | (1 << 1) | (1 << 2) | (1 << 3) | (1 << 8) | (1 << 10)
DF = 1 << 7


def negotiate(client, chunks):
    if chunks is not None:
        client.accept(chunks)


def test_greeting_is_fixed_newstyle_with_no_zeroes(connect):
    assert connect(flags=None).greeting == b"NBDMAGIC" + b"IHAVEOPT" + b"\x00\x03"


class TestExportName:
    @pytest.mark.parametrize(("flags", "zeroes"), [(0, 124), (1, 124), (2, 0), (3, 0)])
    def test_zeroes_follow_unless_the_client_waived_them(self, connect, flags, zeroes):
        sent, begin = connect(flags=flags).option(Option.EXPORT_NAME, b"vram")
        assert sent.data == struct.pack(">QH", 1 << 30, READ_WRITE) + bytes(zeroes)
        assert begin == Begin(0, structured=False, extended=False, base_allocation=None, leftover=b"")

    def test_empty_name_is_the_first_export(self, connect):
        assert connect().option(Option.EXPORT_NAME)[1].export == 0

    def test_name_is_utf8(self, connect):
        assert connect().option(Option.EXPORT_NAME, "zweite-äöü".encode())[1].export == 1

    @pytest.mark.parametrize(
        "name", [b"nope", b"VRAM", b"vram\0", b"\xff", b"x" * 4096, b"x" * 4097, b"x" * 70000]
    )
    def test_unknown_or_bad_name_ends_the_session_without_a_reply(self, connect, name):
        events = connect().option(Option.EXPORT_NAME, name)
        assert [type(event) for event in events] == [Close]
        assert events[0].reason.startswith("EXPORT_NAME: ")

    def test_read_only(self, connect):
        sent, begin = connect().option(Option.EXPORT_NAME, b"frozen")
        assert sent.data == struct.pack(">QH", 4096, READ_ONLY)
        assert begin.export == 2

    def test_structured_replies_and_contexts_hold_for_it_too(self, connect):
        client = connect()
        client.accept(Option.STRUCTURED_REPLY)
        client.accept(Option.SET_META_CONTEXT, client.encode_meta("vram", "base:allocation"))
        sent, begin = client.option(Option.EXPORT_NAME, b"vram")
        assert sent.data == struct.pack(">QH", 1 << 30, READ_WRITE | DF)
        assert (begin.structured, begin.base_allocation) == (True, 1)

    def test_it_is_refused_once_extended_headers_are_negotiated(self, connect):
        client = connect()
        client.accept(Option.EXTENDED_HEADERS)
        assert [type(event) for event in client.option(Option.EXPORT_NAME, b"vram")] == [Close]


class TestInfoAndGo:
    def test_only_what_was_asked_for_comes_besides_export(self, connect):
        client = connect()
        export = struct.pack(">HQH", 0, 1 << 30, READ_WRITE)
        name = b"\0\1vram"
        description = b"\0\2GPU memory"
        block_size = struct.pack(">HIII", 3, 1, 4096, 32 << 20)
        for requests, expected in [
            ((), [export]),
            ((InfoType.EXPORT,), [export]),
            ((InfoType.NAME,), [export, name]),
            ((InfoType.DESCRIPTION,), [export, description]),
            ((InfoType.BLOCK_SIZE,), [export, block_size]),
            ((3, 2, 1, 0), [export, name, description, block_size]),
            ((3, 3, 3), [export, block_size]),
            ((4, 99, 65535), [export]),
        ]:
            replies = client.ask(Option.INFO, client.encode_go("vram", *requests))
            assert [reply.data for reply in replies] == [*expected, b""]
            assert [reply.kind for reply in replies] == [OptionReply.INFO] * len(expected) + [ACK]

    @pytest.mark.parametrize("chunks", [None, Option.STRUCTURED_REPLY, Option.EXTENDED_HEADERS])
    @pytest.mark.parametrize("name", ["", "vram", "zweite-äöü", "frozen"])
    def test_info_equals_go(self, connect, name, chunks):
        for count in range(5):
            for requests in itertools.combinations((0, 1, 2, 3, 7), count):
                client = connect()
                negotiate(client, chunks)
                info = client.ask(Option.INFO, client.encode_go(name, *requests))
                sent, begin = client.option(Option.GO, client.encode_go(name, *requests))
                go = client.decode_replies(sent.data)
                assert {reply.option for reply in go} == {Option.GO}
                assert [reply[1:] for reply in go] == [reply[1:] for reply in info]
                assert isinstance(begin, Begin)

    def test_go_sends_no_zeroes_to_a_client_that_did_not_waive_them(self, connect):
        client = connect(flags=1)
        sent, _ = client.option(Option.GO, client.encode_go("vram"))
        assert client.decode_replies(sent.data)[-1] == (Option.GO, ACK, b"")

    def test_empty_name_is_the_first_export_and_is_told_its_name(self, connect):
        client = connect()
        assert client.ask(Option.INFO, client.encode_go("", InfoType.NAME))[1].data == b"\0\1vram"

    @pytest.mark.parametrize("option", [Option.INFO, Option.GO])
    def test_unknown_export_is_an_error_and_negotiation_goes_on(self, connect, option):
        client = connect()
        for name in ("nope", "x" * 4096, "ä" * 2048):
            assert client.kinds(option, client.encode_go(name)) == [UNKNOWN]
        assert isinstance(client.option(Option.GO, client.encode_go("vram"))[1], Begin)

    @pytest.mark.parametrize(
        ("chunks", "structured", "extended", "flags"),
        [
            (None, False, False, READ_WRITE),
            (Option.STRUCTURED_REPLY, True, False, READ_WRITE | DF),
            (Option.EXTENDED_HEADERS, True, True, READ_WRITE | DF),
        ],
    )
    def test_df_is_offered_with_reply_chunks_only(self, connect, chunks, structured, extended, flags):
        client = connect()
        negotiate(client, chunks)
        sent, begin = client.option(Option.GO, client.encode_go("vram"))
        assert client.decode_replies(sent.data)[0].data == struct.pack(">HQH", 0, 1 << 30, flags)
        assert (begin.structured, begin.extended) == (structured, extended)

    @pytest.mark.parametrize("flags", [1, 3])
    def test_what_came_behind_go_is_the_start_of_transmission(self, connect, flags):
        client = connect(flags=flags)
        request = bytes(range(28))
        events = client.handshake.receive(client.encode_option(Option.GO, client.encode_go("vram")) + request)
        assert events[-1].leftover == request

    def test_flags_may_be_given(self):
        flags = TransmissionFlag.HAS_FLAGS | TransmissionFlag.ROTATIONAL | TransmissionFlag.SEND_DF
        handshake = Handshake([ExportInfo("a", "", 512, False)], TlsPolicy.OFF, [flags])
        handshake.greeting()
        sent, _ = handshake.receive(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 0))
        assert sent.data == struct.pack(">QH", 512, 0b10001)


def test_write_commands_are_offered_on_writable_exports_only():
    """SEND_FAST_ZERO without SEND_WRITE_ZEROES is forbidden, BLOCK_STAT_PAYLOAD and RESIZE unsupported."""
    assert transmission_flags(ExportInfo("a", "", 1, read_only=False)) == READ_WRITE | DF
    assert transmission_flags(ExportInfo("a", "", 1, read_only=True)) == READ_ONLY | DF


class TestList:
    def test_every_export_with_its_description_in_order(self, connect):
        replies = connect().ask(Option.LIST)
        assert [reply.kind for reply in replies] == [OptionReply.SERVER] * 3 + [ACK]
        assert replies[0].data == b"\0\0\0\4vramGPU memory"
        assert replies[1].data == b"\0\0\0\x0d" + "zweite-äöü".encode()
        assert replies[2].data == b"\0\0\0\6frozenread-only"
        assert replies[3].data == b""

    def test_data_is_invalid(self, connect):
        client = connect()
        assert client.kinds(Option.LIST, b"x") == [INVALID]
        assert client.kinds(Option.LIST)[-1] == ACK


class TestAbort:
    @pytest.mark.parametrize("flags", [0, 1, 2, 3])
    @pytest.mark.parametrize("tls", TlsPolicy)
    @pytest.mark.parametrize("data", [b"", b"bye", bytes(1 << 16), bytes(70000)])
    def test_it_is_always_acknowledged(self, connect, tls, data, flags):
        client = connect(tls=tls, flags=flags)
        sent, close = client.option(Option.ABORT, data)
        assert client.decode_replies(sent.data) == [(Option.ABORT, ACK, b"")]
        assert isinstance(close, Close)

    def test_even_with_more_data_than_is_ever_read(self, connect):
        client = connect()
        sent, close = client.handshake.receive(client.encode_option(Option.ABORT, b"", length=0xFFFFFFFF))
        assert client.decode_replies(sent.data) == [(Option.ABORT, ACK, b"")]
        assert isinstance(close, Close)

    def test_nothing_behind_it_is_executed(self, connect):
        client = connect()
        events = client.handshake.receive(
            client.encode_option(Option.ABORT) + client.encode_option(Option.LIST)
        )
        assert [type(event) for event in events] == [Send, Close]
        assert client.option(Option.LIST) == []
        assert client.handshake.state is State.CLOSED


class TestReplyChunks:
    @pytest.mark.parametrize("option", [Option.STRUCTURED_REPLY, Option.EXTENDED_HEADERS])
    def test_data_is_invalid_and_negotiates_nothing(self, connect, option):
        client = connect()
        assert client.kinds(option, b"x") == [INVALID]
        begin = client.option(Option.GO, client.encode_go("vram"))[1]
        assert (begin.structured, begin.extended) == (False, False)

    def test_asking_again_changes_nothing(self, connect):
        client = connect()
        for option in (Option.STRUCTURED_REPLY, Option.EXTENDED_HEADERS):
            assert client.kinds(option) == [ACK]
            assert client.kinds(option) == [ACK]

    def test_extended_headers_cannot_be_taken_back_to_structured_replies(self, connect):
        client = connect()
        client.accept(Option.EXTENDED_HEADERS)
        assert client.kinds(Option.STRUCTURED_REPLY) == [OptionReply.ERR_EXT_HEADER_REQD]
        assert client.option(Option.GO, client.encode_go("vram"))[1].extended


class TestMetaContext:
    LISTED = (OptionReply.META_CONTEXT, b"\0\0\0\0base:allocation")
    SELECTED = (OptionReply.META_CONTEXT, b"\0\0\0\1base:allocation")

    @pytest.mark.parametrize("option", [Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
    def test_reply_chunks_come_first(self, connect, option):
        client = connect()
        assert client.kinds(option, client.encode_meta("vram", "base:allocation")) == [INVALID]
        client.accept(Option.STRUCTURED_REPLY)
        assert client.kinds(option, client.encode_meta("vram", "base:allocation"))[-1] == ACK

    @pytest.mark.parametrize("chunks", [Option.STRUCTURED_REPLY, Option.EXTENDED_HEADERS])
    @pytest.mark.parametrize(
        ("queries", "listed", "selected"),
        [
            ((), True, False),
            (("base:",), True, False),
            (("base:allocation",), True, True),
            (("base:allocation", "base:allocation"), True, True),
            (("qemu:dirty-bitmap:x", "base:allocation"), True, True),
            (("base:nope",), False, False),
            (("base",), False, False),
            (("",), False, False),
            (("allocation",), False, False),
            (("base:allocation ",), False, False),
            (("x-" + "y" * 4094,), False, False),
        ],
    )
    def test_queries(self, connect, chunks, queries, listed, selected):
        client = connect()
        client.accept(chunks)
        data = client.encode_meta("vram", *queries)
        replies = client.ask(Option.LIST_META_CONTEXT, data)
        assert [reply[1:] for reply in replies] == [self.LISTED] * listed + [(ACK, b"")]
        replies = client.ask(Option.SET_META_CONTEXT, data)
        assert [reply[1:] for reply in replies] == [self.SELECTED] * selected + [(ACK, b"")]
        begin = client.option(Option.GO, client.encode_go("vram"))[1]
        assert begin.base_allocation == (1 if selected else None)

    @pytest.mark.parametrize("option", [Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
    def test_unknown_export(self, connect, option):
        client = connect()
        client.accept(Option.STRUCTURED_REPLY)
        assert client.kinds(option, client.encode_meta("nope", "base:allocation")) == [UNKNOWN]

    def begin_after(self, client, *sets, go="vram", between=()):
        client.accept(Option.STRUCTURED_REPLY)
        for data in sets:
            client.option(Option.SET_META_CONTEXT, data)
        for option, data in between:
            client.option(option, data)
        return client.option(Option.GO, client.encode_go(go))[1]

    def test_a_context_selected_for_another_export_does_not_count(self, connect):
        client = connect()
        data = client.encode_meta("frozen", "base:allocation")
        assert self.begin_after(client, data).base_allocation is None

    @pytest.mark.parametrize(("selected", "chosen"), [("", "vram"), ("vram", ""), ("", "")])
    def test_the_empty_name_and_its_export_are_the_same(self, connect, selected, chosen):
        client = connect()
        data = client.encode_meta(selected, "base:allocation")
        assert self.begin_after(client, data, go=chosen).base_allocation == 1

    def test_a_later_set_replaces_the_selection_even_if_it_fails(self, connect):
        first = connect().encode_meta("vram", "base:allocation")
        for second in (
            connect().encode_meta("vram"),
            connect().encode_meta("vram", "base:"),
            connect().encode_meta("nope", "base:allocation"),
            connect().encode_meta("frozen", "base:allocation"),
            b"",
            b"\xff" * 12,
            bytes(70000),
        ):
            assert self.begin_after(connect(), first, second).base_allocation is None
            assert self.begin_after(connect(), second, first).base_allocation == 1

    def test_list_info_and_a_failed_go_keep_the_selection(self, connect):
        client = connect()
        between = [
            (Option.LIST_META_CONTEXT, client.encode_meta("vram")),
            (Option.INFO, client.encode_go("frozen")),
            (Option.GO, client.encode_go("nope")),
            (Option.EXTENDED_HEADERS, b""),
        ]
        data = client.encode_meta("vram", "base:allocation")
        assert self.begin_after(client, data, between=between).base_allocation == 1


class TestShutdown:
    def test_before_the_greeting_it_closes(self):
        handshake = Handshake([ExportInfo("a", "", 1, False)], TlsPolicy.OFF)
        assert [type(event) for event in handshake.shutdown()] == [Close]

    @pytest.mark.parametrize("cut", [0, 5, 16, 18])
    def test_the_option_in_progress_or_the_next_is_refused(self, connect, cut):
        client = connect()
        message = client.encode_option(Option.GO, client.encode_go("vram"))
        assert client.handshake.receive(message[:cut]) == []
        assert client.handshake.shutdown() == []
        sent, close = client.handshake.receive(message[cut:])
        assert [reply.kind for reply in client.decode_replies(sent.data)] == [OptionReply.ERR_SHUTDOWN]
        assert isinstance(close, Close)

    def test_a_client_that_has_not_answered_the_greeting_is_refused_too(self, connect):
        client = connect(flags=None)
        assert client.handshake.shutdown() == []
        sent, close = client.handshake.receive(b"\0\0\0\3" + client.encode_option(Option.LIST))
        assert client.decode_replies(sent.data)[0].kind == OptionReply.ERR_SHUTDOWN
        assert isinstance(close, Close)

    def test_abort_is_still_acknowledged(self, connect):
        client = connect()
        client.handshake.shutdown()
        sent, _ = client.option(Option.ABORT)
        assert client.decode_replies(sent.data)[0].kind == ACK

    def test_export_name_cannot_be_refused_and_closes(self, connect):
        client = connect()
        client.handshake.shutdown()
        assert [type(event) for event in client.option(Option.EXPORT_NAME, b"vram")] == [Close]

    def test_after_the_end_it_has_nothing_to_say(self, connect):
        client = connect()
        client.option(Option.ABORT)
        assert client.handshake.shutdown() == []
        client = connect()
        client.option(Option.GO, client.encode_go("vram"))
        assert client.handshake.shutdown() == []


class TestContract:
    def test_bytes_after_begin_belong_to_transmission(self, connect):
        client = connect()
        client.option(Option.GO, client.encode_go("vram"))
        with pytest.raises(RuntimeError, match="TRANSMISSION"):
            client.handshake.receive(b"x")

    def test_methods_out_of_place_raise(self, connect):
        client = connect()
        with pytest.raises(RuntimeError, match="GREETED"):
            client.handshake.greeting()
        with pytest.raises(RuntimeError, match="TLS_ESTABLISHED"):
            client.handshake.tls_established()

    def test_an_export_is_needed(self):
        with pytest.raises(ValueError, match="at least one export"):
            Handshake([], TlsPolicy.OFF)

    def test_a_refusal_says_why_for_the_log(self, connect):
        (sent,) = connect().option(Option.GO, connect().encode_go("nope"))
        assert sent.refusal == "GO: no export of this name: 'nope'"
        (sent,) = connect().option(Option.LIST)
        assert sent.refusal == ""
