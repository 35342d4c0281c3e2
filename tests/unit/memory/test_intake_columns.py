"""Columns as the engine takes them from a worker: copied once, checked in the copy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramblk.engine.intake import REFUSED, WAIT, Intake
from vramblk.shared.descriptors import COLUMN_ROWS, Columns

BLOCK = 4096
ARENA, SIZE = 4 * BLOCK, 10 * BLOCK
LO, HI = 1 << 16, 1 << 18
Cells = npt.NDArray[np.uint32]


def columns(count: int = 8) -> Cells:
    return np.zeros((COLUMN_ROWS, count), np.uint32)


def lay(cells: Cells, column: int, offset: int, place: int, length: int) -> None:
    arena, within = divmod(offset, ARENA)
    cells[:, column] = within // 16, place // 4, length // 16 | arena << 16


def of_blocks(blocks: npt.NDArray[np.uint8] | None = None) -> Intake:
    """An intake whose written-map is ``blocks``; its first batch has begun."""
    blocks = np.zeros(SIZE // BLOCK, np.uint8) if blocks is None else blocks
    intake = Intake(SIZE, ARENA, blocks.data)
    intake.begin()
    return intake


def take(theirs: Cells, ours: Cells, first: int = 0, count: int = 1) -> bool:
    found = of_blocks().take_run(
        Columns(theirs.data), Columns(ours.data), first, first, count, LO, HI, 8
    )
    assert found >= 0 or found == REFUSED
    return found >= 0


def test_columns_are_copied_and_no_others() -> None:
    """All words of each column of the run, at the same place in the copy."""
    theirs, ours = columns(), columns()
    for column in range(8):
        lay(theirs, column, column * BLOCK % SIZE, LO, 512)
    assert take(theirs, ours, 2, 3)
    assert (ours[:, 2:5] == theirs[:, 2:5]).all()
    assert not ours[:, :2].any() and not ours[:, 5:].any()


def test_a_place_may_touch_both_borders() -> None:
    """The data fit exactly into [lo, hi); one word more on either side does not."""
    length = 4096
    for place, fits in ((LO, True), (HI - length, True), (LO - 4, False), (HI - length + 4, False)):
        theirs = columns()
        lay(theirs, 0, 0, place, length)
        assert take(theirs, columns()) is fits


@pytest.mark.parametrize(
    ("arena", "within", "length", "fits"),
    [
        (0, ARENA - 512, 512, True),
        (0, ARENA - 496, 512, False),
        (2, 2 * BLOCK - 512, 512, True),
        (2, 2 * BLOCK - 496, 512, False),
        (3, 0, 512, False),
        (65535, 0, 16, False),
        (0, 0xFFFFFFFF * 16, 0, False),
        (1, 0xFFFFFFFF * 16, 0xFFFF * 16, False),
    ],
)
def test_a_request_stays_in_its_arena_and_in_the_export(arena: int, within: int, length: int, fits: bool) -> None:
    """Numbers as large as the words hold them are refused too, not wrapped around."""
    theirs = columns()
    theirs[:, 0] = within // 16, LO // 4, length // 16 | arena << 16
    assert take(theirs, columns()) is fits


def test_one_bad_column_refuses_the_run() -> None:
    """Wherever it stands in the run; a bad column beside the run does not matter."""
    for bad in range(8):
        theirs = columns()
        for column in range(8):
            lay(theirs, column, 0, LO, 512)
        theirs[1, bad] = 0
        assert take(theirs, columns(), 2, 4) is not (2 <= bad < 6)


@given(st.lists(st.tuples(*[st.integers(0, (1 << 32) - 1)] * 3), min_size=1, max_size=8))
def test_any_words_that_are_taken_stay_inside(words: list[tuple[int, int, int]]) -> None:
    """Whatever a worker writes: what passes lies in [lo, hi), in one arena and in the export."""
    theirs, ours = columns(len(words)), columns(len(words))
    for column, three in enumerate(words):
        theirs[:, column] = three
    for column in range(len(words)):
        if take(theirs, ours, column, 1):
            within, place, shape = (int(word) for word in ours[:, column])
            end = within * 16 + (shape & 0xFFFF) * 16
            assert end <= ARENA and (shape >> 16) * ARENA + end <= SIZE
            assert LO <= place * 4 and place * 4 + (shape & 0xFFFF) * 16 <= HI


REQUESTS = st.lists(st.tuples(st.integers(0, SIZE // 16 - 1), st.integers(1, 600)), min_size=1, max_size=6)


def laid(requests: list[tuple[int, int]]) -> tuple[Cells, list[tuple[int, int]]]:
    """Columns of requests that end where their arena or the export ends, and these requests in bytes."""
    cells, found = columns(len(requests)), []
    for column, (at, units) in enumerate(requests):
        offset = at * 16
        length = min(units * 16, ARENA - offset % ARENA, SIZE - offset)
        lay(cells, column, offset, LO, length)
        found.append((offset, length))
    return cells, found


@given(REQUESTS)
def test_a_run_marks_the_blocks_that_it_touches(requests: list[tuple[int, int]]) -> None:
    cells, ranges = laid(requests)
    blocks = np.zeros(SIZE // BLOCK, np.uint8)
    of_blocks(blocks).commit_run(Columns(cells.data), 0, len(requests), 0, True)
    expected = {
        block for offset, length in ranges for block in range(offset // BLOCK, (offset + length - 1) // BLOCK + 1)
    }
    assert set(blocks.nonzero()[0].tolist()) == expected


@given(REQUESTS, REQUESTS)
def test_runs_that_overlap_meet(noted: list[tuple[int, int]], asked: list[tuple[int, int]]) -> None:
    """Also across arenas: what counts is the place in the export. A higher rank than the noted is not met."""
    intake = of_blocks()
    cells, before = laid(noted)
    intake.commit_run(Columns(cells.data), 0, len(noted), 3, False)
    cells, after = laid(asked)
    shared = any(
        at // BLOCK <= (offset + length - 1) // BLOCK and offset // BLOCK <= (at + size - 1) // BLOCK
        for at, size in before
        for offset, length in after
    )
    ours = Columns(columns(len(asked)).data)
    waits = [intake.take_run(Columns(cells.data), ours, 0, 0, len(asked), LO, HI, rank) for rank in (3, 4)]
    assert waits == [WAIT if shared else sum(size for _, size in after), sum(size for _, size in after)]


def test_a_run_marks_only_from_its_first_column_on() -> None:
    cells = columns()
    for column in range(8):
        lay(cells, column, column * BLOCK, LO, 16)
    blocks = np.zeros(SIZE // BLOCK, np.uint8)
    of_blocks(blocks).commit_run(Columns(cells.data), 3, 2, 0, True)
    assert blocks.nonzero()[0].tolist() == [3, 4]
