"""Allocation around a circle, for what is given back in the order in which it was taken.

Compiled, with the types of ``contiguousfifo.pxd``: each run of requests takes columns and room for replies.
"""

from __future__ import annotations


class ContiguousFifo:
    """Space handed out in contiguous pieces and given back in the same order.

    It allocates around a circle but never across its seam. ``release(end)`` frees everything up
    to the end of an allocation.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._head = 0
        self._tail = 0
        self._live = 0

    def allocate(self, amount: int) -> int:
        """Start of ``amount`` units, or -1 while there is no such piece."""
        head, tail = self._head, self._tail
        if not self._live:
            if amount > self.size:
                return -1
            head = self._tail = 0
        elif head > tail:
            if self.size - head < amount:
                if amount > tail:
                    return -1
                head = 0
        elif tail - head < amount:
            return -1
        self._head = head + amount
        self._live += 1
        return head

    def largest(self) -> int:
        """The largest amount that ``allocate`` would now hand out."""
        head, tail = self._head, self._tail
        if not self._live:
            return self.size
        return max(self.size - head, tail) if head > tail else tail - head

    def release(self, end: int) -> None:
        """Give back the oldest allocation, which ended at ``end``."""
        self._tail = end
        self._live -= 1

    def restore(self, live: int, head: int) -> None:
        """Take back all but the ``live`` oldest allocations, the last of which ends at ``head``."""
        self._live = live
        if live:
            self._head = head
