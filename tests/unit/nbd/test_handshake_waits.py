"""Needs nothing. An option whose admission is not known yet waits, and what was sent behind it too."""

from __future__ import annotations

import pytest

from tests.unit.nbd.conftest import EXPORTS, decode_replies, encode_go, encode_option
from vramblk.nbd.constants import Option, OptionReply
from vramblk.nbd.handshake import Begin, Close, Handshake, Send, State, TlsPolicy


class Asked:
    """A handshake behind its client flags, whose ``answers`` are given one by one."""

    def __init__(self, *answers: str | None) -> None:
        self.answers = list(answers)
        self.exports: list[int] = []
        self.handshake = Handshake(EXPORTS, TlsPolicy.OFF, admit=self._admit)
        self.handshake.greeting()
        assert self.handshake.receive(b"\0\0\0\3") == []

    def _admit(self, export: int) -> str | None:
        self.exports.append(export)
        return self.answers.pop(0)

    def send(self, code: int, data: bytes = b"", behind: bytes = b"") -> list:
        return self.handshake.receive(encode_option(code, data) + behind)


@pytest.mark.parametrize(("code", "data"), [(Option.GO, encode_go("vram")), (Option.EXPORT_NAME, b"vram")])
def test_the_answer_is_the_same_as_without_waiting(code: int, data: bytes) -> None:
    asked, direct = Asked(None, None, ""), Asked("")
    assert asked.send(code, data, b"requests") == []
    assert asked.handshake.waiting and asked.handshake.state is State.OPTIONS
    assert asked.handshake.resume() == [] and asked.handshake.waiting
    assert asked.handshake.resume() == direct.send(code, data, b"requests")
    assert not asked.handshake.waiting and asked.exports == [0, 0, 0]
    with pytest.raises(RuntimeError):
        asked.handshake.resume()


def test_a_refusal_leaves_the_client_the_choice() -> None:
    """What was sent behind the option is judged after it."""
    asked = Asked(None, "not enough", "")
    assert asked.send(Option.GO, encode_go("vram"), encode_option(Option.GO, encode_go("frozen"))) == []
    refusal, accepted, begin = asked.handshake.resume()
    assert isinstance(refusal, Send) and refusal.refusal == "GO: not enough"
    (reply,) = decode_replies(refusal.data)
    assert (reply.kind, reply.data) == (OptionReply.ERR_POLICY, b"not enough")
    assert isinstance(accepted, Send) and isinstance(begin, Begin) and begin.export == 2
    assert asked.exports == [0, 0, 2]


def test_export_name_that_is_refused_ends_the_session() -> None:
    asked = Asked(None, "not enough")
    assert asked.send(Option.EXPORT_NAME, b"vram") == []
    assert asked.handshake.resume() == [Close("EXPORT_NAME: not enough")]


def test_info_list_and_contexts_ask_nobody() -> None:
    asked = Asked()
    for code, data in ((Option.INFO, encode_go("vram")), (Option.LIST, b""), (Option.STRUCTURED_REPLY, b"")):
        assert isinstance(asked.send(code, data)[0], Send)
    assert asked.exports == []


def test_a_drain_overtakes_an_option_that_waits() -> None:
    asked = Asked(None, "")
    asked.send(Option.GO, encode_go("vram"))
    assert asked.handshake.shutdown() == []
    refusal, close = asked.handshake.resume()
    assert decode_replies(refusal.data)[0].kind == OptionReply.ERR_SHUTDOWN
    assert isinstance(close, Close)


def test_more_bytes_wait_too() -> None:
    asked = Asked(None, "")
    asked.send(Option.GO, encode_go("vram"))
    assert asked.handshake.receive(b"more") == []
    assert asked.handshake.resume()[-1].leftover == b"more"
