"""Fences from a worker's side: nothing of an older connection is executed once a later one has begun.

The engine's side, and the order that it makes, are in ``engine.fences``.
"""

from __future__ import annotations

from ..serving.negotiation import Negotiation
from ..serving.submissions import Submissions
from ..shared.window import Window, Word
from .connections import Connections

_FENCES, _SEEN, _FENCE_TAIL, _ASKED, _PASSED = (
    word * 8
    for word in (Word.FENCES, Word.FENCES_SEEN, Word.FENCE_TAIL, Word.FENCE_ASKED, Word.FENCE_PASSED)
)
_WORD = (1 << 64) - 1


class Fences:
    """Asks for fences, and takes back what clients that are gone have in flight when others ask.

    Attributes:
        asking: negotiations that have ended and wait for the fence that was asked for.
        waiting: those that wait for the next one.
    """

    def __init__(self, window: Window, submissions: Submissions, connections: Connections) -> None:
        self.asking: list[Negotiation] = []
        self.waiting: list[Negotiation] = []
        self._words = window.words
        self._submissions = submissions
        self._connections = connections

    @property
    def unseen(self) -> bool:
        """Whether new connections have begun elsewhere since ``see``."""
        words = self._words
        return bool(words[_FENCES] != words[_SEEN])

    def see(self) -> None:
        """Take back what is published for clients that are gone.

        The engine holds it until ``FENCES_SEEN`` is set.
        """
        words, ring = self._words, self._submissions.ring
        fences, held = words[_FENCES], words[_FENCE_TAIL]
        gone = self._connections.lose_gone()
        for submission in self._submissions.in_flight:
            if submission.owner in gone and submission.end > held:
                submission.owner.fail("connection_lost", "the client has gone")
                for unit in submission.units:
                    ring.cancel(unit.number)
        words[_SEEN] = fences
        ring.wake()
        for connection in gone:
            self._connections.refresh(connection)

    def wait(self, negotiation: Negotiation) -> None:
        """Let a negotiation that has ended wait for a fence, which is asked for unless one is under way."""
        if negotiation not in self.asking and negotiation not in self.waiting:
            self.waiting.append(negotiation)
            self.ask_next()

    def ask_next(self) -> None:
        """Ask for a fence if negotiations wait for one and none is under way."""
        if self.waiting and not self.asking:
            self.ask()

    def ask(self) -> None:
        """One fence for all negotiations that have ended since the last was asked for."""
        gone = self._connections.lose_gone()
        self.asking, self.waiting = self.waiting, []
        words = self._words
        words[_ASKED] = words[_PASSED] + 1 & _WORD
        self._submissions.ring.wake()
        for connection in gone:
            self._connections.refresh(connection)

    @property
    def passed(self) -> bool:
        """Whether the engine has passed the fence that was asked for last."""
        return bool(self._words[_ASKED] == self._words[_PASSED])

    def take_passed(self) -> list[Negotiation]:
        """The negotiations that have waited for the fence that is passed."""
        passed, self.asking = self.asking, []
        return passed
