"""Groups that run on an OpenCL runtime of their own, unpacked to build/ and found by nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vramblk.memory.devices import DeviceInfo, discover

BUILD = Path(__file__).resolve().parents[1] / "build"


def choose(config: pytest.Config, group: Path, icd: Path) -> None:
    """Make ``icd`` all that the OpenCL loader of this process sees, if pytest runs nothing but ``group``.

    Other groups' tests in the same process would find this runtime instead of theirs.
    """
    paths = [Path(arg.split("::")[0]).resolve() for arg in config.args]
    if all(group in (path, *path.parents) for path in paths):
        os.environ["OCL_ICD_VENDORS"] = str(icd)


def only_device(icd: Path, group: str) -> DeviceInfo:
    """The runtime's one device; skips where the group's ``setup.sh`` has not run or another group's tests run."""
    if not icd.exists():
        pytest.skip(f"requires what tests/{group}/setup.sh fetches")
    if os.environ.get("OCL_ICD_VENDORS") != str(icd):
        pytest.skip(f"requires a process of its own (python tests/run.py {group})")
    (found,) = discover()
    return found
