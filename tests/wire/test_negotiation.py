"""The handshake byte by byte: what a server must answer, refuse, forget and survive."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import pytest

from . import rawclient as nbd
from .conftest import SIZE, Route
from .harness import Server, eventually

FLAGS = (
    nbd.HAS_FLAGS | nbd.SEND_FLUSH | nbd.SEND_FUA | nbd.SEND_TRIM | nbd.SEND_WRITE_ZEROES
    | nbd.CAN_MULTI_CONN | nbd.SEND_CACHE | nbd.SEND_FAST_ZERO
)  # fmt: skip


@pytest.fixture
def greeted(either: Server):
    with either.connect() as client:
        client.greet()
        yield client


def types(replies: list[nbd.OptionReply]) -> list[int]:
    return [reply.type for reply in replies]


def test_greeting_offers_fixed_newstyle(either: Server) -> None:
    """The greeting says fixed newstyle and no-zeroes, and nothing unknown."""
    with either.connect() as client:
        assert client.greet() == 3


@pytest.mark.parametrize("flags", (1 << 2, 1 << 31, 0xFFFFFFFF))
def test_unknown_client_flags_close(either: Server, flags: int) -> None:
    """Client flags that the server does not know end the connection."""
    with either.connect() as client:
        client.greet(flags)
        assert client.at_end()


@pytest.mark.parametrize("no_zeroes", (False, True))
@pytest.mark.parametrize("name", (b"vram", b""))
def test_export_name(either: Server, no_zeroes: bool, name: bytes) -> None:
    """EXPORT_NAME gives size and flags, then 124 zeroes unless the client said no-zeroes; data follows at once."""
    with either.connect() as client:
        client.greet(3 if no_zeroes else 1)
        # The first request is sent together with the option: a server must not lose it.
        cookie, request = client.encode(nbd.READ, 0, 512)
        client.send(nbd.option_bytes(nbd.EXPORT_NAME, name) + request)
        size, flags = struct.unpack(">QH", client.receive(10))
        assert (size, flags) == (SIZE, FLAGS)
        if not no_zeroes:
            assert client.receive(124) == bytes(124)
        assert client.wait().cookie == cookie


def test_export_name_without_fixed_newstyle(either: Server) -> None:
    """A client that knows only newstyle gets in by EXPORT_NAME."""
    with either.connect() as client:
        client.greet(0)
        client.send(nbd.option_bytes(nbd.EXPORT_NAME, b"vram"))
        assert struct.unpack(">QH", client.receive(10))[0] == SIZE
        assert client.receive(124) == bytes(124)
        assert client.call(nbd.FLUSH).error == 0


@pytest.mark.parametrize("name", (b"other", b"v" * 4096, b"v" * 5000, b"\xff\xfe", b"vram\0"))
def test_unknown_export_name_closes(either: Server, name: bytes) -> None:
    """EXPORT_NAME has no error reply: an unknown or malformed name ends the connection."""
    with either.connect() as client:
        client.greet()
        client.send(nbd.option_bytes(nbd.EXPORT_NAME, name))
        assert client.at_end()


def test_info_equals_go(route: Route) -> None:
    """INFO and GO answer alike, for every information request, and after INFO the client may go on."""
    with route.greeted() as client:
        for structured in (False, True):
            payload = nbd.info_payload("", (0, 1, 2, 3, 77))
            told = client.ask(nbd.INFO, payload)
            again = client.ask(nbd.INFO, payload)
            assert [reply[1:] for reply in told] == [reply[1:] for reply in again]
            if not structured:
                assert client.ask(nbd.STRUCTURED_REPLY)[-1].type == nbd.ACK
                client.structured = True
        went = client.go("", (0, 1, 2, 3, 77))
        assert [reply[1:] for reply in told] == [reply[1:] for reply in went]
        by_kind = {struct.unpack_from(">H", reply.data)[0]: reply.data[2:] for reply in went[:-1]}
        assert by_kind[nbd.INFO_EXPORT] == struct.pack(">QH", SIZE, FLAGS | nbd.SEND_DF)
        assert by_kind[nbd.INFO_NAME] == b"vram"
        assert by_kind[nbd.INFO_BLOCK_SIZE] == struct.pack(">III", 1, 4096, 32 << 20)
        assert nbd.INFO_DESCRIPTION in by_kind and 77 not in by_kind
        assert len(client.read(0, 4096)) == 4096


def test_go_always_tells_export_info(greeted: nbd.RawClient) -> None:
    """GO with no information requests still sends NBD_INFO_EXPORT."""
    replies = greeted.go("vram")
    assert types(replies) == [nbd.REP_INFO, nbd.ACK] and greeted.size == SIZE


def test_go_repeated_requests_count_once(greeted: nbd.RawClient) -> None:
    """Information that is asked for a thousand times is told once."""
    replies = greeted.go("vram", (nbd.INFO_NAME,) * 1000)
    assert types(replies) == [nbd.REP_INFO, nbd.REP_INFO, nbd.ACK]


@pytest.mark.parametrize("code", (nbd.INFO, nbd.GO))
@pytest.mark.parametrize(
    "payload",
    (
        b"",
        b"\0\0\0",
        struct.pack(">I", 4) + b"vram",
        struct.pack(">I", 100) + b"vram\0\0",
        struct.pack(">I", 0xFFFFFFFF) + b"vram\0\0",
        nbd.string("vram") + struct.pack(">HH", 2, 0),
        nbd.string("vram") + struct.pack(">HHH", 1, 0, 0),
        nbd.info_payload("vram") + b"trailing",
    ),
)
def test_malformed_go_is_invalid(greeted: nbd.RawClient, code: int, payload: bytes) -> None:
    """INFO or GO whose lengths do not add up is ERR_INVALID, and the connection goes on."""
    assert types(greeted.ask(code, payload)) == [nbd.ERR_INVALID]
    assert greeted.go("vram")[-1].type == nbd.ACK


@pytest.mark.parametrize("code", (nbd.INFO, nbd.GO))
def test_unknown_export_is_told(greeted: nbd.RawClient, code: int) -> None:
    """INFO or GO for an unknown name, also one of 4096 bytes, is ERR_UNKNOWN; a longer one is refused."""
    assert types(greeted.ask(code, nbd.info_payload("other"))) == [nbd.ERR_UNKNOWN]
    assert types(greeted.ask(code, nbd.info_payload("n" * 4096))) == [nbd.ERR_UNKNOWN]
    assert greeted.ask(code, nbd.info_payload("n" * 4097))[-1].type in (nbd.ERR_INVALID, nbd.ERR_TOO_BIG)
    assert greeted.go("vram")[-1].type == nbd.ACK


def test_list_names_what_is_served(greeted: nbd.RawClient) -> None:
    """LIST names each export as GO wants it; LIST with data is ERR_INVALID."""
    replies = greeted.ask(nbd.LIST)
    assert types(replies) == [nbd.REP_SERVER, nbd.ACK]
    (length,) = struct.unpack_from(">I", replies[0].data)
    name = replies[0].data[4 : 4 + length].decode()
    assert types(greeted.ask(nbd.LIST, b"x")) == [nbd.ERR_INVALID]
    assert greeted.go(name)[-1].type == nbd.ACK


@pytest.mark.parametrize("data", (b"", b"why not", b"x" * 5000))
def test_abort_is_acknowledged(greeted: nbd.RawClient, data: bytes) -> None:
    """ABORT is always acknowledged, then the connection ends."""
    greeted.send(nbd.option_bytes(nbd.ABORT, data))
    assert greeted.option_reply() == nbd.OptionReply(nbd.ABORT, nbd.ACK, b"")
    assert greeted.at_end()


@pytest.mark.parametrize("code", (0, 4, 12, 99, 0xFFFFFFFF))
@pytest.mark.parametrize("size", (0, 10, 65536))
def test_unknown_option_is_unsupported(greeted: nbd.RawClient, code: int, size: int) -> None:
    """An unknown option is ERR_UNSUP, its data is skipped, and the connection goes on."""
    assert types(greeted.ask(code, b"z" * size)) == [nbd.ERR_UNSUP]
    assert greeted.go("vram")[-1].type == nbd.ACK


def test_oversized_option_is_bounded(greeted: nbd.RawClient) -> None:
    """An option of 900 KiB is skipped and refused; one that announces 4 GiB ends the connection or is skipped."""
    assert greeted.ask(nbd.GO, b"g" * 900_000)[-1].type in (nbd.ERR_TOO_BIG, nbd.ERR_INVALID)
    assert types(greeted.ask(nbd.LIST)) == [nbd.REP_SERVER, nbd.ACK]
    greeted.send(nbd.option_bytes(nbd.GO, length=0xFFFFFFFF))
    assert greeted.at_end()


def test_bad_option_magic_closes(greeted: nbd.RawClient) -> None:
    """Bytes that are no option end the connection."""
    greeted.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert greeted.at_end()


def test_options_byte_by_byte(either: Server) -> None:
    """A negotiation that arrives one byte at a time is understood."""
    with either.connect() as client:
        client.receive(18)
        stream = struct.pack(">I", 3) + nbd.option_bytes(nbd.STRUCTURED_REPLY)
        for byte in stream + nbd.option_bytes(nbd.GO, nbd.info_payload("vram")):
            client.send(bytes([byte]))
        assert types(client.replies(nbd.STRUCTURED_REPLY)) == [nbd.ACK]
        assert types(client.replies(nbd.GO)) == [nbd.REP_INFO, nbd.ACK]


def test_options_in_one_piece(either: Server) -> None:
    """Client flags, options and the first requests in a single segment are all answered in order."""
    with either.connect() as client:
        client.structured = True
        cookie, request = client.encode(nbd.WRITE, 1000, payload=b"glued to the negotiation")
        second, read = client.encode(nbd.READ, 1000, 24)
        client.send(
            struct.pack(">I", 3) + nbd.option_bytes(nbd.STRUCTURED_REPLY)
            + nbd.option_bytes(nbd.GO, nbd.info_payload("vram")) + request
        )  # fmt: skip
        client.receive(18)
        assert types(client.replies(nbd.STRUCTURED_REPLY)) == [nbd.ACK]
        assert types(client.replies(nbd.GO)) == [nbd.REP_INFO, nbd.ACK]
        assert client.wait().cookie == cookie
        client.send(read)
        reply = client.wait()
        assert reply.cookie == second and reply.data == b"glued to the negotiation"


def test_structured_reply_with_data_is_invalid(greeted: nbd.RawClient) -> None:
    """STRUCTURED_REPLY and EXTENDED_HEADERS take no data; the refusal changes nothing."""
    for code in (nbd.STRUCTURED_REPLY, nbd.EXTENDED_HEADERS):
        assert types(greeted.ask(code, b"x")) == [nbd.ERR_INVALID]
    greeted.negotiate("vram")
    assert greeted.call(nbd.READ, 0, 512).simple


def test_extended_headers_imply_structured_replies(greeted: nbd.RawClient) -> None:
    """After EXTENDED_HEADERS a STRUCTURED_REPLY is ERR_EXT_HEADER_REQD, and contexts can be set."""
    assert types(greeted.ask(nbd.EXTENDED_HEADERS)) == [nbd.ACK]
    assert types(greeted.ask(nbd.STRUCTURED_REPLY)) == [nbd.ERR_EXT_HEADER_REQD]
    greeted.extended = True
    greeted.negotiate("vram", contexts=("base:allocation",))
    assert greeted.flags & nbd.SEND_DF
    assert greeted.call(nbd.BLOCK_STATUS, 0, SIZE).error == 0


def test_extended_headers_after_structured_replies(greeted: nbd.RawClient) -> None:
    """EXTENDED_HEADERS after STRUCTURED_REPLY is accepted and replaces it."""
    assert types(greeted.ask(nbd.STRUCTURED_REPLY)) == [nbd.ACK]
    greeted.negotiate("vram", extended=True)
    assert len(greeted.read(1, 1001)) == 1001


def test_df_is_offered_only_with_structured_replies(either: Server) -> None:
    """SEND_DF appears in the export's flags only once structured replies are negotiated."""
    with either.client("vram") as simple, either.client("vram", structured=True) as structured:
        assert simple.flags == FLAGS
        assert structured.flags == FLAGS | nbd.SEND_DF


