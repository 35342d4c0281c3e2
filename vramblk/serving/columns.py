"""Lays runs of plain requests into a window's columns, and the headers of their replies into its slab.

Columns say where data lie and no more. The engine may overwrite all of a run's replies while it reads, so
that they come in one copy: what stands before the data is laid when the engine is done. The cookies stay here
until then.

Compiled, with the types of ``columns.pxd``; see ``nbd.runs`` for why.
"""

from __future__ import annotations

import struct

from ..nbd.replyheaders import fill_done, fill_read_header
from ..nbd.runs import Side
from ..shared.descriptors import COLUMNS, Columns
from ..shared.window import Window

_COOKIE = struct.Struct("<II")


def make_cookies() -> memoryview:
    """Two words for each column of a window, as they came; for all connections of a worker."""
    return memoryview(bytearray(8 * COLUMNS)).cast("I")


class RunColumns:
    """The columns of a window, for one connection.

    Args:
        cookies: from ``make_cookies``.
        arena_bytes: size of the export's arenas, 0 if it has only one.
        header_bytes: what stands before the data of a read.
        extended: how writes are acknowledged.
    """

    def __init__(
        self, window: Window, cookies: memoryview, arena_bytes: int, header_bytes: int, extended: bool
    ) -> None:
        self._columns = Columns(window.columns.data)
        self._cookies = cookies
        self._slab = window.slab_words
        self._base = window.base
        self._arena = arena_bytes
        self._header = header_bytes
        self._extended = extended

    def lay_reads(self, side: Side, first: int, start: int) -> None:
        """Columns from ``first`` on; the replies lie one behind the other from slab position ``start`` on."""
        columns, offsets, lengths = self._columns, side.offset, side.length
        header = self._header
        position = self._base + start
        for index in range(side.count):
            offset = offsets[index]
            length = lengths[index]
            arena = 0
            if self._arena:
                arena = offset // self._arena
                offset -= arena * self._arena
            columns.put(first + index, offset, position + header, length, arena)
            position += header + length
        self._keep_cookies(side, first)

    def lay_writes(self, side: Side, first: int, lane: int) -> None:
        """Columns from ``first`` on; the places of the payloads count from slab position ``lane``."""
        columns, offsets, lengths, payload = self._columns, side.offset, side.length, side.payload
        base = self._base + lane
        for index in range(side.count):
            offset = offsets[index]
            arena = 0
            if self._arena:
                arena = offset // self._arena
                offset -= arena * self._arena
            columns.put(first + index, offset, base + payload[index], lengths[index], arena)
        self._keep_cookies(side, first)

    def _keep_cookies(self, side: Side, first: int) -> None:
        cookies, kept = side.cookie, self._cookies
        for index in range(2 * side.count):
            kept[2 * first + index] = cookies[index]

    def request(self, column: int) -> tuple[bytes, int, int]:
        """Cookie, offset in the export and length."""
        cookie = _COOKIE.pack(self._cookies[2 * column], self._cookies[2 * column + 1])
        return cookie, *self._columns.place(column, self._arena)

    def lay_done(self, first: int, count: int, start: int) -> None:
        """Replies of success to the writes in columns [first, first + count), from position ``start`` on."""
        columns, cookies = self._columns, self._cookies
        at = start >> 2
        for column in range(first, first + count):
            offset = columns.offset(column) + columns.arena(column) * self._arena
            fill_done(self._slab, at, cookies[2 * column], cookies[2 * column + 1], offset, self._extended)
            at += 8 if self._extended else 4

    def lay_reply(self, low: int, high: int, offset: int, start: int) -> None:
        """The reply of success at slab position ``start`` to the write with this cookie and offset."""
        fill_done(self._slab, start >> 2, low, high, offset, self._extended)

    def lay_header(self, low: int, high: int, offset: int, length: int, start: int) -> None:
        """The header at slab position ``start`` of the read with this cookie, offset and length."""
        fill_read_header(self._slab, start >> 2, low, high, offset, length, self._header)

    def lay_headers(self, first: int, count: int, start: int) -> None:
        """Headers of the reads in columns [first, first + count), with replies from position ``start`` on."""
        columns, cookies = self._columns, self._cookies
        header = self._header
        at = start >> 2
        for column in range(first, first + count):
            offset = columns.offset(column) + columns.arena(column) * self._arena
            length = columns.length(column)
            fill_read_header(
                self._slab, at, cookies[2 * column], cookies[2 * column + 1], offset, length, header
            )
            at += (header + length) >> 2
