"""What only a GPU shows. Needs a GPU with about 8 GiB free."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

from tests.unit.memory.contract import windows
from vramblk.config.settings import ExportSettings
from vramblk.config.units import parse_size
from vramblk.errors import PreconditionError
from vramblk.memory import open_memories
from vramblk.memory.base import Batch, Copy, Zero
from vramblk.memory.devices import DeviceInfo, normal_pci
from vramblk.memory.probing import HEADROOM_BYTES, HEADROOM_SHARE, usable_bytes


def export(size: str, device: str | None = None, name: str = "vram") -> ExportSettings:
    return ExportSettings(name, parse_size(size), None, device, "scratch", False)


def test_first_gpu_is_the_default_and_found_by_address(gpu: DeviceInfo) -> None:
    """No selection, part of the name and the PCI address all lead to a GPU."""
    for device in (None, gpu.name[:6], gpu.pci_address):
        (memory,) = open_memories([export("64M", device)], (), allow_cpu=False, map_overwrite=False)
        assert memory.description["device"] == gpu.name
        memory.close()
    if gpu.pci_address:
        assert normal_pci(gpu.pci_address) == gpu.pci_address


def test_windows_are_pinned_on_nvidia(gpu: DeviceInfo) -> None:
    """Anonymous shared memory is wrapped at its own address."""
    memory = open_memories([export("64M")], windows(), allow_cpu=False, map_overwrite=False)[0]
    if "NVIDIA" in gpu.platform:
        assert all(memory.pinned)
    memory.close()


def test_usable_leaves_headroom(gpu: DeviceInfo) -> None:
    """The probe stays below the device's size by the head-room, and gives its memory back."""
    usable = usable_bytes(gpu)
    assert 0 < usable <= gpu.memory_bytes - max(HEADROOM_BYTES, int(gpu.memory_bytes * HEADROOM_SHARE))
    again = usable_bytes(gpu)
    assert abs(again - usable) < 1 << 30


def test_max_is_proven(gpu: DeviceInfo) -> None:
    """An export of all the memory is allocated in several arenas, proven, and readable at its last byte."""
    memory = open_memories([export("max")], windows(), allow_cpu=False, map_overwrite=False)[0]
    started = time.monotonic()
    memory.prove()
    print(f"proved {memory.size_bytes} bytes in {time.monotonic() - started:.2f} s")
    memory.close()


def test_exports_share_a_device(gpu: DeviceInfo) -> None:
    """Two exports of one device keep their contents apart."""
    ours = windows()
    first, second = open_memories(
        [export("1G", name="a"), export("5G", name="b")], ours, allow_cpu=False, map_overwrite=False
    )
    ours[0].slab[:4096] = 7
    batch = Batch()
    batch.copies_in.append(Copy(0, 0, 4096, 4096))
    first.execute(batch)
    batch = Batch()
    batch.copies_out.append(Copy(0, 0, 4096, 4096))
    second.execute(batch)
    assert not ours[0].slab[:4096].any()
    first.execute(batch)
    assert (ours[0].slab[:4096] == 7).all()
    for memory in (first, second):
        memory.close()


def test_beyond_the_device(gpu: DeviceInfo) -> None:
    """A size beyond the device is refused with the device's name and its size."""
    with pytest.raises(PreconditionError, match=re.escape(gpu.name)):
        open_memories([export("100T")], (), allow_cpu=False, map_overwrite=False)


def test_large_zero_is_fast(gpu: DeviceInfo) -> None:
    """Zeroing 4 GiB takes kernels, not a fill that hangs for minutes."""
    ours = windows()
    memory = open_memories([export("5G")], ours, allow_cpu=False, map_overwrite=False)[0]
    batch = Batch()
    batch.zeroes.append(Zero(1, (4 << 30) + 5))
    memory.execute(batch)
    started = time.monotonic()
    memory.execute(batch)
    assert time.monotonic() - started < 2
    memory.close()


def test_nothing_runs_long(gpu: DeviceInfo) -> None:
    """One direct read of 4 KiB takes microseconds, not a scheduler's tick."""
    ours = windows()
    memory = open_memories([export("64M")], ours, allow_cpu=False, map_overwrite=False)[0]
    batch = Batch()
    batch.copies_out.append(Copy(0, 0, 4096, 0))
    times = []
    for _ in range(500):
        started = time.perf_counter()
        memory.execute(batch)
        times.append(time.perf_counter() - started)
    median = float(np.median(times))
    print(f"4 KiB direct read: {median * 1e6:.1f} us")
    assert median < 1e-3
    memory.close()
