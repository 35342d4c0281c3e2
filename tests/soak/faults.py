"""Words that the soak run shares with its server: which faults the engine injects, and how many it has injected.

A file of 64-bit words that both sides map. Imports nothing of the project, because the server program may
serve another checkout.
"""

from __future__ import annotations

import mmap
import struct
from enum import IntEnum
from pathlib import Path


class Word(IntEnum):
    """Rates are per million.

    CALLS: OpenCL calls that fail. EXECUTES: calls of ``Memory.execute`` that fail before, amid or after
    their work. SLEEPS: calls of ``Memory.execute`` that sleep up to LONGEST_MS first. SLEEP_NOW_MS: the next
    one sleeps that long. PLANTS: calls of ``Memory.execute`` that commit the planted fault.
    FAILED, SLEPT_MS: what the engine has injected so far.
    """

    CALLS = 0
    EXECUTES = 1
    SLEEPS = 2
    LONGEST_MS = 3
    SLEEP_NOW_MS = 4
    PLANTS = 5
    FAILED = 6
    SLEPT_MS = 7


class Faults:
    """The words of a file, which is made if it is not there."""

    def __init__(self, path: Path) -> None:
        size = 8 * len(Word)
        with path.open("a+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)

    def __getitem__(self, word: Word) -> int:
        return int(struct.unpack_from("<q", self._map, word * 8)[0])

    def __setitem__(self, word: Word, value: int) -> None:
        struct.pack_into("<q", self._map, word * 8, value)

    def add(self, word: Word, value: int = 1) -> None:
        self[word] += value
