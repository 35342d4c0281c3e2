"""A worker: takes connections from the supervisor, negotiates, and serves their requests.

It never loads OpenCL. Its window is the only memory through which it reaches the engine.
"""

from __future__ import annotations

import gc
import json
import os
import select
import socket
import ssl
import time
from contextlib import suppress

from . import logs, steadystate, swapsafety
from .nbd.events import ExportInfo, TlsPolicy
from .nbd.replies import ReplyFormat
from .negotiation import Negotiation
from .serving.connection import Connection
from .serving.lanes import Lanes
from .serving.pending import Submitter
from .serving.submission import ExportView
from .shared import stages
from .shared.barrier import full_barrier
from .shared.context import Shared
from .shared.control import State
from .shared.ring import SubmissionRing
from .shared.spin import spin_ns
from .shared.window import ConnectionState, Word
from .stagetimes import watch_worker
from .tls import make_context
from .windowproof import prove_window

_SLEEPING = Word.WORKER_SLEEPING * 8
_MOST_EVENTS = 64
#: Asked for; the kernel grants at most net.core.wmem_max and rmem_max.
_SOCKET_BUFFER_BYTES = 8 << 20
#: With more connections than this, epoll says who has something; with fewer each is simply tried.
_FEW = 4
#: A worker that never sleeps asks epoll after so many turns, or nanoseconds, all the same: new connections,
#: negotiations and clients that read again wait for nothing else.
_TURNS_WITHOUT_EPOLL, _NS_WITHOUT_EPOLL = 32, 1_000_000


