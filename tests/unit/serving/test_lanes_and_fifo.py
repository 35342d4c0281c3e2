"""Space in the slab: lanes of unequal size, and the allocator that goes around."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramblk.serving.lanes import SMALLEST, Lanes, lane_sizes
from vramblk.shared.contiguousfifo import ContiguousFifo


@given(st.integers(1, 64), st.integers(0, 64 << 20))
def test_lane_sizes_fill_the_slab(lanes: int, more: int) -> None:
    """Every connection that is allowed finds a lane, the first ones large ones, none overlapping."""
    slab = lanes * SMALLEST + more
    sizes = lane_sizes(slab, lanes)
    assert len(sizes) == lanes
    assert min(sizes) >= SMALLEST
    assert sum(sizes) <= slab
    assert sizes == sorted(sizes, reverse=True)


def test_the_engines_own_clients_have_room_for_large_pieces() -> None:
    """One slab for 64 clients: those that come first are not cut down to the smallest lane, nor is one given all."""
    sizes = lane_sizes(64 << 20, 64)
    assert sizes[:2] == [16 << 20, 16 << 20] and sizes[2] > 8 << 20
    assert sum(sizes) <= 64 << 20


def test_too_small_a_slab_is_refused() -> None:
    """A slab that cannot hold the lanes is an error, not lanes of nothing."""
    with pytest.raises(ValueError, match="lanes need"):
        lane_sizes(SMALLEST, 2)


def test_lanes_are_handed_out_largest_first_and_come_back() -> None:
    """A freed lane goes to the next connection; when none is free there is None."""
    lanes = Lanes(8 << 20, 8 << 20, 3)
    taken = [lanes.take() for _ in range(3)]
    assert lanes.take() is None
    assert all(lane is not None for lane in taken)
    first = taken[0]
    assert first is not None
    lanes.give_back(first)
    assert lanes.take() == first


@given(st.integers(0, 1 << 30))
def test_fifo_never_overlaps(seed: int) -> None:
    """Live pieces never overlap and a refused size is refused only while it does not fit."""
    generator = random.Random(seed)
    fifo = ContiguousFifo(1000)
    live: deque[tuple[int, int]] = deque()
    for _ in range(300):
        if live and generator.random() < 0.5:
            fifo.release(live.popleft()[1])
        if generator.random() < 0.2:
            fifo.allocate(generator.randint(1, 400))
            fifo.restore(len(live), live[-1][1] if live else 0)
        amount = generator.randint(1, 400)
        largest = fifo.largest()
        start = fifo.allocate(amount)
        assert (start >= 0) == (amount <= largest)
        if start >= 0:
            assert 0 <= start and start + amount <= 1000
            assert all(start + amount <= low or start >= high for low, high in live)
            live.append((start, start + amount))
    while live:
        fifo.release(live.popleft()[1])
    assert fifo.largest() == 1000
