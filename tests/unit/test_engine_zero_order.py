"""Zeroing beside other requests of one turn: its order, its marks, and how much of it one turn does."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.unit.oneworker import One
from tests.unit.plain_memory import PlainMemory
from tests.unit.rig import TRIM, WRITE
from tests.unit.windows import BLOCK, SIZE, Windows
from vramblk.memory.base import Batch, DeviceError

BAD = 10
#: Blocks that share a suspect's flag number as this many.
FLAGS = 4096


@pytest.fixture
def one() -> Iterator[One]:
    made = One()
    yield made
    made.close()


def test_zeroing_of_two_ranges_waits_for_a_read_of_the_second() -> None:
    """Also where the first range only seems to be one that fails."""

    def fail(memory: PlainMemory, batch: Batch) -> None:
        if any(copy.offset <= BAD * BLOCK < copy.offset + copy.hi - copy.lo for copy in batch.copies_out):
            raise DeviceError(5, "a bad block")

    windows = Windows(2, before=fail)
    near, far = BAD + FLAGS, BAD + FLAGS + 200
    for block in (near, far):
        windows.write(0, block * BLOCK, b"w" * BLOCK)
    windows.read(0, BAD * BLOCK, BLOCK)
    windows.run()
    _, place = windows.read(0, far * BLOCK, BLOCK)
    windows.zero(0, near * BLOCK, (far - near + 1) * BLOCK)
    windows.run()
    assert windows.slab(0, place, BLOCK) == b"w" * BLOCK


def test_zeroing_without_a_hole_behind_a_trim_leaves_the_block_marked() -> None:
    windows = Windows(2)
    windows.write(0, 0, b"w" * BLOCK)
    windows.run()
    windows.zero(0, 0, BLOCK)
    windows.zero(0, 0, BLOCK, flags=0)
    windows.run()
    assert windows.marked() == [0]


def test_a_trim_behind_writes_that_are_not_marked_yet_goes_in_small_pieces(one: One) -> None:
    """The worker does not take the range for unwritten while anything is in flight."""
    zeroed: list[int] = []
    one.windows.memory._before = lambda _, batch: zeroed.append(sum(zero.length for zero in batch.zeroes))
    client, connection = one.connect()
    stream = b"".join(
        struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, at, 16) + b"x" * 16 for at in range(0, SIZE, 256 << 10)
    )
    client.sendall(stream + struct.pack(">IHHQQI", 0x25609513, 0, TRIM, 1, 0, SIZE))
    connection.pump()
    for _ in range(20):
        one.windows.run()
        one.finish()
        connection.pump()
    assert sum(zeroed) and max(zeroed) <= 16 << 20
