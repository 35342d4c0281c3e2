"""host/vramblk-swap with several exports: up, down, release and take, each a device of its own."""

from __future__ import annotations

import json

import pytest

from .conftest import GPU, Host

RECORDS = "/run/vramblk-swap/records"
GIB_KIB = 1 << 20
SWAPON = [f"swapon --priority 200 /dev/nbd{number}" for number in range(3)]


@pytest.fixture
def sliced(host: Host) -> Host:
    host.status(exports=["vram-0", "vram-1", "vram-2"])
    return host


def use(host: Host, **kib: int) -> None:
    """How much of nbd0, nbd1, ... the kernel uses."""
    lines = host.read("/proc/swaps").splitlines()
    for number, line in enumerate(lines):
        device, *rest = line.split()
        if (used := kib.get(device.removeprefix("/dev/"))) is not None:
            lines[number] = " ".join([device, *rest[:2], str(used), *rest[3:]])
    host.write("/proc/swaps", "\n".join(lines) + "\n")


def swaps(host: Host) -> list[str]:
    return [line.split()[0] for line in host.read("/proc/swaps").splitlines()[1:]]


def told(host: Host) -> dict:
    return json.loads(host.run("status", "--json").stdout)


def attached_names(host: Host) -> list[str]:
    return sorted(each["export"] for each in told(host)["devices"])


def test_up_attaches_every_export_with_one_priority_and_down_undoes_all(sliced: Host) -> None:
    before = sliced.state()
    done = sliced.run("up")
    assert done.returncode == 0, done.stderr
    calls = sliced.calls()
    assert [call for call in calls if call.startswith("swapon")] == SWAPON
    for number in range(3):
        assert any(f"/dev/nbd{number} -name vram-{number} -nonetlink -swap" in call for call in calls)
    last_setting = done.stderr.index("memory.swap.max")
    assert last_setting < done.stderr.index("+ swapon"), "no device is swap before every safeguard is in place"
    answer = told(sliced)
    assert answer["swap"] == "on" and answer["total_bytes"] == 3 * 1048572 * 1024 and answer["released"] == []
    assert [(each["device"], each["export"], each["gpu"]) for each in answer["devices"]] == [
        (f"/dev/nbd{number}", f"vram-{number}", GPU) for number in range(3)
    ]
    assert sliced.run("up").returncode == 0 and sliced.calls() == [], "twice up is one up"
    use(sliced, nbd0=500, nbd1=100, nbd2=300)
    assert sliced.run("down").returncode == 0
    assert [call for call in sliced.calls() if not call.startswith("modprobe")] == [
        f"{command} /dev/nbd{number}" for number in (1, 2, 0) for command in ("swapoff", "nbd-client -d")
    ]
    assert sliced.state() == before


@pytest.mark.parametrize(
    ("names", "attached"),
    [
        ("vram-1", ["vram-1"]), ("vram-2,vram-0", ["vram-0", "vram-2"]), ("vram", ["vram-0", "vram-1", "vram-2"]),
        ("vram-1,vram", ["vram-0", "vram-1", "vram-2"]),
    ],
)  # fmt: skip
def test_exports_can_be_named(sliced: Host, names: str, attached: list[str]) -> None:
    assert sliced.run("up", VRAMBLK_EXPORT_NAME=names).returncode == 0
    assert attached_names(sliced) == attached


def test_exports_that_are_no_swap_are_left_alone(host: Host) -> None:
    host.status(exports=["vram-0", {"name": "disk", "mode": "scratch"}, "vram-1"])
    assert host.run("up").returncode == 0
    assert attached_names(host) == ["vram-0", "vram-1"]


