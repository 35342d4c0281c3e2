"""Zeroing makes a block that does not hold its checksum readable again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.unit.rig import READ, SIZE, ZEROES, Rig
from vramblk.config.units import parse_size
from vramblk.memory.mapped import MappedMemory

MakeRig = Callable[..., Rig]


def test_zeroing_makes_a_block_readable_again_that_was_never_written(make_rig: MakeRig, tmp_path: Path) -> None:
    """With checksums: memory that has lost a bit reads as EIO until it is overwritten, with zeroes too."""
    path = tmp_path / "memory"
    path.write_bytes(bytes(SIZE))

    def open_memory(windows: Any) -> MappedMemory:
        return MappedMemory(str(path), parse_size("4M"), map_overwrite=True, verify_reads=True)

    rig = make_rig(open_memory=open_memory)
    rig.memory._bytes[4096] = 1
    rig.send(READ, 4096, 4096, cookie=1)
    rig.work()
    assert [error for _, error, _ in rig.answers()] == [5]
    rig.send(ZEROES, 4096, 4096, cookie=2)
    rig.work()
    assert [error for _, error, _ in rig.answers()] == [0]
    rig.send(READ, 4096, 4096, cookie=3)
    rig.work()
    assert [error for _, error, _ in rig.answers()] == [0]
    rig.memory.close()
