"""Clients that the engine serves itself, in its own thread: plaintext clients on Unix sockets.

The loop and all that belongs to a connection are the workers', on a window of the engine's own. What differs:
nobody is woken and nobody is waited for, since the executor's turn follows when the requests are published.
"""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ..shared import moves
from ..shared.context import Shared
from ..shared.control import State
from ..shared.doorbell import engine_doorbell
from ..shared.ring import SubmissionRing
from ..shared.window import Word
from ..system import logs
from ..worker.loop import ClientLoop
from ..worker.windowproof import prove_window
from .executor import Executor
from .localconnection import LocalConnection

_AFTER_FAULT_S = 0.001


class _InlineRing:
    """A ring whose entries are done when they are published."""

    def __init__(self, ring: SubmissionRing, executor: Executor) -> None:
        self._ring = ring
        self._executor = executor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ring, name)

    def publish(self) -> bool:
        self._ring.publish()
        while self._executor.turn():
            pass
        return False


class LocalClients:
    """The engine's own clients.

    Args:
        handoff: over which the supervisor gives them.
        mail: becomes readable when the supervisor has written to the engine.
        idle: whether the engine has nothing else to do, looked at before it sleeps.
        move: gives a connection to the workers, with its number, peer and how it goes on; False if that is
            not possible now. Without it clients stay.
    """

    def __init__(
        self,
        shared: Shared,
        executor: Executor,
        handoff: socket.socket,
        mail: int,
        idle: Callable[[], bool],
        move: Callable[..., bool] | None = None,
    ) -> None:
        assert shared.local is not None
        construct = partial(LocalConnection, shared, executor)
        self._loop = ClientLoop(
            shared, shared.local.index, handoff, shared.local.layout.lanes, construct=construct
        )
        self._control = shared.control
        self._exports = shared.settings.exports
        self._workers = shared.worker_windows
        self._move = move
        self._executor = executor
        self._idle = idle
        self._doorbell = engine_doorbell(shared.control, shared.engine_doorbell)
        self._log = logs.get()
        self._loop.pollset.watch(mail)
        self._loop.pollset.watch(self._doorbell.fd)

    def prepare(self) -> None:
        """Learn the exports and prove the window.

        Raises:
            RuntimeFailure: bytes did not survive the way through the device.
        """
        loop = self._loop
        loop.learn_exports()
        ring: Any = _InlineRing(loop.submissions.ring, self._executor)
        prove_window(loop.window, ring, loop.doorbell, self._control)

    def open(self) -> None:
        """Take clients from now on."""
        gc.disable()  # a connection that closes has it done
        self._loop.window.store(Word.READY, 1)

    @property
    def attached(self) -> bool:
        """Whether there is any client."""
        return bool(self._loop.connections.by_fd or self._loop.negotiations.by_fd)

    def turn(self) -> bool:
        """Serve what has come and what the executor has done; True if anything moved."""
        if self._loop.is_idle and not self._loop.is_time_for_epoll():
            return False  # the workers' clients have the engine for themselves
        try:
            moved = self._loop.turn()
            self._move_away()
            return moved
        except Exception:
            self._note_internal()
            return True

    def called(self) -> bool:
        """Whether the supervisor may have written, or closed its end, since the last call.

        An engine that has no time to sleep finds it out here alone.
        """
        called, self._loop.called = self._loop.called, False
        if called:
            self._doorbell.clear()  # rung by somebody who took the engine for asleep
        return called

    def sleep(self) -> None:
        """Wait until a client, the supervisor or the canary wants something."""
        self._doorbell.begin_sleep()
        if self._idle():
            try:
                self._wait()
            except Exception:
                self._note_internal()
        self._doorbell.end_sleep()
        self._doorbell.clear()
        self._loop.called = False  # after a sleep the engine looks for messages anyway

    def close(self) -> None:
        """Hang up on everybody: the server ends."""
        for clients in (self._loop.connections.by_fd, self._loop.negotiations.by_fd):
            for fd, client in clients.items():
                self._loop.pollset.close(fd, client.sock)

    def _move_away(self) -> None:
        """Give the workers a client that they serve faster, at a moment when nothing of it is in flight."""
        if self._move is None:
            return
        for connection in list(self._loop.connections.by_fd.values()):
            assert isinstance(connection, LocalConnection)
            if not connection.is_workers():
                continue
            begin = connection.begin()
            if begin is None:
                continue  # after one of the next goes
            connection.count_anew()
            # Between the two it is counted nowhere. Another client could take its place at an export, and
            # memory that is held for clients alone could be freed.
            export = self._exports[begin.export]
            stays = export.places is not None or export.attaches
            if not stays and self._workers_have_room() and self._move(
                connection.sock, id=connection.number, peer=connection.peer, begun=moves.pack(begin)
            ):
                self._loop.connections.give_away(connection)

    def _workers_have_room(self) -> bool:
        return self._control.state < State.DRAINING and any(
            window.load(Word.READY) and window.load(Word.CONNECTIONS) < window.layout.lanes
            for window in self._workers
        )

    def _wait(self) -> None:
        loop, only = self._loop, self._only()
        if only is None:
            loop.sleep()
            return
        loop.doorbell.begin_sleep()
        if not loop.has_work():
            alone = not any(window.load(Word.CONNECTIONS) for window in self._workers)
            only.linger(loop.pollset.epoll, loop.spin_ns, alone=alone)
        loop.doorbell.end_sleep()
        loop.connections.refresh(only)

    def _only(self) -> LocalConnection | None:
        """The one client, if there is nothing else to wait for than its requests."""
        loop = self._loop
        clients = loop.connections.by_fd
        if len(clients) != 1 or loop.negotiations.by_fd or loop.pollset.starved:
            return None
        [only] = clients.values()
        assert isinstance(only, LocalConnection)
        # A submission that nobody waits for any more may still hold its part of a lane.
        return only if only.is_short and only.wants_input and not loop.submissions.in_flight else None

    def _note_internal(self) -> None:
        """An exception that belongs to no client; called while it is handled."""
        self._loop.submissions.recover(self._log)
        time.sleep(_AFTER_FAULT_S)
