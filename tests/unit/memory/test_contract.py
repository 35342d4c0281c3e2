"""The contract of memories on the CPU's OpenCL (PoCL) and on mapped files, with one arena and with many.

Needs the CPU OpenCL that the project's test extra brings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.memory.contract import MemoryContract, Rig, make_rig
from vramblk.memory.arenas import plan_arenas
from vramblk.memory.devices import CPU, discover
from vramblk.memory.mapped import MappedMemory
from vramblk.memory.opencl import OpenCLMemory
from vramblk.memory.opendevice import OpenDevice
from vramblk.units import parse_size

ONE, MANY = "6M", "5124K"
SMALL_ALLOCATION = 384 << 10


@pytest.fixture(scope="module")
def devices() -> dict[str, Any]:
    """The first CPU device, opened once as it is and once with a small largest allocation."""
    info = next(device for device in discover() if device.type == CPU)
    return {"one": OpenDevice(info), "many": OpenDevice(info, SMALL_ALLOCATION)}


class TestOpenCL(MemoryContract):
    """One arena, and fourteen of which the last is smaller."""

    @pytest.fixture(params=["one", "many"])
    def rig(self, request: pytest.FixtureRequest, devices: dict[str, Any]) -> Iterator[Rig]:
        device = devices[request.param]
        size = int(parse_size(ONE if request.param == "one" else MANY).amount)
        sizes = plan_arenas(size, device.maximum_allocation)
        assert (len(sizes) == 1) == (request.param == "one")
        rig = make_rig(lambda windows: OpenCLMemory(device, sizes))
        yield rig
        rig.memory.close()


class TestMapped(MemoryContract):
    """A file on a disk, with one arena and with many."""

    @pytest.fixture(params=["one", "many"])
    def rig(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
        path = tmp_path / "memory"
        size = parse_size(ONE if request.param == "one" else MANY)
        path.write_bytes(b"\xa5" * (int(size.amount) + 4096))
        rig = make_rig(
            lambda windows: MappedMemory(
                str(path),
                size,
                map_overwrite=True,
                maximum_arena=SMALL_ALLOCATION if request.param == "many" else 1 << 36,
            )
        )
        yield rig
        rig.memory.close()
