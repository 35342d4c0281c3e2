"""Whether the server is well, in one line."""

from __future__ import annotations

from dataclasses import dataclass

from ..shared.context import Shared
from ..shared.control import ControlWord, State
from ..shared.window import Word
from . import processes
from .canary import CACHED_S, Canary
from .sampler import Sampler

#: For those who look all the time: an open page must not keep an idle GPU from clocking down.
OLD_S = 5.0


@dataclass(frozen=True)
class Health:
    """``text`` is one line, also when all is well."""

    ok: bool
    text: str


class Physician:
    """Looks at state, engine, device and, through the canary, at the whole way of a read."""

    def __init__(self, shared: Shared, canary: Canary, sampler: Sampler) -> None:
        self._shared = shared
        self._canary = canary
        self._sampler = sampler

    def ready(self) -> Health:
        """Well only while new clients are taken."""
        state = self._shared.control.state
        if state is not State.READY:
            return Health(False, state.name.lower())
        problem = self._engine_gone()
        return Health(not problem, problem or "ready")

    def examine(self, oldest_s: float = CACHED_S) -> Health:
        """Look now, or trust a canary that is not older; takes two seconds if the engine does not answer."""
        problem = self._glance()
        if problem:
            return Health(False, problem)
        outcome = self._canary.check(oldest_s)
        if outcome.problem or outcome.seconds is None:
            return Health(False, outcome.problem)
        state = self._shared.control.state.name.lower()
        return Health(True, f"ok: {state}, a read took {outcome.seconds * 1e3:.1f} ms")

    def _glance(self) -> str:
        """What is wrong as far as shared memory tells; empty if nothing is."""
        control = self._shared.control
        if control.state in (State.STARTING, State.STOPPED):
            return f"the server is {control.state.name.lower()}"
        if problem := self._engine_gone():
            return problem
        if control.engine_counters.scalar("device_lost"):
            return "a device is lost: every request to it fails with EIO"
        if self._sampler.recent_device_error():
            return "the device has failed a request within the last minute"
        if control.load(ControlWord.WORKERS_LOST):
            return (
                f"a worker has died and is not replaced in swap mode: {', '.join(lost_clients(self._shared))}"
            )
        return ""

    def _engine_gone(self) -> str:
        pid = self._shared.control.load(ControlWord.ENGINE_PID)
        return f"the engine (process {pid}) is dead" if pid and not processes.alive(pid) else ""


def lost_clients(shared: Shared) -> list[str]:
    """Clients whose worker is dead, by NBD device where that can be found; as text when there is none."""
    found = []
    sockets = [address.path for address in shared.settings.unix_listeners]
    for window in shared.worker_windows:
        pid = window.load(Word.WORKER_PID)
        if pid and not processes.alive(pid):
            for each in window.connections():
                device = processes.nbd_device_of(each.peer, sockets)
                found.append(f"{device} ({each.peer}) is lost" if device else f"client {each.peer} is lost")
    return found or ["it had no client"]
