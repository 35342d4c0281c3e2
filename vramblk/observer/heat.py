"""Where in an export the requests of the last half minute were: a glance at the rings once a second.

The data path counts nothing for this. An entry that is overwritten while it is looked at puts a
request into a wrong cell, which is harmless in a picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..shared.window import COLUMNS, ENTRIES, ENTRY_BYTES, Op, Window, Word

CELLS = 512
#: Heat that is left after a second: half of it is gone after seven.
_DECAY = 0.9
#: Entries looked at in one window each second, the youngest.
_MOST = 256

_ENTRY = np.dtype(
    {
        "names": ["op", "export", "first", "count", "offset", "length"],
        "formats": ["<u4", "<u4", "<u4", "<u4", "<u8", "<u8"],
        "offsets": [0, 4, 8, 12, 32, 40],
        "itemsize": ENTRY_BYTES,
    }
)


class Heat:
    """Bytes touched per cell, fading; one row of cells for each export."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self._windows = windows
        self._seen = [window.load(Word.TAIL) for window in windows]
        self._rows: list[npt.NDArray[np.float64]] = []

    def sample(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Look at what was submitted since the last time; ``sizes`` are (size, arena) in bytes."""
        while len(self._rows) < len(sizes):
            self._rows.append(np.zeros(CELLS))
        for row in self._rows:
            row *= _DECAY
        for position, window in enumerate(self._windows):
            tail = window.load(Word.TAIL)
            fresh = min(tail - self._seen[position], _MOST) if tail >= self._seen[position] else 0
            self._seen[position] = tail
            if fresh:
                self._look(window, np.arange(tail - fresh, tail) % ENTRIES, sizes)

    def levels(self, export: int) -> list[int]:
        """0 (cold) to 9 (the hottest of this export), one for each cell, on a scale of logarithms."""
        if export >= len(self._rows):
            return [0] * CELLS
        row = self._rows[export]
        most = float(row.max())
        if most < 1:
            return [0] * CELLS
        found: list[int] = np.rint(9 * np.log1p(np.maximum(row, 0)) / np.log1p(most)).astype(int).tolist()
        return found

    def _look(self, window: Window, slots: npt.NDArray[np.int64], sizes: Sequence[tuple[int, int]]) -> None:
        entries = np.frombuffer(window.entries, _ENTRY, ENTRIES)[slots]
        for entry in entries:
            export, op = int(entry["export"]), int(entry["op"])
            if export >= len(sizes):
                continue
            size, arena = sizes[export]
            if op in (Op.GATHER, Op.SCATTER):
                first, count = int(entry["first"]), int(entry["count"])
                if first + count > COLUMNS:
                    continue
                place, _, shape = window.columns[:3, first : first + count].astype(np.int64)
                offsets = (shape >> 24 & 0xF) * arena + place * 16
                lengths = (shape & 0xFFFF) * 16
            elif op in (Op.COPY_OUT, Op.COPY_IN):
                offsets, lengths = np.array([int(entry["offset"])]), np.array([int(entry["length"])])
            else:
                continue
            cells = offsets * CELLS // size
            good = (cells >= 0) & (cells < CELLS)
            np.add.at(self._rows[export], cells[good], lengths[good])
