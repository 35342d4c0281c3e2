"""Who takes a connection: the engine if it has a place for a local client, otherwise a worker.

Of the workers it is the least loaded that is ready and does not stand still.

``limits`` decides how many are taken.

A faulty worker may write anything into its window, so nothing that is read there may raise here.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..config.units import printable
from ..shared.context import Shared
from ..shared.window import ConnectionState
from .eventloop import EventLoop
from .handoffs import Handoff
from .limits import Client, Full, Limits, Origin, Peer, makes_way, peer_of
from .slots import Slot
from .stalls import PASSED_OVER_S, Stalls

#: A client that nobody has taken by then had better try again.
_GIVE_UP_S = 5.0
#: A negotiation that has taken longer makes way although the server is not full, if nobody has a place left.
_SLOW_NS = 1_000_000_000


class WorkerPool:
    """The connections of all workers. ``WorkerProcesses`` fills the slots.

    Args:
        give_up_s: how long a connection waits for a worker; in swap mode, where it is a device, without end.
    """

    def __init__(
        self, shared: Shared, loop: EventLoop, slots: Sequence[Slot], *, give_up_s: float = _GIVE_UP_S
    ) -> None:
        self.slots = slots
        self._workers = [slot for slot in slots if not slot.local]
        self._exports = shared.settings.exports
        self._swap = swap = shared.settings.mode == "swap"
        self._limits = Limits(shared.settings)
        #: Of TCP clients, by the number of the connection. All others are on Unix sockets.
        self._peers: dict[int, Peer] = {}
        #: Negotiations that were told to make way and still stand in a window.
        self._sentenced: set[int] = set()
        self._stalls = Stalls(
            loop, slots, lambda: self.has_room, self._hand_over_again, give_up_s=None if swap else give_up_s
        )

    @property
    def attached(self) -> int:
        """Connections handed over and not closed yet."""
        return sum(slot.attached for slot in self.slots)

    @property
    def has_room(self) -> bool:
        """Whether any client would be taken, wherever it comes from."""
        return any(self._takes(slot) for slot in self._workers or self.slots)

    def accepts(self, *, local: bool) -> bool:
        """Whether one more client would be taken: a place is free, or a slow negotiation can make way.

        Args:
            local: it is on a Unix socket, so the engine may take it too.
        """
        if any(map(self._takes, self.slots if local else self._workers or self.slots)):
            return True
        slow_ns = time.monotonic_ns() - _SLOW_NS
        return any(
            client.negotiates_since_ns is not None and client.negotiates_since_ns < slow_ns
            for client, _ in self._held().values()
        )

    def clients(self) -> list[str]:
        """Who is attached, as ``peer export``."""
        names = dict(enumerate(export.name for export in self._exports))
        return [
            f"{printable(connection.peer)} {names.get(connection.export, '(no export)')}"
            for slot in self.slots
            if slot.child
            for connection in slot.window.connections()
        ]

    def admit(self, connection: socket.socket, number: int, peer: str) -> str:
        """Give a new connection to who takes it, in the place of an unfinished negotiation if it has to be.

        Returns:
            Why nobody takes it; empty if somebody does.
        """
        try:
            origin = peer_of(connection)
        except OSError:
            return "the client has gone"
        held = self._held()
        clients = [client for client, _ in held.values()]
        full = self._limits.reached(origin, clients, self.attached)
        if full is None and self.hand_over(connection, number, peer):
            admitted = True
        else:
            nobody = "no place is free (--workers)" if self._swap else "no worker answers"
            full = full or Full(nobody, lambda other: True)
            gone = makes_way(origin, full, clients)
            admitted = gone is not None and self._replace(
                gone.number, held[gone.number][1], connection, number, peer
            )
        if admitted and origin.origin is not Origin.UNIX:
            self._peers[number] = origin
        return "" if admitted or full is None else full.reason

    def hand_over(
        self, connection: socket.socket, number: int, peer: str, begun: Mapping[str, Any] | None = None
    ) -> bool:
        """Give a connection to who takes it; False if nobody can.

        Args:
            begun: of one that the engine has served, and had better not any longer.
        """
        now_s = time.monotonic()
        slots = self.slots if connection.family == socket.AF_UNIX else self._workers
        first = begun is None  # the engine, or a worker

        def order(slot: Slot) -> tuple[bool, tuple[bool, int]]:
            return slot.local is not first, slot.load

        for slot in sorted(filter(self._takes, slots), key=order):
            if slot.handoffs is not None and slot.handoffs.send(connection, number, peer, now_s, begun):
                self._stalls.watch()
                return True
        return False

    def pass_on(self, handoff: Handoff, connection: socket.socket | None, reason: str) -> None:
        """Give a connection that a worker has not taken to another one, or close it."""
        self._stalls.pass_on(handoff, connection, reason)

    def move(
        self, connection: socket.socket | None, number: int, peer: str, begun: Mapping[str, Any]
    ) -> None:
        """Give a connection that the engine has served to a worker; back to the engine if none takes it.

        It is counted here, so that it is attached at every moment, and once.
        """
        for slot in self.slots:
            if slot.local and slot.handoffs is not None:
                slot.handoffs.given_away += 1
        self.pass_on(Handoff(number, peer, 0.0, begun), connection, "no worker has taken it from the engine")

    def _hand_over_again(self, connection: socket.socket, handoff: Handoff) -> bool:
        """Give a connection that was taken back to another; False if nobody can.

        The negotiation that was to make way for it has not, so without that there may be no place.
        """
        if handoff.instead_of is not None and self.attached >= self._limits.most:
            return False
        return self.hand_over(connection, handoff.number, handoff.peer, handoff.begun)

    def _replace(self, old: int, slot: Slot, connection: socket.socket, number: int, peer: str) -> bool:
        """Have a connection take the place of an unfinished negotiation; False if it cannot be told."""
        assert slot.handoffs is not None
        if not slot.handoffs.send(connection, number, peer, time.monotonic(), instead_of=old):
            return False
        self._sentenced.add(old)
        self._stalls.watch()
        return True

    def _held(self) -> dict[int, tuple[Client, Slot]]:
        """Every connection that is open, by number, as windows and handoff sockets tell.

        All others are forgotten here. A worker has at most as many as it was given and has not closed: rows
        that a faulty one keeps beyond that count for nobody.
        """
        found: dict[int, tuple[Client, Slot]] = {}

        def note(number: int, negotiates_since_ns: int | None) -> None:
            if number in self._sentenced or not moves:
                negotiates_since_ns = None
            peer = self._peers.get(number, Peer(Origin.UNIX))
            found[number] = Client(number, peer, negotiates_since_ns), slot

        for slot in self.slots:
            if slot.child is None or slot.handoffs is None:
                continue
            moves = self._moves(slot)
            for handoff in slot.handoffs.untaken:
                note(handoff.number, int(handoff.sent_s * 1e9) if handoff.begun is None else None)
            attached = slot.attached  # before the rows, so that it is never less than an honest worker has
            for row in slot.window.connections()[:attached]:
                note(row.id, row.since_ns if row.state is ConnectionState.NEGOTIATING else None)
        self._sentenced.intersection_update(found)
        self._peers = {number: peer for number, peer in self._peers.items() if number in found}
        return found

    def _takes(self, slot: Slot) -> bool:
        return self._moves(slot) and slot.attached < slot.window.layout.lanes

    def _moves(self, slot: Slot) -> bool:
        """Whether the slot's process takes what it is given."""
        if not slot.ready or slot.killed or slot.handoffs is None:
            return False
        return slot.handoffs.still_s(time.monotonic()) < PASSED_OVER_S
