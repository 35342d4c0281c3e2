"""A connection before transmission: the handshake over a non-blocking socket, TLS included."""

from __future__ import annotations

import errno
import math
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence

from ..nbd.events import Begin, Close, ExportInfo, Send, StartTls, TlsPolicy
from ..nbd.handshake import Handshake
from ..system.tls import decrypted, shows_authority
from .lanes import Lane
from .sockets import SHORT_OF_MEMORY, hang_up, is_gone

#: A client has this long from the greeting to the start of transmission, seconds.
DEADLINE_S = 10.0
#: A negotiation that a drain overtakes may still finish its option, seconds.
_DRAIN_GRACE_S = 1.0
_RECEIVE_BYTES = 65536
#: How a client is missed that has left without reading the greeting.
_GONE = (errno.EPIPE, errno.ECONNRESET)


class Negotiation:
    """Drives one ``Handshake``.

    Attributes:
        deadline: monotonic time, seconds, after which the client is dropped.
        interest: what epoll should wait for.
        orderly: it ended as the protocol foresees (ABORT, or a client that only looked).
        received_ns: when the last bytes came, monotonic.
        starved: the kernel had no memory for a send or a receive; try again a little later.
        wants_fence: the client has chosen an export, and the answer waits for ``pass_fence``. However long
            the engine needs for that, it is not the client that is slow; the only event is that it has gone.
        wants_hold: the client has chosen an export whose memory is not held yet, and the answer waits for
            ``answer_hold``, as for a fence, which comes afterwards.
        refusal: why the last option before the end was refused; empty if it was not. ABORT is not counted.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        number: int,
        lane: Lane,
        exports: Sequence[ExportInfo],
        tls: TlsPolicy,
        tls_context: Callable[[], ssl.SSLContext | None],
        admit: Callable[[int], str | None] | None = None,
    ) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.peer = peer
        self.number = number
        self.lane = lane
        self.deadline = time.monotonic() + DEADLINE_S
        self.interest: int = select.EPOLLIN
        self.orderly = False
        self.received_ns = 0
        self.starved = self.wants_fence = self.wants_hold = False
        self._fenced = self._resumes = False
        self.refusal = ""
        self._heard = False
        self._tls_context = tls_context
        self._handshake = Handshake(exports, tls, admit=admit)
        self._out = bytearray(self._handshake.greeting())
        self._tls_pending = False
        self._start_tls = False
        self._begin: Begin | None = None
        self._close: str | None = None

    def advance(self) -> Begin | str | None:
        """Go on as far as the socket lets.

        Returns:
            Begin when transmission starts, the reason when the connection is to be closed,
            None while the client has to act, or a fence to be passed, or memory to be held.
        """
        self.starved = False
        try:
            return self._advance()
        except ssl.SSLError as error:
            return f"TLS: {getattr(error, 'reason', None) or error}"
        except OSError as error:
            if error.errno in SHORT_OF_MEMORY:
                self.starved = True
                return None
            # A probe that only connects: nothing was asked, so nothing was refused or lost.
            self.orderly = not self._heard and error.errno in _GONE
            return f"connection lost: {error.strerror or error}"

    def is_gone(self) -> bool:
        """Ask the kernel whether the client is gone."""
        return is_gone(self.sock)

    @property
    def waits(self) -> bool:
        """Whether it is the engine's turn, and not the client's."""
        return self.wants_fence or self.wants_hold

    def answer_hold(self) -> None:
        """Whether the memory is held can be asked again, by ``advance``."""
        self.wants_hold, self._resumes = False, True
        self.deadline = min(self.deadline, time.monotonic() + DEADLINE_S)

    def pass_fence(self) -> None:
        """What the client has chosen may be answered now."""
        self.wants_fence, self._fenced = False, True
        self.deadline = min(self.deadline, time.monotonic() + DEADLINE_S)

    def shut_down(self) -> None:
        """The server drains: refuse what comes next and end soon."""
        self.deadline = min(self.deadline, time.monotonic() + _DRAIN_GRACE_S)
        self._take(self._handshake.shutdown())

    def _advance(self) -> Begin | str | None:
        taken = False
        if self._resumes:
            self._resumes = False
            self._take(self._handshake.resume())
        while True:
            if self._begin is not None and not self._fenced:
                if not self.wants_fence:
                    self.wants_fence = True
                    self.deadline = math.inf
                self.interest = hang_up(self.sock)
                return None
            if not self._flush():
                self.interest = select.EPOLLOUT
                return None
            if self._close is not None:
                return self._close
            if self._begin is not None:
                return self._begin
            if self._handshake.waiting:
                if not self.wants_hold:
                    self.wants_hold = True
                    self.deadline = math.inf
                self.interest = hang_up(self.sock)
                return None
            if self._start_tls:
                self._wrap()
            if self._tls_pending and not self._shake_hands():
                return None
            self.interest = select.EPOLLIN
            if taken and not decrypted(self.sock):
                return None  # others' turn; epoll tells of what is left
            taken = True
            try:
                data = self.sock.recv(_RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
                return None
            except ssl.SSLWantWriteError:
                self.interest = select.EPOLLOUT
                return None
            self.received_ns = time.monotonic_ns()
            self._heard = self._heard or bool(data)
            if not data:
                self.orderly = True
                return "closed by the client"
            self._take(self._handshake.receive(data))

    def _take(self, events: Sequence[Send | StartTls | Begin | Close]) -> None:
        before = self.refusal
        for event in events:
            if isinstance(event, Send):
                self._out += event.data
                before, self.refusal = self.refusal, event.refusal
            elif isinstance(event, StartTls):
                self._start_tls = True
            elif isinstance(event, Begin):
                self._begin = event
            else:
                self._close = event.reason
                self.orderly = event.orderly
                if event.orderly:  # what was sent last acknowledges ABORT
                    self.refusal = before

    def _flush(self) -> bool:
        while self._out:
            try:
                count = self.sock.send(self._out)
            except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            del self._out[:count]
        return True

    def _wrap(self) -> None:
        context = self._tls_context()  # the newest: files may have been renewed since the client came
        assert context is not None, "STARTTLS is refused without a context"
        self._start_tls = False
        self.sock = context.wrap_socket(
            self.sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
        self._tls_pending = True

    def _shake_hands(self) -> bool:
        assert isinstance(self.sock, ssl.SSLSocket)
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            self.interest = select.EPOLLIN
            return False
        except ssl.SSLWantWriteError:
            self.interest = select.EPOLLOUT
            return False
        if shows_authority(self.sock):
            raise ssl.SSLError("the client's certificate is the authority's own; sign one for the client")
        self._tls_pending = False
        self._handshake.tls_established()
        return True