@pytest.mark.parametrize("code", (nbd.LIST_META_CONTEXT, nbd.SET_META_CONTEXT))
def test_contexts_need_structured_replies(greeted: nbd.RawClient, code: int) -> None:
    """Without structured replies the meta context options are ERR_INVALID."""
    assert types(greeted.ask(code, nbd.context_payload("vram", "base:allocation"))) == [nbd.ERR_INVALID]


def test_list_meta_context(greeted: nbd.RawClient) -> None:
    """LIST_META_CONTEXT finds base:allocation by no query, its namespace and its name, else nothing."""
    greeted.ask(nbd.STRUCTURED_REPLY)
    for queries, found in (
        ((), True),
        (("base:",), True),
        (("base:allocation",), True),
        (("qemu:", "base:allocation"), True),
        (("qemu:dirty-bitmap:x",), False),
        (("base:other",), False),
        (("",), False),
        (("base:allocation:more",), False),
    ):
        replies = greeted.ask(nbd.LIST_META_CONTEXT, nbd.context_payload("vram", *queries))
        assert [reply.data[4:] for reply in replies[:-1]] == [b"base:allocation"] * found, queries
        assert replies[-1].type == nbd.ACK


@pytest.mark.parametrize("code", (nbd.LIST_META_CONTEXT, nbd.SET_META_CONTEXT))
@pytest.mark.parametrize(
    "payload",
    (
        b"",
        nbd.string("vram"),
        nbd.string("vram") + struct.pack(">I", 1),
        nbd.string("vram") + struct.pack(">I", 0xFFFFFFFF) + nbd.string("base:"),
        nbd.string("vram") + struct.pack(">I", 0) + b"more",
        nbd.string("vram") + struct.pack(">II", 1, 0xFFFFFFF0) + b"base:",
    ),
)
def test_malformed_meta_context_is_invalid(greeted: nbd.RawClient, code: int, payload: bytes) -> None:
    """A meta context option whose lengths do not add up is ERR_INVALID."""
    greeted.ask(nbd.STRUCTURED_REPLY)
    assert types(greeted.ask(code, payload)) == [nbd.ERR_INVALID]
    assert greeted.go("vram")[-1].type == nbd.ACK


