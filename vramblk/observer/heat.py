"""Where in an export the requests of the last half minute were: the observer reads the rings once a second.

The data path counts nothing for this. An entry that is overwritten while it is looked at puts a
request into a wrong cell, which is harmless in a picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..shared.descriptors import COLUMNS, ENTRIES, ENTRY_FIELDS, Cells, Op, places
from ..shared.window import Window, Word

CELLS = 512
#: Heat that is left after a second: half of it is gone after seven.
_DECAY = 0.9
#: Entries looked at in one window each second, the youngest.
_MOST = 256
#: Of them together in one step; those of a faulty worker may name all columns, each of them.
_AT_ONCE = 64
_GATHER, _SCATTER, _COPY_OUT, _COPY_IN = map(int, (Op.GATHER, Op.SCATTER, Op.COPY_OUT, Op.COPY_IN))


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
            oldest = (tail - fresh) % ENTRIES  # reduced first: a faulty worker's tail fits into no array
            for begin in range(0, fresh, _AT_ONCE):
                numbers = oldest + np.arange(begin, min(begin + _AT_ONCE, fresh))
                self._look(window, numbers % ENTRIES, sizes)

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
        entries = np.frombuffer(window.entries, ENTRY_FIELDS, ENTRIES)[slots]
        for export, (size, arena) in enumerate(sizes):
            of_export = entries[entries["export"] == export]
            op = of_export["op"]
            if (runs := of_export[(op == _GATHER) | (op == _SCATTER)]).size:
                first, count = runs["first"].astype(np.int64), runs["count"].astype(np.int64)
                sane = first + count <= COLUMNS
                first, count = first[sane], count[sane]
                # The columns of all runs, one run behind the other.
                columns = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())
                self._add(export, size, *places(window.columns[:, columns], arena))
            if (copies := of_export[(op == _COPY_OUT) | (op == _COPY_IN)]).size:
                self._add(export, size, copies["offset"].astype(np.int64), copies["length"].astype(np.int64))

    def _add(self, export: int, size: int, offsets: Cells, lengths: Cells) -> None:
        cells = offsets * CELLS // size
        good = (cells >= 0) & (cells < CELLS)
        np.add.at(self._rows[export], cells[good], lengths[good])
