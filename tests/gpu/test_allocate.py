"""Memory that is given back and taken again on a GPU. Needs most of the GPU's memory free, and nobody else on it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.unit.memory.contract import windows
from vramblk.config.settings import ExportSettings
from vramblk.config.units import parse_size
from vramblk.memory import open_memories
from vramblk.memory.base import Batch, Copy, Memory, MissingMemory, Pattern
from vramblk.memory.devices import DeviceInfo
from vramblk.memory.probing import usable_bytes

MIB, GIB = 1 << 20, 1 << 30


def opened(*sizes: int) -> list[Memory]:
    exports = [
        ExportSettings(f"vram-{number}", parse_size(str(size)), None, None, "scratch", False)
        for number, size in enumerate(sizes)
    ]
    return list(open_memories(exports, windows(), allow_cpu=False, map_overwrite=False))


def run(steps: Iterator[None]) -> float:
    """Seconds that all steps take."""
    begun = time.monotonic()
    for _ in steps:
        pass
    return time.monotonic() - begun


def test_others_have_what_is_released(gpu: DeviceInfo) -> None:
    """Within the second; and it can be taken again when they have freed it."""
    free = usable_bytes(gpu)
    size = free * 3 // 4 // GIB * GIB
    (memory,) = opened(size)
    assert usable_bytes(gpu) < free - size + GIB
    released = run(memory.release())
    begun = time.monotonic()
    assert usable_bytes(gpu) > free - GIB
    assert time.monotonic() - begun < 10
    taken = run(memory.take())
    assert memory.mismatches(0, size, Pattern.ZERO) == []
    memory.fill(0, size, Pattern.RANDOM, 5)
    assert memory.mismatches(0, size, Pattern.RANDOM, 5) == []
    print(f"{size >> 30} GiB: released in {released:.3f} s, taken in {taken:.3f} s")
    memory.close()
    assert usable_bytes(gpu) > free - GIB


@pytest.mark.parametrize("share", [0.25, 0.9])
def test_what_is_missing_is_told(gpu: DeviceInfo, share: float) -> None:
    """Another export on the same device goes on, and nothing of the attempt stays."""
    free = usable_bytes(gpu)
    size = free // 2 // GIB * GIB
    first, other = opened(size, 64 * MIB)
    other.fill(0, 64 * MIB, Pattern.RANDOM, 7)
    run(first.release())
    (blocker,) = opened((usable_bytes(gpu) - int(size * share)) // MIB * MIB)
    with pytest.raises(MissingMemory) as caught:
        run(first.take())
    # What the device can give beside a head-room is a little more than what it says is usable.
    assert 0 < caught.value.missing_bytes <= size * (1 - share) + GIB
    assert other.mismatches(0, 64 * MIB, Pattern.RANDOM, 7) == []
    batch = Batch()
    batch.echoes.append(Copy(0, 0, 4096, 8192))
    first.execute(batch)
    blocker.close()
    run(first.take())
    assert first.mismatches(0, size, Pattern.ZERO) == []
    print(f"{size >> 30} GiB: {caught.value.missing_bytes >> 20} MiB were missing")
    first.close()
    other.close()