def test_contexts_of_an_unknown_export(greeted: nbd.RawClient) -> None:
    """Meta contexts of an export that does not exist are ERR_UNKNOWN."""
    greeted.ask(nbd.STRUCTURED_REPLY)
    for code in (nbd.LIST_META_CONTEXT, nbd.SET_META_CONTEXT):
        assert types(greeted.ask(code, nbd.context_payload("other", "base:allocation"))) == [nbd.ERR_UNKNOWN]


@pytest.mark.parametrize(
    "second",
    (
        nbd.context_payload("vram"),
        nbd.context_payload("vram", "other:context"),
        nbd.context_payload("vram", "base:"),
        nbd.context_payload("other", "base:allocation"),
        b"malformed",
    ),
)
def test_new_set_forgets_old_contexts(greeted: nbd.RawClient, second: bytes) -> None:
    """Contexts die with each new SET_META_CONTEXT, also one that selects nothing or fails."""
    greeted.ask(nbd.STRUCTURED_REPLY)
    greeted.structured = True
    assert greeted.ask(nbd.SET_META_CONTEXT, nbd.context_payload("vram", "base:allocation"))[0].type == nbd.REP_META_CONTEXT
    greeted.ask(nbd.SET_META_CONTEXT, second)
    assert greeted.go("vram")[-1].type == nbd.ACK
    assert greeted.call(nbd.BLOCK_STATUS, 0, 4096).error == nbd.EINVAL


