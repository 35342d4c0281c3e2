"""Whether the files of the server's Unix sockets are still there.

A removed file changes nothing for who is attached, and the socket goes on listening; but nobody finds it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from ..shared.control import Control, State
from ..system import logs


class SocketFiles:
    """The files by path, each with device and inode."""

    def __init__(self, control: Control, files: Mapping[str, tuple[int, int]]) -> None:
        self._control = control
        self._files = files
        self._handles = {path: handle for path in files if (handle := _Handle.open(path)) is not None}
        self._told: set[str] = set()

    def gone(self) -> list[str]:
        """Paths where nothing is, or something else, while the server takes clients."""
        if self._control.state is not State.READY:
            return []
        return [path for path, identity in self._files.items() if not self._there(path, identity)]

    def look(self) -> None:
        """Log what has gone since the last look."""
        gone = set(self.gone())
        for path in sorted(gone - self._told):
            logs.get().error("socket_gone", path=path, effect="new clients do not find the server there")
        self._told = gone


    def _there(self, path: str, identity: tuple[int, int]) -> bool:
        try:
            return _identity(os.lstat(path)) == identity
        except PermissionError:  # the directory is closed to this uid
            handle = self._handles.get(path)
            return handle is not None and handle.identity == identity and not handle.gone
        except OSError:
            return False


class _Handle(NamedTuple):
    """A file that was opened by its path when that could be searched.

    Attributes:
        name: as the kernel names what the descriptor stands for; moving or removing the file changes it.
    """

    descriptor: int
    identity: tuple[int, int]
    name: str

    @classmethod
    def open(cls, path: str) -> _Handle | None:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        return cls(descriptor, _identity(os.fstat(descriptor)), _name(descriptor))

    @property
    def gone(self) -> bool:
        return _name(self.descriptor) != self.name


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _name(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")
