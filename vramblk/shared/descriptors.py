"""Descriptors: what a worker asks of the engine, as it lies in the memory that both share.

A ring entry asks for one request, or for a run of like requests. Where those of a run lie is in columns,
one column for each request. A launch of a kernel takes the same columns by value (``kernels.cl``), so that
the engine copies a run and does not translate it.

This module owns the format. The ring's two sides are in ``ring``, how they wake each other in ``doorbell``,
where all this lies in a window in ``window``. Compiled, with the types of ``descriptors.pxd``: each request
passes here several times.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import numpy as np
import numpy.typing as npt

ENTRIES = 1024
#: op, export, first column, count, slab range [lo, hi), export offset, length, flags
ENTRY = struct.Struct("<IIIIQQQQQ")
ENTRY_BYTES = 64
#: The same as fields of a numpy array.
ENTRY_FIELDS = np.dtype(
    {
        "names": ["op", "export", "first", "count", "lo", "hi", "offset", "length", "flags"],
        "formats": ["<u4"] * 4 + ["<u8"] * 5,
        "offsets": [0, 4, 8, 12, 16, 24, 32, 40, 48],
        "itemsize": ENTRY_BYTES,
    }
)


class Op(IntEnum):
    """What a ring entry asks of the engine."""

    GATHER = 0
    SCATTER = 1
    COPY_OUT = 2
    COPY_IN = 3
    ZERO = 4
    ECHO = 5
    NOTHING = 6


#: Flag of a GATHER entry: what lies between the replies of the one before it and its own may be overwritten.
GATHER_JOINS = 1
#: A ZERO entry is for at most so many bytes.
MOST_ZERO_BYTES = 1 << 30
#: Flag of a ZERO entry: whole blocks become unwritten (a hole).
ZERO_HOLE = 1

COLUMNS = 8192
#: Rows of the columns, 32 bits each: offset within the arena / OFFSET_UNIT, position of the data in all slabs
#: laid end to end / POSITION_UNIT, and shape.
OFFSET, POSITION, SHAPE = range(3)
COLUMN_ROWS = 3
OFFSET_UNIT, POSITION_UNIT = 16, 4
#: A shape: length / OFFSET_UNIT in the lowest bits, then the number of the arena.
ARENA_SHIFT = 16
#: The same once more as what the compiler may hold in a register.
_ROWS = COLUMN_ROWS
_OFFSET, _POSITION, _SHAPE = range(3)
_OFFSET_SHIFT, _POSITION_SHIFT = OFFSET_UNIT.bit_length() - 1, POSITION_UNIT.bit_length() - 1
_ARENA_SHIFT, _LENGTH_MASK = ARENA_SHIFT, (1 << ARENA_SHIFT) - 1


class Columns:
    """A table of columns: shape (COLUMN_ROWS, any), uint32. All sizes and places are in bytes.

    It does not check what it is given, neither columns nor values.
    """

    def __init__(self, cells: memoryview) -> None:
        self.cells = cells

    def put(self, column: int, offset: int, position: int, length: int, arena: int) -> None:
        """Lay a request: ``offset`` is within the arena, at ``position`` lie its data."""
        # Not through a local: holding the buffer once more costs as much as all the rest.
        self.cells[_OFFSET, column] = offset >> _OFFSET_SHIFT
        self.cells[_POSITION, column] = position >> _POSITION_SHIFT
        self.cells[_SHAPE, column] = length >> _OFFSET_SHIFT | arena << _ARENA_SHIFT

    def copy(self, at: int, source: Columns, first: int, count: int) -> None:
        """Copy columns [first, first + count) of another table, each word once, to those from ``at`` on."""
        cells, theirs = self.cells, source.cells
        for row in range(_ROWS):
            for index in range(count):
                cells[row, at + index] = theirs[row, first + index]

    def offset(self, column: int) -> int:
        """Within the arena."""
        offset = self.cells[_OFFSET, column]
        return offset << _OFFSET_SHIFT

    def position(self, column: int) -> int:
        """Where in all slabs laid end to end."""
        position = self.cells[_POSITION, column]
        return position << _POSITION_SHIFT

    def length(self, column: int) -> int:
        return (self.cells[_SHAPE, column] & _LENGTH_MASK) << _OFFSET_SHIFT

    def arena(self, column: int) -> int:
        """Number of the arena."""
        return self.cells[_SHAPE, column] >> _ARENA_SHIFT

    def place(self, column: int, arena_bytes: int) -> tuple[int, int]:
        """Offset in an export of such arenas, and length."""
        arena = self.arena(column)
        return arena * arena_bytes + self.offset(column), self.length(column)


Cells = npt.NDArray[np.int64]


def places(columns: npt.NDArray[np.uint32], arena_bytes: int) -> tuple[Cells, Cells]:
    """``Columns.place`` of many: offsets and lengths. ``columns`` has the shape (COLUMN_ROWS, any)."""
    offsets, shapes = columns[OFFSET].astype(np.int64), columns[SHAPE].astype(np.int64)
    return (
        (shapes >> ARENA_SHIFT) * arena_bytes + offsets * OFFSET_UNIT,
        (shapes & _LENGTH_MASK) * OFFSET_UNIT,
    )
