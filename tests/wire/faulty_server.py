"""The server with memories that fail where a file says so.

Run like ``vramblk``. ``faults.json`` in the working directory, read again whenever it changed,
holds a list of ``{"op": "read"|"write"|"zero", "lo": bytes, "hi": bytes, "errno": number,
"lost": bool, "together": bool}``; a batch with a request that overlaps [lo, hi) fails before it
touches anything. With ``together`` only a batch of several requests does.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vramblk.memory.base import Batch, DeviceError, Memory, Run
from vramblk.settings import load_settings
from vramblk.shared.window import Window

FAULTS = Path("faults.json").resolve()


class FaultyMemory:
    """A memory that behaves like the one inside it, except where the file says otherwise."""

    def __init__(self, inner: Memory, windows: Sequence[Window]) -> None:
        self._inner = inner
        self._windows = windows
        self._changed = 0
        self._faults: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def execute(self, batch: Batch) -> None:
        changed = os.stat(FAULTS).st_mtime_ns
        if changed != self._changed:
            self._changed = changed
            self._faults = json.loads(FAULTS.read_text())
        if self._faults:
            self._check(list(self._requests(batch)))
        self._inner.execute(batch)

    def _check(self, requests: list[tuple[str, int, int]]) -> None:
        for fault in self._faults:
            if fault.get("together") and len(requests) < 2:
                continue
            for op, offset, length in requests:
                if op == fault["op"] and offset < fault["hi"] and offset + length > fault["lo"]:
                    raise DeviceError(fault["errno"], "injected", lost=fault.get("lost", False))

    def _requests(self, batch: Batch) -> Iterator[tuple[str, int, int]]:
        for op, runs in (("write", batch.writes), ("read", batch.reads)):
            for run in runs:
                for offset, length in self._columns(run):
                    yield op, offset, length
        for op, copies in (("write", batch.copies_in), ("read", batch.copies_out)):
            for copy in copies:
                yield op, copy.offset, copy.hi - copy.lo
        for zero in batch.zeroes:
            yield "zero", zero.offset, zero.length

    def _columns(self, run: Run) -> Iterator[tuple[int, int]]:
        table = self._windows[run.window].columns[:, run.first : run.first + run.count].tolist()
        for place, shape in zip(table[0], table[2], strict=True):
            arena = shape >> 24
            yield arena * self._inner.arena_bytes + place * 16, (shape & 0xFFFF) * 16


def open_faulty(exports: Any, windows: Sequence[Window], **options: Any) -> list[FaultyMemory]:
    from vramblk.memory import open_memories

    return [FaultyMemory(memory, windows) for memory in open_memories(exports, windows, **options)]


def main() -> int:
    from vramblk import logs
    from vramblk.supervisor import serve

    settings = load_settings(sys.argv[1:], os.environ)
    logs.configure_direct("supervisor", settings.verbose)
    return serve(settings, open_memories=open_faulty)


if __name__ == "__main__":
    sys.exit(main())