class Worker:
    """The event loop of one worker."""

    def __init__(self, shared: Shared, index: int, handoff: socket.socket, lanes: int) -> None:
        self._shared = shared
        self._window = shared.windows[index]
        self._control = shared.control
        self._bell = shared.bells[index]
        self._handoff = handoff
        handoff.setblocking(False)
        self._log = logs.get()
        self._swap = shared.settings.mode == "swap"
        self._lanes = Lanes(self._window.layout.rx_bytes, self._window.layout.tx_bytes, lanes)
        self.submitter = Submitter(
            SubmissionRing(self._window, shared.engine_bell, shared.control), self._window.counters
        )
        self._exports: list[ExportView] = []
        self._infos: list[ExportInfo] = []
        self._tls_policy = TlsPolicy(shared.settings.tls)
        self._tls_context: ssl.SSLContext | None = None
        self._negotiations: dict[int, Negotiation] = {}
        self._connections: dict[int, Connection] = {}
        self._interest: dict[int, int] = {}
        self._orphaned = False
        self._epoll = select.epoll()
        self._epoll.register(self._bell, select.EPOLLIN)
        self._epoll.register(handoff.fileno(), select.EPOLLIN)
        self._spin_ns = spin_ns(shared.settings)

    def prepare(self, tls_context: ssl.SSLContext | None) -> None:
        """Learn the exports from the control page and prove the window; the engine is ready."""
        self._tls_context = tls_context
        for index, export in enumerate(self._control.geometry()["exports"]):
            self._shared.written[index].open()
            self._exports.append(
                ExportView(
                    index=index,
                    name=export["name"],
                    size_bytes=export["size_bytes"],
                    arena_bytes=export["arena_bytes"],
                    read_only=export["read_only"],
                    written=self._shared.written[index],
                )
            )
            self._infos.append(
                ExportInfo(
                    export["name"], export.get("description", ""), export["size_bytes"], export["read_only"]
                )
            )
        prove_window(self._window, self.submitter.ring, self._bell)

    def serve(self) -> None:
        """Run until the supervisor says that no connection will come (and none is left)."""
        clock = time.monotonic_ns
        last = looked = clock()
        turns = 0
        self._window.store(Word.READY, 1)
        while True:
            turns += 1
            if turns >= _TURNS_WITHOUT_EPOLL or clock() - looked > _NS_WITHOUT_EPOLL:
                turns = 0
                self._events(0)
                looked = clock()
            self.submitter.draining = self._control.state >= State.DRAINING and not self._swap
            if self._turn():
                last = clock() if self._spin_ns else 0
                continue
            if self._orphaned and (not self._swap or not self._connections):
                return
            if self._spin_ns and self._connections and clock() - last < self._spin_ns:
                self.submitter.watch()
                continue
            turns = 0
            self._sleep()
            last = looked = clock()

    def _turn(self) -> bool:
        """Collect what the engine has done and try what may have input; True if anything moved."""
        touched = self.submitter.collect()
        progress = bool(touched)
        for connection in touched:
            connection.resume()  # first of all: the engine has work again while the replies are sent
            connection.replies.flush()
        connections = self._connections
        if not self._spin_ns:
            for connection in list(connections.values()):
                if connection.again or connection.blocked:
                    progress |= connection.pump()
                    touched.add(connection)
        elif len(connections) <= _FEW:
            for connection in connections.values():
                moved = connection.pump()
                progress |= moved
                if moved or connection.ended:
                    touched.add(connection)
        else:
            progress |= self._events(0)
            for connection in list(connections.values()):
                if connection.again or connection.blocked:
                    progress |= connection.pump()
                    touched.add(connection)
        for connection in touched:
            self._settle(connection)
        return progress

    def _sleep(self) -> None:
        words = self._window.words
        words[_SLEEPING] = 1
        full_barrier()
        in_flight = self.submitter.in_flight
        if not in_flight or in_flight[0].end > self.submitter.ring.done():
            self._window.counters.add("sleeps")
            self._events(self._timeout_s())
        words[_SLEEPING] = 0

    def _timeout_s(self) -> float | None:
        if not self._negotiations:
            return None
        return max(
            0.0, min(negotiation.deadline for negotiation in self._negotiations.values()) - time.monotonic()
        )

    def _events(self, timeout_s: float | None) -> bool:
        """Handle what epoll reports within ``timeout_s`` (None: however long it takes)."""
        progress = False
        for fd, event in self._epoll.poll(timeout_s, _MOST_EVENTS):
            if fd == self._bell:
                try:
                    os.eventfd_read(fd)
                except BlockingIOError:
                    pass
                continue
            progress = True
            if fd == self._handoff.fileno():
                self._take_handoff()
            elif (connection := self._connections.get(fd)) is not None:
                if event & (select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR):
                    # A peer that is gone both ways need not be writable: only sending finds it out.
                    connection.replies.flush()
                if event & (select.EPOLLHUP | select.EPOLLERR) and connection.ended:
                    connection.fail("connection_lost", "closed by the client with replies unread")
                connection.pump()
                self._settle(connection)
            elif (negotiation := self._negotiations.get(fd)) is not None:
                self._negotiate(fd, negotiation)
        self._expire()
        return progress

    def _take_handoff(self) -> None:
        while True:
            try:
                text, fds, _, _ = socket.recv_fds(self._handoff, 4096, 1)
            except BlockingIOError:
                return
            if not text:
                self._orphaned = True
                self._epoll.unregister(self._handoff.fileno())
                return
            message = json.loads(text)
            self._count_opened()
            if not fds:  # this process has no descriptor left, and the kernel has closed the connection
                logs.limited(
                    self._log, "connection_refused", client=message["peer"], reason="no descriptor is left"
                )
                self._count_closed()
                continue
            sock = socket.socket(fileno=fds[0])
            self._begin(sock, message["id"], message["peer"])

    def _begin(self, sock: socket.socket, number: int, peer: str) -> None:
        lane = self._lanes.take()
        if lane is None or self._control.state >= State.DRAINING:
            self._log.warning(
                "connection_refused", client=peer, reason="no lane" if lane is None else "draining"
            )
            sock.close()
            if lane is not None:
                self._lanes.give_back(lane)
            self._count_closed()
            return
        sock.setblocking(False)
        if not self._swap:
            # In swap mode the kernel's memory is what is short.
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
        self._window.set_connection(
            lane.slot, number, time.monotonic_ns(), 0, ConnectionState.NEGOTIATING, peer
        )
        negotiation = Negotiation(sock, peer, number, lane, self._infos, self._tls_policy, self._tls_context)
        fd = sock.fileno()
        self._negotiations[fd] = negotiation
        self._interest[fd] = 0
        self._negotiate(fd, negotiation)

    def _negotiate(self, fd: int, negotiation: Negotiation) -> None:
        result = negotiation.advance()
        if result is None:
            self._set_interest(fd, negotiation.interest)
            return
        if isinstance(result, str):
            self._drop_negotiation(fd, negotiation, result)
            return
        del self._negotiations[fd]
        export = self._exports[result.export]
        lane = negotiation.lane
        self._window.set_connection(
            lane.slot, negotiation.number, time.monotonic_ns(), export.index, ConnectionState.TRANSMISSION,
            negotiation.peer,
        )  # fmt: skip
        log = self._log.bind(client=negotiation.peer, export=export.name)
        connection = Connection(
            negotiation.sock, negotiation.peer, lane, self._window, self.submitter, export,
            ReplyFormat(result.structured, result.extended), result.base_allocation, result.leftover, log,
        )  # fmt: skip
        self._connections[fd] = connection
        log.info(
            "client_connected",
            tls=isinstance(negotiation.sock, ssl.SSLSocket),
            replies="extended" if result.extended else "structured" if result.structured else "simple",
        )
        connection.pump()
        self._settle(connection)

    def _drop_negotiation(self, fd: int, negotiation: Negotiation, reason: str) -> None:
        del self._negotiations[fd]
        with suppress(OSError):  # a TLS socket that could not be made has closed it already
            self._set_interest(fd, 0)
        del self._interest[fd]
        negotiation.sock.close()
        if not negotiation.orderly:
            self._window.counters.add("negotiations_failed")
            logs.limited(self._log, "negotiation_failed", client=negotiation.peer, reason=reason)
        self._window.free_connection(negotiation.lane.slot)
        self._lanes.give_back(negotiation.lane)
        self._count_closed()

    def _expire(self) -> None:
        """Close negotiations that are too slow, or that a drain has overtaken."""
        if not self._negotiations:
            return
        now = time.monotonic()
        draining = self._control.state >= State.DRAINING
        for fd, negotiation in list(self._negotiations.items()):
            if draining:
                negotiation.shut_down()
            if now >= negotiation.deadline:
                self._drop_negotiation(fd, negotiation, "negotiation took too long")

    def _settle(self, connection: Connection) -> None:
        """Close a finished connection, or ask epoll for what it waits for."""
        fd = connection.fd
        if self._connections.get(fd) is not connection:
            return
        if connection.finished:
            self._close(fd, connection)
            return
        wanted = select.EPOLLIN if connection.wants_input else 0
        if connection.replies.waiting:
            wanted |= select.EPOLLOUT
        self._set_interest(fd, wanted)

    def _set_interest(self, fd: int, wanted: int) -> None:
        before = self._interest[fd]
        if before != wanted:
            self._interest[fd] = wanted
            if not wanted:  # else it would report a hang-up all the time, and the worker not sleep
                self._epoll.unregister(fd)
            elif not before:
                self._epoll.register(fd, wanted)
            else:
                self._epoll.modify(fd, wanted)

    def _close(self, fd: int, connection: Connection) -> None:
        del self._connections[fd]
        self._set_interest(fd, 0)
        del self._interest[fd]
        connection.sock.close()
        connection.note_closed()
        self._window.free_connection(connection.lane.slot)
        self._lanes.give_back(connection.lane)
        self._count_closed()
        gc.collect()

    def _count_opened(self) -> None:
        window = self._window
        window.counters.add("connections_opened")
        window.store(Word.CONNECTIONS, window.load(Word.CONNECTIONS) + 1)

    def _count_closed(self) -> None:
        window = self._window
        window.counters.add("connections_closed")
        window.store(Word.CONNECTIONS, window.load(Word.CONNECTIONS) - 1)
        window.store(Word.CLOSED, window.load(Word.CLOSED) + 1)


def lanes_per_worker(max_connections: int, workers: int, *, swap: bool) -> int:
    """Connections that one worker may have at once, given that each goes to the least loaded."""
    return 1 if swap else (max_connections - 1) // workers + 1


def run(shared: Shared, index: int, handoff: socket.socket) -> int:
    """The worker process."""
    settings = shared.settings
    window = shared.windows[index]
    window.store(Word.WORKER_PID, os.getpid())
    lanes = lanes_per_worker(
        settings.max_connections, len(shared.worker_windows), swap=settings.mode == "swap"
    )
    worker = Worker(shared, index, handoff, lanes)
    worker.prepare(make_context(settings))
    if stages.active is not None:
        watch_worker(worker.submitter, index, stages.active)
    swapsafety.drop_privileges()
    swapsafety.lock_memory(settings)
    steadystate.settle(settings, [window.whole])
    gc.disable()
    worker.serve()
    return 0
