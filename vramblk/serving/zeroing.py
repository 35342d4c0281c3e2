"""Turns among the connections of a worker that zero something large."""

from __future__ import annotations

from collections import deque

from .pieces import LargeZero


class ZeroingTurns:
    """One piece is in flight at a time, since all that a worker has queued behind a piece waits for it.

    Attributes:
        waiting: who waits for a turn; the first is next.
        in_flight: the zeroing whose piece is in flight, or None.
    """

    def __init__(self) -> None:
        self.waiting: deque[object] = deque()
        self.in_flight: LargeZero | None = None

    @property
    def is_open(self) -> bool:
        """Whether somebody waits who could go on now."""
        return bool(self.waiting) and self.in_flight is None

    def take(self, who: object) -> bool:
        """Whether it is the turn of ``who`` to zero a piece; otherwise ``who`` waits in the queue."""
        if who not in self.waiting:
            self.waiting.append(who)
        return self.in_flight is None and self.waiting[0] is who

    def leave(self, who: object) -> None:
        """The piece of ``who`` is in flight, or will not come to it now."""
        if who in self.waiting:
            self.waiting.remove(who)
