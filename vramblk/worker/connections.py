"""The clients of a worker that are in transmission."""

from __future__ import annotations

import gc
import select
import socket
import ssl
import time
from collections.abc import Callable

from ..nbd.events import Begin
from ..nbd.replies import ReplyFormat
from ..serving.connection import Connection
from ..serving.lanes import Lane
from ..serving.negotiation import Negotiation
from ..serving.ringwriter import ExportView
from ..serving.stagetimes import WorkerTiming
from ..serving.submissions import Submissions
from ..shared.window import ConnectionState, Window
from ..system import logs
from .admission import Admission
from .pollset import PollSet


class Connections:
    """Closes connections that are finished, and has epoll report what the others wait for.

    Args:
        construct: makes a connection instead of ``Connection``, of its arguments.

    Attributes:
        by_fd: all of them.
        exports: what is served, by number.
        eager: those that may have something to do although epoll does not say so.
    """

    def __init__(
        self,
        window: Window,
        submissions: Submissions,
        admission: Admission,
        pollset: PollSet,
        timing: WorkerTiming | None = None,
        construct: Callable[..., Connection] | None = None,
    ) -> None:
        self.by_fd: dict[int, Connection] = {}
        self.exports: list[ExportView] = []
        self.eager: set[Connection] = set()
        self._window = window
        self._submissions = submissions
        self._admission = admission
        self._pollset = pollset
        self._timing = timing
        self._construct = construct
        self._log = logs.get()

    def make(self, negotiation: Negotiation, begin: Begin) -> Connection:
        """The connection that goes on where a negotiation has ended; ``add`` is next."""
        sock, peer, lane = negotiation.sock, negotiation.peer, negotiation.lane
        connection = self._make(sock, negotiation.number, peer, lane, begin, negotiation.received_ns)
        self._log.info(
            "client_connected",
            client=peer,
            export=self.exports[begin.export].name,
            tls=isinstance(sock, ssl.SSLSocket),
            replies="extended" if begin.extended else "structured" if begin.structured else "simple",
        )
        return connection

    def take_over(self, sock: socket.socket, number: int, peer: str, begin: Begin) -> None:
        """Serve a connection that another process has served until now, if there is a lane for it."""
        lane = self._admission.lanes.take()
        if lane is None:
            self._log.warning("connection_refused", client=peer, reason="no lane")
            sock.close()
            self._admission.free(None)
            return
        try:
            sock.setblocking(False)
            connection = self._make(sock, number, peer, lane, begin, time.monotonic_ns())
            self._pollset.add(connection)
        except Exception:
            self._submissions.recover(self._log.bind(client=peer))
            sock.close()
            self._admission.free(lane)
            return
        self._log.info("client_moved", client=peer, export=self.exports[begin.export].name)
        try:
            self.add(connection)
        except Exception:
            self._submissions.recover(self._log.bind(client=peer))
            connection.fail("connection_lost", "an internal error")
            self.refresh(connection)

    def give_away(self, connection: Connection) -> None:
        """Forget a connection that another process serves from now on; nothing of it is in flight."""
        self._forget(connection)
        self._admission.give_away(connection.lane)
        gc.collect()

    def _make(
        self, sock: socket.socket, number: int, peer: str, lane: Lane, begin: Begin, received_ns: int
    ) -> Connection:
        export = self.exports[begin.export]
        self._window.set_connection(
            lane.slot, number, time.monotonic_ns(), export.index, ConnectionState.TRANSMISSION, peer
        )
        connection = (self._construct or Connection)(
            sock, peer, lane, self._window, self._submissions, export,
            ReplyFormat(begin.structured, begin.extended), begin.base_allocation, begin.leftover,
            self._log.bind(client=peer, export=export.name), received_ns, self._timing,
        )  # fmt: skip
        connection.number = number
        return connection

    def add(self, connection: Connection) -> None:
        """Serve a connection whose socket the poll set has already."""
        self.by_fd[connection.fd] = connection
        if connection.is_gone():
            connection.lose()  # it may have come back already, and what it sent behind GO is old
        connection.pump()
        self.refresh(connection)

    def lose_gone(self) -> set[Connection]:
        """Find the clients that are gone, of which nothing more is executed.

        Asked before a new connection begins, here or elsewhere, and so never for each request: as long as no
        later connection has begun, what a dead client has sent may be executed.
        """
        gone = {connection for connection in self.by_fd.values() if connection.is_gone()}
        for connection in gone:
            connection.lose()
        return gone

    def refresh(self, connection: Connection) -> None:
        """Close a finished connection, or ask epoll for what it waits for."""
        if self.by_fd.get(connection.fd) is not connection:
            return
        if connection.finished:
            self._close(connection)
            return
        if connection.starved:
            self._pollset.starved.add(connection)
            self._pollset.wait_for(connection, 0)
            return
        if connection.again or connection.blocked:
            self.eager.add(connection)
        wanted = 0
        if connection.wants_input:
            wanted |= select.EPOLLIN
        if connection.replies.wants_read:
            wanted |= select.EPOLLIN
        elif connection.replies.waiting:
            wanted |= select.EPOLLOUT
        self._pollset.wait_for(connection, wanted)

    def _forget(self, connection: Connection) -> None:
        del self.by_fd[connection.fd]
        self.eager.discard(connection)
        self._pollset.close(connection.fd, connection.sock)

    def _close(self, connection: Connection) -> None:
        self._admission.leave_place(connection.lane)  # before the client learns of it, and comes back
        self._forget(connection)
        try:
            connection.note_closed()
        finally:
            self._admission.free(connection.lane)
        gc.collect()
