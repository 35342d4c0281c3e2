"""A memory with a bit that cannot be cleared, for tests of what looks for such memory."""

from __future__ import annotations

from typing import Any

from vramblk.memory import patterns
from vramblk.memory.base import Pattern, Progress
from vramblk.memory.mapped import MappedMemory


class Stuck:
    """Behaves like the memory inside it, but for one bit that is always 1."""

    def __init__(self, inner: MappedMemory, offset: int) -> None:
        self._inner, self._offset = inner, offset

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def mismatches(self, offset: int, length: int, pattern: Pattern, seed: int = 0) -> list[tuple[int, int]]:
        self._inner._bytes[self._offset] |= 4
        return self._inner.mismatches(offset, length, pattern, seed)

    def prove(self, progress: Progress | None = None) -> None:
        patterns.prove(self, progress)  # type: ignore[arg-type]
