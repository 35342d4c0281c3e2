"""The handshake: from the greeting to the choice of an export.

Only fixed newstyle negotiation is spoken (newstyle clients that know just EXPORT_NAME are served
by it too). A ``Handshake`` is one connection's half of it:

    handshake = Handshake(exports, TlsPolicy.OFF)
    send(handshake.greeting())
    for event in handshake.receive(recv()):
        ...

The state machine is the two tables below: ``_TRANSITIONS`` has which state follows which, and
``_RULES`` what each option may carry and needs. What is left for code is the order in which an
option is judged, ``_judge``, and one short handler per option.

Three rules are about hostile clients rather than about the protocol:

- Bytes behind STARTTLS in the same read were sent in the clear, perhaps by somebody else than the
  peer who is about to prove who it is. They are never executed: the connection ends, and nothing
  of the negotiation before STARTTLS survives it.
- What an option may cost is bounded in ``framing``: the length of its data, and their number.
- How long negotiation may take is the caller's to limit, who has a clock.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from . import options
from .constants import (
    BASE_ALLOCATION,
    IHAVEOPT,
    NBDMAGIC,
    ClientFlag,
    HandshakeFlag,
    InfoType,
    Option,
    OptionReply,
    TransmissionFlag,
)
from .events import Begin, Close, Event, ExportInfo, Send, StartTls, TlsPolicy, transmission_flags
from .framing import MAXIMUM_OPTION_BYTES, FramingError, OptionMessage, OptionReader

__all__ = [
    "Begin",
    "Close",
    "Event",
    "ExportInfo",
    "Handshake",
    "Send",
    "StartTls",
    "State",
    "TlsPolicy",
    "transmission_flags",
]

#: NBD metadata context ID of base:allocation. Opaque to clients, and not 0, which LIST sends.
BASE_ALLOCATION_ID = 1

_HANDSHAKE_FLAGS = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
# An int: ~ of a flag knows only the bits that have a name.
_CLIENT_FLAGS_KNOWN = int(ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES)

_GREETING = struct.Struct(">QQH")
_CLIENT_FLAGS = struct.Struct(">I")
_EXPORT_NAME_REPLY = struct.Struct(">QH")
_EXPORT_NAME_ZEROES = bytes(124)
_OPTION_CODES = frozenset(Option)
#: Of a name that no export has; names are up to 4096 bytes long.
_SHOWN_CHARACTERS = 64
#: LIST_META_CONTEXT queries that find base:allocation, as no query at all does; in SET "base:" finds nothing.
_LIST_QUERIES = frozenset({"base:", BASE_ALLOCATION})


class State(Enum):
    """Where a connection is between its start and transmission."""

    GREETING = auto()
    CLIENT_FLAGS = auto()
    OPTIONS = auto()
    TLS_HANDSHAKE = auto()
    TRANSMISSION = auto()
    CLOSED = auto()


class _Cause(Enum):
    GREETED = auto()
    FLAGS_ACCEPTED = auto()
    TLS_AGREED = auto()
    TLS_ESTABLISHED = auto()
    EXPORT_CHOSEN = auto()
    CLOSED = auto()


_TRANSITIONS: dict[State, dict[_Cause, State]] = {
    State.GREETING: {_Cause.GREETED: State.CLIENT_FLAGS, _Cause.CLOSED: State.CLOSED},
    State.CLIENT_FLAGS: {_Cause.FLAGS_ACCEPTED: State.OPTIONS, _Cause.CLOSED: State.CLOSED},
    State.OPTIONS: {
        _Cause.TLS_AGREED: State.TLS_HANDSHAKE,
        _Cause.EXPORT_CHOSEN: State.TRANSMISSION,
        _Cause.CLOSED: State.CLOSED,
    },
    State.TLS_HANDSHAKE: {_Cause.TLS_ESTABLISHED: State.OPTIONS, _Cause.CLOSED: State.CLOSED},
    State.TRANSMISSION: {},
    State.CLOSED: {},
}


@dataclass
class _Negotiated:
    """All that options have changed so far, and so all that STARTTLS forgets."""

    structured: bool = False
    extended: bool = False
    base_allocation_export: int | None = None

    @property
    def chunks(self) -> bool:
        return self.structured or self.extended


class _NotKnown(Exception):
    """Whether an option is refused is not known yet."""


class Handshake:
    """The server's side of one connection's negotiation.

    exports: at least one, with distinct names; the empty name stands for the first if that is a default.
    flags: transmission flags per export, in the same order; what ``transmission_flags`` returns if
        None. SEND_DF is left out where the client negotiated no reply chunks.
    admit: asked before transmission begins on an export; gives why it is refused, or nothing. None: that is
        not known yet. The option then waits for ``resume``, and what follows it too.

    A method called in a state that has no place for it raises RuntimeError; input never does.
    """

    def __init__(
        self,
        exports: Sequence[ExportInfo],
        tls: TlsPolicy,
        flags: Sequence[TransmissionFlag] | None = None,
        admit: Callable[[int], str | None] | None = None,
    ) -> None:
        if not exports:
            raise ValueError("a handshake needs at least one export")
        self._exports = tuple(exports)
        self._flags = tuple(flags if flags is not None else map(transmission_flags, exports))
        self._tls = tls
        self._ask = admit
        self._index = {export.name: index for index, export in enumerate(self._exports)}
        if self._exports[0].default:
            self._index[""] = 0
        self._state = State.GREETING
        self._client_flags = ClientFlag(0)
        self._encrypted = False
        self._draining = False
        self._negotiated = _Negotiated()
        self._reader = OptionReader()
        self._waiting: OptionMessage | None = None

    @property
    def state(self) -> State:
        return self._state

    @property
    def waiting(self) -> bool:
        """Whether an option waits for ``resume``."""
        return self._waiting is not None

    def greeting(self) -> bytes:
        """The first bytes on a connection. Section "Newstyle negotiation"."""
        self._move(_Cause.GREETED)
        return _GREETING.pack(NBDMAGIC, IHAVEOPT, _HANDSHAKE_FLAGS)

    def receive(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Take bytes as they came, in pieces of any size; after Close they are ignored."""
        if self._state is State.CLOSED:
            return []
        if self._state is State.TLS_HANDSHAKE:
            return self._close("data in the clear where TLS was agreed")
        if self._state not in (State.CLIENT_FLAGS, State.OPTIONS):
            raise RuntimeError(f"bytes for the handshake in state {self._state.name}")
        self._reader.feed(data)
        return self._go_on([])

    def resume(self) -> list[Event]:
        """Ask ``admit`` again about the option that waits, and go on behind it."""
        if self._waiting is None:
            raise RuntimeError("no option waits")
        message, self._waiting = self._waiting, None
        events = self._judge(message)
        return events if self._state is not State.OPTIONS else self._go_on(events)

    def _go_on(self, events: list[Event]) -> list[Event]:
        while self._waiting is None:
            step = self._take_client_flags if self._state is State.CLIENT_FLAGS else self._take_option
            taken = step()
            if taken is None:
                return events
            events += taken
            if self._state is not State.OPTIONS:
                return events
        return events

    def tls_established(self) -> None:
        """The TLS handshake succeeded: ``receive`` takes decrypted bytes from here on."""
        self._move(_Cause.TLS_ESTABLISHED)
        self._encrypted = True

    def shutdown(self) -> list[Event]:
        """The server drains: the next option, or the one half received, is refused, then Close.

        ABORT is still acknowledged. A client that asks nothing gets no reply, since a reply
        without an option would break the protocol: the caller's deadline ends its connection.
        """
        self._draining = True
        if self._state in (State.GREETING, State.TLS_HANDSHAKE):
            return self._close("shutting down")
        return []

    @property
    def _fixed_newstyle(self) -> bool:
        return bool(self._client_flags & ClientFlag.FIXED_NEWSTYLE)

    def _move(self, cause: _Cause) -> None:
        try:
            self._state = _TRANSITIONS[self._state][cause]
        except KeyError:
            raise RuntimeError(f"{cause.name} has no place in state {self._state.name}") from None

    def _close(self, reason: str, *, orderly: bool = False) -> list[Event]:
        self._move(_Cause.CLOSED)
        self._reader.take_all()
        return [Close(reason, orderly)]

    def _take_client_flags(self) -> list[Event] | None:
        data = self._reader.take(_CLIENT_FLAGS.size)
        if data is None:
            return None
        (flags,) = _CLIENT_FLAGS.unpack(data)
        if flags & ~_CLIENT_FLAGS_KNOWN:
            return self._close(f"unknown client flags {flags:#010x}")
        self._client_flags = ClientFlag(flags)
        self._move(_Cause.FLAGS_ACCEPTED)
        return []

    def _take_option(self) -> list[Event] | None:
        try:
            message = self._reader.take_option()
        except FramingError as error:
            return self._close(str(error))
        return None if message is None else self._judge(message)

    def _judge(self, message: OptionMessage) -> list[Event]:
        code = message.code
        if code == Option.ABORT:
            return [Send(options.encode_reply(code, OptionReply.ACK)), *self._close("aborted", orderly=True)]
        if code == Option.SET_META_CONTEXT:
            # "replaces all previously-set metadata contexts (including when this command fails)"
            self._negotiated.base_allocation_export = None
        try:
            rule = self._admit(message)
            return rule.handler(self, Option(code), message.data or b"")
        except options.Refusal as refusal:
            return self._refuse(code, refusal)
        except _NotKnown:
            self._waiting = message
            return []

    def _admit(self, message: OptionMessage) -> _Rule:
        code = message.code
        if self._draining:
            raise options.Refusal(OptionReply.ERR_SHUTDOWN, "the server is shutting down")
        if code != Option.EXPORT_NAME and not self._fixed_newstyle:
            raise options.Refusal(OptionReply.ERR_UNSUP, "fixed newstyle was not negotiated")
        if self._tls is TlsPolicy.REQUIRE and not self._encrypted and code != Option.STARTTLS:
            raise options.Refusal(OptionReply.ERR_TLS_REQD, "this server requires TLS")
        rule = _RULES.get(code)
        if rule is None:
            raise options.Refusal(OptionReply.ERR_UNSUP, f"option {code} is not supported")
        if message.length and not rule.payload:
            raise options.Refusal(OptionReply.ERR_INVALID, "the option takes no data")
        if message.data is None:
            raise options.Refusal(
                OptionReply.ERR_TOO_BIG, f"option data is longer than {MAXIMUM_OPTION_BYTES} bytes"
            )
        if rule.chunks and not self._negotiated.chunks:
            raise options.Refusal(OptionReply.ERR_INVALID, "structured replies were not negotiated")
        return rule

    def _refuse(self, code: int, refusal: options.Refusal) -> list[Event]:
        name = Option(code).name if code in _OPTION_CODES else f"option {code}"
        why = f"{name}: {refusal.message}"
        # A client without fixed newstyle could not read the reply, and EXPORT_NAME has none.
        if code == Option.EXPORT_NAME or not self._fixed_newstyle:
            return self._close(why)
        reply = Send(options.encode_reply(code, refusal.reply, refusal.message.encode()), why)
        return [reply, *self._close("shutting down")] if self._draining else [reply]

    def _find(self, name: str) -> int:
        index = self._index.get(name)
        if index is None:
            shown = name[:_SHOWN_CHARACTERS]
            raise options.Refusal(OptionReply.ERR_UNKNOWN, f"no export of this name: {shown!r}")
        return index

    def _enter(self, name: str) -> int:
        index = self._find(name)
        reason = self._ask(index) if self._ask is not None else ""
        if reason is None:
            raise _NotKnown
        if reason:
            raise options.Refusal(OptionReply.ERR_POLICY, reason)
        return index

    def _export_flags(self, index: int) -> TransmissionFlag:
        flags = self._flags[index]
        return flags if self._negotiated.chunks else flags & ~TransmissionFlag.SEND_DF

    def _begin(self, index: int) -> Begin:
        self._move(_Cause.EXPORT_CHOSEN)
        selected = self._negotiated.base_allocation_export == index
        return Begin(
            export=index,
            structured=self._negotiated.chunks,
            extended=self._negotiated.extended,
            base_allocation=BASE_ALLOCATION_ID if selected else None,
            leftover=self._reader.take_all(),
        )

    def _export_name(self, option: Option, data: bytes) -> list[Event]:
        if self._negotiated.extended:
            raise options.Refusal(OptionReply.ERR_INVALID, "not allowed once extended headers are negotiated")
        index = self._enter(options.parse_string(data, "export name"))
        reply = _EXPORT_NAME_REPLY.pack(self._exports[index].size_bytes, self._export_flags(index))
        if not self._client_flags & ClientFlag.NO_ZEROES:
            reply += _EXPORT_NAME_ZEROES
        return [Send(reply), self._begin(index)]

    def _list(self, option: Option, data: bytes) -> list[Event]:
        servers = [options.encode_server(export.name, export.description) for export in self._exports]
        return [Send(options.encode_acknowledged(option, OptionReply.SERVER, servers))]

    def _starttls(self, option: Option, data: bytes) -> list[Event]:
        if self._encrypted:
            raise options.Refusal(OptionReply.ERR_INVALID, "TLS is already in use")
        if self._tls is TlsPolicy.OFF:
            raise options.Refusal(OptionReply.ERR_POLICY, "TLS is switched off")
        if self._reader.pending:
            return self._close("data in the clear behind STARTTLS")
        self._move(_Cause.TLS_AGREED)
        self._negotiated = _Negotiated()
        return [Send(options.encode_reply(option, OptionReply.ACK)), StartTls()]

    def _info_or_go(self, option: Option, data: bytes) -> list[Event]:
        request = options.parse_info_request(data)
        index = self._enter(request.name) if option is Option.GO else self._find(request.name)
        export = self._exports[index]
        available = {
            InfoType.NAME: options.encode_info_string(InfoType.NAME, export.name),
            InfoType.DESCRIPTION: options.encode_info_string(InfoType.DESCRIPTION, export.description),
            InfoType.BLOCK_SIZE: options.encode_info_block_size(
                export.minimum_block, export.preferred_block, export.maximum_payload
            ),
        }
        payloads = [options.encode_info_export(export.size_bytes, self._export_flags(index))]
        payloads += [payload for kind, payload in available.items() if kind in request.requests]
        reply = Send(options.encode_acknowledged(option, OptionReply.INFO, payloads))
        return [reply, self._begin(index)] if option is Option.GO else [reply]

    def _structured_reply(self, option: Option, data: bytes) -> list[Event]:
        if self._negotiated.extended:
            raise options.Refusal(OptionReply.ERR_EXT_HEADER_REQD, "extended headers are already negotiated")
        self._negotiated.structured = True
        return [Send(options.encode_reply(option, OptionReply.ACK))]

    def _extended_headers(self, option: Option, data: bytes) -> list[Event]:
        self._negotiated.extended = True
        return [Send(options.encode_reply(option, OptionReply.ACK))]

    def _list_meta_context(self, option: Option, data: bytes) -> list[Event]:
        request = options.parse_meta_context_request(data)
        self._find(request.name)
        wanted = not request.queries or not _LIST_QUERIES.isdisjoint(request.queries)
        contexts = [options.encode_meta_context(0, BASE_ALLOCATION)] if wanted else []
        return [Send(options.encode_acknowledged(option, OptionReply.META_CONTEXT, contexts))]

    def _set_meta_context(self, option: Option, data: bytes) -> list[Event]:
        request = options.parse_meta_context_request(data)
        index = self._find(request.name)
        contexts = []
        if BASE_ALLOCATION in request.queries:
            self._negotiated.base_allocation_export = index
            contexts.append(options.encode_meta_context(BASE_ALLOCATION_ID, BASE_ALLOCATION))
        return [Send(options.encode_acknowledged(option, OptionReply.META_CONTEXT, contexts))]


@dataclass(frozen=True)
class _Rule:
    """How an option is handled, whether it may carry data, whether it needs reply chunks."""

    handler: Callable[[Handshake, Option, bytes], list[Event]]
    payload: bool = False
    chunks: bool = False


_RULES: dict[int, _Rule] = {
    Option.EXPORT_NAME: _Rule(Handshake._export_name, payload=True),
    Option.LIST: _Rule(Handshake._list),
    Option.STARTTLS: _Rule(Handshake._starttls),
    Option.INFO: _Rule(Handshake._info_or_go, payload=True),
    Option.GO: _Rule(Handshake._info_or_go, payload=True),
    Option.STRUCTURED_REPLY: _Rule(Handshake._structured_reply),
    Option.LIST_META_CONTEXT: _Rule(Handshake._list_meta_context, payload=True, chunks=True),
    Option.SET_META_CONTEXT: _Rule(Handshake._set_meta_context, payload=True, chunks=True),
    Option.EXTENDED_HEADERS: _Rule(Handshake._extended_headers),
}
