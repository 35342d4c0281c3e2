"""The observer as the supervisor sees it: started first, ended last, and started again when it dies."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence

from ..shared.context import Shared
from ..swap import safeguards
from ..system import logs, privileges
from .children import Backoff, Child
from .eventloop import EventLoop
from .processtable import ProcessTable

_GRACE_S = 1.0
_TIMER = "observer"
#: In swap mode: what has killed it may be a lack of memory, of which a fork needs some.
_SWAP_DELAY_S = 10.0


class ObserverProcess:
    """The observer.

    Args:
        log_reader: the read end of the log pipe.
        sockets: what it listens on.
        files: the files of all Unix sockets, each with device and inode.
        watchdog_s: the interval of a service manager's watchdog, None without one.
    """

    def __init__(
        self,
        shared: Shared,
        loop: EventLoop,
        processes: ProcessTable,
        log_reader: int,
        sockets: Sequence[socket.socket],
        files: Mapping[str, tuple[int, int]],
        watchdog_s: float | None,
    ) -> None:
        self._shared = shared
        self._loop = loop
        self._processes = processes
        self._log_reader = log_reader
        self._sockets = sockets
        self._files = files
        self._watchdog_s = watchdog_s
        self._swap = shared.settings.mode == "swap"
        self._child: Child | None = None
        self._line: socket.socket | None = None
        self._started_s = 0.0
        self._backoff = Backoff(shortest_s=1.0, longest_s=30.0, good_life_s=60.0)
        self._dismissed = False
        self._log = logs.get()

    def start(self) -> None:
        counters = self._shared.canary.counters
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # An attacker could send a connection whose close waits (SO_LINGER); the supervisor would close it.
        ours.shutdown(socket.SHUT_RD)
        with theirs:
            self._line = ours
            self._started_s = time.monotonic()
            self._child = self._processes.fork(
                "observer",
                lambda: self._run(theirs),
                lambda: counters.add("dropped_log_lines"),
                self._ended,
                dies_with_parent=not self._swap,
                keep=[self._log_reader, *(sock.fileno() for sock in self._sockets)],
                keeps_stdout=True,
            )

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.alive

    def descriptors(self) -> list[int]:
        """The supervisor's end of the line, at whose end the observer goes."""
        return [self._line.fileno()] if self._line is not None else []

    def dismiss(self) -> None:
        """A death from now on is nothing to tell or to mend."""
        self._dismissed = True

    def stop(self) -> None:
        """Let it go, and wait for that; a stubborn one is killed."""
        self.dismiss()
        self._hang_up()
        child = self._child
        if child is not None and not self._loop.until(lambda: not child.alive, _GRACE_S):
            child.kill()
            self._loop.until(lambda: not child.alive, _GRACE_S)

    def _run(self, supervisor: socket.socket) -> int:
        self._shared.confine_observer()
        if self._swap:
            safeguards.leave_data_path()
        from .. import observer

        return observer.run(
            self._shared,
            self._log_reader,
            list(self._sockets),
            supervisor,
            self._files,
            self._watchdog_s,
            self._drop_privileges,
        )

    def _drop_privileges(self) -> None:
        privileges.drop(self._shared.observer_uid)
        privileges.start_few_processes()

    def _ended(self, child: Child) -> None:
        self._hang_up()
        if not self._dismissed:
            delay_s = self._backoff.after(time.monotonic() - self._started_s)
            delay_s = max(delay_s, _SWAP_DELAY_S) if self._swap else delay_s
            self._loop.after(_TIMER, delay_s, self._restart)
            self._log.warning("observer_died", child=child.pid, restart_in_s=delay_s, **child.how_it_ended())

    def _restart(self) -> None:
        if self._dismissed:
            return
        try:
            self.start()
        except Exception as error:  # whatever it is, the server must not stay without an observer
            self._hang_up()
            self._loop.after(_TIMER, self._backoff.after(0), self._restart)
            self._log.warning("observer_not_started", detail=str(error) or type(error).__name__)

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
