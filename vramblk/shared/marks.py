"""Marks the blocks that runs of writes touch in an export's written-map.

Compiled, with the types of ``marks.pxd``; see ``written`` for the map.
"""

from __future__ import annotations

_BLOCK16_SHIFT = 8


def mark_run(blocks: memoryview, arena_blocks: int, columns: memoryview, first: int, count: int) -> bool:
    """Mark what the requests in columns [first, first + count) of a window touch.

    The columns are a worker's, which may go mad: no more than what 16 bits of length allow is marked for
    each, and nothing outside the map.

    Args:
        blocks: the map, one byte per 4 KiB block.
        arena_blocks: blocks of one arena.
        columns: shape (5, any).

    Returns:
        False if a request leaves the map; some may be marked already.
    """
    end = blocks.nbytes
    for column in range(first, first + count):
        place = columns[0, column]
        shape = columns[2, column]
        length = shape & 0xFFFF
        if length:
            before = (shape >> 24 & 0xF) * arena_blocks
            start = before + (place >> _BLOCK16_SHIFT)
            last = before + ((place + length - 1) >> _BLOCK16_SHIFT)
            if last >= end:
                return False
            for block in range(start, last + 1):
                blocks[block] = 1
    return True
