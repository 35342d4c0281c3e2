"""Written bytes of the exports, and the map of an export that the page draws."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from ..shared.context import Shared
from ..shared.written import BLOCK_BYTES
from .heat import CELLS
from .sampler import Sampler

#: Counting a terabyte's map takes tens of milliseconds, so it is not done anew for each asker.
_MAP_CACHED_S = 2.0


class Written:
    """Reads the written-maps; they are mapped here when the engine has given them their size."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._lock = threading.Lock()
        self._open: set[int] = set()
        self._maps: dict[int, tuple[float, list[int]]] = {}

    def bytes_of(self, export: int) -> int:
        """Bytes in blocks that hold data, 0 before the engine is ready."""
        return self._shared.written[export].written_bytes() if self._ready(export) else 0

    def cells(self, export: int, sampler: Sampler) -> dict[str, Any]:
        """Shares written in per cent, and heat 0 to 9, of ``CELLS`` equal ranges of the export."""
        size = self._shared.written[export].blocks.size * BLOCK_BYTES if self._ready(export) else 0
        return {
            "schema": 1,
            "export": self._shared.settings.exports[export].name,
            "cell_bytes": size / CELLS,
            "written_percent": self._percent(export) if size else [0] * CELLS,
            "heat": sampler.heat(export),
        }

    def _percent(self, export: int) -> list[int]:
        with self._lock:
            at, found = self._maps.get(export, (0.0, []))
            if found and time.monotonic() - at < _MAP_CACHED_S:
                return found
            blocks = self._shared.written[export].blocks
            borders = np.linspace(0, blocks.size, CELLS + 1).astype(np.int64)
            found = []
            for low, high in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
                part = blocks[low : max(high, low + 1)]
                # A single written block of a large cell is worth seeing: round up.
                found.append(-(-int(np.count_nonzero(part)) * 100 // max(part.size, 1)))
            self._maps[export] = (time.monotonic(), found)
            return found

    def _ready(self, export: int) -> bool:
        with self._lock:
            if export not in self._open and self._shared.control.export_table():
                self._shared.written[export].open()
                self._open.add(export)
            return export in self._open
