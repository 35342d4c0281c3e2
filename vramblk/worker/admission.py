"""What a client takes and gives back: a lane, a row of the window's table, a place at its export."""

from __future__ import annotations

from ..serving.lanes import Lane, Lanes
from ..shared.context import Shared
from ..shared.places import Places
from ..shared.window import Window, Word
from ..system import logs
from .holds import Holds

_WORD = (1 << 64) - 1


class Admission:
    """Counts clients in and out, in the window's words and counters."""

    def __init__(self, shared: Shared, window: Window, lanes: int, holds: Holds) -> None:
        self.holds = holds
        self.lanes = Lanes(window.layout.rx_bytes, window.layout.tx_bytes, lanes)
        self._exports = shared.settings.exports
        self._places = Places(shared.places_fd)
        self._window = window
        self._log = logs.get()

    def count_handoff(self) -> None:
        """A connection that has come from the supervisor is taken."""
        self._add(Word.HANDOFFS, 1)

    def count_opened(self) -> None:
        self._window.counters.add("connections_opened")
        self._add(Word.CONNECTIONS, 1)

    def enter(self, export: int, slot: int, peer: str) -> str | None:
        """Whether a connection may begin transmission: nothing, why not, or None: ask again later.

        It takes a place at the export, and has the engine hold its memory.
        """
        if not self.holds.is_claimed(slot, export) and (reason := self._take_place(export, slot, peer)):
            self.holds.give_back(slot)
            return reason
        verdict = self.holds.enter(slot, export, peer)
        if verdict:
            self._places.give_back(slot)
        return verdict

    def _take_place(self, export: int, slot: int, peer: str) -> str:
        """Take a place at an export; gives why there is none."""
        settings = self._exports[export]
        most = settings.places
        if most is None or self._places.take(slot, export, most):
            return ""
        if settings.mode == "swap":
            reason = "this export has its client: in swap mode it serves one at a time; see vramblk status"
        else:
            reason = f"all {most} places of this export are taken (--export-max-connections)"
        logs.limited(
            self._log, "connection_refused", key=export, client=peer, export=settings.name, reason=reason
        )
        return reason

    def leave_place(self, lane: Lane) -> None:
        """The client of this lane has gone, so nothing of it is begun any more: its place is another's."""
        self._places.give_back(lane.slot)

    def free(self, lane: Lane | None) -> None:
        """A connection is closed: its lane, if it had one, serves another."""
        self.give_away(lane)
        self._add(Word.CLOSED, 1)

    def give_away(self, lane: Lane | None) -> None:
        """The same of a connection that another process serves from now on, which the supervisor counts."""
        if lane is not None:
            self.holds.give_back(lane.slot)
            self._places.give_back(lane.slot)
            self._window.free_connection(lane.slot)
            self.lanes.give_back(lane)
        self._window.counters.add("connections_closed")
        self._add(Word.CONNECTIONS, -1)

    def _add(self, word: Word, amount: int) -> None:
        """Whatever the word holds: it is not only this process that can write it."""
        self._window.store(word, self._window.load(word) + amount & _WORD)
