"""The workers as the supervisor sees them: who takes a connection, and what follows when one dies."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from .. import logs
from ..errors import ConfigError, RuntimeFailure, StartupError
from ..serving.lanes import smallest_slab
from ..settings import Settings
from ..shared.context import Shared
from ..shared.control import ControlWord
from ..shared.window import CONNECTIONS, Window, Word
from ..worker import lanes_per_worker
from .children import Child
from .eventloop import EventLoop
from .failures import startup_error

#: Receive part and transmit part of a worker's slab, bytes. In swap mode all of it is resident and locked,
#: and serves one connection: 128 requests of 4 KiB take a quarter, longer ones travel in pieces.
SLAB_BYTES = 16 << 20
SWAP_SLAB_BYTES = 2 << 20
SWAP_WORKERS = 2

_READY_POLL_S = 0.02


def choose_workers(settings: Settings) -> int:
    """Number of workers: as given, otherwise half the cores, 2 to 8, and 2 in swap mode.

    Raises:
        ConfigError: too few for --max-connections.
    """
    if settings.mode == "swap":
        return settings.workers or SWAP_WORKERS
    needed = -(-settings.max_connections // CONNECTIONS)
    if settings.workers is None:
        return max(2, needed, min(8, len(os.sched_getaffinity(0)) // 2))
    if settings.workers < needed:
        raise ConfigError(
            f"max_connections = {settings.max_connections} ({settings.source_of('max_connections')}): "
            f"a worker takes {CONNECTIONS}; allowed: up to {settings.workers * CONNECTIONS} with --workers "
            f"{settings.workers}, or --workers {needed}"
        )
    return settings.workers


def slab_bytes(settings: Settings, workers: int) -> int:
    """Size of the receive part of each worker's slab; the transmit part is as large."""
    if settings.mode == "swap":
        return SWAP_SLAB_BYTES
    return max(SLAB_BYTES, smallest_slab(lanes_per_worker(settings.max_connections, workers, swap=False)))


class Backoff:
    """How long to wait before a child that has died is started again: not at all after a good life."""

    def __init__(self, shortest_s: float = 0.05, longest_s: float = 5.0, good_life_s: float = 1.0) -> None:
        self._shortest_s = shortest_s
        self._longest_s = longest_s
        self._good_life_s = good_life_s
        self._next_s = 0.0

    def after(self, lived_s: float) -> float:
        if lived_s >= self._good_life_s:
            self._next_s = 0.0
        delay_s = self._next_s
        self._next_s = min(max(delay_s * 2, self._shortest_s), self._longest_s)
        return delay_s


@dataclass
class Slot:
    """One window and the worker that now has it.

    Attributes:
        handed: connections handed to this worker.
        retired: the engine has finished what the dead worker had queued.
        delayed: the delay before its successor is not over yet.
    """

    window: Window
    backoff: Backoff
    child: Child | None = None
    handoff: socket.socket | None = None
    handed: int = 0
    started_s: float = 0.0
    retired: bool = True
    delayed: bool = False

    @property
    def ready(self) -> bool:
        return self.child is not None and bool(self.window.load(Word.READY))

    @property
    def attached(self) -> int:
        return self.handed - self.window.load(Word.CLOSED) if self.child is not None else 0


