"""The contract of memories on the CPU's OpenCL (PoCL) and on mapped files, with one arena and with many.

Needs the CPU OpenCL that the project's test extra brings.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.memory.contract import MemoryContract, Rig, make_rig
from vramblk.config.units import parse_size
from vramblk.memory import opendevice
from vramblk.memory.arenas import plan_arenas
from vramblk.memory.devices import CPU, discover
from vramblk.memory.mapped import MappedMemory
from vramblk.memory.opencl import OpenCLMemory
from vramblk.memory.opendevice import OpenDevice

ONE, MANY = "6M", "5124K"
SMALL_ALLOCATION = 384 << 10
#: Work-items for each request: a CPU's, and a GPU's.
LANES = (opendevice._CPU_LANES, opendevice._GPU_LANES)


@pytest.fixture(scope="module")
def devices() -> dict[tuple[str, int], Any]:
    """The first CPU device, as it is and with a small largest allocation, each as a CPU and as a GPU is used."""
    info = next(device for device in discover() if device.type == CPU)
    opened = {}
    for lanes in LANES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(opendevice, "_CPU_LANES", lanes)
            opened["one", lanes] = OpenDevice(info)
            opened["many", lanes] = OpenDevice(info, SMALL_ALLOCATION)
    return opened


class TestOpenCL(MemoryContract):
    """One arena, and fourteen of which the last is smaller."""

    @pytest.fixture(params=itertools.product(["one", "many"], LANES), ids=lambda param: f"{param[0]} {param[1]}")
    def rig(self, request: pytest.FixtureRequest, devices: dict[tuple[str, int], Any]) -> Iterator[Rig]:
        arenas, lanes = request.param
        device = devices[arenas, lanes]
        assert device._lanes == lanes
        size = int(parse_size(ONE if arenas == "one" else MANY).amount)
        sizes = plan_arenas(size, device.maximum_allocation)
        assert (len(sizes) == 1) == (arenas == "one")
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
