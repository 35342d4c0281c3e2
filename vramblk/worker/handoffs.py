"""Connections and TLS files, as the supervisor hands them over."""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import StartupError
from ..nbd.events import Begin
from ..shared import moves
from ..system import logs, tls
from .admission import Admission


class NewClient(NamedTuple):
    """A client that has come.

    Attributes:
        number: the connection's id at the supervisor.
        begun: how transmission goes on, of a connection that another process has served until now.
        instead_of: the number of the unfinished negotiation whose place it gets.
    """

    sock: socket.socket
    number: int
    peer: str
    begun: Begin | None = None
    instead_of: int | None = None


class Handoffs:
    """The worker's end of the socket.

    Attributes:
        ended: the supervisor has closed its end: no connection will come.
        tls_context: for handshakes from now on.
    """

    def __init__(self, sock: socket.socket, admission: Admission) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.fd = sock.fileno()
        self.ended = False
        self.tls_context: ssl.SSLContext | None = None
        self._admission = admission
        self._log = logs.get()

    def take(self) -> Iterator[NewClient]:
        """The connections that have come, each counted as open.

        The supervisor takes one for taken when the caller asks for the next: by then it stands in the window.
        """
        while True:
            try:
                text, fds, _, _ = socket.recv_fds(self.sock, 4096, 1)
            except BlockingIOError:
                return
            if not text:
                self.ended = True
                return
            message = json.loads(text)
            if "tls" in message:  # no connection, so it is not counted as one
                self._renew_tls(message["tls"], fds)
                continue
            self._admission.count_opened()
            if not fds:  # this process has no descriptor left, and the kernel has closed the connection
                logs.limited(
                    self._log, "connection_refused", client=message["peer"], reason="no descriptor is left"
                )
                self._admission.free(None)
                self._admission.count_handoff()
                continue
            begun = moves.unpack(message["begun"]) if "begun" in message else None
            sock, instead_of = socket.socket(fileno=fds[0]), message.get("instead_of")
            try:
                yield NewClient(sock, message["id"], message["peer"], begun, instead_of)
            finally:
                self._admission.count_handoff()

    def _renew_tls(self, length: int, fds: list[int]) -> None:
        """Take new TLS files for handshakes from now on; the supervisor has proven them."""
        if not fds:  # this process has no descriptor left
            logs.limited(self._log, "tls_not_renewed", level="error", detail="no descriptor is left")
            return
        try:
            self.tls_context = tls.unpack(os.pread(fds[0], length, 0)).context()
        except (OSError, StartupError) as error:
            logs.limited(self._log, "tls_not_renewed", level="error", detail=str(error))
        finally:
            os.close(fds[0])
