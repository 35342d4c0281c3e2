"""The format of descriptors: what is packed comes back, and the kernels unpack the same."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import uncompiled
from tests.unit.sharedmemory import make_control
from vramblk.memory import patterns
from vramblk.memory.base import MAXIMUM_ARENAS
from vramblk.shared import descriptors
from vramblk.shared.descriptors import (
    ARENA_SHIFT,
    COLUMN_ROWS,
    ENTRIES,
    ENTRY,
    ENTRY_BYTES,
    ENTRY_FIELDS,
    OFFSET_UNIT,
    POSITION_UNIT,
    Op,
    places,
)
from vramblk.shared.doorbell import DoorbellPipe
from vramblk.shared.ring import CompletionRing, SubmissionRing
from vramblk.shared.window import Window, WindowLayout, Word

KERNELS = (Path(patterns.__file__).with_name("kernels.cl")).read_text()
WINDOW = Window(0, 0, WindowLayout(4096, 4096, 1))
CONTROL = make_control()
U64 = st.integers(0, (1 << 64) - 1)


def kernel(name: str) -> str:
    """The text of one kernel."""
    return KERNELS.split(f"__kernel void {name}(")[1].split("\n}")[0]


def test_the_kernels_table_has_the_rows_of_the_columns() -> None:
    """A launch takes a table of columns by value; their order is the rows' order."""
    body = re.search(r"typedef struct \{(.*?)\} table_t;", KERNELS, re.DOTALL)
    assert body is not None
    rows = re.findall(r"uint (\w+)\[TABLE\];", body[1])
    named = {"off16": "OFFSET", "pos4": "POSITION", "shape": "SHAPE"}
    assert [getattr(descriptors, named[row]) for row in rows] == list(range(COLUMN_ROWS))
    assert OFFSET_UNIT == 16 and POSITION_UNIT == 4, "off16 and pos4 say so in their names"


@pytest.mark.parametrize("name", ["gather", "scatter", "exchange", "checksum_runs"])
def test_the_kernels_unpack_the_shape_as_it_is_packed(name: str) -> None:
    source = kernel(name)
    assert f"length16 = shape & {(1 << ARENA_SHIFT) - 1:#x};" in source
    assert f"number = shape >> {ARENA_SHIFT};" in source


def test_the_kernels_blocks_are_those_of_the_written_map() -> None:
    """Checksums and zeroing count in blocks, 16 bytes at a time."""
    block16 = re.search(r"#define BLOCK16 (\d+)", KERNELS)
    assert block16 is not None and int(block16[1]) * OFFSET_UNIT == patterns.BLOCK_BYTES


@given(st.tuples(*[st.integers(0, (1 << 32) - 1)] * 4, *[U64] * 5))
def test_an_entry_has_the_same_fields_for_worker_engine_and_observer(values: tuple[int, ...]) -> None:
    packed = ENTRY.pack(*values).ljust(ENTRY_BYTES, b"\0")
    assert tuple(int(field) for field in np.frombuffer(packed, ENTRY_FIELDS)[0]) == values
    for number in (0, ENTRIES - 1, 5 * ENTRIES + 3):
        WINDOW.store(Word.TAIL, number)
        SubmissionRing(WINDOW, DoorbellPipe(0, 0), CONTROL).push(*values)
        assert bytes(WINDOW.entries[number % ENTRIES * ENTRY_BYTES :][: ENTRY.size]) == packed[: ENTRY.size]
        assert CompletionRing(WINDOW).entry(number) == values


@given(
    st.tuples(
        st.integers(0, (1 << 32) - 1).map(lambda number: number * OFFSET_UNIT),
        st.integers(0, (1 << 32) - 1).map(lambda number: number * POSITION_UNIT),
        st.integers(0, (1 << ARENA_SHIFT) - 1).map(lambda number: number * OFFSET_UNIT),
        st.integers(0, MAXIMUM_ARENAS - 1),
    ),
    st.sampled_from([1 << 12, 1 << 30, 1 << 36]),
)
@settings(deadline=None)
def test_what_is_packed_into_a_column_comes_back(values: tuple[int, ...], arena_bytes: int) -> None:
    """Compiled and not, one at a time and many at once."""
    for module in (descriptors, uncompiled.load("vramblk.shared.descriptors")):
        cells = np.zeros((COLUMN_ROWS, 3), np.uint32)
        columns = module.Columns(cells.data)
        columns.put(1, *values)
        offset, position, length, arena = values
        assert (columns.offset(1), columns.position(1), columns.length(1)) == (offset, position, length)
        assert columns.arena(1) == arena
        assert columns.place(1, arena_bytes) == (arena * arena_bytes + offset, length)
        assert [int(each[1]) for each in places(cells, arena_bytes)] == list(columns.place(1, arena_bytes))
        assert not cells[:, [0, 2]].any(), "the neighbours stay"


def test_ops_and_sizes_do_not_change_unseen() -> None:
    """The engine orders and bounds by these numbers: runs first, nothing last; slots are a power of two."""
    assert [op.name for op in Op] == ["GATHER", "SCATTER", "COPY_OUT", "COPY_IN", "ZERO", "ECHO", "NOTHING"]
    assert ENTRIES & (ENTRIES - 1) == 0 and ENTRY.size <= ENTRY_BYTES
