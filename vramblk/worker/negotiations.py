"""The clients of a worker that are not yet in transmission."""

from __future__ import annotations

import socket
import time

from ..nbd.events import Begin, ExportInfo, TlsPolicy
from ..serving.lanes import Lane
from ..serving.negotiation import DEADLINE_S, Negotiation
from ..serving.submissions import Submissions
from ..shared.context import Shared
from ..shared.control import State
from ..shared.window import ConnectionState, Window
from ..system import logs
from .admission import Admission
from .connections import Connections
from .fences import Fences
from .handoffs import Handoffs, NewClient
from .pollset import PollSet

#: Asked for; the kernel grants at most net.core.wmem_max and rmem_max.
_SOCKET_BUFFER_BYTES = 8 << 20


class Negotiations:
    """Drives each until it becomes a connection or is dropped.

    Attributes:
        by_fd: all of them.
        infos: the exports' descriptions for clients, by number.
    """

    def __init__(
        self,
        shared: Shared,
        window: Window,
        handoffs: Handoffs,
        submissions: Submissions,
        admission: Admission,
        pollset: PollSet,
        connections: Connections,
        fences: Fences,
    ) -> None:
        self.by_fd: dict[int, Negotiation] = {}
        self.infos: list[ExportInfo] = []
        self._control = shared.control
        self._swap = shared.settings.mode == "swap"
        self._tls_policy = TlsPolicy(shared.settings.tls)
        self._window = window
        self._handoffs = handoffs
        self._submissions = submissions
        self._admission = admission
        self._pollset = pollset
        self._connections = connections
        self._fences = fences
        self._log = logs.get()

    def begin(self, client: NewClient) -> None:
        """Greet a client, if there is a lane for it."""
        reason = "" if client.instead_of is None else self._make_way(client.instead_of)
        lane = self._admission.lanes.take() if not reason else None
        if lane is None or self._control.state >= State.DRAINING:
            reason = reason or ("no lane" if lane is None else "draining")
            logs.limited(self._log, "connection_refused", client=client.peer, reason=reason)
            client.sock.close()
            self._admission.free(lane)
            return
        try:
            client.sock.setblocking(False)
            if not self._swap:
                # In swap mode the kernel's memory is what is short.
                for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    client.sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
            negotiation = Negotiation(
                client.sock, client.peer, client.number, lane, self.infos, self._tls_policy,
                lambda: self._handoffs.tls_context,
                lambda export: self._enter(export, lane, client.peer),
            )  # fmt: skip
        except Exception:
            self._submissions.recover(self._log.bind(client=client.peer))
            client.sock.close()
            self._admission.free(lane)
            return
        self._window.set_connection(
            lane.slot, client.number, time.monotonic_ns(), 0, ConnectionState.NEGOTIATING, client.peer
        )
        self.by_fd[negotiation.fd] = negotiation
        self._pollset.add(negotiation)
        self.go_on(negotiation)

    def _enter(self, export: int, lane: Lane, peer: str) -> str | None:
        """As ``Admission.enter``, after clients that have left gave up their places, closed or not."""
        for connection in self._connections.lose_gone():
            self._admission.leave_place(connection.lane)
            self._connections.refresh(connection)
        for negotiation in self.by_fd.values():
            if negotiation.waits and negotiation.is_gone():  # its event comes, and has it dropped
                self._admission.leave_place(negotiation.lane)
        return self._admission.enter(export, lane.slot, peer)

    def _make_way(self, number: int) -> str:
        """Close the negotiation of this number for a new client; gives why that is not done.

        One that has chosen an export waits for the engine alone, so it stays as a connection does.
        """
        for negotiation in self.by_fd.values():
            if negotiation.number == number and not (negotiation.wants_fence or negotiation.wants_hold):
                self.drop(negotiation, "unfinished when a new client needed its place")
                return ""
        there = [each.number for each in self.by_fd.values()]
        there += [each.number for each in self._connections.by_fd.values()]
        return "all places are taken" if number in there else ""

    def go_on(self, negotiation: Negotiation) -> None:
        """Go on with one negotiation; an exception that nobody foresaw ends it alone."""
        fd = negotiation.fd
        try:
            self._go_on(negotiation)
        except Exception:
            self._submissions.recover(self._log.bind(client=negotiation.peer))
            if (connection := self._connections.by_fd.get(fd)) is not None:
                connection.fail("connection_lost", "an internal error")
                self._connections.refresh(connection)
            elif fd in self.by_fd:
                self.drop(negotiation, "an internal error")

    def _go_on(self, negotiation: Negotiation) -> None:
        result = negotiation.advance()
        if isinstance(result, str):
            self.drop(negotiation, result)
        elif result is not None:
            self._begin_transmission(negotiation, result)
        elif negotiation.wants_fence:
            self._pollset.wait_for(negotiation, negotiation.interest)
            self._fences.wait(negotiation)
        elif negotiation.wants_hold:
            self._pollset.wait_for(negotiation, negotiation.interest)
            self._admission.holds.wait(negotiation)
        else:
            self._pollset.wait_for(negotiation, 0 if negotiation.starved else negotiation.interest)
            if negotiation.starved:
                self._pollset.starved.add(negotiation)

    def _begin_transmission(self, negotiation: Negotiation, begin: Begin) -> None:
        connection = self._connections.make(negotiation, begin)
        del self.by_fd[negotiation.fd]
        self._connections.add(connection)

    def pass_fence(self) -> None:
        """Go on with the negotiations that have waited for the fence that is passed."""
        for negotiation in self._fences.take_passed():
            negotiation.pass_fence()
            if self.by_fd.get(negotiation.fd) is negotiation:
                self.go_on(negotiation)
        self._fences.ask_next()

    def answer_holds(self) -> None:
        """Go on with the negotiations that have waited for the engine to hold an export's memory."""
        for negotiation in self._admission.holds.take_waiting():
            if self.by_fd.get(negotiation.fd) is negotiation:
                negotiation.answer_hold()
                self.go_on(negotiation)

    def expire(self) -> None:
        """Close negotiations that are too slow, or that a drain has overtaken."""
        if not self.by_fd:
            return
        now = time.monotonic()
        draining = self._control.state >= State.DRAINING
        for negotiation in list(self.by_fd.values()):
            if draining:
                negotiation.shut_down()
            if now >= negotiation.deadline:
                self.drop(negotiation, "negotiation took too long")

    def timeout_s(self) -> float | None:
        """Until ``expire`` may have something to do, seconds; None: there is no negotiation."""
        if not self.by_fd:
            return None
        first = min(negotiation.deadline for negotiation in self.by_fd.values())
        return max(0.0, min(first - time.monotonic(), DEADLINE_S))

    def drop(self, negotiation: Negotiation, reason: str) -> None:
        """Close one, for a reason that is logged unless the client has ended it in order."""
        del self.by_fd[negotiation.fd]
        self._admission.leave_place(negotiation.lane)  # before the client learns of it, and comes back
        self._admission.holds.forget(negotiation)
        self._pollset.close(negotiation.fd, negotiation.sock)
        self._admission.free(negotiation.lane)
        if not negotiation.orderly:
            self._window.counters.add("negotiations_failed")
            logs.limited(self._log, "negotiation_failed", client=negotiation.peer, reason=reason)
        elif negotiation.refusal:
            self._window.counters.add("negotiations_failed")
            logs.limited(
                self._log, "negotiation_refused", client=negotiation.peer, reason=negotiation.refusal
            )
