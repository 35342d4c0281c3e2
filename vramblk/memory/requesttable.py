"""Collects the columns of runs into the table that a launch takes by value.

Compiled, with the types of ``requesttable.pxd``: a batch has a few short runs, for which numpy's price for a
slice is most of the work.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..shared.descriptors import Columns


class RequestTable:
    """Rows of 32-bit words, laid out as ``table_t`` of kernels.cl.

    Args:
        cells: the table, shape (COLUMN_ROWS, requests).
        columns: by window index: its columns, or None.
    """

    def __init__(self, cells: memoryview, columns: Sequence[memoryview | None]) -> None:
        assert cells.shape is not None
        self.requests = cells.shape[1]
        self._columns = [None if each is None else Columns(each) for each in columns]
        self._table = Columns(cells)

    def add(self, filled: int, window: int, first: int, count: int) -> None:
        """Put columns [first, first + count) of a window behind the first ``filled`` of the table."""
        columns = self._columns[window]
        assert columns is not None
        self._table.copy(filled, columns, first, count)