@pytest.mark.parametrize("number", range(3))
def test_one_export_that_cannot_be_had_does_not_lose_the_others(sliced: Host, number: int) -> None:
    before = sliced.state()
    (sliced.home / "refused").write_text(f"vram-{number}\n")
    done = sliced.run("up")
    assert done.returncode == 0, done.stderr
    assert "the export needs 1 GiB more memory" in done.stderr
    assert f"warning: not swap: vram-{number} (see above); the others are" in done.stderr
    others = [f"vram-{each}" for each in range(3) if each != number]
    assert attached_names(sliced) == others
    assert [each["export"] for each in told(sliced)["released"]] == [f"vram-{number}"]
    (sliced.home / "refused").unlink()
    assert sliced.run("up").returncode == 0 and len(swaps(sliced)) == 3
    assert sliced.run("down").returncode == 0 and sliced.state() == before


def test_if_no_export_can_be_had_all_is_undone(sliced: Host) -> None:
    before = sliced.state()
    (sliced.home / "refused").write_text("vram-0\nvram-1\nvram-2\n")
    done = sliced.run("up")
    assert done.returncode == 1 and "nothing could be attached" in done.stderr and sliced.state() == before


@pytest.mark.parametrize("tool", ["mkswap", "swapon"])
def test_a_step_that_fails_for_one_device_does_not_lose_the_others(sliced: Host, tool: str) -> None:
    before = sliced.state()
    sliced.fail(tool, times=1)
    assert sliced.run("up").returncode == 0
    assert attached_names(sliced) == ["vram-1", "vram-2"]
    assert "/sys/block/nbd0/queue" not in sliced.read(RECORDS) or "vram-1" in sliced.run("status").stdout
    assert sliced.run("down").returncode == 0 and sliced.state() == before


def test_more_exports_than_devices(host: Host) -> None:
    host.status(exports=[f"vram-{number}" for number in range(6)])
    done = host.run("up")
    assert done.returncode == 0 and "none of the 4 NBD devices is free" in done.stderr
    assert attached_names(host) == ["vram-0", "vram-1", "vram-2", "vram-3"]


def kill(host: Host, tool: str, moment: str, call: int) -> None:
    """SIGKILL at the n-th call of a tool."""
    stub = host.home / "bin" / tool
    body = stub.read_text().removeprefix("#!/bin/sh\n")
    count = host.home / f"count.{tool}"
    stub.write_text(
        f'#!/bin/sh\nn=$(cat {count} 2>/dev/null); n=$((n + 1)); echo $n >{count}\n'
        f"[ $n != {call} ] || : >$STUB_HOME/kill-{moment}.{tool}\n{body}"
    )


@pytest.mark.parametrize("then", ["down", "up"])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(("tool", "call"), [("nbd-client", 2), ("mkswap", 2), ("swapon", 1), ("swapon", 2), ("swapon", 3)])
def test_an_up_that_is_killed_is_undone_by_down_and_finished_by_up(
    sliced: Host, tool: str, moment: str, call: int, then: str
) -> None:
    before = sliced.state()
    kill(sliced, tool, moment, call)
    assert sliced.run("up").returncode == -9
    done = sliced.run(then)
    assert done.returncode == 0, done.stderr
    if then == "up":
        assert attached_names(sliced) == ["vram-0", "vram-1", "vram-2"]
        assert sliced.run("down").returncode == 0
    assert sliced.state() == before


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(("tool", "call"), [("swapoff", 1), ("swapoff", 2), ("nbd-client", 1), ("nbd-client", 2), ("nbd-client", 3)])
def test_a_down_that_is_killed_is_finished_by_the_next(sliced: Host, tool: str, moment: str, call: int) -> None:
    before = sliced.state()
    assert sliced.run("up").returncode == 0
    kill(sliced, tool, moment, call)
    assert sliced.run("down").returncode == -9
    assert sliced.run("down").returncode == 0 and sliced.state() == before


def test_down_looks_first_whether_all_of_it_has_room(sliced: Host) -> None:
    """What comes out of one device must not be what fills the next."""
    sliced.run("up")
    sliced.calls()
    use(sliced, nbd0=400_000, nbd1=400_000, nbd2=400_000)
    sliced.write("/proc/meminfo", "MemTotal: 2000000 kB\nMemAvailable: 900000 kB\n")
    before = sliced.state()
    done = sliced.run("down")
    assert done.returncode == 1 and "1171 MiB are in /dev/nbd0 /dev/nbd1 /dev/nbd2" in done.stderr
    assert sliced.calls() == [] and sliced.state() == before


