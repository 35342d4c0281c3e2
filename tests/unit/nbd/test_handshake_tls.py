"""Needs nothing. NOTLS, SELECTIVETLS and FORCEDTLS as the specification's section on TLS has them."""

from __future__ import annotations

import pytest

from vramblk.nbd.constants import Option, OptionReply
from vramblk.nbd.handshake import Begin, Close, Send, StartTls, State, TlsPolicy

EVERY_OTHER_OPTION = [
    Option.LIST,
    Option.PEEK_EXPORT,
    Option.INFO,
    Option.GO,
    Option.STRUCTURED_REPLY,
    Option.LIST_META_CONTEXT,
    Option.SET_META_CONTEXT,
    Option.EXTENDED_HEADERS,
    99,
    0xFFFFFFFF,
]


def test_off_refuses_by_policy_and_goes_on_in_the_clear(connect):
    client = connect(tls=TlsPolicy.OFF)
    assert client.kinds(Option.STARTTLS) == [OptionReply.ERR_POLICY]
    assert isinstance(client.option(Option.GO, client.encode_go("vram"))[1], Begin)


@pytest.mark.parametrize("tls", [TlsPolicy.ON, TlsPolicy.REQUIRE])
def test_starttls_is_acknowledged_in_the_clear_and_then_only_tls(connect, tls):
    client = connect(tls=tls)
    sent, start = client.option(Option.STARTTLS)
    assert client.decode_replies(sent.data) == [(Option.STARTTLS, OptionReply.ACK, b"")]
    assert start == StartTls()
    assert client.handshake.state is State.TLS_HANDSHAKE
    client.handshake.tls_established()
    assert isinstance(client.option(Option.GO, client.encode_go("vram"))[1], Begin)


@pytest.mark.parametrize("tls", [TlsPolicy.ON, TlsPolicy.REQUIRE])
def test_a_second_starttls_is_invalid(connect, tls):
    client = connect(tls=tls)
    client.start_tls()
    assert client.kinds(Option.STARTTLS) == [OptionReply.ERR_INVALID]
    client.accept(Option.LIST)


@pytest.mark.parametrize("tls", TlsPolicy)
@pytest.mark.parametrize("data", [b"x", bytes(70000)])
def test_starttls_with_data_is_invalid(connect, tls, data):
    client = connect(tls=tls)
    assert client.kinds(Option.STARTTLS, data) == [OptionReply.ERR_INVALID]


class TestInjection:
    """Bytes glued behind STARTTLS were sent in the clear and must never be executed."""

    @pytest.mark.parametrize("tls", [TlsPolicy.ON, TlsPolicy.REQUIRE])
    @pytest.mark.parametrize("cut", ["same read", "next read"])
    def test_they_end_the_connection(self, connect, tls, cut):
        client = connect(tls=tls)
        glued = client.encode_option(Option.STRUCTURED_REPLY)
        starttls = client.encode_option(Option.STARTTLS)
        if cut == "same read":
            events = client.handshake.receive(starttls + glued)
        else:
            client.handshake.receive(starttls)
            events = client.handshake.receive(glued)
        assert [type(event) for event in events] == [Close]
        assert "in the clear" in events[0].reason
        assert client.handshake.receive(glued) == []
        with pytest.raises(RuntimeError):
            client.handshake.tls_established()

    @pytest.mark.parametrize("count", range(1, 17))
    def test_even_a_part_of_an_option(self, connect, count):
        client = connect(tls=TlsPolicy.ON)
        data = client.encode_option(Option.STARTTLS) + client.encode_option(Option.LIST)[:count]
        assert [type(event) for event in client.handshake.receive(data)] == [Close]


def test_starttls_forgets_all_that_was_negotiated(connect):
    client = connect(tls=TlsPolicy.ON)
    client.accept(Option.STRUCTURED_REPLY)
    client.accept(Option.SET_META_CONTEXT, client.encode_meta("vram", "base:allocation"))
    client.accept(Option.EXTENDED_HEADERS)
    client.start_tls()
    assert client.kinds(Option.SET_META_CONTEXT, client.encode_meta("vram")) == [OptionReply.ERR_INVALID]
    info = client.ask(Option.INFO, client.encode_go("vram"))
    assert not int.from_bytes(info[0].data[-2:], "big") & (1 << 7)
    _, begin = client.option(Option.GO, client.encode_go("vram"))
    assert begin == Begin(0, structured=False, extended=False, base_allocation=None, leftover=b"")


def test_a_refused_starttls_forgets_nothing(connect):
    client = connect(tls=TlsPolicy.OFF)
    client.accept(Option.EXTENDED_HEADERS)
    assert client.kinds(Option.STARTTLS) == [OptionReply.ERR_POLICY]
    assert client.option(Option.GO, client.encode_go("vram"))[1].extended


def test_no_zeroes_is_a_matter_of_the_greeting_and_outlives_starttls(connect):
    client = connect(tls=TlsPolicy.ON, flags=3)
    client.start_tls()
    assert len(client.option(Option.EXPORT_NAME, b"vram")[0].data) == 10


class TestRequire:
    @pytest.mark.parametrize("option", EVERY_OTHER_OPTION)
    @pytest.mark.parametrize("data", [b"", b"\0\0\0\4vram\0\0", bytes(70000)])
    def test_every_other_option_needs_tls_first(self, connect, option, data):
        client = connect(tls=TlsPolicy.REQUIRE)
        assert client.kinds(option, data) == [OptionReply.ERR_TLS_REQD]
        client.start_tls()
        assert OptionReply.ERR_TLS_REQD not in client.kinds(
            option if option != Option.GO else Option.INFO, data
        )

    def test_export_name_cannot_be_refused_and_closes(self, connect):
        client = connect(tls=TlsPolicy.REQUIRE)
        assert [type(event) for event in client.option(Option.EXPORT_NAME, b"vram")] == [Close]

    def test_export_name_works_over_tls(self, connect):
        client = connect(tls=TlsPolicy.REQUIRE)
        client.start_tls()
        assert isinstance(client.option(Option.EXPORT_NAME, b"vram")[1], Begin)

    def test_a_client_without_fixed_newstyle_gets_nowhere(self, connect):
        for option in (Option.EXPORT_NAME, Option.STARTTLS, Option.LIST):
            client = connect(tls=TlsPolicy.REQUIRE, flags=0)
            assert [type(event) for event in client.option(option)] == [Close]


@pytest.mark.parametrize("tls", [TlsPolicy.OFF, TlsPolicy.ON])
@pytest.mark.parametrize("option", EVERY_OTHER_OPTION)
def test_where_plaintext_is_served_no_option_asks_for_tls(connect, tls, option):
    client = connect(tls=tls)
    events = client.option(option, b"\0\0\0\4nope\0\0")
    kinds = [
        reply.kind
        for event in events
        if isinstance(event, Send)
        for reply in client.decode_replies(event.data)
    ]
    assert OptionReply.ERR_TLS_REQD not in kinds


def test_shutdown_during_the_tls_handshake_closes(connect):
    client = connect(tls=TlsPolicy.ON)
    client.option(Option.STARTTLS)
    assert [type(event) for event in client.handshake.shutdown()] == [Close]
