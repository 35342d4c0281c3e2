"""Ranges whose requests fail: requests for them are executed alone, so that no batch of others fails.

A batch that fails is repeated request by request. A client that asks for one bad block again and again
would have every batch that it is part of executed twice.
"""

from __future__ import annotations

import time

from ..shared.written import BLOCK_BYTES
from .intake import Intake

_KEPT_S = 60.0
_MOST_RANGES = 64
#: A longer request blames nobody: most of it is good.
_MOST_BYTES = 1 << 20


class Suspects:
    """The ranges of one export that a request has failed on by itself within the last minute.

    Args:
        intake: gets the blocks that may fail.
    """

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        #: Until when (monotonic, seconds) by [first, last] block, oldest first.
        self._until_s: dict[tuple[int, int], float] = {}

    def failed(self, offset: int, length: int) -> None:
        """A request for these bytes of the export has failed although it was executed alone."""
        if length > _MOST_BYTES:
            return
        blocks = _blocks(offset, length)
        self._until_s.pop(blocks, None)
        self._until_s[blocks] = time.monotonic() + _KEPT_S
        self._intake.flag(*blocks)
        if len(self._until_s) > _MOST_RANGES:
            del self._until_s[next(iter(self._until_s))]
            self._flag_anew()

    def clear(self) -> None:
        """The export has other memory from now on."""
        if self._until_s:
            self._until_s.clear()
            self._flag_anew()

    def __bool__(self) -> bool:
        """Whether there is such a range."""
        self._forget_old()
        return bool(self._until_s)

    def touches(self, offset: int, length: int) -> bool:
        """Whether a request for these bytes, which the intake suspects, should be executed alone."""
        self._forget_old()
        first, last = _blocks(offset, length)
        return any(lo <= last and first <= hi for lo, hi in self._until_s)

    def _forget_old(self) -> None:
        if not self._until_s:
            return
        now_s, known = time.monotonic(), len(self._until_s)
        while self._until_s and self._until_s[oldest := next(iter(self._until_s))] < now_s:
            del self._until_s[oldest]
        if len(self._until_s) < known:
            self._flag_anew()

    def _flag_anew(self) -> None:
        self._intake.unflag()
        for blocks in self._until_s:
            self._intake.flag(*blocks)


def _blocks(offset: int, length: int) -> tuple[int, int]:
    return offset // BLOCK_BYTES, max(offset, offset + length - 1) // BLOCK_BYTES
