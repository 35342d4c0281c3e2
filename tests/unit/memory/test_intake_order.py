"""The intake's stamps, which find requests of one batch that overlap."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramblk.engine.intake import WAIT, Intake
from vramblk.shared.descriptors import COLUMN_ROWS, Columns

BLOCK = 4096


def of_size(size_bytes: int) -> Intake:
    return Intake(size_bytes, size_bytes, memoryview(bytearray(1)))


def meets(intake: Intake, offset: int, length: int, rank: int) -> bool:
    return intake.scan(offset, length, rank) == WAIT


PARTS = st.lists(
    st.tuples(st.integers(0, 60 * BLOCK), st.integers(0, 4 * BLOCK), st.integers(0, 6)), max_size=12
)


@given(PARTS, PARTS)
def test_what_overlaps_is_always_found(noted: list[tuple[int, int, int]], asked: list[tuple[int, int, int]]) -> None:
    """A part that shares a byte with a noted one of its rank or a higher one meets it."""
    intake = of_size(64 * BLOCK)
    intake.begin()
    for part in noted:
        intake.commit(*part, False)
    for offset, length, rank in asked:
        shares = any(
            at < offset + length and offset < at + size and of >= rank for at, size, of in noted if size and length
        )
        assert meets(intake, offset, length, rank) >= shares


@given(PARTS, st.integers(0, 60), st.integers(0, 6))
def test_other_blocks_do_not_seem_to_overlap(noted: list[tuple[int, int, int]], block: int, rank: int) -> None:
    """An export of up to 4 GiB has a stamp for each block: only blocks that were touched are met."""
    intake = of_size(64 * BLOCK)
    intake.begin()
    for part in noted:
        intake.commit(*part, False)
    touched = any(
        at // BLOCK <= block <= (at + size - 1) // BLOCK and of >= rank for at, size, of in noted if size
    )
    assert meets(intake, block * BLOCK, BLOCK, rank) == touched


def test_a_lower_rank_does_not_hide_a_higher_one() -> None:
    """A block remembers the highest rank that has touched it, in whatever order they came."""
    for ranks in ([4, 0], [0, 4]):
        intake = of_size(1 << 20)
        intake.begin()
        for rank in ranks:
            intake.commit(0, BLOCK, rank, False)
        assert [meets(intake, 0, BLOCK, rank) for rank in range(7)] == [True] * 5 + [False] * 2


def run_of(*places: tuple[int, int]) -> Columns:
    """One column for each offset and length, multiples of 16, in one arena."""
    columns = Columns(np.zeros((COLUMN_ROWS, max(1, len(places))), np.uint32).data)
    for column, (offset, length) in enumerate(places):
        columns.put(column, offset, 0, length, 0)
    return columns


PLACES = st.lists(
    st.tuples(st.integers(0, 60 * 256), st.integers(0, 4 * 256)).map(lambda pair: (pair[0] * 16, pair[1] * 16)),
    max_size=5,
)


@given(PARTS, PLACES, st.integers(0, 6))
def test_a_run_that_overlaps_other_ranks_is_always_found(
    noted: list[tuple[int, int, int]], places: list[tuple[int, int]], rank: int
) -> None:
    """And one of which no block was touched by another rank is not. A higher rank hides lower ones."""
    intake = of_size(64 * BLOCK)
    intake.begin()
    highest: dict[int, int] = {}
    for at, size, of in noted:
        intake.commit(at, size, of, False)
        for block in range(at // BLOCK, (at + size - 1) // BLOCK + 1) if size else ():
            highest[block] = max(highest.get(block, 0), of)
    expected = any(
        highest.get(block, rank) != rank
        for at, size in places if size for block in range(at // BLOCK, (at + size - 1) // BLOCK + 1)
    )  # fmt: skip
    assert intake.meets(run_of(*places), 0, len(places), rank) == expected


def test_nothing_of_an_earlier_batch_is_met() -> None:
    intake = of_size(1 << 20)
    intake.begin()
    intake.commit(0, 1 << 20, 6, False)
    intake.begin()
    assert not meets(intake, 0, 1 << 20, 0)
    assert not intake.meets(run_of((0, 1 << 19)), 0, 1, 3)


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_batches_can_be_counted_for_years(before: int) -> None:
    """When the 32 bits of a stamp are used up the count begins again, and nothing old is met."""
    intake = Intake(1 << 20, 1 << 20, memoryview(bytearray(256)), (1 << 32) - 8 * (1 + before))
    for _ in range(8):
        intake.commit(0, BLOCK, 6, False)
        assert meets(intake, 0, BLOCK, 6)
        intake.begin()
        assert not meets(intake, 0, 1 << 20, 0)


def test_a_large_export_shares_stamps_and_misses_nothing() -> None:
    """Above 4 GiB blocks share stamps: they may seem to overlap, the same block always does."""
    size = 1 << 43
    intake = of_size(size)
    intake.begin()
    generator = random.Random(3)
    offsets = [generator.randrange(size // BLOCK) * BLOCK for _ in range(100)]
    for offset in offsets:
        intake.commit(offset, BLOCK, 2, False)
    assert all(meets(intake, offset + BLOCK - 1, 1, 2) for offset in offsets)


@pytest.mark.parametrize("size", [1, BLOCK, BLOCK + 1, 3 * BLOCK, (1 << 32) + BLOCK])
def test_the_last_byte_of_any_size_has_a_stamp(size: int) -> None:
    intake = of_size(size)
    intake.begin()
    intake.commit(size - 1, 1, 0, False)
    assert meets(intake, size - 1, 1, 0)
