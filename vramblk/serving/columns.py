"""Lays runs of plain requests into a window's columns, as the kernels' argument table wants them.

Compiled, with the types of ``columns.pxd``; see ``nbd.runs`` for why.
"""

from __future__ import annotations

from ..nbd.runs import Side, fill_done, fill_read_header
from ..shared.window import Window


class Columns:
    """The columns of a window, for one connection.

    Args:
        arena_bytes: size of the export's arenas, 0 if it has only one.
        header_bytes: what stands before the data of a read.
        extended: how writes are acknowledged.
    """

    def __init__(self, window: Window, arena_bytes: int, header_bytes: int, extended: bool) -> None:
        self._cells = window.columns.data
        self._slab = window.slab_words
        self._base = window.base
        self._arena = arena_bytes
        self._header = header_bytes
        self._extended = extended

    def lay_reads(self, side: Side, first: int, start: int) -> None:
        """Columns from ``first`` on; the replies lie one behind the other from slab position ``start`` on."""
        cells, offsets, lengths, cookies = self._cells, side.offset, side.length, side.cookie
        header = self._header
        position4 = (self._base + start) >> 2
        for index in range(side.count):
            column = first + index
            offset = offsets[index]
            length = lengths[index]
            arena = 0
            if self._arena:
                arena = offset // self._arena
                offset -= arena * self._arena
            cells[0, column] = offset >> 4
            cells[1, column] = position4
            cells[2, column] = length >> 4 | header >> 2 << 16 | arena << 24
            cells[3, column] = cookies[2 * index]
            cells[4, column] = cookies[2 * index + 1]
            position4 += (length + header) >> 2

    def lay_writes(self, side: Side, first: int, lane: int) -> None:
        """Columns from ``first`` on; the places of the payloads count from slab position ``lane``."""
        cells, offsets, lengths, cookies = self._cells, side.offset, side.length, side.cookie
        payload = side.payload
        base = self._base + lane
        for index in range(side.count):
            column = first + index
            offset = offsets[index]
            arena = 0
            if self._arena:
                arena = offset // self._arena
                offset -= arena * self._arena
            cells[0, column] = offset >> 4
            cells[1, column] = (base + payload[index]) >> 2
            cells[2, column] = lengths[index] >> 4 | arena << 24
            cells[3, column] = cookies[2 * index]
            cells[4, column] = cookies[2 * index + 1]

    def lay_done(self, first: int, count: int, start: int) -> None:
        """Replies of success to the writes in columns [first, first + count), from position ``start`` on.

        Laid when the writes are done, not before: until then the engine may overwrite the place, so that
        replies of reads on both sides of it come in one copy.
        """
        cells = self._cells
        at = start >> 2
        for column in range(first, first + count):
            offset = cells[0, column]
            offset = (offset << 4) + (cells[2, column] >> 24) * self._arena
            fill_done(self._slab, at, cells[3, column], cells[4, column], offset, self._extended)
            at += 8 if self._extended else 4

    def lay_header(self, side: Side, start: int) -> None:
        """The header of the only read at slab position ``start``."""
        fill_read_header(self._slab, start >> 2, side, self._header)
