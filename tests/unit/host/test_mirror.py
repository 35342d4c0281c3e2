"""vramblk-swap with a mirror on disk: what it calls, what it refuses, and how it undoes and rebuilds."""

from __future__ import annotations

import json
import shutil

import pytest

from . import conftest
from .conftest import SCRIPT, Host

DISK = "/dev/sdb1"
MIRROR = {"VRAMBLK_SWAP_MIRROR": DISK}
UUID = "11111111-2222-3333-4444-555555555555"
ATTACH = (
    "nbd-client -unix /run/vramblk-swap/private/nbd.sock /dev/nbd0 -name vram -nonetlink -swap -systemd-mark"
    " -b 4096 -timeout 15"
)  # fmt: skip
BUILD = f"mdadm --build /dev/md127 --run --level=1 --raid-devices=2 --assume-clean /dev/nbd0 --write-mostly {DISK}"
MKSWAP = f"mkswap --label vramblk --uuid {UUID} /dev/md127"
UP = [
    "modprobe nbd nbds_max=16 max_part=0", ATTACH, "modprobe raid1", BUILD, MKSWAP, "swapon --priority 200 /dev/md127",
]  # fmt: skip
WIPE = f"wipefs --all --types swap {DISK}"
DOWN = ["swapoff /dev/md127", "mdadm --stop /dev/md127", WIPE, "nbd-client -d /dev/nbd0", "modprobe -r nbd"]
OWN = "0xff6,an-older-uuid,vramblk,swap"


