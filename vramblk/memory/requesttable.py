"""Collects the columns of runs into the table that a launch takes by value.

Compiled, with the types of ``requesttable.pxd``: a batch has a few short runs, for which numpy's price for a
slice is most of the work.
"""

from __future__ import annotations

from collections.abc import Sequence

ROWS = 5


class RequestTable:
    """Rows of 32-bit words, laid out as ``table_t`` of kernels.cl.

    Args:
        cells: the table, shape (ROWS, requests).
        columns: by window index: its columns, shape (ROWS, any), or None.
    """

    def __init__(self, cells: memoryview, columns: Sequence[memoryview | None]) -> None:
        assert cells.shape is not None
        self.requests = cells.shape[1]
        self._cells = cells
        self._columns = list(columns)

    def add(self, filled: int, window: int, first: int, count: int) -> None:
        """Put columns [first, first + count) of a window behind the first ``filled`` of the table."""
        cells = self._cells
        columns = self._columns[window]
        assert columns is not None
        for row in range(ROWS):
            for index in range(count):
                cells[row, filled + index] = columns[row, first + index]
