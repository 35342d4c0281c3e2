"""The container under live swap on a Debian machine with systemd and Docker. Needs root, Docker Engine, the Debian
packages of packages.txt and a mirror of Debian; no KVM. 1 GiB of disk below build/, 512 MiB of /dev/shm.

All cases run in one boot, in the order below; those that are not chosen (-k) are left out.
"""

from __future__ import annotations

import pytest

from . import rig

LIMIT_S = 3000
CASES = {
    "up": "make up SWAP=1, more than the free memory, every page as written",
    "live_restore": "systemctl restart docker with live-restore does no harm",
    "sleep": "a sleep takes swap off first, and fails if that fails",
    "unit_stop": "systemctl stop repeats a swapoff that fails, and nbd-client lives",
    "compose_restart": "docker compose restart waits until swap is off",
    "make_down": "make down refuses while swap cannot be taken off",
    "supervisor": "the supervisor's death leaves live swap alone, and the container",
    "compose_down": "docker compose down waits until swap is off",
    "docker_restart": "systemctl restart docker waits for the unit to take swap off, which then puts it back",
    "reboot": "a reboot takes swap off before dockerd stops; the boot puts it back",
}


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> rig.Run:
    if reason := rig.missing():
        pytest.skip(reason)
    chosen = {item.callspec.params["case"] for item in request.session.items if hasattr(item, "callspec")}
    return rig.run(
        [case for case in CASES if case in chosen], limit_s=LIMIT_S, log=tmp_path_factory.mktemp("qemu")
    )


@pytest.mark.parametrize("case", CASES)
def test_case(machine: rig.Run, case: str) -> None:
    """See the head of each case in guest/cases for what it shows."""
    result = machine.cases.get(case, rig.Case())
    print(machine.said)
    print("\n".join(machine.console.splitlines()[-100:]))
    assert result.good, (
        f"{machine.ended} after {machine.seconds:.0f} s: status {result.status}, "
        f"passed {result.passed}, failed {result.failed}"
    )
