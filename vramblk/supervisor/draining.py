"""A drain: how long a stopping server waits for its clients.

In scratch mode until the last one has gone or the deadline has come; in swap mode until the last one
has gone, however long, since the memory must never be freed under one.
"""

from __future__ import annotations

import time

from ..shared.context import Shared
from ..shared.control import ControlWord, State
from ..system import logs
from .eventloop import EventLoop
from .workerpool import WorkerPool

_POLL_S = {"scratch": 0.05, "swap": 0.5}


def set_state(shared: Shared, state: State) -> None:
    """Publish the server's state and wake all workers, which have to know."""
    shared.control.store(ControlWord.STATE, state)
    for doorbell in shared.doorbells:
        doorbell.ring()


class Drain:
    """Waits from ``begin`` on.

    Args:
        report_s: how often swap mode logs who is attached.

    Attributes:
        begun: that was called.
    """

    def __init__(
        self, shared: Shared, loop: EventLoop, pool: WorkerPool, *, report_s: float = 10.0
    ) -> None:
        self._shared = shared
        self._control = shared.control
        self._loop = loop
        self._pool = pool
        self._report_s = report_s
        self._mode = shared.settings.mode
        self.begun = False
        self._deadline_ns = 0
        self._log = logs.get()

    def begin(self) -> None:
        self.begun = True
        if self._mode == "scratch":
            self._deadline_ns = time.monotonic_ns() + int(self._shared.settings.drain_timeout_s * 1e9)
            self._control.store(ControlWord.DRAIN_DEADLINE_NS, self._deadline_ns)
        set_state(self._shared, State.DRAINING)
        self._look_again()
        self._log.info("draining", clients=self._pool.clients())
        if self._mode == "swap":
            self._report_attached()

    @property
    def over(self) -> bool:
        """Whether the server may end now."""
        if not self.begun:
            return False
        if not self._pool.attached:
            return True
        return self._mode == "scratch" and time.monotonic_ns() >= self._deadline_ns

    def _look_again(self) -> None:
        """Workers do not say when a client leaves, so the loop has to wake up by itself."""
        self._loop.after("drain", _POLL_S[self._mode], self._look_again)

    def _report_attached(self) -> None:
        self._loop.after("report", self._report_s, self._report_attached)
        if clients := self._pool.clients():
            self._log.warning("still_attached", clients=clients, detach="vramblk-swap down")
