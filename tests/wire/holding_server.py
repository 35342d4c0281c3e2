"""The server with memories that are taken and released as a test says. Run like ``vramblk``.

``orders.json`` in the working directory, read at each take and release, holds by number of the export what happens:
``missing`` bytes for which the take fails after its steps, ``steps`` before a take and ``release_steps`` before a release, each of
which waits ``step_s``, and ``fails_to_drop`` if a take that is given up among its steps raises an exception. While the file ``pause`` exists, each of these steps waits. A line of ``steps`` is written for each.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vramblk.memory.base import Memory, MissingMemory
from vramblk.supervisor import process as supervisor

ORDERS = Path.cwd()


class HoldingMemory:
    """A memory that behaves like the one inside it, but is taken and released as the file says."""

    def __init__(self, number: int, inner: Memory) -> None:
        self._number = number
        self._inner = inner
        self._began = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def take(self) -> Iterator[None]:
        order = self._order()
        for _ in range(order.get("steps", 0)):
            self._step("take", order)
            try:
                yield
            except GeneratorExit:
                if order.get("fails_to_drop"):
                    raise RuntimeError("injected") from None
                raise
        if missing := order.get("missing"):
            raise MissingMemory("injected", missing)
        yield from self._inner.take()

    def release(self) -> Iterator[None]:
        order = self._order() if self._began else {}
        self._began = True
        for _ in range(order.get("release_steps", 0)):
            self._step("release", order)
            yield
        yield from self._inner.release()

    def _order(self) -> dict[str, Any]:
        try:
            return json.loads((ORDERS / "orders.json").read_text()).get(str(self._number), {})
        except FileNotFoundError:
            return {}

    def _step(self, what: str, order: dict[str, Any]) -> None:
        with (ORDERS / "steps").open("a") as file:
            file.write(f"{what} {self._number}\n")
        time.sleep(order.get("step_s", 0))
        while os.path.exists(ORDERS / "pause"):
            time.sleep(0.005)


def open_holding(*arguments: Any, **options: Any) -> list[HoldingMemory]:
    from vramblk.memory import open_memories

    return [HoldingMemory(number, each) for number, each in enumerate(open_memories(*arguments, **options))]


if __name__ == "__main__":
    from vramblk import cli

    serve = supervisor.serve
    supervisor.serve = lambda settings: serve(settings, open_memories=open_holding)
    sys.exit(cli.main(sys.argv[1:]))
