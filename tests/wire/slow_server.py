"""The server with a memory that takes its time to be proven. Run like ``vramblk``.

``VRAMBLK_TEST_STEP_S`` is how long each step of the proof takes, each with a line on stderr; ``VRAMBLK_TEST_BAD_STEP`` is the
number of the step, from 1, that finds the memory bad; ``VRAMBLK_TEST_ZERO_S`` is how long it takes
to zero all of it at the end. rich cannot be imported: no process of the server may load it.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from vramblk.memory.base import DeviceError, Memory, Pattern, Progress
from vramblk.memory.patterns import prove

STEP_S = float(os.environ.pop("VRAMBLK_TEST_STEP_S", "0"))
BAD_STEP = int(os.environ.pop("VRAMBLK_TEST_BAD_STEP", "0"))
ZERO_S = float(os.environ.pop("VRAMBLK_TEST_ZERO_S", "0"))


class SlowMemory:
    """A memory that behaves like the one inside it, only later."""

    def __init__(self, inner: Memory) -> None:
        self._inner = inner
        self._steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def fill(self, offset: int, length: int, pattern: Pattern, seed: int = 0) -> None:
        self._step()
        self._inner.fill(offset, length, pattern, seed)

    def mismatches(self, offset: int, length: int, pattern: Pattern, seed: int = 0) -> list[tuple[int, int]]:
        self._step()
        return self._inner.mismatches(offset, length, pattern, seed)

    def prove(self, progress: Progress | None = None) -> None:
        prove(self, progress)

    def zero_all(self) -> None:
        time.sleep(ZERO_S)
        self._inner.zero_all()

    def _step(self) -> None:
        self._steps += 1
        if self._steps == BAD_STEP:
            raise DeviceError(5, "injected")
        if STEP_S:
            print(f"step {self._steps}", file=sys.stderr, flush=True)
            time.sleep(STEP_S)


def open_slow(*arguments: Any, **options: Any) -> list[SlowMemory]:
    from vramblk.memory import open_memories

    return [SlowMemory(memory) for memory in open_memories(*arguments, **options)]


def main() -> int:
    from vramblk import cli
    from vramblk.supervisor import process as supervisor

    sys.modules["rich"] = None  # type: ignore[assignment]  # whoever of the server imports it fails
    serve = supervisor.serve
    supervisor.serve = lambda settings: serve(settings, open_memories=open_slow)
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
