"""Times the stages of a batch in the engine of ``bench --profile``; see ``shared.stages``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ..shared.descriptors import ENTRIES
from ..shared.stages import Stage, StageTimes

_CALLS = (Stage.SET_ARG, Stage.LAUNCH, Stage.COPY, Stage.FINISH)
_STAGES = tuple(map(int, (Stage.DECODE, Stage.PLAN, *_CALLS, Stage.COMPLETE)))
_TO_TAKEN, _DECODE, _PLAN, _COMPLETE = map(int, (Stage.TO_TAKEN, Stage.DECODE, Stage.PLAN, Stage.COMPLETE))
_FIRST_CALL, _BEHIND_CALLS = int(Stage.SET_ARG), int(Stage.FINISH) + 1


class EngineTiming:
    """What an ``Executor`` wraps its steps in. The OpenCL calls are timed by ``memory.hotcalls``.

    To be made when the memory is proven: what was gathered before belongs to no batch.
    """

    def __init__(self, times: StageTimes) -> None:
        self._recorder = times.engine
        self._gathered = times.engine.gathered
        self._gathered[:] = [0] * len(self._gathered)
        self._submitted, self._done = times.submitted, times.done
        self._clock = time.monotonic_ns
        self._executed_ns = 0

    def take(self, take: Callable[[int], bool], heads: Sequence[int]) -> Callable[[int], bool]:
        """Taking a window's entries; ``heads`` are the numbers of the entries that are taken next."""
        recorder, gathered, clock = self._recorder, self._gathered, self._clock

        def timed(index: int) -> bool:
            first = heads[index]
            begin = clock()
            all_taken = take(index)
            self._executed_ns = clock()  # if nothing of it is sane, nothing is executed
            gathered[_DECODE] += self._executed_ns - begin
            stamps = self._submitted[index]
            for number in range(first, heads[index]):
                stamp = stamps[number % ENTRIES]
                if stamp:
                    recorder.record(_TO_TAKEN, begin - stamp)
                    stamps[number % ENTRIES] = 0
            return all_taken

        return timed

    def execute(self, execute: Callable[[int, Any], None]) -> Callable[[int, Any], None]:
        """Executing the part of an export, whose ``entries`` are done then."""
        gathered, clock = self._gathered, self._clock

        def timed(export: int, part: Any) -> None:
            calls = sum(gathered[_FIRST_CALL:_BEHIND_CALLS])
            begin = clock()
            execute(export, part)
            self._executed_ns = clock()
            calls = sum(gathered[_FIRST_CALL:_BEHIND_CALLS]) - calls
            gathered[_PLAN] += self._executed_ns - begin - calls
            for window, number in {entry.window: entry.number for entry in part.entries}.items():
                self._done[window][number % ENTRIES] = self._executed_ns

        return timed

    def turn(self, turn: Callable[[], bool], requests: Callable[[], int]) -> Callable[[], bool]:
        """A turn; ``requests`` counts what it has taken."""
        recorder, gathered, clock = self._recorder, self._gathered, self._clock

        def timed() -> bool:
            if not turn():
                return False
            if requests():  # otherwise nothing but a fence was passed
                gathered[_COMPLETE] += clock() - self._executed_ns
                recorder.close(_STAGES)
                recorder.count_batch(requests())
            return True

        return timed