class Crew:
    """All workers.

    Args:
        launch: forks the worker of a window, given its end of the handoff socket.
        retire: asks the engine to finish what the window's dead worker had queued; the answer
            comes as ``retired``.
    """

    def __init__(
        self,
        shared: Shared,
        loop: EventLoop,
        launch: Callable[[int, socket.socket], Child],
        retire: Callable[[int], None],
    ) -> None:
        self.slots = [Slot(window, Backoff()) for window in shared.worker_windows]
        self._control = shared.control
        self._exports = shared.settings.exports
        self._loop = loop
        self._launch = launch
        self._retire = retire
        self._swap = shared.settings.mode == "swap"
        self._room = lanes_per_worker(shared.settings.max_connections, len(self.slots), swap=self._swap)
        self._opening = True
        self._dismissed = False
        self._log = logs.get()

    def start(self) -> None:
        """Fork all workers; ``ready`` tells when they take connections."""
        for slot in self.slots:
            self._start(slot)

    @property
    def ready(self) -> bool:
        """Whether every worker takes connections; from then on a death is no failed start."""
        if not all(slot.ready for slot in self.slots):
            return False
        self._opening = False
        return True

    @property
    def alive(self) -> bool:
        return any(slot.child for slot in self.slots)

    @property
    def attached(self) -> int:
        """Connections handed over and not closed yet."""
        return sum(slot.attached for slot in self.slots)

    @property
    def has_room(self) -> bool:
        return any(self._takes(slot) for slot in self.slots)

    def clients(self) -> list[str]:
        """Who is attached, as ``peer export``."""
        return [
            f"{connection.peer} {self._exports[connection.export].name}"
            for slot in self.slots
            if slot.child
            for connection in slot.window.connections()
        ]

    def hand_over(self, connection: socket.socket, number: int, peer: str) -> bool:
        """Give a connection to the least loaded worker; False if none can take it."""
        message = json.dumps({"id": number, "peer": peer}).encode()
        for slot in sorted(filter(self._takes, self.slots), key=lambda slot: slot.attached):
            assert slot.handoff is not None
            try:
                socket.send_fds(slot.handoff, [message], [connection.fileno()])
            except OSError:
                continue  # it is dying, or does not read
            slot.handed += 1
            return True
        return False

    def died(self, child: Child) -> None:
        """Take note that a worker has ended, and start another if that is how it is done.

        Raises:
            StartupError: it was still starting for the first time.
        """
        slot = next((slot for slot in self.slots if slot.child is child), None)
        if slot is None or slot.handoff is None:
            return
        lost = [connection.peer for connection in slot.window.connections()]
        failure = _last_word(slot.handoff)
        slot.handoff.close()
        slot.handoff = slot.child = None
        if self._dismissed:
            return
        lived_s = time.monotonic() - slot.started_s
        how = {"worker": slot.window.index, "child": child.pid, **child.how_it_ended(), "clients": lost}
        if self._opening:
            self._log.error("worker_died", **how)
            raise failure or RuntimeFailure(
                f"worker {slot.window.index} died while it started: {_text(child)}"
            )
        if self._swap:
            self._control.store(ControlWord.WORKERS_LOST, self._control.load(ControlWord.WORKERS_LOST) + 1)
            self._log.critical(
                "worker_died", **how, replaced=False, effect="these clients' devices give EIO from now on"
            )
            return
        slot.retired, slot.delayed = False, True
        delay_s = slot.backoff.after(lived_s)
        self._log.error("worker_died", **how, replaced=True, restart_in_s=delay_s)
        self._loop.after(("restart", slot.window.index), delay_s, lambda: self._delay_is_over(slot))
        self._retire(slot.window.index)

    def retired(self, index: int) -> None:
        """The engine has finished all that the dead worker of this window had queued."""
        slot = self.slots[index]
        if slot.child is None:
            slot.retired = True
            self._restart(slot)

    def dismiss(self) -> None:
        """Tell the workers that nothing more will come; in scratch mode they end."""
        self._dismissed = True
        for slot in self.slots:
            if slot.handoff is not None:
                slot.handoff.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        self._dismissed = True
        for slot in self.slots:
            if slot.child:
                slot.child.kill()

    def descriptors(self) -> list[int]:
        """The supervisor's ends of the handoff sockets."""
        return [slot.handoff.fileno() for slot in self.slots if slot.handoff]

    @property
    def pids(self) -> list[int]:
        return [slot.child.pid for slot in self.slots if slot.child]

    def _takes(self, slot: Slot) -> bool:
        return slot.ready and slot.attached < self._room

    def _start(self, slot: Slot) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        # Known before the fork, so that the worker closes it: with a copy of the other end it would
        # never learn that the supervisor is gone.
        slot.handoff = ours
        try:
            slot.child = self._launch(slot.window.index, theirs)
        except BaseException:
            slot.handoff = None
            ours.close()
            raise
        finally:
            theirs.close()
        slot.handed = 0
        slot.started_s = time.monotonic()

    def _delay_is_over(self, slot: Slot) -> None:
        slot.delayed = False
        self._restart(slot)

    def _restart(self, slot: Slot) -> None:
        if self._dismissed or not slot.retired or slot.delayed:
            return
        slot.window.reset()
        try:
            self._start(slot)
        except (OSError, MemoryError) as error:
            slot.delayed = True
            delay_s = max(slot.backoff.after(0), _READY_POLL_S)
            logs.limited(self._log, "worker_not_started", worker=slot.window.index, detail=str(error))
            self._loop.after(("restart", slot.window.index), delay_s, lambda: self._delay_is_over(slot))
            return
        self._control.store(ControlWord.WORKER_RESTARTS, self._control.load(ControlWord.WORKER_RESTARTS) + 1)
        assert slot.child is not None
        self._log.info("worker_restarted", worker=slot.window.index, child=slot.child.pid)


def _last_word(handoff: socket.socket) -> StartupError | None:
    try:
        text = handoff.recv(65536)
    except OSError:
        return None
    return startup_error(json.loads(text)) if text else None


def _text(child: Child) -> str:
    return " ".join(f"{key} {value}" for key, value in child.how_it_ended().items()) or "no status"
