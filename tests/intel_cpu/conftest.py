"""Makes Intel's runtime the only one of this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import runtimes
from vramblk.memory.devices import DeviceInfo

ICD = runtimes.BUILD / "intel-cpu/intel-cpu.icd"


def pytest_configure(config: pytest.Config) -> None:
    """Before anything loads OpenCL."""
    runtimes.choose(config, Path(__file__).resolve().parent, ICD)


@pytest.fixture(scope="session")
def info() -> DeviceInfo:
    return runtimes.only_device(ICD, "intel_cpu")
