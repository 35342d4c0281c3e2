"""The contract of memories on a GPU: one arena, and many by a small largest allocation.

Needs a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.memory.contract import MemoryContract, Rig, make_rig
from vramblk.memory.arenas import plan_arenas
from vramblk.memory.devices import DeviceInfo
from vramblk.memory.opencl import OpenCLMemory
from vramblk.memory.opendevice import OpenDevice

SIZES = {"one": (6 << 20, None), "many": (5124 << 10, 384 << 10)}


class TestGPU(MemoryContract):
    @pytest.fixture(params=["one", "many"])
    def rig(self, request: pytest.FixtureRequest, gpu: DeviceInfo) -> Iterator[Rig]:
        size_bytes, maximum_allocation = SIZES[request.param]
        device = OpenDevice(gpu, maximum_allocation)
        sizes = plan_arenas(size_bytes, device.maximum_allocation)
        assert (len(sizes) == 1) == (request.param == "one")
        rig = make_rig(lambda windows: OpenCLMemory(device, sizes))
        yield rig
        rig.memory.close()
