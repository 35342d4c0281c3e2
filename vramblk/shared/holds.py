"""Who needs an export's memory, and whether it is held: words of the windows and of the control page.

With ``--allocate attach`` the engine holds an export's memory only while a client of it is attached. Each
worker counts in its window how many of its clients have chosen an export, and raises ``HOLDS_ASKED`` after
each change. The engine sets ``HOLDS_SEEN`` to that once it knows the counts. From then on it frees nothing
that is counted. It sets ``HOLDS_ANSWERED`` once each counted export is held, or cannot be. Its own words tell
which of the two.
"""

from __future__ import annotations

from .control import Control
from .window import Window, Word

#: Cells of a window's header from which on there is one for each export: clients that have chosen it.
_USERS_CELL = 256
_ASKED, _SEEN, _ANSWERED = (
    word * 8 for word in (Word.HOLDS_ASKED, Word.HOLDS_SEEN, Word.HOLDS_ANSWERED)
)
_WORD = (1 << 64) - 1


class HoldWords:
    """The words of one window: the worker's counts, and the engine's answers."""

    def __init__(self, window: Window, exports: int) -> None:
        self._words = window.words
        self._users = window.words[_USERS_CELL : _USERS_CELL + exports]

    # The worker's side

    def change(self, export: int, amount: int) -> int:
        """Count clients of an export in or out; the number of the change, to be waited for."""
        self._users[export] = self._users[export] + amount & _WORD
        asked = self._words[_ASKED] = self._words[_ASKED] + 1 & _WORD
        return asked

    @property
    def seen(self) -> int:
        """The newest change that the engine has read."""
        return self._words[_SEEN]

    @property
    def answered(self) -> int:
        """The newest change after which each counted export is held, or could not be."""
        return self._words[_ANSWERED]

    # The engine's side

    @property
    def asked(self) -> int:
        """The number of the worker's newest change."""
        return self._words[_ASKED]

    def users(self) -> list[int]:
        """Clients by export, as the worker counts them; read after ``asked``."""
        return self._users.tolist()

    def see(self, asked: int) -> None:
        self._words[_SEEN] = asked

    def answer(self, asked: int) -> None:
        self._words[_ANSWERED] = asked

    def forget(self) -> None:
        """The worker is dead."""
        for export in range(len(self._users)):
            self._users[export] = 0
        for word in (_ASKED, _SEEN, _ANSWERED):
            self._words[word] = 0


class HeldWords:
    """The engine's words of each export, in the control page. As they begin, all are held."""

    def __init__(self, control: Control) -> None:
        self._turns = control.held
        self._missing = control.missing

    def set(self, export: int, held: bool) -> None:
        """The memory of an export is there from now on, or is not."""
        if self.held(export) is not held:
            self._turns[export] = self._turns[export] + 1 & _WORD

    def held(self, export: int) -> bool:
        return not self._turns[export] & 1

    def turn(self, export: int) -> int:
        """Changes so far: the same number twice means that nothing has changed in between."""
        return self._turns[export]

    def changes(self) -> int:
        """Of all exports together."""
        return sum(self._turns)

    def set_missing(self, export: int, missing_bytes: int) -> None:
        """How much memory there was too little when it was tried last; 0 when it was enough."""
        self._missing[export] = missing_bytes

    def missing(self, export: int) -> int:
        return self._missing[export]
