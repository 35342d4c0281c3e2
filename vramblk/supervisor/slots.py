"""A slot of the worker pool: one window, and the worker that now has it.

A faulty worker may write anything into its window, so nothing that is read there may raise here.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..shared.context import Shared
from ..shared.window import Window, Word
from .children import Backoff, Child
from .handoffs import Handoffs


@dataclass
class Slot:
    """One window and the worker that now has it, or the engine if it serves local clients itself.

    Attributes:
        local: it is the engine's, which takes clients on Unix sockets only.
        killed: the worker was ended because it is faulty.
        generation: workers that the window had before this one.
        handoffs: the way to its worker.
        stalled_since_s: since when it stands still, if that was told.
        drained: the engine has finished what the dead worker had queued.
        delayed: the delay before its successor is not over yet.
    """

    window: Window
    backoff: Backoff
    local: bool = False
    child: Child | None = None
    killed: bool = False
    generation: int = 0
    handoffs: Handoffs | None = None
    stalled_since_s: float | None = None
    started_s: float = 0.0
    drained: bool = True
    delayed: bool = False

    @property
    def ready(self) -> bool:
        return self.child is not None and bool(self.window.load(Word.READY))

    @property
    def attached(self) -> int:
        """Connections handed to it and not closed yet; 0 if it says that it has closed more."""
        if self.child is None or self.handoffs is None:
            return 0
        return max(0, self.handoffs.sent - self.handoffs.given_away - self.window.load(Word.CLOSED))

    @property
    def load(self) -> tuple[bool, int]:
        """The lower, the sooner it gets a connection: one that cannot count is the last to get one."""
        miscounts = self.handoffs is not None and self.window.load(Word.CLOSED) > self.handoffs.sent
        return miscounts, self.attached


def make_slots(shared: Shared) -> list[Slot]:
    """One for each window that has clients, without a process yet."""
    return [Slot(window, Backoff(), window is shared.local) for window in shared.client_windows]