def test_a_down_that_fails_at_the_second_device_keeps_the_rest(sliced: Host) -> None:
    sliced.run("up")
    stub = sliced.home / "bin" / "swapoff"
    stub.write_text(stub.read_text().replace("name=${0##*/}\n", 'name=${0##*/}\n[ "$1" != /dev/nbd1 ] || exit 1\n'))
    done = sliced.run("down")
    assert done.returncode == 1 and "/dev/nbd1 /dev/nbd2 is still swap" in done.stderr
    assert swaps(sliced) == ["/dev/nbd1", "/dev/nbd2"] and sliced.read("/proc/sys/vm/page-cluster") == "0"
    stub.write_text(stub.read_text().replace('[ "$1" != /dev/nbd1 ] || exit 1\n', ""))
    assert sliced.run("down").returncode == 0 and swaps(sliced) == []


# ---------------------------------------------------------------- release and take


def test_release_takes_the_least_used_and_take_puts_it_back(sliced: Host) -> None:
    sliced.run("up")
    use(sliced, nbd0=500, nbd1=100, nbd2=300)
    sliced.calls()
    settings = sliced.read("/proc/sys/vm/page-cluster"), sliced.read("/proc/sys/vm/min_free_kbytes")
    for _ in range(2):  # idempotent
        done = sliced.run("release", "1G")
        assert done.returncode == 0, done.stderr
        assert swaps(sliced) == ["/dev/nbd0", "/dev/nbd2"]
    assert sliced.calls() == ["swapoff /dev/nbd1", "nbd-client -d /dev/nbd1"]
    assert settings == (sliced.read("/proc/sys/vm/page-cluster"), sliced.read("/proc/sys/vm/min_free_kbytes"))
    assert [each["export"] for each in told(sliced)["released"]] == ["vram-1"]
    assert "released  vram-1, 1024 MiB" in sliced.run("status").stdout
    assert sliced.run("release", "1.5G").returncode == 0 and swaps(sliced) == ["/dev/nbd0"]
    sliced.calls()
    for _ in range(2):
        assert sliced.run("take", "2G").returncode == 0
        assert len(swaps(sliced)) == 2
    assert len([call for call in sliced.calls() if call.startswith("swapon")]) == 1
    assert sliced.run("take", "all").returncode == 0
    assert attached_names(sliced) == ["vram-0", "vram-1", "vram-2"]


def test_all_can_be_released_and_down_restores_everything(sliced: Host) -> None:
    before = sliced.state()
    sliced.run("up")
    assert sliced.run("release", "all").returncode == 0 and swaps(sliced) == []
    assert told(sliced)["swap"] == "released" and sliced.run("status").returncode == 3
    assert len(told(sliced)["released"]) == 3
    assert sliced.run("release", "all").returncode == 0
    assert sliced.run("take", "all").returncode == 0 and len(swaps(sliced)) == 3
    sliced.run("release", "all")
    assert sliced.run("up").returncode == 0 and len(swaps(sliced)) == 3, "up takes all"
    sliced.run("release", "all")
    assert sliced.run("down").returncode == 0 and sliced.state() == before


@pytest.mark.parametrize("command", ["release", "take"])
def test_dry_run_changes_nothing(sliced: Host, command: str) -> None:
    sliced.run("up")
    if command == "take":
        sliced.run("release", "all")
    before = sliced.state()
    sliced.calls()
    done = sliced.run(command, "2G", "--dry-run", STUB_UID="1000")
    assert done.returncode == 0, done.stderr
    assert sliced.calls() == [] and sliced.state() == before
    printed = [line for line in done.stderr.splitlines() if line.startswith(("+ swapoff", "+ swapon"))]
    assert len(printed) == 2, done.stderr