def test_context_survives_info_and_list(greeted: nbd.RawClient) -> None:
    """LIST_META_CONTEXT and INFO in between change no selected context."""
    greeted.ask(nbd.STRUCTURED_REPLY)
    greeted.structured = True
    selected = greeted.ask(nbd.SET_META_CONTEXT, nbd.context_payload("vram", "base:allocation"))
    greeted.ask(nbd.LIST_META_CONTEXT, nbd.context_payload("vram"))
    greeted.ask(nbd.INFO, nbd.info_payload("vram"))
    greeted.go("vram")
    reply = greeted.call(nbd.BLOCK_STATUS, 0, 4096)
    assert reply.context == struct.unpack(">I", selected[0].data[:4])[0]


FAILED = "vramblk_negotiations_failed_total"


def ended(server: Server, *options: tuple[int, bytes]) -> tuple[int, list[tuple[str, str]]]:
    """What a client that gives up after these options leaves: failures counted, and events with their reasons."""
    before, logged = server.metrics()[FAILED], len(server.events)
    with server.connect() as client:
        client.greet()
        for code, data in options:
            client.ask(code, data)
    eventually(lambda: server.metrics()["vramblk_connections"] == 0)
    counted = server.metrics()[FAILED] - before
    if counted:
        eventually(lambda: any("negotiation" in event["event"] for event in server.events[logged:]))
    events = server.events[logged:]
    assert all(event["client"].startswith("unix:pid=") for event in events)
    return int(counted), [(event["event"], event["reason"]) for event in events]


