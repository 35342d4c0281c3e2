"""Who takes a connection: the engine if it has a place for a local client, otherwise a worker.

Of the workers it is the least loaded that is ready and does not stand still.

A faulty worker may write anything into its window, so nothing that is read there may raise here.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..shared.context import Shared
from .eventloop import EventLoop
from .handoffs import Handoff
from .slots import Slot, printable
from .stalls import PASSED_OVER_S, Stalls

#: A client that nobody has taken by then had better try again.
_GIVE_UP_S = 5.0


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
        swap = shared.settings.mode == "swap"
        self._stalls = Stalls(
            loop, slots, lambda: self.has_room, self.hand_over, give_up_s=None if swap else give_up_s
        )

    @property
    def attached(self) -> int:
        """Connections handed over and not closed yet."""
        return sum(slot.attached for slot in self.slots)

    @property
    def has_room(self) -> bool:
        """Whether any client would be taken, wherever it comes from."""
        return any(self._takes(slot) for slot in self._workers or self.slots)

    def clients(self) -> list[str]:
        """Who is attached, as ``peer export``."""
        names = dict(enumerate(export.name for export in self._exports))
        return [
            f"{printable(connection.peer)} {names.get(connection.export, '(no export)')}"
            for slot in self.slots
            if slot.child
            for connection in slot.window.connections()
        ]

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

    def _takes(self, slot: Slot) -> bool:
        if not slot.ready or slot.killed or slot.handoffs is None:
            return False
        if slot.attached >= slot.window.layout.lanes:
            return False
        return slot.handoffs.still_s(time.monotonic()) < PASSED_OVER_S
