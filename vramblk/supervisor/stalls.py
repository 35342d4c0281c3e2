"""Workers that stand still: passed over, relieved of what they have not taken, and named in the log.

An engine that serves clients itself is looked at in the same way.

A worker takes a connection within a millisecond or two. One that was stopped (SIGSTOP, a debugger, a frozen
cgroup) takes none, and a client that it was given would wait and learn nothing.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..system import logs
from .eventloop import EventLoop
from .handoffs import Handoff, Handoffs

if TYPE_CHECKING:
    from .slots import Slot

#: A worker that has not taken a connection for so long gets no other.
PASSED_OVER_S = 0.05
#: What it has not taken by then goes to another worker, if one takes connections.
_TAKE_BACK_S = 0.25
_TELL_S = 1.0
_LOOK_S = 0.05
_LOOK_LATER_S = 0.25
_TIMER = "stalls"


class Stalls:
    """Looks at all workers while one has not taken all that it was given.

    Args:
        room_elsewhere: whether another worker takes connections.
        hand_over: gives a connection that was taken back to one; False if none could take it.
        give_up_s: a connection that has been waiting for so long is closed; None: it waits on.
    """

    def __init__(
        self,
        loop: EventLoop,
        slots: Sequence[Slot],
        room_elsewhere: Callable[[], bool],
        hand_over: Callable[[socket.socket, Handoff], bool],
        *,
        give_up_s: float | None,
    ) -> None:
        self._loop = loop
        self._slots = slots
        self._room_elsewhere = room_elsewhere
        self._hand_over = hand_over
        self._give_up_s = give_up_s
        self._looking = False
        self._log = logs.get()

    def watch(self) -> None:
        """A connection was sent: look until all are taken."""
        if not self._looking:
            self._looking = True
            self._loop.after(_TIMER, _LOOK_S, self._look)

    def pass_on(self, handoff: Handoff, connection: socket.socket | None, reason: str) -> None:
        """Give a connection that was taken back to another worker, or close it."""
        if connection is not None:
            with connection:
                if self._hand_over(connection, handoff):
                    return
        logs.limited(self._log, "connection_refused", client=handoff.peer, reason=reason)

    def _look(self) -> None:
        self._loop.after(_TIMER, _LOOK_LATER_S, self._look)  # whatever happens now
        now_s = time.monotonic()
        longest_s = max(self._look_at(slot, now_s) for slot in self._slots)
        if longest_s < 0:
            self._loop.cancel(_TIMER)
            self._looking = False
        elif longest_s < _TELL_S:
            self._loop.after(_TIMER, _LOOK_S, self._look)

    def _look_at(self, slot: Slot, now_s: float) -> float:
        """How long the worker has been standing still, -1 if there is nothing to look at again."""
        handoffs = slot.handoffs
        if slot.child is None or handoffs is None:
            return -1.0
        index = slot.window.index
        name, who = ("the engine", {}) if slot.local else (f"worker {index}", {"worker": index})
        who["child"] = slot.child.pid
        still_s = handoffs.still_s(now_s)
        if still_s >= _TAKE_BACK_S:
            self._relieve(name, handoffs, now_s, now_s - still_s)
        if still_s >= _TELL_S and slot.stalled_since_s is None:
            slot.stalled_since_s = now_s - still_s
            found = {"waiting": handoffs.waiting, "moved": handoffs.moved}
            told = {**who, "stalled_s": round(still_s, 2), **found}
            if slot.local:
                self._log.warning("engine_stalled", **told)
            else:
                self._log.warning("worker_stalled", **told)
        elif still_s < PASSED_OVER_S and slot.stalled_since_s is not None:
            stalled_s, slot.stalled_since_s = now_s - slot.stalled_since_s, None
            told = {**who, "stalled_s": round(stalled_s, 2)}
            if slot.local:
                self._log.info("engine_resumed", **told)
            else:
                self._log.info("worker_resumed", **told)
        return still_s if still_s or handoffs.waiting else -1.0

    def _relieve(self, name: str, handoffs: Handoffs, now_s: float, since_s: float) -> None:
        """Take back what others can take, and what has been waiting too long."""
        while handoffs.waiting:
            too_long = self._give_up_s is not None and handoffs.oldest_s(now_s) >= self._give_up_s
            if not too_long and not self._room_elsewhere():
                return
            taken = handoffs.take_back()
            if taken is None:
                return
            handoffs.stand_still(since_s)
            self.pass_on(*taken, f"{name} stands still, and no other has taken it")
