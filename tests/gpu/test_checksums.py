"""Checksums on a GPU: one arena, and many by a small largest allocation. Needs a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.unit.memory.checksumcontract import ChecksumContract, Flippable, on_opencl
from tests.unit.memory.contract import MemoryContract, Rig
from vramblk.memory.base import Pattern
from vramblk.memory.checksums import MappedChecksums
from vramblk.memory.devices import DeviceInfo

SIZES = {"one": (6 << 20, None), "many": (5124 << 10, 384 << 10)}


@pytest.fixture(scope="module", params=SIZES)
def shared(request: pytest.FixtureRequest, gpu: DeviceInfo) -> Iterator[Flippable]:
    made = on_opencl(gpu, *SIZES[request.param])
    yield made
    made.rig.memory.close()


class TestChecksumsOnGPU(ChecksumContract):
    """Bits are flipped in the GPU's buffers by copies of their own."""


class TestGPU(MemoryContract):
    """Checksums change nothing of what a memory promises."""

    @pytest.fixture(params=SIZES)
    def rig(self, request: pytest.FixtureRequest, gpu: DeviceInfo) -> Iterator[Rig]:
        made = on_opencl(gpu, *SIZES[request.param])
        yield made.rig
        made.rig.memory.close()


def test_the_gpu_computes_the_hosts_sum(gpu: DeviceInfo) -> None:
    """Random contents have the checksums on the device that the host computes."""
    made = on_opencl(gpu, *SIZES["many"])
    size_bytes = made.rig.memory.size_bytes
    made.rig.memory.fill(0, size_bytes, Pattern.RANDOM, 5)
    table = MappedChecksums(memoryview(made.rig.content()))
    table.sign([(0, size_bytes)])
    assert np.array_equal(made.kept(), table._kept)
    made.rig.memory.close()
