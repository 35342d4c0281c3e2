"""Signals as bytes in a pipe: they are obeyed between two callbacks of the loop and never within one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection, Iterable, Mapping
from types import FrameType
from typing import Any

from ..errors import StartupError


class SignalPipe:
    """Takes signals over until ``close``; to be made in the main thread.

    Args:
        noticed: these come out of ``read``.
        ignored: these have no effect at all.
    """

    def __init__(self, noticed: Iterable[signal.Signals], ignored: Iterable[signal.Signals] = ()) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._before: dict[int, Any] = {number: signal.signal(number, _nothing) for number in noticed}
        self._before |= {number: signal.signal(number, signal.SIG_IGN) for number in ignored}

    @property
    def descriptor(self) -> int:
        """Readable when a signal has come."""
        return self._reader

    def descriptors(self) -> list[int]:
        return [self._reader, self._writer]

    def read(self) -> set[int]:
        """The signals that have come since the last call."""
        try:
            return set(os.read(self._reader, 4096))
        except BlockingIOError:
            return set()

    def close(self) -> None:
        """Put back what was there before."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for descriptor in self.descriptors():
            os.close(descriptor)


def obey(came: Collection[int], actions: Mapping[int, Callable[[], None]]) -> None:
    """Do what the signals that came ask for, in the order of ``actions``.

    What ends the server comes through at once. What nobody foresaw comes through in the end: the signals that
    came with it must not get lost.
    """
    fault: Exception | None = None
    for number, action in actions.items():
        if number not in came:
            continue
        try:
            action()
        except StartupError:
            raise
        except Exception as error:
            fault = error
    if fault is not None:
        raise fault


def _nothing(_: int, __: FrameType | None) -> None:
    """Python writes the number to the wake-up descriptor; there is nothing more to do."""
