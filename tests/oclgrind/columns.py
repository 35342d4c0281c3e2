"""Columns of a corrupt worker, for any memory: random places, and those that end just beyond a border."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tests.unit.memory.contract import Rig
from vramblk.memory.base import Batch, Run

_LENGTHS16 = (0, 1, 2, 16, 256, 300, 1535, 1536, 1537, 65535)
_BEYOND16 = (-1, 0, 1, 255, 256)
_BEYOND4 = (-8, -4, -1, 0, 1, 3, 4, 7, 10)
_WORDS = 2**32


def column(
    rig: Rig, arena: int, length16: int, beyond16: int, beyond4: int | None = None
) -> tuple[int, int, int]:
    """A request that ends so far beyond its arena and beyond the staging buffer, or within that."""
    memory, last = rig.memory, rig.windows[-1]
    room = min(memory.arena_bytes, memory.size_bytes - arena * memory.arena_bytes) // 16
    place = room + beyond16 - length16
    position = 1024 if beyond4 is None else (last.base + last.slab.nbytes) // 4 + beyond4 - length16 * 4
    return place % _WORDS, position % _WORDS, length16 | arena << 16


def hostile(rig: Rig, count: int) -> list[tuple[int, int, int]]:
    """The columns of ``count`` requests, each with its fields near a border or anywhere at all."""
    random = rig.random
    found = []
    for _ in range(count):
        arena, length16 = int(random.integers(16)), int(random.choice(_LENGTHS16))
        place, position, shape = column(
            rig, arena, length16, int(random.choice(_BEYOND16)), int(random.choice(_BEYOND4))
        )
        if random.random() < 0.1:
            place = int(random.integers(_WORDS))
        if random.random() < 0.5:
            position = int(random.integers(_WORDS if random.random() < 0.1 else rig.windows[-1].base // 4))
        found.append((place, position, shape))
    return found


def launch(rig: Rig, runs: str, columns: npt.ArrayLike) -> None:
    """One run of the first window with these columns; ``runs`` is reads or writes.

    Or "reads writes" or "writes reads": the first column is a run of the first kind, the others of the second, and
    all are one launch.
    """
    table = np.array(columns, np.uint32).T
    count = table.shape[1]
    rig.windows[0].columns[:, :count] = table
    first, _, second = runs.partition(" ")
    batch, alone = Batch(apart=True), 1 if second else count
    run = Run(0, 0, alone, 0, rig.windows[0].slab.nbytes)
    getattr(batch, first).append(run)
    if second:
        getattr(batch, second).append(run._replace(first=alone, count=count - alone))
    rig.memory.execute(batch)
