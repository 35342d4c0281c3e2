"""Where bytes lie, by arithmetic alone, up to exports far larger than any machine of the tests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramblk.memory.arenas import largest_export, plan_arenas, split
from vramblk.memory.base import MAXIMUM_ARENA_BYTES, MAXIMUM_ARENAS, Pattern
from vramblk.memory.opendevice import table_requests
from vramblk.memory.patterns import bad_ranges, expected_words

GIB = 1 << 30


@given(blocks=st.integers(1, 1 << 28), largest=st.integers(16, 1 << 28))
def test_plan(blocks: int, largest: int) -> None:
    """Arenas add up to the export, each fits the device, all but the last are equal."""
    size, allocation = blocks * 4096, largest * 4096 + 123
    if size > largest_export(allocation) and size > allocation:
        with pytest.raises(ValueError):
            plan_arenas(size, allocation)
        return
    sizes = plan_arenas(size, allocation)
    assert sum(sizes) == size
    assert len(sizes) <= MAXIMUM_ARENAS
    assert max(sizes) <= min(allocation, MAXIMUM_ARENA_BYTES)
    assert len(set(sizes[:-1])) <= 1
    assert sizes[-1] <= sizes[0]
    assert all(each % 4096 == 0 for each in sizes)
    assert (len(sizes) == 1) == (size <= min(allocation, MAXIMUM_ARENA_BYTES))


@given(st.integers(0, 1 << 40), st.integers(1, 1 << 38), st.integers(1, 1 << 24).map(lambda n: n * 4096))
def test_split(offset: int, length: int, arena_bytes: int) -> None:
    """Pieces follow each other without gap, and none crosses a border."""
    length = min(length, arena_bytes * 20)
    at = offset
    for arena, within, piece in split(offset, length, arena_bytes):
        assert arena * arena_bytes + within == at
        assert 0 < piece <= arena_bytes - within
        at += piece
    assert at == offset + length


def test_offsets_of_large_arenas_fit_32_bits() -> None:
    """An export of a terabyte on a device that allocates it at once still has arenas of at most 64 GiB."""
    sizes = plan_arenas(1024 * GIB, 1024 * GIB)
    assert len(sizes) == 16
    assert (max(sizes) - 16) // 16 < 1 << 32
    with pytest.raises(ValueError):
        plan_arenas(1025 * GIB, 2048 * GIB)


def test_an_h200() -> None:
    """100 GiB where a quarter of 140 GiB is the largest allocation: three arenas."""
    assert len(plan_arenas(100 * GIB, 37527470080)) == 3


@pytest.mark.parametrize("size", [0, -4096, 100])
def test_refused_sizes(size: int) -> None:
    with pytest.raises(ValueError):
        plan_arenas(size, GIB)


@pytest.mark.parametrize(("reported", "requests"), [(1024, 64), (4352, 256), (32764, 256), (300, 8), (250, 1)])
def test_table_fits_the_arguments(reported: int, requests: int) -> None:
    """A launch's table is as large as the device's argument space permits."""
    assert table_requests(reported) == requests


@pytest.mark.parametrize("pattern", list(Pattern))
def test_patterns_across_the_32_bit_border(pattern: Pattern) -> None:
    """Words beyond 16 GiB differ from those below, and a range across that border is its two halves."""
    border = 1 << 34
    whole = expected_words(pattern, border - 8192, 16384, 5)
    halves = [expected_words(pattern, border - 8192, 8192, 5), expected_words(pattern, border, 8192, 5)]
    assert np.array_equal(whole, np.concatenate(halves))
    if pattern in (Pattern.ADDRESS, Pattern.RANDOM):
        assert not np.array_equal(halves[1], expected_words(pattern, 0, 8192, 5))


def test_bad_ranges_are_joined() -> None:
    bad = np.array([1, 1, 0, 0, 1, 0, 1], bool)
    assert bad_ranges(bad, 8192) == [(8192, 16384), (24576, 28672), (32768, 36864)]
    assert bad_ranges(np.zeros(3, bool), 0) == []
