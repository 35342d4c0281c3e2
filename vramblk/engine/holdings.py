"""Holds the memory of exports while they have clients, with ``--allocate attach``; see ``shared.holds``.

    FREE -> TAKING -> HELD -> FREEING -> FREE

What is allocated is proven, and what is freed is zeroed before, so both take their time. They are done in
short steps between the executor's turns: requests for other exports go on. One export is stepped at a time.
Memory is freed before any is taken, since that may be what another export lacks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import Any

from ..memory.base import DeviceError, Memory, MissingMemory
from ..shared.context import Shared
from ..shared.doorbell import Doorbell
from ..shared.holds import HeldWords, HoldWords
from ..system import logs
from .executor import Executor


class _State(Enum):
    FREE = auto()
    TAKING = auto()
    HELD = auto()
    FREEING = auto()


class _Holding:
    """One export.

    Attributes:
        steps: what is left of taking or freeing.
        failed: it could not be held for those who want it now.
    """

    def __init__(self, number: int, name: str, memory: Memory) -> None:
        self.number = number
        self.name = name
        self.memory = memory
        self.state = _State.HELD
        self.steps: Iterator[None] = iter(())
        self.failed = False
        self.since_s = 0.0


class _Asker:
    """A window.

    Attributes:
        users: clients by export, as last read.
        seen: the change that they were read at.
        answered: the change that was answered last.
    """

    def __init__(self, words: HoldWords, exports: int) -> None:
        self.words = words
        self.users = [0] * exports
        self.seen = self.answered = 0


class Holdings:
    """All exports that are held only while they have clients, and the windows whose workers count those.

    Args:
        memories: one for each export, in their order, all of them held and proven.
        doorbells: of the windows that have clients, in their order.
    """

    def __init__(
        self, shared: Shared, memories: Sequence[Memory], executor: Executor, doorbells: Sequence[Doorbell]
    ) -> None:
        exports = shared.settings.exports
        self._executor = executor
        self._doorbells = doorbells
        self._held = HeldWords(shared.control)
        self._memories = memories
        #: Something is being taken or freed.
        self._busy = self._ending = False
        self._holdings = [
            _Holding(number, export.name, memory)
            for number, (export, memory) in enumerate(zip(exports, memories, strict=True))
            if export.attaches
        ]
        self._askers = (
            [_Asker(HoldWords(window, len(exports)), len(exports)) for window in shared.client_windows]
            if self._holdings
            else []
        )
        self._log = logs.get()

    def begin(self) -> None:
        """Let go what was proven at start: nobody is attached yet.

        Raises:
            DeviceError: zeroing failed.
        """
        for holding in self._holdings:
            self._held.set(holding.number, False)
            self._executor.hold(holding.number, False)
            for _ in holding.memory.release():
                pass
            holding.state = _State.FREE

    def rehearse(self) -> None:
        """Take and release the smallest export once more: what that needs of this process is in hand then.

        Raises:
            DeviceError: it has failed.
        """
        if self._holdings:
            memory = min((each.memory for each in self._holdings), key=lambda memory: memory.size_bytes)
            for steps in (memory.take(), memory.release()):
                for _ in steps:
                    pass

    def waiting(self) -> bool:
        """Whether ``turn`` would do something."""
        for asker in self._askers:
            if asker.words.asked != asker.seen:
                return True
        return self._busy

    def turn(self) -> bool:
        """Look who wants what, and do one step; True if there was anything to do."""
        if not self.waiting():
            return False
        for index, asker in enumerate(self._askers):
            asked = asker.words.asked
            if asked != asker.seen:
                self._see(asker, asked)
                self._doorbells[index].wake()
        self._decide()
        self._step()
        self._answer()
        return True

    def forget(self, window: int) -> None:
        """The worker of this window is dead, and what it had published is executed or dropped."""
        if window < len(self._askers):
            asker = self._askers[window]
            asker.words.forget()
            asker.users = [0] * len(asker.users)
            asker.seen = asker.answered = 0
            self._decide()
            self._answer()

    def end(self) -> list[Memory]:
        """Finish what was begun, for good; gives the memories that are still to be zeroed."""
        self._ending = True
        for holding in self._holdings:
            if holding.state is _State.FREEING:
                while holding.state is _State.FREEING:
                    self._advance(holding)
            elif holding.state is _State.TAKING:
                self._drop(holding)
        free = {holding.number for holding in self._holdings if holding.state is _State.FREE}
        return [memory for number, memory in enumerate(self._memories) if number not in free]

    def _see(self, asker: _Asker, asked: int) -> None:
        """Take the counts of a window; from now on nothing of it is freed."""
        users = asker.words.users()
        for holding in self._holdings:
            if users[holding.number]:
                holding.failed = False  # somebody new may want it
        asker.users, asker.seen = users, asked
        asker.words.see(asked)

    def _wanted(self, holding: _Holding) -> bool:
        return any(asker.users[holding.number] for asker in self._askers)

    def _decide(self) -> None:
        """Begin to take what is wanted, and to free what is not."""
        if self._ending:
            return
        for holding in self._holdings:
            wanted = self._wanted(holding)
            if holding.state is _State.FREE and wanted and not holding.failed:
                holding.state, holding.since_s = _State.TAKING, time.monotonic()
                holding.steps = holding.memory.take()
            elif holding.state is _State.TAKING and not wanted:
                self._drop(holding)
            elif holding.state is _State.HELD and not wanted:
                self._held.set(holding.number, False)
                self._executor.hold(holding.number, False)
                holding.state, holding.since_s = _State.FREEING, time.monotonic()
                holding.steps = holding.memory.release()
        self._busy = any(each.state in (_State.TAKING, _State.FREEING) for each in self._holdings)

    def _step(self) -> None:
        for state in (_State.FREEING, _State.TAKING):
            for holding in self._holdings:
                if holding.state is state:
                    self._advance(holding)
                    return

    def _advance(self, holding: _Holding) -> None:
        """One step of taking or freeing."""
        try:
            ended = self._executor.apart(holding.number, lambda: _is_over(holding.steps))
        except MissingMemory as error:
            self._fail(holding, error, error.missing_bytes)
        except DeviceError as error:
            self._fail(holding, error, 0)
        except Exception:
            self._executor.note_internal(holding.number)
            self._settle_failed(holding)
        else:
            if ended:
                self._settle(holding)

    def _settle(self, holding: _Holding) -> None:
        seconds = round(time.monotonic() - holding.since_s, 4)
        if holding.state is _State.TAKING:
            holding.state = _State.HELD
            self._executor.hold(holding.number, True)
            self._held.set_missing(holding.number, 0)
            self._held.set(holding.number, True)
            for index, asker in enumerate(self._askers):
                if asker.users[holding.number]:  # some may still have to wait for another export
                    self._doorbells[index].wake()
            self._log.info("export_held", **self._about(holding), seconds=seconds)
        else:
            holding.state = _State.FREE
            self._log.info("export_released", **self._about(holding), seconds=seconds)
        self._decide()

    def _fail(self, holding: _Holding, error: DeviceError, missing_bytes: int) -> None:
        taking = holding.state is _State.TAKING
        if not missing_bytes:
            self._executor.note_failure(holding.number, error)
        if taking:
            self._held.set_missing(holding.number, missing_bytes)
            missing = {"missing_bytes": missing_bytes} if missing_bytes else {}
            self._log.error("export_not_held", **self._about(holding), **missing, detail=error.detail)
        else:
            self._log.error("zero_failed", export=holding.name, detail=error.detail)
        self._settle_failed(holding)

    def _settle_failed(self, holding: _Holding) -> None:
        """The memory is freed: both ``take`` and ``release`` see to that."""
        holding.failed = holding.state is _State.TAKING
        holding.state = _State.FREE
        self._decide()

    def _drop(self, holding: _Holding) -> None:
        """Nobody wants any more what is being taken."""
        holding.state = _State.FREE
        try:
            holding.steps.close()  # type: ignore[attr-defined]  # a generator, which frees what it has taken
        except DeviceError as error:
            self._executor.note_failure(holding.number, error)
        except Exception:
            self._executor.note_internal(holding.number)

    def _answer(self) -> None:
        for index, asker in enumerate(self._askers):
            if asker.answered != asker.seen and all(
                holding.state is _State.HELD or holding.failed
                for holding in self._holdings
                if asker.users[holding.number]
            ):
                asker.answered = asker.seen
                asker.words.answer(asker.seen)
                self._doorbells[index].wake()

    def _about(self, holding: _Holding) -> dict[str, Any]:
        description = holding.memory.description
        return {
            "export": holding.name,
            "device": description.get("device"),
            "size_bytes": holding.memory.size_bytes,
        }


def _is_over(steps: Iterator[None]) -> bool:
    """Do one step; whether it was the last."""
    try:
        next(steps)
    except StopIteration:
        return True
    return False
