"""The contracts of memories and of checksums, and a server, on Intel's OpenCL runtime for processors.

Needs that runtime, which ``setup.sh`` fetches, and fio with its nbd engine.
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtimes import BUILD
from tests.unit.memory.checksumcontract import ChecksumContract, Flippable, on_opencl
from tests.unit.memory.contract import MemoryContract, Rig, make_rig
from tests.wire.harness import Server, requires
from vramblk.memory import opendevice
from vramblk.memory.arenas import plan_arenas
from vramblk.memory.devices import CPU, DeviceInfo
from vramblk.memory.opencl import OpenCLMemory

SIZES = {"one": (6 << 20, None), "many": (5124 << 10, 384 << 10)}
#: Arenas, and work-items for each request: a CPU's, and a GPU's.
KINDS = list(itertools.product(SIZES, (opendevice._CPU_LANES, opendevice._GPU_LANES)))
each_kind = pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]} {kind[1]}")


def test_it_is_a_cpu(info: DeviceInfo) -> None:
    assert (info.type, info.problem) == (CPU, None)
    print(f"{info.platform}, driver {info.driver}")


@each_kind
def shared(request: pytest.FixtureRequest, info: DeviceInfo) -> Iterator[Flippable]:
    arenas, lanes = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opendevice, "_CPU_LANES", lanes)
        made = on_opencl(info, *SIZES[arenas])
    yield made
    made.rig.memory.close()


class TestChecksums(ChecksumContract):
    """Bits are flipped behind the memory's back."""


@each_kind
def device(request: pytest.FixtureRequest, info: DeviceInfo) -> tuple[opendevice.OpenDevice, int]:
    """A device and the size of a memory for it, bytes."""
    arenas, lanes = request.param
    size_bytes, allocation = SIZES[arenas]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opendevice, "_CPU_LANES", lanes)
        return opendevice.OpenDevice(info, allocation), size_bytes


class TestMemory(MemoryContract):
    @pytest.fixture
    def rig(self, device: tuple[opendevice.OpenDevice, int]) -> Iterator[Rig]:
        opened, size_bytes = device
        sizes = plan_arenas(size_bytes, opened.maximum_allocation)
        made = make_rig(lambda _: OpenCLMemory(opened, sizes))
        yield made
        made.memory.close()


@requires("fio")
def test_fio_verifies(info: DeviceInfo, tmp_path: Path) -> None:
    icd = {"OCL_ICD_VENDORS": str(BUILD / "intel-cpu/intel-cpu.icd")}
    with Server(tmp_path / "server", "--verify-reads", environment=icd) as server:
        subprocess.run(
            [
                "fio", "--name=verify", "--ioengine=nbd", f"--uri=nbd+unix:///vram?socket={server.unix_path}",
                "--rw=randwrite", "--bsrange=512-256k", "--size=64M", "--iodepth=16", "--verify=crc32c",
                "--verify_fatal=1", "--output-format=terse",
            ],
            cwd=tmp_path, check=True, capture_output=True, timeout=200,
        )  # fmt: skip
