"""Oclgrind as the only OpenCL device, and what it has found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.runtimes import BUILD
from tests.unit.memory.checksumcontract import Flippable, on_opencl
from tests.unit.memory.contract import Rig, make_rig
from vramblk.memory import opendevice
from vramblk.memory.arenas import plan_arenas
from vramblk.memory.devices import DeviceInfo
from vramblk.memory.opencl import OpenCLMemory

#: Names the library for the OpenCL loader; the wheel's own file names it without a folder.
ICD = BUILD / "oclgrind/oclgrind.icd"
KERNELS = opendevice._KERNELS
EVERYTHING = os.environ.get("VRAMBLK_TEST_OCLGRIND") == "all"

#: Arenas of 24 KiB. 256 KiB are eleven, of which the last has 16 KiB, 340 KiB are fifteen, the last of 4 KiB.
ALLOCATION = 24 << 10
SIZES = {"256K": 256 << 10, "340K": 340 << 10}
#: Work-items for each request: as many as the kernels need to show all that they do, and a GPU's where time allows.
FEW_LANES = 32
LANES = opendevice._GPU_LANES if EVERYTHING else FEW_LANES


def variables(log: Path, *, races: bool = True) -> dict[str, str]:
    """The environment in which an OpenCL context writes to ``log`` whatever Oclgrind finds.

    Reads of memory that nobody wrote are not looked for: Oclgrind 19.10 takes a write by the host behind a
    buffer's start for none. The limit of errors is one for all contexts of a process.
    """
    return {
        "OCL_ICD_VENDORS": str(ICD),
        "OCLGRIND_LOG": str(log),
        "OCLGRIND_MAX_ERRORS": "1000000",
        **({"OCLGRIND_DATA_RACES": "1"} if races else {}),
    }


class Simulation:
    """A memory on Oclgrind.

    Attributes:
        rig: the memory with its model, as the contracts take it.
        flippable: the same with what changes its bytes; only with checksums.
    """

    def __init__(self, made: Rig | Flippable, log: Path) -> None:
        self.rig = made if isinstance(made, Rig) else made.rig
        self._made = made
        self._log = log
        self._taken = 0

    @property
    def flippable(self) -> Flippable:
        assert isinstance(self._made, Flippable), "a memory without checksums"
        return self._made

    def findings(self) -> list[str]:
        """What Oclgrind has found since the last call."""
        text = self._log.read_text()
        new, self._taken = text[self._taken :], len(text)
        return [each for each in new.split("\n\n") if each.strip()]


@contextmanager
def simulation(
    info: DeviceInfo,
    size_bytes: int,
    log: Path,
    *,
    checksums: bool = True,
    races: bool = True,
    lanes: int = LANES,
    kernels: Path = KERNELS,
) -> Iterator[Simulation]:
    """A memory that is closed at the end; its program is made of ``kernels``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opendevice, "_KERNELS", kernels)
        # Oclgrind claims to be every type of device at once, which makes it a CPU.
        patch.setattr(opendevice, "_CPU_LANES", lanes)
        for name, value in variables(log, races=races).items():
            patch.setenv(name, value)
        if checksums:
            made: Rig | Flippable = on_opencl(info, size_bytes, ALLOCATION)
        else:
            device = opendevice.OpenDevice(info, ALLOCATION)
            made = make_rig(lambda _: OpenCLMemory(device, plan_arenas(size_bytes, ALLOCATION)))
    done = Simulation(made, log)
    yield done
    done.rig.memory.close()
