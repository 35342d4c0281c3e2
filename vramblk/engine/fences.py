"""Fences: a new connection waits for them, so that requests of older connections cannot run after its own.

A worker asks for a fence before it answers GO or EXPORT_NAME. The engine lets it pass when everything that
was accepted from connections which had ended when the client asked is finished, or will not run:

- What all workers have published so far is executed first.
- What the others publish from now on is held, until the worker has asked the kernel which of its clients
  are gone, and has taken back what it had published for those. It takes nothing more of them afterwards.
- The worker that asks for the fence looks first which of its own clients are gone.

Nobody waits for a worker that stands still, but its own clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..shared.barrier import full_barrier
from ..shared.descriptors import ENTRIES
from ..shared.doorbell import Doorbell
from ..shared.window import Window, Word

_TAIL, _READY, _FENCES, _SEEN, _FENCE_TAIL, _ASKED, _PASSED = (
    word * 8
    for word in (
        Word.TAIL, Word.READY, Word.FENCES, Word.FENCES_SEEN, Word.FENCE_TAIL,
        Word.FENCE_ASKED, Word.FENCE_PASSED,
    )
)  # fmt: skip
_MASK = (1 << 64) - 1


@dataclass
class _Fence:
    """``asked`` is the worker's word when it was begun, ``tails`` what is to be executed, by window."""

    asked: int
    tails: dict[int, int]


class Fences:
    """At most one fence for each worker at a time.

    Args:
        windows: of the workers.
        doorbells: of these windows, and perhaps of more.
        executed: entries of each window that the engine has executed, kept up to date by the engine.
        corrupt: windows that the engine does not serve any more.

    Attributes:
        held: by window: the entry from which on it is held; see ``limit``.
    """

    def __init__(
        self,
        windows: Sequence[Window],
        doorbells: Sequence[Doorbell],
        executed: Sequence[int],
        corrupt: Sequence[bool],
    ) -> None:
        self._words = [window.words for window in windows]
        self._doorbells = doorbells
        self._executed = executed
        self._corrupt = corrupt
        self._begun = [0] * len(windows)
        #: By the window that has asked.
        self._fences: dict[int, _Fence] = {}
        self.held: dict[int, int] = {}

    def waiting(self) -> bool:
        """Whether ``serve`` would do something."""
        for index, words in enumerate(self._words):
            if words[_ASKED] != words[_PASSED] and (index not in self._fences or self._is_open(index)):
                return True
        return False

    def serve(self) -> bool:
        """Begin the fences that were asked for, pass those that wait for nothing more; True if any was."""
        passed = False
        for index, words in enumerate(self._words):
            if words[_ASKED] == words[_PASSED]:
                continue
            if index not in self._fences:
                self._begin(index, words[_ASKED])
            if self._is_open(index):
                words[_PASSED] = self._fences.pop(index).asked
                self._doorbells[index].wake()
                passed = True
        return passed

    def _begin(self, window: int, asked: int) -> None:
        fence = self._fences[window] = _Fence(asked, {window: self._words[window][_TAIL]})
        for other, words in enumerate(self._words):
            # A worker that is not ready has had no connection yet.
            if other == window or not words[_READY]:
                continue
            tail = words[_TAIL]
            if self._corrupt[other] or not 0 <= tail - self._executed[other] <= ENTRIES:
                continue  # what it has queued is never taken
            if self.limit(other, tail) < tail:
                tail = self.held[other]
            self.held[other] = fence.tails[other] = tail
            self._begun[other] = self._begun[other] + 1 & _MASK
            words[_FENCE_TAIL] = tail
            words[_FENCES] = self._begun[other]
        full_barrier()
        for other, tail in fence.tails.items():
            if other != window and self._words[other][_TAIL] != tail:
                self._doorbells[other].wake_unordered()  # perhaps it sleeps without having seen the fence

    def _is_open(self, window: int) -> bool:
        """Whether the window's fence has nothing left to wait for."""
        tails = self._fences[window].tails
        for other, tail in list(tails.items()):
            if self._executed[other] >= tail or self._corrupt[other]:
                del tails[other]
        return not tails

    def limit(self, window: int, tail: int) -> int:
        """How far a window may be taken whose worker has published ``tail`` entries."""
        held = self.held.get(window)
        if held is None:
            return tail
        if self._words[window][_SEEN] == self._begun[window]:
            del self.held[window]
            # What was published before the worker has looked is there now; it may have taken some of it back.
            return tail
        return min(held, tail)

    def forget(self, window: int) -> None:
        """The worker of this window is dead, and what it had published is executed, or held and dropped."""
        self._fences.pop(window, None)
        self.held.pop(window, None)
        self._begun[window] = 0
        for fence in self._fences.values():
            fence.tails.pop(window, None)
        for word in (_READY, _FENCES, _SEEN, _ASKED, _PASSED):
            self._words[window][word] = 0