WRONG = (nbd.GO, nbd.info_payload("wrong"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([WRONG, (nbd.ABORT, b"")], "GO: no export of this name: 'wrong'"),
        ([(nbd.STRUCTURED_REPLY, b""), WRONG], "GO: no export of this name: 'wrong'"),
        ([(nbd.STARTTLS, b""), (nbd.ABORT, b"")], "STARTTLS: TLS is switched off"),
        ([(nbd.GO, nbd.info_payload("x" * 3000 + "\n"))], f"GO: no export of this name: '{'x' * 64}'"),
    ],
    ids=["aborts", "goes away", "wants TLS", "long name"],
)
def test_a_client_that_is_refused_and_gives_up_leaves_a_trace(
    start: Callable[..., Server], options: list[tuple[int, bytes]], reason: str
) -> None:
    """A warning with client and reason, counted as a failed negotiation; clients like nbdinfo ABORT in order."""
    assert ended(start(), *options) == (1, [("negotiation_refused", reason)])


def test_a_client_that_gets_what_it_came_for_leaves_none(start: Callable[..., Server]) -> None:
    """It only looked, or it went on without what was refused."""
    server = start()
    for options in (
        [(nbd.LIST, b""), (nbd.ABORT, b"")],
        [],
        [(nbd.STARTTLS, b""), (nbd.LIST, b""), (nbd.ABORT, b"")],
        [(nbd.STARTTLS, b""), (nbd.INFO, nbd.info_payload("vram"))],
    ):
        assert ended(server, *options) == (0, [])


@pytest.mark.parametrize("transport", ("unix", "tcp"))
def test_a_probe_that_only_connects_leaves_none(start: Callable[..., Server], transport: str) -> None:
    """As `vramblk check` beside a running server, a port scanner, or a health check of a balancer."""
    server = start(tcp=True)
    for _ in range(50):
        probe = server.connect(transport)
        if transport == "tcp":  # closed by a reset
            probe.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        probe.close()
    with server.client(transport=transport):
        pass  # taken after the others
    eventually(lambda: server.metrics()["vramblk_connections"] == 0)
    assert server.metrics()[FAILED] == 0
    assert server.find_event("negotiation_failed") is None


def test_a_crowd_of_refused_clients_does_not_fill_the_log(start: Callable[..., Server]) -> None:
    server = start()
    for _ in range(60):
        with server.connect() as client:
            client.greet()
            client.ask(*WRONG)
    eventually(lambda: server.metrics()[FAILED] == 60)
    assert sum(event["event"] == "negotiation_refused" for event in server.events) < 30
