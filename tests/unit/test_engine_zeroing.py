"""Zeroing in the engine: what is skipped, and which blocks count as written afterwards."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.plain_memory import PlainMemory
from tests.unit.windows import BLOCK, SIZE, Windows
from vramblk.memory.base import Batch, DeviceError
from vramblk.shared.descriptors import ZERO_HOLE

MEBI = 1 << 20
BLOCKS = 24


class Zeroed:
    """The ranges that the memory was asked to zero."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def __call__(self, memory: PlainMemory, batch: Batch) -> None:
        self.ranges += [(zero.offset, zero.length) for zero in batch.zeroes]


def test_unwritten_blocks_are_not_zeroed_again() -> None:
    """Only what lies between the first and the last written block of a stretch is given to the memory."""
    zeroed = Zeroed()
    windows = Windows(1, before=zeroed)
    windows.zero(0, 0, SIZE)
    windows.run()
    assert zeroed.ranges == []
    for block in (10, 11, 1000, 5000):
        windows.write(0, block * BLOCK, b"w" * BLOCK)
    windows.run()
    windows.zero(0, 0, SIZE)
    windows.run()
    assert zeroed.ranges == [(10 * BLOCK, 2 * BLOCK), (1000 * BLOCK, BLOCK), (5000 * BLOCK, BLOCK)]
    assert windows.marked() == [] and not windows.memory.bytes.any()


def test_a_small_gap_is_zeroed_with_its_neighbours() -> None:
    """Many small pieces would cost more than the unwritten blocks between them."""
    zeroed = Zeroed()
    windows = Windows(1, before=zeroed)
    for block in range(0, 640, 2):
        windows.write(0, block * BLOCK, b"w" * 16)
    windows.run()
    windows.zero(0, 0, 8 << 20)
    windows.run()
    assert zeroed.ranges == [(0, 639 * BLOCK)]
    assert windows.marked() == []


def test_a_write_of_the_same_turn_is_zeroed_too() -> None:
    """The map as it was when the zeroing is taken: with the marks of writes that are not executed yet."""
    windows = Windows(1)
    windows.write(0, 0, b"w" * BLOCK)
    windows.zero(0, 0, BLOCK)
    assert windows.run() == 1
    assert windows.marked() == [] and not windows.memory.bytes.any()


@pytest.mark.parametrize("flags", [0, ZERO_HOLE])
@pytest.mark.parametrize(
    ("offset", "length", "whole"),
    [
        (0, BLOCK, [0]),
        (1, BLOCK - 1, []),
        (0, BLOCK - 1, []),
        (100, 2 * BLOCK, [1]),
        (BLOCK - 1, BLOCK + 2, [1]),
        (5, 6, []),
        (3 * BLOCK, BLOCK, [3]),
        (0, 4 * BLOCK, [0, 1, 2, 3]),
        (SIZE - BLOCK - 7, BLOCK + 7, [SIZE // BLOCK - 1]),
        (SIZE - 7, 7, []),
    ],
)
def test_only_whole_blocks_become_unwritten(offset: int, length: int, whole: list[int], flags: int) -> None:
    """A block that was zeroed in part holds data still; without a hole none becomes unwritten."""
    windows = Windows(1)
    windows.memory.bytes[:] = 7
    windows.written.blocks[:] = 1
    windows.zero(0, offset, length, flags)
    windows.run()
    assert not windows.memory.bytes[offset : offset + length].any()
    assert windows.memory.bytes.sum() == 7 * (SIZE - length)
    unmarked = set(range(SIZE // BLOCK)) - set(windows.marked())
    assert unmarked == (set(whole) if flags else set())


def test_zeroing_without_a_hole_marks_what_it_passes_over() -> None:
    """NO_HOLE: the range counts as written, although nothing had to be zeroed."""
    windows = Windows(1)
    windows.zero(0, BLOCK + 1, 2 * BLOCK, flags=0)
    windows.run()
    assert windows.marked() == [1, 2, 3] and not windows.memory.bytes.any()


def test_pieces_that_meet_at_a_block_border_leave_no_block_marked() -> None:
    windows = Windows(1)
    windows.written.blocks[:] = 1
    at = 100
    for end in (2 * BLOCK, 5 * BLOCK, 9 * BLOCK + 5):
        windows.zero(0, at, end - at)
        at = end
    windows.run()
    assert set(range(12)) - set(windows.marked()) == set(range(1, 9))


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("index", [0, 1])
def test_what_is_written_behind_zeroing_stays_marked(index: int, repeated: bool) -> None:
    """A write to a block that is being zeroed waits for its turn, also when the batch is repeated."""
    failures: list[DeviceError] = []

    def fail(memory: PlainMemory, batch: Batch) -> None:
        if batch.zeroes and failures:
            raise failures.pop()

    windows = Windows(2, before=fail)
    windows.write(0, 0, b"w" * 2 * BLOCK)
    windows.run()
    failures += [DeviceError(5, "once")] * repeated
    windows.zero(0, 0, 2 * BLOCK)
    windows.write(index, BLOCK, b"n" * 16)
    windows.run()
    assert not failures and windows.marked() == [1]
    assert windows.memory.bytes[BLOCK : BLOCK + 16].tobytes() == b"n" * 16
    assert windows.memory.bytes.sum() == 16 * ord("n")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "zero", "zero without a hole"]),
        st.integers(0, BLOCKS * BLOCK - 1),
        st.integers(1, 5 * BLOCK),
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_the_map_follows_requests_one_by_one(steps: list[tuple[str, int, int]]) -> None:
    """A block is marked from its first write until it is zeroed whole with a hole."""
    windows = Windows(1)
    marks: set[int] = set()
    for kind, offset, length in steps:
        first, last = offset // BLOCK, -(-(offset + length) // BLOCK)
        if kind == "write":
            windows.write(0, offset, b"w" * length)
        else:
            windows.zero(0, offset, length, ZERO_HOLE if kind == "zero" else 0)
        windows.run()
        if kind == "zero":
            marks -= set(range(-(-offset // BLOCK), (offset + length) // BLOCK))
        else:
            marks |= set(range(first, last))
        assert set(windows.marked()) == marks


def test_a_hole_behind_zeroing_without_one_in_the_same_turn_is_a_hole() -> None:
    """Both are queued together: the later one decides, as it does when they come one by one."""
    windows = Windows(1)
    windows.zero(0, 0, 2 * BLOCK, flags=0)
    windows.zero(0, 0, BLOCK)
    windows.run()
    assert windows.marked() == [1]