def test_release_looks_whether_the_pages_have_room(sliced: Host) -> None:
    sliced.run("up")
    use(sliced, nbd0=900_000, nbd1=1_000_000, nbd2=800_000)
    sliced.write("/proc/meminfo", "MemTotal: 2000000 kB\nMemAvailable: 100000 kB\n")
    before = swaps(sliced)
    done = sliced.run("release", "1G")
    assert done.returncode == 1 and "781 MiB are in /dev/nbd2" in done.stderr and "released: nothing" in done.stderr
    assert swaps(sliced) == before
    use(sliced, nbd0=10_000)  # now other slices can take it
    assert sliced.run("release", "1G").returncode == 0 and swaps(sliced) == before[1:]


def test_release_goes_on_after_a_device_that_cannot_be_taken_off(sliced: Host) -> None:
    sliced.run("up")
    sliced.fail("swapoff", times=1)
    done = sliced.run("release", "all")
    assert done.returncode == 1 and swaps(sliced) == ["/dev/nbd0"]
    assert "still swap: /dev/nbd0; released: /dev/nbd1 /dev/nbd2" in done.stderr
    assert sliced.run("release", "all").returncode == 0 and swaps(sliced) == []


def test_only_the_slices_of_one_gpu(host: Host) -> None:
    other = "0000:02:00.0"
    host.status(
        exports=["vram-gpu0-0", {"name": "vram-gpu1-0", "device": {"pci": other}}, {"name": "vram-gpu1-1", "device": {"pci": other}}]
    )
    host.run("up")
    assert host.run("release", "all", other).returncode == 0
    assert attached_names(host) == ["vram-gpu0-0"]
    assert host.run("take", "1G", other).returncode == 0
    assert attached_names(host) == ["vram-gpu0-0", "vram-gpu1-0"]


def test_without_swap_there_is_nothing_to_release_or_take(sliced: Host) -> None:
    released = sliced.run("release", "all")
    assert released.returncode == 0 and "no swap of vramblk is on" in released.stderr
    taken = sliced.run("take", "all")
    assert taken.returncode == 1 and "sudo vramblk-swap up" in taken.stderr
    assert sliced.calls() == []


@pytest.mark.parametrize("amount", ["", "4", "-1G", "4X", "1G1", "99999999999999999G", "all of it"])
def test_an_amount_that_is_none_is_refused(sliced: Host, amount: str) -> None:
    sliced.run("up")
    sliced.calls()
    done = sliced.run("release", *([amount] if amount else []))
    assert done.returncode == 2 and sliced.calls() == [], done.stderr


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("tool", ["swapoff", "nbd-client"])
@pytest.mark.parametrize("then", ["release", "take", "up", "down"])
def test_a_release_that_is_killed_is_finished_by_whatever_comes(sliced: Host, tool: str, moment: str, then: str) -> None:
    before = sliced.state()
    sliced.run("up")
    (sliced.home / f"kill-{moment}.{tool}").touch()
    assert sliced.run("release", "1G").returncode == -9
    done = sliced.run(then, *(["1G"] if then == "release" else ["all"] if then == "take" else []))
    assert done.returncode == 0, done.stderr
    assert len(swaps(sliced)) == {"release": 2, "take": 3, "up": 3, "down": 0}[then]
    if then != "down":
        assert sliced.run("down").returncode == 0
    assert sliced.state() == before


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("tool", ["nbd-client", "mkswap", "swapon"])
def test_a_take_that_is_killed_leaves_what_was_on(sliced: Host, tool: str, moment: str) -> None:
    before = sliced.state()
    sliced.run("up")
    sliced.run("release", "1G")
    (sliced.home / f"kill-{moment}.{tool}").touch()
    assert sliced.run("take", "all").returncode == -9
    assert set(swaps(sliced)) >= {"/dev/nbd1", "/dev/nbd2"}
    assert sliced.run("take", "all").returncode == 0
    assert attached_names(sliced) == ["vram-0", "vram-1", "vram-2"]
    assert sliced.run("down").returncode == 0 and sliced.state() == before