@pytest.fixture
def host(host: Host) -> Host:
    """With a free partition of 2 GiB."""
    add_device(host, "sdb1", "8:17")
    host.write("/sys/class/block/sdb1/size", "4194304\n")
    host.write("/proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    return host


def add_device(host: Host, name: str, number: str) -> None:
    """The last one that was added is what each file below /dev stands for: here all have the number 0:0."""
    host.write(f"/dev/{name}", "")
    host.write(f"/sys/class/block/{name}/dev", f"{number}\n")
    link = host.path("/sys/dev/block/0:0")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(f"../../devices/virtual/block/{name}")


def changes(host: Host) -> list[str]:
    """What was called, without looks."""
    return [line for line in host.calls() if "--parsable" not in line and "--no-act" not in line]


def signature(host: Host, line: str) -> None:
    (host.home / "signatures").write_text(f"{line}\n")


def member(host: Host, name: str) -> str:
    return host.read(f"/sys/block/md127/md/dev-{name}/state")


def action(host: Host) -> str:
    return host.read("/sys/block/md127/md/sync_action")


def end_server(host: Host) -> None:
    """nbd-client ends with its connection, the kernel goes on showing its pid, and md fails the half."""
    shutil.rmtree(host.path("/proc/77"))
    host.write("/sys/block/md127/md/dev-nbd0/state", "faulty\n")


def report(host: Host) -> dict[str, object]:
    answer: dict[str, object] = json.loads(host.run("status", "--json").stdout)
    return answer


@pytest.mark.parametrize("how", ["option", "joined", "variable"])
def test_up_builds_the_array_and_makes_it_swap(host: Host, how: str) -> None:
    words = {"option": ["--mirror", DISK], "joined": [f"--mirror={DISK}"], "variable": []}[how]
    result = host.run("up", *words, **(MIRROR if how == "variable" else {}))
    assert result.returncode == 0, result.stderr
    assert changes(host) == UP
    assert host.read("/sys/block/nbd0/queue/read_ahead_kb") == "0"
    assert host.read("/sys/block/md127/queue/read_ahead_kb") == "0"
    assert "/dev/md127 partition" in host.read("/proc/swaps")


def test_down_stops_the_array_then_detaches_and_leaves_no_signature(host: Host) -> None:
    before = host.state()
    host.run("up", **MIRROR)
    changes(host)
    result = host.run("down")
    assert result.returncode == 0, result.stderr
    assert changes(host) == DOWN
    assert host.state() == before and not (host.home / "signatures").exists()
    again = host.run("down")
    assert again.returncode == 0 and changes(host) == []


def test_up_twice_is_one_up(host: Host) -> None:
    host.run("up", **MIRROR)
    changes(host)
    before = host.state()
    again = host.run("up", **MIRROR)
    assert again.returncode == 0 and "already" in again.stderr
    assert changes(host) == [] and host.state() == before
    add_device(host, "sdc1", "8:33")
    other = host.run("up", "--mirror", "/dev/sdc1")
    assert other.returncode == 1 and f"with {DISK} as its mirror" in other.stderr


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("tool", ["nbd-client", "mdadm", "mkswap", "swapon"])
def test_an_up_that_is_killed_is_undone_by_down(host: Host, tool: str, moment: str) -> None:
    before = host.state()
    (host.home / f"kill-{moment}.{tool}").touch()
    assert host.run("up", **MIRROR).returncode == -9
    down = host.run("down")
    assert down.returncode == 0, down.stderr
    assert host.state() == before and not (host.home / "signatures").exists()


@pytest.mark.parametrize("tool", ["mdadm", "mkswap", "swapon"])
def test_a_failure_of_up_undoes_what_was_done(host: Host, tool: str) -> None:
    before = host.state()
    host.fail(tool, 1)
    result = host.run("up", **MIRROR)
    assert result.returncode == 1, result.stderr
    assert host.state() == before and not (host.home / "signatures").exists()


def test_an_array_that_is_somebody_elses_is_not_stopped(host: Host) -> None:
    """It was faster between the record and mdadm."""
    (host.home / "kill-before.mdadm").touch()
    host.run("up", **MIRROR)
    host.write("/sys/block/md127/md/dev-sdz/state", "in_sync\n")
    changes(host)
    assert host.run("down").returncode == 0
    assert not [line for line in changes(host) if line.startswith(("mdadm", "wipefs"))]
    assert host.path("/sys/block/md127/md/dev-sdz").exists()


def test_a_signature_that_is_not_of_this_up_is_not_wiped(host: Host) -> None:
    """Somebody has taken the device for something else since the machine was killed in the middle of `up`."""
    (host.home / "kill-before.mdadm").touch()
    host.run("up", **MIRROR)
    signature(host, OWN)
    changes(host)
    assert host.run("down").returncode == 0
    assert not [line for line in changes(host) if line.startswith("wipefs")]


@pytest.mark.skipif(
    bool(shutil.which("mdadm", path="/usr/bin:/bin")), reason="mdadm is where the shell's tools are"
)
def test_mdadm_that_is_missing_is_named_with_its_package(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is needed for a mirror only."""
    copy = host.home / "host" / "vramblk-swap"
    shutil.copytree(SCRIPT.parent, copy.parent)
    copy.write_text(copy.read_text().replace("}:/usr/sbin:/usr/bin:/sbin:/bin\n", "}\n"))
    monkeypatch.setattr(conftest, "SCRIPT", copy)
    (host.home / "bin" / "mdadm").unlink()
    path = f"{host.home}/bin:/usr/bin:/bin"
    result = host.run("up", **MIRROR, PATH=path)
    assert result.returncode == 78 and "apt-get install mdadm" in result.stderr, result.stderr
    assert changes(host) == []
    assert host.run("up", PATH=path).returncode == 0


REFUSED = {
    "no such device": "not a block device",
    "a file": "not a block device",
    "zram": "in RAM",
    "ramdisk": "in RAM",
    "nbd": "NBD device",
    "read-only": "read-only",
    "partitions": "name one of them, such as /dev/sdb1",
    "holder": "in use by dm-3",
    "mounted": "mounted on /home",
    "swap": "swap already",
    "busy": "it is in use",
    "ext4": "it holds ext4",
    "several": "it holds ext4, gpt",
    "other swap": "it holds swap",
    "loop": "a loop device can hang",
    "small": "it has 512 MiB, and the export 1024 MiB",
    "stubborn": "still holds something",
}


def arrange(host: Host, case: str) -> str:
    """The device to name."""
    block = "/sys/class/block"
    match case:
        case "no such device":
            return "/dev/sdx1"
        case "a file":
            host.path("/sys/dev/block/0:0").unlink()
            host.write("/dev/shm/sdb1", "")
            return "/dev/shm/sdb1"
        case "zram" | "nbd" | "ramdisk" | "loop":
            name = {"zram": "zram0", "nbd": "nbd9", "ramdisk": "ram0", "loop": "loop0"}[case]
            add_device(host, name, "1:1")
            return f"/dev/{name}"
        case "read-only":
            host.write(f"{block}/sdb1/ro", "1\n")
        case "partitions":
            add_device(host, "sdb", "8:16")
            host.write(f"{block}/sdb/sdb1/partition", "1\n")
            return "/dev/sdb"
        case "holder":
            host.write(f"{block}/sdb1/holders/dm-3/dev", "")
        case "mounted":
            host.write("/proc/self/mountinfo", "22 1 8:1 / / rw\n23 1 8:17 / /home rw - ext4 /dev/sdb1 rw\n")
        case "swap":
            host.write("/proc/swaps", "Filename Type Size Used Priority\n/dev/sdb1 partition 1048572 0 -2\n")
        case "busy":
            (host.home / "busy").touch()
        case "ext4":
            signature(host, "0x438,uuid,home,ext4")
        case "several":
            signature(host, f"{OWN}\n0x438,uuid,home,ext4\n0x200,,,gpt")
        case "other swap":
            signature(host, "0xff6,uuid,,swap")
        case "small":
            host.write(f"{block}/sdb1/size", "1048576\n")
        case "stubborn":
            signature(host, OWN)
            (host.home / "stubborn").touch()
    return DISK


@pytest.mark.parametrize("case", REFUSED)
def test_a_device_that_may_hold_something_is_refused_by_name(host: Host, case: str) -> None:
    device = arrange(host, case)
    before = host.state()
    result = host.run("up", "--mirror", device)
    assert result.returncode == 1
    assert f"{device} cannot be the mirror" in result.stderr and REFUSED[case] in result.stderr, result.stderr
    assert host.state() == before
    assert not [line for line in changes(host) if line.startswith(("mdadm", "mkswap", "swapon"))]


@pytest.mark.parametrize("case", ["ext4", "other swap"])
def test_overwrite_wipes_what_the_device_holds(host: Host, case: str) -> None:
    device = arrange(host, case)
    result = host.run("up", "--mirror", device, "--overwrite")
    assert result.returncode == 0, result.stderr
    assert changes(host) == [*UP[:3], f"wipefs --all {DISK}", *UP[3:]]


@pytest.mark.parametrize("case", ["mounted", "swap", "busy", "holder", "partitions", "small", "loop"])
def test_overwrite_does_not_take_a_device_that_is_in_use_or_too_small(host: Host, case: str) -> None:
    device = arrange(host, case)
    assert host.run("up", "--mirror", device, "--overwrite").returncode == 1
    assert not [line for line in changes(host) if line.startswith(("mdadm", "mkswap", "wipefs"))]


def test_what_a_lost_machine_left_on_the_device_is_taken_for_our_own(host: Host) -> None:
    signature(host, OWN)
    result = host.run("up", **MIRROR)
    assert result.returncode == 0, result.stderr


def test_a_link_to_the_device_is_followed(host: Host) -> None:
    host.path("/dev/mapper").mkdir()
    host.path("/dev/mapper/vg-mirror").symlink_to("../sdb1")
    assert host.run("up", "--mirror", "/dev/mapper/vg-mirror").returncode == 0
    assert report(host)["mirror"]
    assert host.run("down").returncode == 0


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (["--mirror"], {}, "--mirror needs a device"),
        ([], {"VRAMBLK_SWAP_MIRROR": "sdb1"}, "VRAMBLK_SWAP_MIRROR=sdb1: allowed is a path below /dev"),
        ([], {**MIRROR, "VRAMBLK_MIRROR_TIMEOUT": "1"}, "VRAMBLK_MIRROR_TIMEOUT=1: allowed"),
    ],
)
def test_bad_values_are_refused(
    host: Host, words: list[str], variables: dict[str, str], message: str
) -> None:
    result = host.run("up", *words, **variables)
    assert result.returncode == 2 and message in result.stderr


def test_without_a_mirror_there_is_no_timeout(host: Host) -> None:
    host.run("up", VRAMBLK_MIRROR_TIMEOUT="5")
    assert not [line for line in host.calls() if "-timeout" in line]
    host.run("down")
    host.run("up", VRAMBLK_MIRROR_TIMEOUT="5", **MIRROR)
    assert ATTACH.replace("15", "5") in host.calls()


def test_status_of_a_whole_mirror(host: Host) -> None:
    host.run("up", **MIRROR)
    assert host.run("status").returncode == 0
    assert report(host)["mirror"] == {
        "state": "whole", "device": DISK, "device_state": "in_sync,write_mostly", "vram": "/dev/nbd0",
        "vram_state": "in_sync", "rebuilt_percent": None,
    }  # fmt: skip


@pytest.mark.parametrize("noticed", [True, False])
def test_the_death_of_the_server_is_a_degraded_mirror(host: Host, noticed: bool) -> None:
    """Also before the kernel has had a request that showed it."""
    host.run("up", **MIRROR)
    end_server(host)
    if not noticed:
        host.write("/sys/block/md127/md/dev-nbd0/state", "in_sync\n")
    result = host.run("status")
    assert result.returncode == 1 and "degraded" in result.stdout and "sudo vramblk-swap up" in result.stdout
    answer = report(host)
    assert answer["swap"] == "degraded"
    assert isinstance(answer["mirror"], dict) and answer["mirror"]["state"] == "degraded"


@pytest.mark.parametrize("noticed", [True, False])
def test_up_rebuilds_a_degraded_mirror(host: Host, noticed: bool) -> None:
    """The new half is added as a new one, on another NBD device than one that the kernel may still believe in."""
    before = host.state()
    host.run("up", **MIRROR)
    end_server(host)
    if not noticed:
        host.write("/sys/block/md127/md/dev-nbd0/state", "in_sync\n")
    changes(host)
    result = host.run("up")
    assert result.returncode == 0, result.stderr
    calls = changes(host)
    assert calls[0] == "nbd-client -d /dev/nbd0" and calls[-1].startswith("mdadm /dev/md127 --add /dev/nbd")
    assert not [line for line in calls if line.startswith(("swapoff", "mkswap", "mdadm --build"))]
    assert report(host)["swap"] == "on" and action(host) == "frozen"
    changes(host)
    assert host.run("down").returncode == 0
    assert [line.split()[0] for line in changes(host)][:4] == ["swapoff", "mdadm", "wipefs", "nbd-client"]
    assert host.state() == before


def test_the_array_is_frozen_so_that_nothing_that_is_added_by_hand_is_read(host: Host) -> None:
    """`mdadm --re-add` of a stale half makes a spare then; it is not taken for a half, and `up` replaces it."""
    host.run("up", **MIRROR)
    assert action(host) == "frozen"
    host.write("/sys/block/md127/md/dev-nbd0/state", "spare\n")
    assert report(host)["swap"] == "degraded"
    changes(host)
    assert host.run("up").returncode == 0
    calls = changes(host)
    assert calls[0] == "nbd-client -d /dev/nbd0" and calls[-1] == "mdadm /dev/md127 --add /dev/nbd0"


def test_status_while_the_half_is_filled(host: Host) -> None:
    host.run("up", **MIRROR)
    host.write("/sys/block/md127/md/dev-nbd0/state", "spare\n")
    host.write("/sys/block/md127/md/sync_action", "recover\n")
    host.write("/sys/block/md127/md/sync_completed", "524288 / 2097152\n")
    result = host.run("status")
    assert result.returncode == 0 and "being filled from the disk: 25 %" in result.stdout
    answer = report(host)
    assert answer["swap"] == "rebuilding" and isinstance(answer["mirror"], dict)
    assert answer["mirror"]["rebuilt_percent"] == 25
    result = host.run("up")
    assert result.returncode == 0 and "being rebuilt: 25 %" in result.stderr
    assert report(host)["swap"] == "on" and action(host) == "frozen"


@pytest.mark.parametrize("how", ["no-recovery", "dies-meanwhile"])
def test_a_half_that_is_not_filled_is_given_up(host: Host, how: str) -> None:
    host.run("up", **MIRROR)
    end_server(host)
    (host.home / how).touch()
    result = host.run("up")
    assert result.returncode == 1 and "given up again" in result.stderr, result.stderr
    assert report(host)["swap"] == "degraded" and action(host) == "frozen"
    assert not host.path("/sys/block/md127/md/dev-nbd0").exists()


@pytest.mark.parametrize("tool", ["nbd-client", "mdadm", "curl"])
def test_a_rebuild_that_fails_leaves_swap_on(host: Host, tool: str) -> None:
    before = host.state()
    host.run("up", **MIRROR)
    end_server(host)
    changes(host)
    if tool == "nbd-client":
        (host.home / "no-size").touch()
    else:
        host.fail(tool, 1)
    assert host.run("up").returncode == 1
    assert "/dev/md127 partition" in host.read("/proc/swaps")
    assert not [line for line in changes(host) if line.startswith("swapoff")]
    (host.home / "no-size").unlink(missing_ok=True)
    assert host.run("up").returncode == 0
    assert host.run("down").returncode == 0 and host.state() == before


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("tool", ["nbd-client", "mdadm"])
def test_a_rebuild_that_is_killed_is_finished_by_up_and_undone_by_down(
    host: Host, tool: str, moment: str
) -> None:
    before = host.state()
    host.run("up", **MIRROR)
    end_server(host)
    (host.home / f"kill-{moment}.{tool}").touch()
    assert host.run("up").returncode == -9
    assert "/dev/md127 partition" in host.read("/proc/swaps")
    assert host.run("up").returncode == 0
    assert host.run("down").returncode == 0 and host.state() == before


def test_a_failed_disk_is_said_and_not_rebuilt_upon(host: Host) -> None:
    host.run("up", **MIRROR)
    host.write("/sys/block/md127/md/dev-sdb1/state", "faulty,write_mostly\n")
    assert report(host)["swap"] == "degraded"
    changes(host)
    result = host.run("up")
    assert result.returncode == 1 and "has failed, so the pages are in VRAM alone" in result.stderr
    assert host.run("sleep").returncode == 1
    assert changes(host) == [] and member(host, "nbd0") == "in_sync"


def test_where_no_half_is_left_nothing_is_attached(host: Host) -> None:
    host.run("up", **MIRROR)
    host.write("/sys/block/md127/md/dev-sdb1/state", "faulty,write_mostly\n")
    shutil.rmtree(host.path("/proc/77"))
    assert report(host)["swap"] == "lost"
    changes(host)
    result = host.run("up")
    assert result.returncode == 1 and "neither half works" in result.stderr
    assert changes(host) == []


def test_sleep_drops_the_vram_half_and_wake_rebuilds_it(host: Host) -> None:
    before = host.state()
    host.run("up", **MIRROR)
    changes(host)
    result = host.run("sleep")
    assert result.returncode == 0, result.stderr
    assert changes(host) == ["nbd-client -d /dev/nbd0"]
    assert "/dev/md127 partition" in host.read("/proc/swaps")
    assert host.run("wake").returncode == 0
    assert "mdadm /dev/md127 --add /dev/nbd0" in changes(host)
    assert host.run("down").returncode == 0 and host.state() == before


def test_down_looks_for_room_although_the_array_has_no_connection(host: Host) -> None:
    host.run("up", **MIRROR)
    end_server(host)
    swaps = host.read("/proc/swaps").replace("1048572 0", "1048572 1048000")
    host.write("/proc/swaps", f"{swaps}\n")
    host.write("/proc/meminfo", "MemTotal: 1048576 kB\nMemAvailable: 1024 kB\n")
    result = host.run("down")
    assert result.returncode == 1 and "there is room for" in result.stderr


def test_strict_accepts_a_container_that_docker_can_stop(host: Host) -> None:
    assert host.run("up", "--strict").returncode == 1
    assert host.run("up", "--strict", **MIRROR).returncode == 0


def test_dry_run_prints_and_does_nothing(host: Host) -> None:
    before = host.state()
    result = host.run("up", "--dry-run", **MIRROR, STUB_UID="1000")
    assert result.returncode == 0, result.stderr
    assert f"+ {BUILD}" in result.stderr.splitlines()
    assert changes(host) == [] and host.state() == before


def take_over_nbd(host: Host, name: str) -> None:
    """Somebody else's nbd-client has attached the device."""
    number = int(name.removeprefix("nbd"))
    host.write(f"/sys/block/{name}/pid", f"{900 + number}\n")
    host.write(f"/sys/block/{name}/size", "4096\n")
    host.write(f"/proc/{900 + number}/cmdline", f"nbd-client\0disks.example\0/dev/{name}\0-N\0home\0")
    host.write(f"/proc/{900 + number}/status", "Uid: 0 0 0 0\n")


@pytest.mark.parametrize("then", ["up", "take", "release", "sleep", "down"])
def test_a_device_that_somebody_else_attached_after_a_release_is_not_detached(host: Host, then: str) -> None:
    """The VRAM half was there before."""
    host.run("up", **MIRROR)
    assert host.run("release", "all").returncode == 0
    take_over_nbd(host, "nbd0")
    changes(host)
    result = host.run(then, *(["all"] if then in ("take", "release") else []))
    assert result.returncode == 0, result.stderr
    assert "nbd-client -d /dev/nbd0" not in changes(host)
    assert host.run("down").returncode == 0
    assert host.read("/sys/block/nbd0/pid") == "900"


@pytest.mark.parametrize("then", ["up", "release"])
def test_what_a_killed_rebuild_attached_is_detached(host: Host, then: str) -> None:
    """A swap export has one client at a time, so the new connection would be refused; and VRAM stays in use."""
    before = host.state()
    host.run("up", **MIRROR)
    host.run("release", "all")
    take_over_nbd(host, "nbd0")  # so that the rebuild takes another device than the first time
    (host.home / "kill-after.nbd-client").touch()
    assert host.run("up").returncode == -9
    assert host.read("/sys/block/nbd1/pid") == "78"
    changes(host)
    assert host.run(then, *(["all"] if then == "release" else [])).returncode == 0
    assert changes(host)[0] == "nbd-client -d /dev/nbd1"
    assert host.run("down").returncode == 0
    assert not host.path("/sys/block/nbd1/pid").exists()
    assert {key for key in host.state() if key.startswith("run/")} == {
        key for key in before if key.startswith("run/")
    }


def test_a_half_that_the_kernel_does_not_fail_keeps_its_connection(host: Host) -> None:
    """It refuses where this half is the last one: the disk has failed since the script looked."""
    host.run("up", **MIRROR)
    state = host.path("/sys/block/md127/md/dev-nbd0/state")
    state.unlink()
    state.mkdir()
    changes(host)
    assert host.run("release", "all").returncode == 1
    assert changes(host) == []
    state.rmdir()
    host.write("/sys/block/md127/md/dev-nbd0/state", "in_sync\n")
    assert report(host)["swap"] == "on"
    end_server(host)
    assert report(host)["swap"] == "degraded"


def test_down_stops_the_array_of_a_disk_that_was_pulled(host: Host) -> None:
    host.run("up", **MIRROR)
    host.path(DISK).unlink()
    host.write("/sys/block/md127/md/dev-sdb1/state", "faulty,write_mostly\n")
    changes(host)
    assert host.run("down").returncode == 0
    assert changes(host)[:2] == ["swapoff /dev/md127", "mdadm --stop /dev/md127"]
    assert not host.path("/sys/block/md127").exists()


def test_wake_leaves_released_what_was_released_before_the_sleep(host: Host) -> None:
    host.run("up", **MIRROR)
    host.run("release", "all")
    assert host.run("sleep").returncode == 0
    changes(host)
    assert host.run("wake").returncode == 0
    assert changes(host) == [] and report(host)["mirror"]["state"] == "released"  # type: ignore[index]


def test_a_rebuild_that_another_up_waits_for_and_that_fails_is_given_up(host: Host) -> None:
    host.run("up", **MIRROR)
    host.write("/sys/block/md127/md/dev-nbd0/state", "spare\n")
    host.write("/sys/block/md127/md/sync_action", "recover\n")
    (host.home / "dies-meanwhile").touch()
    result = host.run("up")
    assert result.returncode == 1 and "given up again" in result.stderr, result.stderr
    assert action(host) == "frozen" and not host.path("/sys/block/md127/md/dev-nbd0").exists()


def test_a_release_of_a_half_that_a_killed_up_was_filling_freezes_the_array(host: Host) -> None:
    host.run("up", **MIRROR)
    host.write("/sys/block/md127/md/dev-nbd0/state", "spare\n")
    host.write("/sys/block/md127/md/sync_action", "recover\n")
    assert host.run("release", "all").returncode == 0
    assert action(host) == "frozen"


@pytest.mark.parametrize(
    ("below", "message"), [("loop0", "can hang"), ("zram0", "in RAM"), ("nbd2", "NBD device")]
)
def test_a_device_that_lies_on_one_that_is_refused_is_refused(host: Host, below: str, message: str) -> None:
    """Such as dm-crypt on LVM on a file; a partition has no slaves of its own, its disk has."""
    host.write("/sys/class/block/sdb1/slaves/dm-7/dev", "")
    host.write(f"/sys/class/block/dm-7/slaves/{below}/dev", "")
    host.write(f"/sys/class/block/{below}/dev", "")
    result = host.run("up", **MIRROR)
    assert result.returncode == 1 and f"{DISK} cannot be the mirror" in result.stderr, result.stderr
    assert message in result.stderr and below in result.stderr
