"""Where a run of plain requests ends, so that its writes may be executed first and in any order."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit import uncompiled
from vramblk.nbd.runs import Plain

SIZE = 1 << 30
READ, WRITE = 0, 1
#: The table of stamps comes around after this many blocks of 4 KiB.
AROUND = (1 << 14) * 4096


def request(command: int, offset: int, length: int) -> bytes:
    payload = b"p" * length if command == WRITE else b""
    return struct.pack(">IHHQQI", 0x25609513, 0, command, offset, offset, length) + payload


def taken(requests: list[tuple[int, int, int]]) -> list[int]:
    """How many requests each run takes, until all are taken."""
    stream = b"".join(request(*each) for each in requests)
    buffer = bytearray(stream + bytes(-len(stream) % 4))
    plain = Plain(
        memoryview(buffer).cast("I"), extended=False, size_bytes=SIZE, arena_bytes=SIZE, read_only=False,
        run_bytes=1 << 30,
    )  # fmt: skip
    counts, position = [], 0
    while position < len(stream):
        counts.append(plain.take(position, len(stream)))
        assert counts[-1], "the first request of a run is always taken"
        position = plain.end
    return counts


@pytest.mark.parametrize(
    ("requests", "counts"),
    [
        ([(READ, 0, 4096), (WRITE, 0, 4096)], [1, 1]),
        ([(WRITE, 0, 4096), (WRITE, 0, 4096)], [1, 1]),
        ([(WRITE, 0, 4096), (READ, 0, 4096)], [2]),
        ([(READ, 0, 4096), (READ, 0, 4096)], [2]),
        ([(READ, 0, 4096), (WRITE, 4096, 4096)], [2]),
        ([(READ, 0, 512), (WRITE, 512, 512)], [2]),
        ([(WRITE, 16, 16), (WRITE, 0, 16), (WRITE, 32, 16)], [3]),
        ([(READ, 4096, 16384), (WRITE, 8192, 16)], [1, 1]),
        ([(WRITE, 8192, 16), (WRITE, 4096, 16384)], [1, 1]),
        ([(WRITE, 0, 4096), (READ, 0, 4096), (WRITE, 0, 4096), (READ, 0, 4096)], [2, 2]),
        ([(READ, 4096 - 16, 32), (WRITE, 4096, 16)], [1, 1]),
        ([(READ, 0, 4096), (WRITE, AROUND, 4096)], [2]),
        ([(READ, 0, 131072), (WRITE, 131072 - 16, 131072)], [1, 1]),
    ],
)
def test_a_run_ends_before_a_write_that_overlaps_an_earlier_request(
    requests: list[tuple[int, int, int]], counts: list[int]
) -> None:
    """Reads behind a write stay in its run, and so do writes that only share a block with another request."""
    assert taken(requests) == counts


def test_a_request_that_overlapped_does_not_end_the_next_run_too() -> None:
    """Each run begins with nothing noted."""
    assert taken([(WRITE, 0, 4096)] * 5 + [(READ, 0, 4096)]) == [1, 1, 1, 1, 2]


REQUESTS = st.lists(
    st.tuples(st.sampled_from([READ, WRITE]), st.integers(0, 40), st.integers(1, 12), st.booleans()), max_size=20
)


@given(REQUESTS)
def test_writes_first_in_any_order_gives_what_one_by_one_gives(picked: list[tuple[int, int, int, bool]]) -> None:
    """No write of a run overlaps a request before it, and no run ends without need."""
    requests = [
        (command, (AROUND if far else 0) + at * 512, units * 512) for command, at, units, far in picked
    ]

    def overlap(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
        return one[1] < other[1] + other[2] and other[1] < one[1] + one[2]

    start = 0
    for count in taken(requests):
        run = requests[start : start + count]
        for number, later in enumerate(run):
            assert later[0] == READ or not any(overlap(later, earlier) for earlier in run[:number])
        start += count
        if start < len(requests):
            assert requests[start][0] == WRITE and any(overlap(requests[start], each) for each in run)


def test_runs_can_be_counted_for_years() -> None:
    """When the 32 bits of the count are used up it begins again; overlaps are found before and after."""
    stream = request(READ, 0, 4096) + request(WRITE, 0, 4096)
    buffer = bytearray(stream + bytes(-len(stream) % 4))
    plain = uncompiled.load("vramblk.nbd.runs").Plain(
        memoryview(buffer).cast("I"), extended=False, size_bytes=SIZE, arena_bytes=SIZE, read_only=False,
        run_bytes=1 << 30,
    )  # fmt: skip
    plain._run = (1 << 32) - 3
    for _ in range(6):
        assert plain.take(0, len(stream)) == 1
