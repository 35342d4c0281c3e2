"""Whether the server is healthy, in one line."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.units import format_latency
from ..shared.context import Shared
from ..shared.control import ControlWord, State
from ..shared.window import Word
from ..system import proc
from . import processes
from .canary import CACHED_S, Canary
from .sampler import Sampler
from .socketfiles import SocketFiles
from .stall import StallWatch

#: For those who look all the time: an open page must not keep an idle GPU from clocking down.
OLD_S = 5.0


@dataclass(frozen=True)
class Health:
    """``text`` is one line, also when all is well."""

    ok: bool
    text: str


class HealthCheck:
    """Looks at state, engine, device and, through the canary, at the whole way of a read."""

    def __init__(
        self, shared: Shared, canary: Canary, sampler: Sampler, stalls: StallWatch, files: SocketFiles
    ) -> None:
        self._shared = shared
        self._canary = canary
        self._sampler = sampler
        self._stalls = stalls
        self._files = files

    def ready(self) -> Health:
        """Well only while new clients are taken."""
        state = self._shared.control.state
        if state is not State.READY:
            return Health(False, state.name.lower())
        problem = self._engine_gone() or self._files_gone()
        return Health(not problem, problem or "ready")

    def examine(self, oldest_s: float = CACHED_S) -> Health:
        """Look now, or trust a canary that is not older; takes two seconds if the engine does not answer."""
        problem = self._glance()
        if problem:
            return Health(False, problem)
        outcome = self._canary.check(oldest_s)
        if outcome.problem:
            return Health(False, self._stalls.describe() or outcome.problem)
        state = self._shared.control.state.name.lower()
        # No failure: the data is whole and attached clients are served, and a restart would lose both.
        gone = f"; {problem}" if (problem := self._files_gone()) else ""
        if outcome.seconds is None:
            return Health(True, f"ok: {state}, busy: a read waits behind others' requests{gone}")
        return Health(True, f"ok: {state}, a read took {format_latency(outcome.seconds)}{gone}")

    def _glance(self) -> str:
        """What is wrong as far as shared memory tells; empty if nothing is."""
        control = self._shared.control
        if stalled := self._stalls.describe():
            return stalled
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

    def _files_gone(self) -> str:
        gone = self._files.gone()
        return (
            f"the socket file {', '.join(gone)} is gone: new clients do not find the server" if gone else ""
        )

    def _engine_gone(self) -> str:
        pid = self._shared.control.load(ControlWord.ENGINE_PID)
        return f"the engine (process {pid}) is dead" if pid and not proc.alive(pid) else ""


def lost_clients(shared: Shared) -> list[str]:
    """Clients whose worker is dead, by NBD device where that can be found; as text when there is none."""
    found = []
    sockets = [address.path for address in shared.settings.unix_listeners]
    for window in shared.client_windows:
        pid = window.load(Word.WORKER_PID)
        if pid and not proc.alive(pid):
            for each in window.connections():
                device = processes.nbd_device_of(each.peer, sockets)
                found.append(f"{device} ({each.peer}) is lost" if device else f"client {each.peer} is lost")
    return found or ["it had no client"]
