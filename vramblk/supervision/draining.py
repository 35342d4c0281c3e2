"""A drain: how long a server that was told to stop waits for its clients.

In scratch mode until the last one has gone or the deadline has come; in swap mode until the last one
has gone, however long, since the memory must never be freed under one.
"""

from __future__ import annotations

import os
import time

from .. import logs
from ..shared.context import Shared
from ..shared.control import ControlWord, State
from .crew import Crew
from .eventloop import EventLoop

_POLL_S = {"scratch": 0.05, "swap": 0.5}
_REPORT_S = 10.0


def set_state(shared: Shared, state: State) -> None:
    """Publish the server's state and wake all workers, which have to know."""
    shared.control.store(ControlWord.STATE, state)
    for bell in shared.bells:
        os.eventfd_write(bell, 1)


class Drain:
    """Waits from ``begin`` on."""

    def __init__(self, shared: Shared, loop: EventLoop, crew: Crew) -> None:
        self._shared = shared
        self._control = shared.control
        self._loop = loop
        self._crew = crew
        self._mode = shared.settings.mode
        self._log = logs.get()

    def begin(self) -> None:
        if self._mode == "scratch":
            deadline_ns = time.monotonic_ns() + int(self._shared.settings.drain_timeout_s * 1e9)
            self._control.store(ControlWord.DRAIN_DEADLINE_NS, deadline_ns)
        set_state(self._shared, State.DRAINING)
        self._log.info("draining", clients=self._crew.clients())
        self._look_again()
        if self._mode == "swap":
            self._report_attached()

    @property
    def over(self) -> bool:
        """Whether the server may end now."""
        if self._control.state != State.DRAINING:
            return False
        if not self._crew.attached:
            return True
        deadline_ns = self._control.load(ControlWord.DRAIN_DEADLINE_NS)
        return self._mode == "scratch" and time.monotonic_ns() >= deadline_ns

    def _look_again(self) -> None:
        """Workers do not say when a client leaves, so the loop has to wake up by itself."""
        self._loop.after("drain", _POLL_S[self._mode], self._look_again)

    def _report_attached(self) -> None:
        if clients := self._crew.clients():
            self._log.warning("still_attached", clients=clients, detach="vramblk-swap down")
        self._loop.after("report", _REPORT_S, self._report_attached)
