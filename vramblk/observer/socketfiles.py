"""Whether the files of the server's Unix sockets are still there.

A removed file changes nothing for who is attached, and the socket goes on listening; but nobody finds it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..shared.control import Control, State
from ..system import logs


class SocketFiles:
    """The files by path, each with device and inode."""

    def __init__(self, control: Control, files: Mapping[str, tuple[int, int]]) -> None:
        self._control = control
        self._files = files
        self._told: set[str] = set()

    def gone(self) -> list[str]:
        """Paths where nothing is, or something else, while the server takes clients."""
        if self._control.state is not State.READY:
            return []
        return [path for path, identity in self._files.items() if _identity(path) != identity]

    def look(self) -> None:
        """Log what has gone since the last look."""
        gone = set(self.gone())
        for path in sorted(gone - self._told):
            logs.get().error("socket_gone", path=path, effect="new clients do not find the server there")
        self._told = gone


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
