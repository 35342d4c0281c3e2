"""The server with an engine that injects faults. Run like ``vramblk``; the checkout on PYTHONPATH serves.

The file SOAK_FAULTS holds what to inject; see ``faults.py``. SOAK_SEED makes the choices repeatable for each
engine. SOAK_PLANT names a fault that the checker must find:

lose   a batch is not executed, but acknowledged
late   a batch is acknowledged, and executed ahead of the next one
blind  a batch that has failed is acknowledged
"""

from __future__ import annotations

import copy
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults import Faults, Word  # a sibling: this file runs as a program

FAULTS = Faults(Path(os.environ["SOAK_FAULTS"]).resolve())
CHANCE = random.Random(os.environ.get("SOAK_SEED"))
PLANT = os.environ.get("SOAK_PLANT", "")
#: CL_OUT_OF_RESOURCES, CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST, CL_INVALID_VALUE: none means a lost device.
STATUSES = (-5, -14, -30)


def chosen(word: Word) -> bool:
    rate = FAULTS[word]
    return rate > 0 and CHANCE.random() * 1e6 < rate


class Calls:
    """OpenCL calls that fail at a rate. They fail before the call, ``clFinish`` after it.

    A queue that cannot be finished after a failure is a lost device. So ``clFinish`` succeeds twice after
    each injected failure, and always where nothing was queued since the last one.
    """

    def __init__(self) -> None:
        self._spared = 0
        self._queued = False

    def failing(self, call: Callable[..., int]) -> Callable[..., int]:
        def wrapped(*arguments: Any) -> int:
            self._queued = True
            return self._fail() if chosen(Word.CALLS) else call(*arguments)

        return wrapped

    def finishing(self, call: Callable[..., int]) -> Callable[..., int]:
        def wrapped(*arguments: Any) -> int:
            status = call(*arguments)
            queued, self._queued = self._queued, False
            if self._spared:
                self._spared -= 1
            elif not status and queued and chosen(Word.CALLS):
                return self._fail()
            return status

        return wrapped

    def _fail(self) -> int:
        FAULTS.add(Word.FAILED)
        self._spared = 2
        return CHANCE.choice(STATUSES)


def wrap_hot_calls() -> None:
    from vramblk.memory.hotcalls import HotCalls

    make = HotCalls.__init__

    def wrapped(self: Any) -> None:
        make(self)
        calls = Calls()
        for name in ("set_arg", "launch", "read", "write"):
            setattr(self, name, calls.failing(getattr(self, name)))
        self.finish = calls.finishing(self.finish)

    HotCalls.__init__ = wrapped  # type: ignore[method-assign]


class FaultyMemory:
    """A memory that is slow or fails now and then."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._owed: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def execute(self, batch: Any) -> None:
        from vramblk.memory.base import DeviceError

        self._sleep()
        while self._owed:
            self._inner.execute(self._owed.pop())
        if chosen(Word.PLANTS):
            FAULTS.add(Word.FAILED)
            if PLANT == "late":
                self._owed.append(batch)
            return
        try:
            self._execute(batch)
        except DeviceError:
            if PLANT != "blind":
                raise

    def _execute(self, batch: Any) -> None:
        from vramblk.memory.base import DeviceError

        if not chosen(Word.EXECUTES):
            self._inner.execute(batch)
            return
        FAULTS.add(Word.FAILED)
        when = CHANCE.choice(("before", "amid", "after"))
        if when != "before":
            self._inner.execute(batch if when == "after" else part_of(batch))
        raise DeviceError(CHANCE.choice((5, 12)), f"injected {when} the work")

    def _sleep(self) -> None:
        milliseconds, FAULTS[Word.SLEEP_NOW_MS] = FAULTS[Word.SLEEP_NOW_MS], 0
        if not milliseconds and chosen(Word.SLEEPS):
            milliseconds = CHANCE.randint(1, FAULTS[Word.LONGEST_MS])
        if milliseconds:
            time.sleep(milliseconds / 1000)
            FAULTS.add(Word.SLEPT_MS, milliseconds)


def part_of(batch: Any) -> Any:
    """The batch with a random first part of each of its lists, whatever they are called."""
    part = copy.copy(batch)
    names = [name for kind in type(batch).__mro__ for name in getattr(kind, "__slots__", ())]
    for name in {*names, *getattr(batch, "__dict__", ())}:
        value = getattr(batch, name, None)
        if isinstance(value, list):
            setattr(part, name, value[: CHANCE.randint(0, len(value))])
    return part


def open_faulty(*arguments: Any, **options: Any) -> list[FaultyMemory]:
    from vramblk.memory import open_memories

    return [FaultyMemory(memory) for memory in open_memories(*arguments, **options)]


def give_away_soon() -> None:
    """Every client of the engine moves to a worker after some requests, however many are in flight."""
    from vramblk.engine import localconnection

    localconnection._LOOKED_AT = 8
    localconnection.LocalConnection.is_workers = lambda self: self._path is not None and self._path.goes >= 8


def main() -> int:
    from vramblk import cli
    from vramblk.supervisor import process as supervisor

    wrap_hot_calls()
    if "--workers" not in sys.argv:
        give_away_soon()
    serve = supervisor.serve
    supervisor.serve = lambda settings: serve(settings, open_memories=open_faulty)
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
