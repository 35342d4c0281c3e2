"""epoll and timers for a single-threaded process."""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Callable, Hashable

_MOST_EVENTS = 64
_POLL_S = 0.02


class EventLoop:
    """Calls back when a descriptor is readable (or its peer gone) and when a time has come.

    Attributes:
        alarm_s: how often SIGALRM, for which there must be a handler, interrupts what is done between two
            waits; 0: never. An attacker in a worker can make the close of a connection wait (SO_LINGER).
        on_error: called with what a callback raises, which then keeps no other from its turn; may raise it
            again. None: it comes through.
    """

    def __init__(self) -> None:
        self.alarm_s = 0.0
        self.on_error: Callable[[Exception], None] | None = None
        self._epoll = select.epoll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._timers: dict[Hashable, tuple[float, Callable[[], None]]] = {}

    @property
    def descriptor(self) -> int:
        return self._epoll.fileno()

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._readers[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Stop watching; nothing happens for a descriptor that is not watched."""
        if self._readers.pop(fd, None):
            self._epoll.unregister(fd)

    def after(self, key: Hashable, delay_s: float, callback: Callable[[], None]) -> None:
        """Call once in ``delay_s``; a timer of the same key is replaced."""
        self._timers[key] = (time.monotonic() + delay_s, callback)

    def cancel(self, key: Hashable) -> None:
        self._timers.pop(key, None)

    def turn(self, timeout_s: float | None = None) -> None:
        """Wait for something, at most ``timeout_s``, and call back for all that has come."""
        self._set_alarm(0)
        ready = self._epoll.poll(self._wait_s(timeout_s), _MOST_EVENTS)
        self._set_alarm(self.alarm_s)
        for fd, _ in ready:
            if callback := self._readers.get(fd):
                self._call(callback)
        now_s = time.monotonic()
        for key, (due_s, callback) in list(self._timers.items()):
            if due_s <= now_s and self._timers.get(key) == (due_s, callback):
                del self._timers[key]
                self._call(callback)

    def until(self, condition: Callable[[], bool], timeout_s: float = float("inf")) -> bool:
        """Turn until the condition holds; False if the time is over first."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() >= deadline_s:
                return False
            self.turn(_POLL_S)
        return True

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:
            if self.on_error is None:
                raise
            self.on_error(error)

    def _wait_s(self, timeout_s: float | None) -> float | None:
        dues = [due_s for due_s, _ in self._timers.values()]
        if not dues:
            return timeout_s
        wait_s = max(0.0, min(dues) - time.monotonic())
        return wait_s if timeout_s is None else min(wait_s, timeout_s)

    def _set_alarm(self, interval_s: float) -> None:
        if self.alarm_s:
            signal.setitimer(signal.ITIMER_REAL, interval_s, interval_s)

    def stop_alarm(self) -> None:
        """From here on nothing is interrupted."""
        self._set_alarm(0)
        self.alarm_s = 0.0

    def close(self) -> None:
        self._epoll.close()
