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

from vramblk.config.settings import load_settings
from vramblk.memory.base import Batch, DeviceError, Memory, Run
from vramblk.memory.copies import Copies
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
        if self._has_faults():
            self._check(list(self._requests(batch)))
        self._inner.execute(batch)

    def copies(self) -> Copies | None:
        inner = self._inner.copies()
        return FaultyCopies(self, inner) if inner is not None else None

    def look_at_copies(self, requests: list[tuple[str, int, int]]) -> None:
        """May raise: these are to be copied without a batch."""
        if self._has_faults():
            self._check(requests)

    def finish_copies(self, count: int) -> None:
        """So many requests that were copied without a batch come to their end."""

    def _has_faults(self) -> bool:
        changed = os.stat(FAULTS).st_mtime_ns
        if changed != self._changed:
            self._changed = changed
            self._faults = json.loads(FAULTS.read_text())
        return bool(self._faults)

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
            arena = shape >> 16
            yield arena * self._inner.arena_bytes + place * 16, (shape & 0xFFFF) * 16


class FaultyCopies(Copies):
    """Copies of a memory that fail as its batches would; an exception in a batch is a failure here."""

    def __init__(self, memory: FaultyMemory, inner: Copies) -> None:
        Copies.__init__(self, inner.size_bytes, inner.arena_bytes, [], self._failure)
        self.queued = inner.queued
        self._memory = memory
        self._inner = inner
        self._requests: list[tuple[str, int, int]] = []
        self._error: DeviceError | None = None

    def read(self, offset: int, length: int, address: int) -> int:
        return self._fault("read", offset, length) or self._inner.read(offset, length, address)

    def write(self, offset: int, length: int, address: int) -> int:
        return self._fault("write", offset, length) or self._inner.write(offset, length, address)

    def finish(self) -> int:
        self._memory.finish_copies(len(self._requests))
        self._requests.clear()
        return self._inner.finish()

    def _fault(self, op: str, offset: int, length: int) -> int:
        self._requests.append((op, offset, length))
        try:
            self._memory.look_at_copies(self._requests)
        except DeviceError as error:
            self._error = error
        except Exception as error:
            self._error = DeviceError(5, repr(error))
        else:
            return 0
        return -5

    def _failure(self, status: int) -> DeviceError:
        return self._error or self._inner.failure(status)


def open_faulty(exports: Any, windows: Sequence[Window], **options: Any) -> list[FaultyMemory]:
    from vramblk.memory import open_memories

    return [FaultyMemory(memory, windows) for memory in open_memories(exports, windows, **options)]


def main() -> int:
    from vramblk.supervisor.process import serve
    from vramblk.system import logs

    settings = load_settings(sys.argv[1:], os.environ)
    logs.configure_direct("supervisor", settings.verbose)
    return serve(settings, open_memories=open_faulty)


if __name__ == "__main__":
    sys.exit(main())
