"""What the kernels do for a server, each over all that can be told apart."""

from __future__ import annotations

import pytest

from tests.unit.memory.checksumcontract import Flippable
from tests.unit.memory.contract import GAPS, RX, Rig
from vramblk.memory.base import Batch, ChecksumError, Pattern, Run, Zero

BLOCK = 4096


def runs(rig: Rig) -> None:
    """Runs of reads and writes over all arenas, with every gap between replies, at places of any alignment that columns have."""
    rig.noise()
    for number, gap in enumerate(GAPS):
        batch = Batch()
        rig.writes(batch, 0, 20, 4096)
        rig.reads(batch, 0, 20, 4096, gap, RX + 4 * number, first=100)
        rig.execute(batch)
    rig.compare()


def runs_together(rig: Rig) -> None:
    """The same in one launch: runs that do not overlap."""
    rig.noise()
    for number, gap in enumerate(GAPS):
        batch, places = Batch(apart=True), rig.places(40, 4096)
        rig.writes(batch, 0, 20, 4096, 0, places[:20])
        rig.reads(batch, 0, 20, 4096, gap, RX + 4 * number, 100, places[20:])
        rig.execute(batch)
    rig.compare()


def long_runs(rig: Rig) -> None:
    """Runs of long requests, which get several groups each if there are no checksums."""
    rig.noise()
    batch = Batch()
    arena = length = rig.memory.arena_bytes
    for index in range(3):
        rig.column(0, index, index * arena, 28 + index * (length + 28), length)
        rig.column(0, 10 + index, index * arena, RX + 16 + index * (length + 16), length)
    batch.writes.append(Run(0, 0, 3, 28, 28 + 3 * (length + 28)))
    batch.reads.append(Run(0, 10, 3, RX, RX + 3 * (length + 16)))
    rig.execute(batch)
    rig.compare()


def zeroes(rig: Rig) -> None:
    """Zeroing of any alignment, across a border, and to the last byte."""
    size, arena = rig.memory.size_bytes, rig.memory.arena_bytes
    batch = Batch()
    for start, length in ((0, 1), (13, 5000), (arena - 5001, 9999), (size - 3, 3)):
        batch.zeroes.append(Zero(start, length))
    rig.execute(batch)
    rig.compare()


def patterns(rig: Rig) -> None:
    """Filling and comparing, across a border and to the last byte."""
    size, arena = rig.memory.size_bytes, rig.memory.arena_bytes
    for start, length in ((arena - BLOCK, 2 * BLOCK), (size - BLOCK, BLOCK)):
        rig.memory.fill(start, length, Pattern.RANDOM, seed=3)
        assert rig.memory.mismatches(start, length, Pattern.RANDOM, seed=3) == []
        assert rig.memory.mismatches(start, length, Pattern.ADDRESS, seed=3) == [(start, start + length)]
        rig.memory.fill(start, length, Pattern.ZERO)
        rig.model.bytes[start : start + length] = 0
    rig.compare()


def bad_blocks(made: Flippable) -> None:
    """Several bad blocks in one launch, of the kernel over a run's requests and of that over blocks."""
    blocks = (3, 4, 5)
    for block in blocks:
        made.change(block * BLOCK, 1)
    for run in (True, False):
        with pytest.raises(ChecksumError) as caught:
            made.read(3 * BLOCK, 3 * BLOCK, run=run)
        assert caught.value.blocks == 3
        assert caught.value.offset // BLOCK in blocks
    for block in blocks:
        made.change(block * BLOCK, 1)
    made.read(3 * BLOCK, 3 * BLOCK)
