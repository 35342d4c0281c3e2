"""Places at exports that serve only so many connections at once, shared by all workers.

A place is one byte of an empty memory file, and who holds a lock on it has the place. Workers write nothing
that others read; two never get the same place; and the places of one that has died are free at once.
"""

from __future__ import annotations

import fcntl

from ..system import kernel
from .protection import make_file, seal

#: Places of one export, at least what ``max_connections`` allows.
_MOST = 4096


def make_places() -> int:
    """The memory file, to be handed to every worker."""
    descriptor = make_file("vramblk-places")
    seal(descriptor, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | kernel.F_SEAL_FUTURE_WRITE)
    return descriptor


class Places:
    """The places that this process has, one for each of its connections at most.

    The kernel keeps them by process, so the file must stay open here, and no second object may use it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._taken: dict[int, int] = {}

    def take(self, slot: int, export: int, most: int) -> bool:
        """Take one of the ``most`` places of an export for the connection in ``slot``; False without any."""
        self.give_back(slot)
        own = set(self._taken.values())
        for place in range(export * _MOST, export * _MOST + most):
            if place in own:
                continue
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except OSError:
                continue
            self._taken[slot] = place
            return True
        return False

    def give_back(self, slot: int) -> None:
        """Free the place of a connection that has ended, if it has one."""
        place = self._taken.pop(slot, None)
        if place is not None:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, place)
