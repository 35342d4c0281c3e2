"""The loop that serves all clients of a window: what the engine has done, what has come, what may be sent.

It needs no process of its own, and does not know which one it is in.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable

from ..nbd.events import ExportInfo
from ..serving.connection import Connection, complete
from ..serving.negotiation import Negotiation
from ..serving.ringwriter import ExportView
from ..serving.stagetimes import WorkerTiming
from ..serving.submissions import Submissions
from ..shared.context import Shared
from ..shared.control import ControlWord, State
from ..shared.doorbell import worker_doorbell
from ..shared.ring import SubmissionRing
from ..shared.spin import spin_ns
from .admission import Admission
from .connections import Connections
from .fences import Fences
from .handoffs import Handoffs
from .holds import Holds
from .negotiations import Negotiations
from .pollset import STARVED_S, PollSet

_STATE, _DRAINING = ControlWord.STATE * 8, int(State.DRAINING)
#: A peer that is gone both ways need not be writable: only sending finds it out.
_MAY_SEND = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
#: With more connections than this, epoll says who has something; with fewer each is simply tried.
_FEW = 4
#: A loop that has no time to sleep asks epoll after so many turns or nanoseconds: new
#: connections, negotiations and clients that read again wait for nothing else.
_TURNS_WITHOUT_EPOLL, _NS_WITHOUT_EPOLL = 32, 1_000_000


class ClientLoop:
    """Serves the clients that are handed over.

    Args:
        index: of the window.
        handoff: over which the supervisor hands clients over.
        lanes: how many clients at once.
        timing: times the stages of each batch; without it nothing is wrapped.
        construct: makes a connection instead of ``Connection``, of its arguments.

    Attributes:
        spin_ns: for how long its owner looks for work before it sleeps, 0: not at all.
        called: a descriptor that its owner has the poll set watch has an event. That is no progress here, and
            stays until the owner has done something about it.
    """

    def __init__(
        self,
        shared: Shared,
        index: int,
        handoff: socket.socket,
        lanes: int,
        timing: WorkerTiming | None = None,
        construct: Callable[..., Connection] | None = None,
    ) -> None:
        self._shared = shared
        self.window = window = shared.windows[index]
        self.doorbell = worker_doorbell(window, shared.doorbells[index])
        self._control_words = shared.control.words
        self._swap = shared.settings.mode == "swap"
        self.submissions = submissions = Submissions(
            SubmissionRing(window, shared.engine_doorbell, shared.control), window.counters
        )
        self.pollset = pollset = PollSet()
        self.holds = holds = Holds(shared, window, submissions)
        self.admission = admission = Admission(shared, window, lanes, holds)
        self.handoffs = Handoffs(handoff, admission)
        self.connections = connections = Connections(
            window, submissions, admission, pollset, timing, construct
        )
        self.fences = fences = Fences(window, submissions, connections)
        self.negotiations = Negotiations(
            shared, window, self.handoffs, submissions, admission, pollset, connections, fences
        )
        pollset.watch(self.doorbell.fd)
        pollset.watch(self.handoffs.fd)
        self.spin_ns = spin_ns(shared.settings)
        self.called = False
        self._looked_ns = time.monotonic_ns()
        self._turns = 0

    def learn_exports(self) -> None:
        """Take the exports from the control page; the engine is ready."""
        for index, export in enumerate(self._shared.control.export_table()["exports"]):
            written = self._shared.written[index]
            name, size_bytes, read_only = export["name"], export["size_bytes"], export["read_only"]
            self.add_export(
                ExportView(index, name, size_bytes, export["arena_bytes"], read_only, written),
                ExportInfo(
                    name,
                    export.get("description", ""),
                    size_bytes,
                    read_only,
                    default=not self._shared.settings.unique_names,
                    multiple=self._shared.settings.exports[index].places != 1,
                ),
            )

    def add_export(self, view: ExportView, info: ExportInfo) -> None:
        """Serve one more export: as connections see it, and as negotiations offer it."""
        self.connections.exports.append(view)
        self.negotiations.infos.append(info)

    def turn(self) -> bool:
        """Collect what the engine has done and try what may have input; True if anything moved."""
        if self.fences.unseen:
            self.fences.see()
        if self.pollset.starved:
            self.try_starved()
        self._look_at_state()
        connections = self.connections
        touched = complete(self.submissions)
        progress = bool(touched)
        for connection in touched:
            connection.resume()  # first of all: the engine has work again while the replies are sent
            connection.flush()
        if self.holds.changed:
            progress = True
            self.negotiations.answer_holds()
        if self.fences.asking and self.fences.passed:
            progress = True
            self.negotiations.pass_fence()
        if self.fences.waiting:
            self.fences.ask_next()
        if self.spin_ns and len(connections.by_fd) <= _FEW:
            if self.is_time_for_epoll():
                progress |= self.poll(0)
            for connection in connections.by_fd.values():
                if connection.pump():
                    progress = True
                    touched.add(connection)
                elif connection.ended:
                    touched.add(connection)
        else:
            if self.spin_ns or self.is_time_for_epoll():
                progress |= self.poll(0)
            if connections.eager:
                eager, connections.eager = connections.eager, set()
                for connection in eager:
                    progress |= connection.pump()
                    touched.add(connection)
        for connection in touched:
            connections.refresh(connection)
        return progress

    @property
    def is_idle(self) -> bool:
        """Whether nobody is served, and nobody asks anything of this window."""
        return not (
            self.connections.by_fd or self.negotiations.by_fd or self.fences.unseen
            or self.fences.asking or self.fences.waiting or self.pollset.starved
        )  # fmt: skip

    def sleep(self) -> None:
        """Wait for a client, the engine or the supervisor."""
        self.doorbell.begin_sleep()
        if self.has_work():
            self.doorbell.end_sleep()
            self._turns = _TURNS_WITHOUT_EPOLL  # whatever the work is, the next turn looks at everything
        else:
            self.window.counters.add("sleeps")
            events = self.pollset.poll(self.timeout_s())
            self.doorbell.end_sleep()
            if self.fences.unseen:
                self.fences.see()
            self._handle(events)
            self._turns = 0
            self._looked_ns = time.monotonic_ns()

    def poll(self, timeout_s: float | None) -> bool:
        """Handle what epoll reports within ``timeout_s`` (None: however long it takes)."""
        return self._handle(self.pollset.poll(timeout_s))

    def timeout_s(self) -> float | None:
        """How long a sleep may last at most, seconds."""
        return STARVED_S if self.pollset.starved else self.negotiations.timeout_s()

    def take_handoffs(self) -> None:
        """Greet the clients that have come."""
        for client in self.handoffs.take():
            if client.begun is None:
                self.negotiations.begin(client)
            else:
                self.connections.take_over(client.sock, client.number, client.peer, client.begun)
        if self.handoffs.ended:
            self.pollset.unwatch(self.handoffs.fd)

    def try_starved(self) -> None:
        """Try again what the kernel had no memory for."""
        for client in self.pollset.due_starved():
            if isinstance(client, Negotiation):
                if self.negotiations.by_fd.get(client.fd) is client:
                    self.negotiations.go_on(client)
            elif self.connections.by_fd.get(client.fd) is client:
                client.flush()
                client.pump()
                self.connections.refresh(client)

    def _look_at_state(self) -> None:
        self.submissions.draining = self._control_words[_STATE] >= _DRAINING and not self._swap

    def has_work(self) -> bool:
        """Whether something has come that rings no more, looked at once others know of the sleep."""
        return (
            self.submissions.has_complete
            or self.fences.unseen
            or (bool(self.fences.asking) and self.fences.passed)
            or self.holds.changed
            # Whose turn it is to zero may have changed after that connection was looked at.
            or self.submissions.zeroing.is_open
        )

    def is_time_for_epoll(self) -> bool:
        """Whether the owner has not slept for so long that epoll must be asked in between."""
        self._turns += 1
        if self._turns < _TURNS_WITHOUT_EPOLL and time.monotonic_ns() - self._looked_ns <= _NS_WITHOUT_EPOLL:
            return False
        self._turns = 0
        self._looked_ns = time.monotonic_ns()
        return True

    def _handle(self, events: list[tuple[int, int]]) -> bool:
        self._look_at_state()  # the client that sent these requests may have seen that the server drains
        progress = False
        for fd, event in events:
            if fd == self.doorbell.fd:
                self.doorbell.clear()
            elif fd == self.handoffs.fd:
                progress = True
                self.take_handoffs()
            elif (connection := self.connections.by_fd.get(fd)) is not None:
                progress = True
                if event & _MAY_SEND or connection.replies.wants_read:
                    connection.flush()
                if event & (select.EPOLLHUP | select.EPOLLERR) and connection.ended:
                    connection.fail("connection_lost", "closed by the client with replies unread")
                connection.pump()
                self.connections.refresh(connection)
            elif (negotiation := self.negotiations.by_fd.get(fd)) is not None:
                progress = True
                if not negotiation.waits:
                    self.negotiations.go_on(negotiation)
                elif negotiation.is_gone():  # the event may be of another socket that had this number
                    self.negotiations.drop(negotiation, "the client has gone")
            else:
                self.called = True
        self.negotiations.expire()
        return progress
