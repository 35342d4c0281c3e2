"""Swap under real memory pressure: a kernel, its nbd driver, host/vramblk-swap and the server. Needs the Debian
packages of packages.txt, root or not, no KVM, 2 GiB of /dev/shm.

VRAMBLK_TEST_VM_REPEATS is how often twice the RAM is filled and verified: 2, and 20 for `make test-vm`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from . import rig
from .matrix import CONTROL_SILENCE_S

#: Two slices: these repeat as often, at most ten times.
SLICED = {
    "slices.sh": "two slices under twice the RAM, one released in the middle and taken again",
    "auto.sh": "auto gives slices back while free memory is short, and takes them when it is not",
}
REPEATS = int(os.environ.get("VRAMBLK_TEST_VM_REPEATS", "2"))
CASES = {
    "refusals.sh": "what is missing is refused by name; up against servers that cannot be used",
    "sigterm.sh": "SIGTERM in the middle never frees memory",
    "supervisor.sh": "the supervisor's death leaves live swap alone",
    "stall.sh": "an engine that stands still for 45 s is only slow",
    "write_errors.sh": "failed writes lose nothing",
    "read_errors.sh": "failed reads are SIGBUS, never wrong data",
    "worker.sh": "a dead worker: no wrong page, and none from a later server",
    "yield.sh": "yield gives VRAM to a command, also one that fails, and takes it back",
    "release_time.sh": "how long a release takes, by how full a device is",
    "down_refused.sh": "down refuses when memory cannot take it back",
    "checksum.sh": "a flipped bit is SIGBUS in the victim, never a wrong page",
    "crowd.sh": "where more is wanted than there is, the OOM killer passes the server over",
    "hostile.sh": "hostile clients on other connections change nothing",
    "disk.sh": "a file system in VRAM, by the commands of the guide",
    "logs.sh": "logs and metrics never block I/O",
}
MIRROR_CASES = {
    "mirror_refusals.sh": "a device in use, too small or with a signature is refused; up and down twice; killed half-way",
    "mirror_stall.sh": "a stall below the timeout is slow, a longer one and device errors cost the VRAM half",
    "mirror_rebuild.sh": "supervisor and server killed, rebuilt under load, no stale page, the disk fails",
    "mirror_cost.sh": "a loop device is refused; what a mirror costs",
    "mirror_control.sh": "the same death without a mirror ends in SIGBUS",
}


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := rig.missing():
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("vm")
    rig.build(directory)
    return directory


def check(result: rig.Result) -> None:
    print(result.output)
    assert result.good, (
        f"{result.ended} after {result.seconds:.0f} s, passed {result.passed}, failed {result.failed}\n{result.tail()}"
    )


def test_the_rig_itself(build: Path) -> None:
    """The filler, /dev/mmapper and nbd, with the smallest server that can carry swap."""
    check(rig.run("rig.sh", build, limit_s=600))


@pytest.mark.parametrize("repeat", range(REPEATS))
def test_twice_the_ram_without_a_mismatch(build: Path, repeat: int) -> None:
    """Promises 1, 2, 3 and 6."""
    check(rig.run("fill.sh", build))


@pytest.mark.parametrize("case", CASES)
def test_case(build: Path, case: str) -> None:
    """See the head of each case for the promises that it checks."""
    check(run_case(case, build))


@pytest.mark.parametrize("repeat", range(max(1, REPEATS // 2)))
@pytest.mark.parametrize("case", SLICED)
def test_slices_under_pressure(build: Path, case: str, repeat: int) -> None:
    """Release, take and auto lose no page, whatever the pressure."""
    check(run_case(case, build))


def run_case(case: str, build: Path) -> rig.Result:
    return rig.run(
        case, build, ram_mib=rig.RAM_MIB_OF.get(case, rig.RAM_MIB), swap_mib=rig.SWAP_MIB_OF.get(case, rig.SWAP_MIB)
    )


@pytest.mark.parametrize("repeat", range(REPEATS))
def test_a_mirror_outlives_the_engine(build: Path, repeat: int) -> None:
    """Promise 21."""
    check(run_mirrored("mirror.sh", build))


@pytest.mark.parametrize("case", MIRROR_CASES)
def test_mirror_case(build: Path, case: str) -> None:
    """Promise 21; see the head of each case."""
    check(run_mirrored(case, build))


def run_mirrored(case: str, build: Path) -> rig.Result:
    """A case with a disk for the mirror, /dev/ubda, and another one."""
    if reason := rig.missing("mdadm", "dmsetup", "wipefs"):
        pytest.skip(reason)
    return rig.run(case, build, disks_mib=(rig.SWAP_MIB, rig.SWAP_MIB + 64))


def run_control(build: Path, without: str) -> rig.Result:
    """Twice the RAM, a 16th of it verified, where silence for a minute is a hang."""
    settings = {"VM_WITHOUT": without, "VM_SHARE": "16"}
    return rig.run("control.sh", build, environment=settings, limit_s=600, silence_s=CONTROL_SILENCE_S)


def test_control(build: Path) -> None:
    """With all safeguards the run of the negative control is good."""
    check(run_control(build, "nothing"))


def test_negative_control(build: Path) -> None:
    """Without its safeguards the same server has to hang or fail, or the runs above would prove nothing."""
    result = run_control(build, "mlock,io_flusher,oom,fifo,min_free")
    print(result.output)
    assert "vramblk-swap up attaches the server" in result.passed, result.tail()
    others = [text for text in result.failed if not text.startswith("a filler ended")]
    assert not others, f"it failed for another reason: {others}"
    assert result.failed or result.ended in ("silent", "late", "panic"), f"no page was missed: {result.ended}"
