"""Memory of exports that is held only while a client is attached, from a worker's side; see ``shared.holds``.

A client that has chosen such an export is counted. It is answered when the engine has seen it and holds the
memory, or has found that there is not enough. It is counted out when its connection is closed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..config.units import format_size
from ..serving.negotiation import Negotiation
from ..serving.submissions import Submissions
from ..shared.context import Shared
from ..shared.holds import HeldWords, HoldWords
from ..shared.window import Window
from ..system import logs

_WORD, _HALF = (1 << 64) - 1, 1 << 63


class _Claim(NamedTuple):
    """A connection's choice; ``asked`` is the number of the change that has counted it."""

    export: int
    asked: int


class Holds:
    """The choices of this window's clients, by the slot of their connection.

    Attributes:
        waiting: negotiations that wait for the engine's answer.
    """

    def __init__(self, shared: Shared, window: Window, submissions: Submissions) -> None:
        self.waiting: list[Negotiation] = []
        self._words = HoldWords(window, len(shared.settings.exports))
        self._held = HeldWords(shared.control)
        self._control = shared.control
        self._attaches = [export.attaches for export in shared.settings.exports]
        self._submissions = submissions
        self._claims: dict[int, _Claim] = {}
        self._looked = (0, 0, 0)
        self._log = logs.get()

    def is_claimed(self, slot: int, export: int) -> bool:
        """Whether the connection has chosen this export already, and waits for the answer."""
        claim = self._claims.get(slot)
        return claim is not None and claim.export == export

    def enter(self, slot: int, export: int, peer: str) -> str | None:
        """Whether transmission can begin: nothing if it can, why it cannot, or None: ask again later."""
        if not self._attaches[export]:
            self.give_back(slot)
            return ""
        if not self.is_claimed(slot, export):
            self.give_back(slot)
            self._claims[slot] = _Claim(export, self._change(export, 1))
            return None
        asked, words = self._claims[slot].asked, self._words
        # In this order: only what the engine has seen counted is not freed any more.
        if _reached(words.seen, asked) and self._held.held(export):
            return ""
        if not _reached(words.answered, asked):
            return None
        if self._held.held(export):
            return ""
        self.give_back(slot)
        reason = self._missing(export)
        logs.limited(self._log, "connection_refused", key=export, client=peer, reason=reason)
        return reason

    def give_back(self, slot: int) -> None:
        """The connection has ended, or chooses again."""
        claim = self._claims.pop(slot, None)
        if claim is not None:
            self._change(claim.export, -1)

    def wait(self, negotiation: Negotiation) -> None:
        if negotiation not in self.waiting:
            self.waiting.append(negotiation)

    def forget(self, negotiation: Negotiation) -> None:
        """One that may wait is dropped."""
        if negotiation in self.waiting:
            self.waiting.remove(negotiation)

    @property
    def changed(self) -> bool:
        """Whether those that wait should ask again."""
        return bool(self.waiting) and self._look() != self._looked

    def take_waiting(self) -> list[Negotiation]:
        """Those that wait; each asks again, and may wait again."""
        self._looked = self._look()
        found, self.waiting = self.waiting, []
        return found

    def _look(self) -> tuple[int, int, int]:
        return self._words.seen, self._words.answered, self._held.changes()

    def _change(self, export: int, amount: int) -> int:
        asked = self._words.change(export, amount)
        self._submissions.ring.wake()
        return asked

    def _missing(self, export: int) -> str:
        entry: dict[str, Any] = self._control.export_table()["exports"][export]
        missing, size = self._held.missing(export), format_size(entry["size_bytes"])
        device = entry["device"] + (f" at {pci}" if (pci := entry.get("pci_address")) else "")
        if not missing:
            return f"the memory of export {entry['name']} on {device} failed its proof; see the server's log"
        return (
            f"not enough memory: {format_size(missing)} of the {size} of export {entry['name']} are missing"
            f" on {device}; free memory there and attach again"
        )


def _reached(number: int, asked: int) -> bool:
    """Whether a counter that wraps has come as far as ``asked``."""
    return (number - asked & _WORD) < _HALF
