"""The GPU that the tests of this group use: the first there is."""

from __future__ import annotations

import pytest

from vramblk.memory.devices import GPU, DeviceInfo, discover


@pytest.fixture(scope="session")
def gpu() -> DeviceInfo:
    for device in discover():
        if device.type == GPU and device.problem is None:
            return device
    pytest.skip("no GPU with an OpenCL runtime on this machine")
