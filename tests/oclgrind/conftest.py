"""Makes Oclgrind the only OpenCL device of this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import runtimes
from vramblk.memory.devices import DeviceInfo

from . import simulator

collect_ignore = [] if simulator.EVERYTHING else ["test_contract.py", "test_server.py"]


def pytest_configure(config: pytest.Config) -> None:
    """Before anything loads OpenCL."""
    runtimes.choose(config, Path(__file__).resolve().parent, simulator.ICD)


@pytest.fixture(scope="session")
def info() -> DeviceInfo:
    return runtimes.only_device(simulator.ICD, "oclgrind")