@pytest.mark.parametrize("tool", ["nbd-client", "mkswap", "swapon"])
def test_a_take_that_fails_or_is_told_to_end_leaves_what_was_on(sliced: Host, tool: str) -> None:
    sliced.run("up")
    sliced.run("release", "1G")
    before = sliced.state()
    sliced.fail(tool)
    assert sliced.run("take", "all").returncode == 1 and swaps(sliced) == ["/dev/nbd1", "/dev/nbd2"]
    sliced.mend(tool)
    assert sliced.state() == before
    (sliced.home / f"signal.{tool}").write_text("TERM")
    assert sliced.run("take", "all").returncode == 130
    assert swaps(sliced) == ["/dev/nbd1", "/dev/nbd2"]
    assert sliced.run("take", "all").returncode == 0 and len(swaps(sliced)) == 3


def test_a_lost_device_is_never_released_or_joined(sliced: Host) -> None:
    """Its pages are nowhere: only `down` may end who needs them."""
    sliced.run("up")
    sliced.path("/sys/block/nbd1/pid").unlink()
    sliced.calls()
    released = sliced.run("release", "all")
    assert released.returncode == 1 and "/dev/nbd1 is gone" in released.stderr and swaps(sliced) == ["/dev/nbd1"]
    for command in (["take", "all"], ["up"], ["up", "--force"]):
        done = sliced.run(*command)
        assert done.returncode == 1 and "/dev/nbd1 is still in /proc/swaps but its server is gone" in done.stderr
    answer = told(sliced)
    assert answer["swap"] == "lost" and [each["lost"] for each in answer["devices"]] == [True]


def test_a_server_that_does_not_answer_keeps_release_working(sliced: Host) -> None:
    sliced.run("up")
    sliced.fail("curl")
    assert sliced.run("release", "1G").returncode == 0 and len(swaps(sliced)) == 2
    assert sliced.run("release", "1G").returncode == 0 and len(swaps(sliced)) == 2
    assert sliced.run("down").returncode == 0


def test_a_take_without_an_answer_fails_and_an_up_does_not(sliced: Host) -> None:
    sliced.run("up")
    sliced.run("release", "1G")
    sliced.fail("curl")
    taken = sliced.run("take", "all")
    assert taken.returncode == 1 and "the server does not answer" in taken.stderr and len(swaps(sliced)) == 2
    assert sliced.run("up").returncode == 0 and len(swaps(sliced)) == 2


def test_without_swap_nothing_is_released(sliced: Host) -> None:
    answer = told(sliced)
    assert (answer["swap"], answer["devices"], answer["released"]) == ("off", [], [])


def test_after_a_sleep_only_what_was_on_comes_back(sliced: Host) -> None:
    sliced.run("up")
    sliced.run("release", "2G")
    assert attached_names(sliced) == ["vram-2"]
    assert sliced.run("sleep").returncode == 0 and swaps(sliced) == []
    assert sliced.run("wake").returncode == 0
    assert attached_names(sliced) == ["vram-2"]


def test_a_device_of_an_earlier_version_is_managed_on(host: Host) -> None:
    """The script was replaced under live swap: one device, with its facts in lines of their own."""
    host.run("up")
    attached = host.path("/run/vramblk-swap/attached")
    kept = [line for line in attached.read_text().splitlines() if line.startswith(("socket=", "server_"))]
    attached.write_text("\n".join(["device=/dev/nbd0", "uuid=u-u", "label=vramblk", *kept]) + "\n")
    host.calls()
    answer = told(host)
    assert (answer["device"], answer["uuid"], answer["label"]) == ("/dev/nbd0", "u-u", "vramblk")
    assert host.run("up").returncode == 0 and host.calls() == []
    assert host.run("release", "all").returncode == 0 and swaps(host) == []
    assert host.run("down").returncode == 0
