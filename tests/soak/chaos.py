"""What befalls a server in a soak run: deaths of clients, signals to workers, a slow engine, failing device calls."""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ..wire.harness import Server
from .clients import Client
from .faults import Faults, Word
from .model import BLOCK

#: Seconds between two events of a kind, on average.
_EVERY_S = {"death": 0.25, "kill": 4.0, "stop": 2.5, "stall": 2.0, "failures": 1.0, "sleeps": 2.0}
KINDS = tuple(_EVERY_S)
#: Of OpenCL calls, per million, while they fail: one of these.
_CALLS_PPM = (1000, 3000, 10_000)
_EXECUTES_PPM = 10_000
_SLEEPS_PPM = 2000
_LONGEST_SLEEP_MS = 1000
#: A connection that has heard nothing for so long while a worker is stopped is taken to be that worker's.
_SILENCE_S = 0.08


class Chaos:
    """Call ``step`` often; at the end ``cease``.

    Args:
        kinds: of ``KINDS``, those that are wanted.

    Attributes:
        counts: events by kind.
        stopped_s: how long workers have been stopped, all of them together.
        killed_s: when a worker was killed last.
        calm_since_s: since when no call is made to fail; infinite while some are.
    """

    def __init__(
        self,
        server: Server,
        faults: Faults,
        clients: Sequence[Client],
        chance: random.Random,
        kinds: Sequence[str],
    ) -> None:
        self._server, self._faults, self._clients, self._chance = server, faults, clients, chance
        self.counts: Counter[str] = Counter()
        self.stopped_s = 0.0
        self.killed_s = 0.0
        self.calm_since_s = time.monotonic()
        self._stopped: dict[int, float] = {}
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._actions = {name: getattr(self, f"_{name}") for name in kinds}
        for name in kinds:
            self._plan(name)

    def step(self) -> None:
        now = time.monotonic()
        due = [each for each in self._due if each[0] <= now]
        if due:
            self._due = [each for each in self._due if each[0] > now]
            for _, action in sorted(due, key=lambda each: each[0]):
                action()

    def cease(self) -> None:
        """No more of it: everything that was stopped goes on, nothing fails from now on."""
        self._due.clear()
        for pid in list(self._stopped):
            self._resume(pid)
        for word in (Word.CALLS, Word.EXECUTES, Word.SLEEPS, Word.SLEEP_NOW_MS, Word.PLANTS):
            self._faults[word] = 0
        self._set_calm(True)

    def _plan(self, name: str) -> None:
        def act() -> None:
            self._actions[name]()
            self._plan(name)

        self._later(self._chance.expovariate(1 / _EVERY_S[name]), act)

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        self._due.append((time.monotonic() + delay_s, action))

    # Clients

    def _death(self) -> None:
        self._chance.choice(self._clients).die()

    def _massacre(self) -> None:
        """Some of the clients at once."""
        for client in self._chance.sample(self._clients, self._chance.randint(1, 3)):
            client.die()

    def _kill_silent(self) -> None:
        """Clients that a stopped worker does not answer: what they have sent lies unread in its socket."""
        now = time.monotonic()
        for client in self._clients:
            connection = client.connection
            if connection is not None and connection.pending and now - connection.heard_s > _SILENCE_S:
                if self._chance.random() < 0.8:
                    client.die(self._chance.choice(("close", "close", "half", "reset")))

    # Workers

    def _workers(self) -> list[int]:
        return sorted(self._server.named("worker"))

    def _kill(self) -> None:
        workers = self._workers()
        if workers:
            self._signal(self._chance.choice(workers), signal.SIGKILL, "kills")
            self.killed_s = time.monotonic()

    def _stop(self) -> None:
        """One worker, now and then two; some of their clients die while it stands still."""
        free = [pid for pid in self._workers() if pid not in self._stopped]
        for pid in self._chance.sample(free, min(len(free), self._chance.choice((1, 1, 1, 2)))):
            if self._signal(pid, signal.SIGSTOP, "stops"):
                self._stopped[pid] = time.monotonic()
                self._later(self._chance.uniform(0.1, 2.0), lambda pid=pid: self._resume(pid))
        self._later(self._chance.uniform(_SILENCE_S, 0.3), self._kill_silent)

    def _resume(self, pid: int) -> None:
        since_s = self._stopped.pop(pid, None)
        if since_s is not None:
            self.stopped_s += time.monotonic() - since_s
            self._signal(pid, signal.SIGCONT, "continues")

    def _signal(self, pid: int, number: int, what: str) -> bool:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        self.counts[what] += 1
        return True

    # The engine

    def _stall(self) -> None:
        """The engine's next turn takes long; clients die while their requests wait for it."""
        self.counts["stalls"] += 1
        milliseconds = self._chance.randint(100, 1200)
        self._faults[Word.SLEEP_NOW_MS] = milliseconds
        self._later(self._chance.uniform(0.02, 0.6) * milliseconds / 1000, self._massacre)
        if "kill" in self._actions and self._chance.random() < 0.2:
            self._later(self._chance.uniform(0.02, 0.6) * milliseconds / 1000, self._kill)

    def _failures(self) -> None:
        """Failing calls are switched on or off."""
        on = self._chance.random() < 0.6
        self._faults[Word.CALLS] = self._chance.choice(_CALLS_PPM) * on
        self._faults[Word.EXECUTES] = _EXECUTES_PPM * on
        self._set_calm(not on)
        if not on:
            self._chance.choice(self._clients).survey()

    def _set_calm(self, calm: bool) -> None:
        if not calm:
            self.calm_since_s = math.inf
        elif self.calm_since_s == math.inf:
            self.calm_since_s = time.monotonic()

    def _sleeps(self) -> None:
        self._faults[Word.LONGEST_MS] = self._chance.randint(1, _LONGEST_SLEEP_MS)
        self._faults[Word.SLEEPS] = _SLEEPS_PPM * (self._chance.random() < 0.5)


class Corruption:
    """For the controls: puts older bytes of a mapped file back, behind the server's back.

    Args:
        bytes_: how many; a part of a unit makes a torn one.
    """

    def __init__(self, path: Path, offsets: Sequence[int], bytes_: int, chance: random.Random) -> None:
        self._file = path.open("r+b", buffering=0)
        self._offsets, self._bytes, self._chance = offsets, bytes_, chance
        self._old: dict[int, bytes] = {}
        self._next_s = 0.0

    def step(self) -> None:
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + 0.1
        for offset, old in self._old.items():
            self._file.seek(offset)
            self._file.write(old[: self._bytes])
        self._old = {}
        for offset in self._chance.sample(self._offsets, 4):
            self._file.seek(offset)
            self._old[offset] = self._file.read(BLOCK)
