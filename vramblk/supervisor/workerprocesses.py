"""The workers as the supervisor sees them: their start, their end, and what follows when one dies.

A faulty worker may write anything into its window, so nothing that is read there may raise here. State
changes come first, their log events afterwards.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence

from ..config.units import printable
from ..errors import RuntimeFailure, StartupError
from ..shared.context import Shared
from ..shared.control import ControlWord
from ..shared.window import Word
from ..system import logs
from .children import Child
from .eventloop import EventLoop
from .failures import parsed, startup_error
from .handoffs import Handoff, Handoffs
from .slots import Slot

_RESTART_POLL_S = 0.02
#: A counter beyond it was not counted up to it.
_MOST_COUNTED = 1 << 62


class WorkerProcesses:
    """All workers.

    Args:
        slots: in which the workers stand.
        launch: forks the worker of a window, given its end of the handoff socket.
        drain_window: asks the engine to finish what the window's dead worker had queued; the answer
            comes as ``window_drained``. In swap mode too, where no other worker follows: a later connection
            may not begin before that is done.
        pass_on: takes a connection that a dead worker has not taken, and the reason to log if nobody does.
    """

    def __init__(
        self,
        shared: Shared,
        loop: EventLoop,
        slots: Sequence[Slot],
        launch: Callable[[int, socket.socket], Child],
        *,
        drain_window: Callable[[int], None],
        pass_on: Callable[[Handoff, socket.socket | None, str], None],
    ) -> None:
        self._slots = slots
        self._control = shared.control
        self._doorbells = shared.doorbells
        self._loop = loop
        self._launch = launch
        self._drain_window = drain_window
        self._pass_on = pass_on
        self._swap = shared.settings.mode == "swap"
        self._opening = True
        self._dismissed = False
        self._log = logs.get()

    def start(self) -> None:
        """Fork all workers; ``ready`` is true when they take connections."""
        for slot in self._slots:
            self._start(slot)

    @property
    def ready(self) -> bool:
        """Whether every worker takes connections; from then on a death is no failed start."""
        if not all(slot.ready for slot in self._slots):
            return False
        self._opening = False
        return True

    @property
    def alive(self) -> bool:
        return any(slot.child for slot in self._slots)

    @property
    def pids(self) -> list[int]:
        return [slot.child.pid for slot in self._slots if slot.child]

    def descriptors(self) -> list[int]:
        """Both ends of the handoff sockets, but for the one that a worker is just being forked for."""
        ours = [slot.handoffs.ours.fileno() for slot in self._slots if slot.handoffs]
        return ours + [slot.handoffs.theirs.fileno() for slot in self._slots if slot.handoffs and slot.child]

    def renew_tls(self, packed: bytes) -> list[int]:
        """Give new TLS files, packed, to every worker; gives the windows of those that get them later."""
        return [  # the successor of a dead one gets them by the fork
            slot.window.index for slot in self._slots if slot.handoffs and not slot.handoffs.renew_tls(packed)
        ]

    def died(self, child: Child) -> None:
        """Take note that a worker has ended, and start another if that is how it is done.

        Raises:
            StartupError: it was still starting for the first time.
        """
        slot = next((slot for slot in self._slots if slot.child is child), None)
        if slot is None or slot.handoffs is None:
            return
        handoffs, slot.handoffs, slot.child, slot.stalled_since_s = slot.handoffs, None, None, None
        failure = _last_word(handoffs.ours)
        untaken = list(iter(handoffs.take_back, None))
        handoffs.close()
        if self._dismissed:
            return
        replaced = not self._swap and not self._opening
        delay_s = 0.0
        if replaced:
            # One that has never served, however long its proof took, has had no good life.
            served = bool(slot.window.load(Word.READY))
            delay_s = slot.backoff.after(time.monotonic() - slot.started_s if served else 0.0)
            slot.delayed = True
            self._loop.after(("restart", slot.window.index), delay_s, lambda: self._delay_is_over(slot))
        elif not self._opening:
            self._control.store(ControlWord.WORKERS_LOST, self._control.load(ControlWord.WORKERS_LOST) + 1)
        if not self._opening:
            slot.drained = False
            self._drain_window(slot.window.index)
        for taken in untaken:
            self._pass_on(*taken, f"worker {slot.window.index} has died, and no other has taken it")
        lost = [printable(connection.peer) for connection in slot.window.connections()]
        how = {"worker": slot.window.index, "child": child.pid, **child.how_it_ended(), "clients": lost}
        if failure is not None:
            how["detail"] = str(failure)
        if self._opening:
            self._log.error("worker_died", **how)
            raise failure or RuntimeFailure(
                f"worker {slot.window.index} died while it started: {_text(child)}"
            )
        if replaced:
            self._log.error("worker_died", **how, replaced=True, restart_in_s=delay_s)
        else:
            self._log.critical(
                "worker_died", **how, replaced=False, effect="these clients' devices give EIO from now on"
            )

    def window_drained(self, index: int) -> None:
        """The engine has finished all that the dead worker of this window had queued."""
        slot = self._slot(index)
        if slot is not None and slot.child is None and not slot.drained:
            slot.drained = True
            self._restart(slot)

    def corrupt(self, index: int) -> None:
        """End the worker of this window: the engine has found in its ring what no ring can hold."""
        slot = self._slot(index)
        if slot is None or slot.child is None or slot.killed:
            return
        slot.killed = True
        slot.child.kill()
        reason = "its ring holds what no ring can hold"
        self._log.error("worker_killed", worker=index, child=slot.child.pid, reason=reason)

    def dismiss(self) -> None:
        """Tell the workers that nothing more will come; in scratch mode they end."""
        self._dismissed = True
        for slot in self._slots:
            if slot.handoffs is not None:
                slot.handoffs.shut()

    def kill(self) -> None:
        self._dismissed = True
        for slot in self._slots:
            if slot.child:
                slot.child.kill()

    def _slot(self, index: int) -> Slot | None:
        return next((slot for slot in self._slots if slot.window.index == index), None)

    def _start(self, slot: Slot) -> None:
        # Known before the fork, so that the worker closes the supervisor's end: with a copy of it, it would
        # never learn that the supervisor is gone.
        slot.handoffs = handoffs = Handoffs(slot.window, self._doorbells[slot.window.index])
        try:
            slot.child = self._launch(slot.window.index, handoffs.theirs)
        except BaseException:
            slot.handoffs = None
            handoffs.close()
            raise
        slot.started_s = time.monotonic()
        slot.killed = False

    def _delay_is_over(self, slot: Slot) -> None:
        slot.delayed = False
        self._restart(slot)

    def _clean(self, slot: Slot) -> None:
        """Make a dead worker's window as good as new, whatever that worker has left in it."""
        window = slot.window
        slot.generation += 1
        window.store(Word.GENERATION, slot.generation - 1)
        window.reset()
        for index, count in enumerate(window.counters.cells):
            if not 0 <= count < _MOST_COUNTED:  # the successor adds to it, and could not
                window.counters.cells[index] = 0

    def _restart(self, slot: Slot) -> None:
        if self._dismissed or self._swap or not slot.drained or slot.delayed:
            return
        try:
            self._clean(slot)
            self._start(slot)
        except Exception as error:  # whatever it is, the window must not stay without a worker
            slot.delayed = True
            delay_s = max(slot.backoff.after(0), _RESTART_POLL_S)
            self._loop.after(("restart", slot.window.index), delay_s, lambda: self._delay_is_over(slot))
            detail = str(error) or type(error).__name__
            logs.limited(self._log, "worker_not_started", worker=slot.window.index, detail=detail)
            return
        self._control.store(ControlWord.WORKER_RESTARTS, self._control.load(ControlWord.WORKER_RESTARTS) + 1)
        assert slot.child is not None
        self._log.info("worker_restarted", worker=slot.window.index, child=slot.child.pid)


def _last_word(handoff: socket.socket) -> StartupError | None:
    """Why the worker has failed, if it has told."""
    try:
        return startup_error(parsed(handoff.recv(65536)))
    except (OSError, ValueError):
        return None


def _text(child: Child) -> str:
    return " ".join(f"{key} {value}" for key, value in child.how_it_ended().items()) or "no status"
