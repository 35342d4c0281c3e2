"""host/vramblk-swap: what it calls and in which order, and that every failure of `up` undoes exactly what was done."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess

import pytest

from tools.variables import FOREIGN_VARIABLES
from vramblk.config import options
from vramblk.swap import hostmemory

from .conftest import LIBRARY, SCRIPT, Host, script_text

CGROUP = f"/sys/fs/cgroup/system.slice/docker-{'ab' * 32}.scope/memory.swap.max"
ATTACH = (
    "nbd-client -unix /run/vramblk-swap/private/nbd.sock /dev/nbd0 -name vram -nonetlink -swap -systemd-mark -b 4096"
)  # fmt: skip
MKSWAP = "mkswap --label vramblk --uuid 11111111-2222-3333-4444-555555555555 /dev/nbd0"
UP = ["modprobe nbd nbds_max=16 max_part=0", ATTACH, MKSWAP, "swapon --priority 200 /dev/nbd0"]
PAGE_CLUSTER, MIN_FREE = "/proc/sys/vm/page-cluster", "/proc/sys/vm/min_free_kbytes"
#: Nothing of Docker's that could end the server.
SAFE = {"STUB_ENABLED": "enabled", "STUB_ACTIVE": "active", "STUB_GRACE": "86400", "STUB_RESTART": "no"}


def test_up_does_everything_in_order(host: Host) -> None:
    result = host.run("up")
    assert result.returncode == 0, result.stderr
    assert host.calls() == UP
    assert host.read("/sys/block/nbd0/queue/read_ahead_kb") == "0"
    assert host.read("/sys/block/nbd0/queue/scheduler") == "none"
    assert host.read("/proc/sys/vm/page-cluster") == host.read("/proc/sys/vm/watermark_boost_factor") == "0"
    assert host.read("/proc/sys/vm/min_free_kbytes") == str(16384 * 1024 // 100 + 120 * 1024 // 32)
    assert host.read(CGROUP) == "0"
    assert host.read("/sys/block/nbd1/size") == "0"


def test_up_says_first_what_ran_under_pressure_and_what_did_not(host: Host) -> None:
    first = host.run("up").stderr.splitlines()[0]
    assert "under real memory pressure" in first and "not tested: a GPU driver's own allocations" in first


def test_up_twice_is_one_up(host: Host) -> None:
    host.run("up")
    host.calls()
    before = host.state()
    again = host.run("up")
    assert again.returncode == 0 and "already" in again.stderr
    assert host.calls() == [] and host.state() == before


def test_down_takes_swap_off_first_and_restores_everything(host: Host) -> None:
    """Promise 9 and 10: swapoff comes before the detach."""
    before = host.state()
    host.run("up")
    host.calls()
    result = host.run("down")
    assert result.returncode == 0, result.stderr
    assert host.calls() == ["swapoff /dev/nbd0", "nbd-client -d /dev/nbd0", "modprobe -r nbd"]
    assert host.state() == before
    again = host.run("down")
    assert again.returncode == 0 and "no swap" in again.stderr and host.calls() == []


DETACH, UNLOAD = "nbd-client -d /dev/nbd0", "modprobe -r nbd"
#: What fails; the exit status, how many commands of UP are given, the failing one included, and what undoes them.
FAILURES = {
    "modprobe": (78, 1, []),
    "no devices": (78, 1, [UNLOAD]),
    "no free device": (1, 1, [UNLOAD]),
    "named device": (1, 1, [UNLOAD]),
    "systemd-run": (1, 1, [UNLOAD]),
    # Not "nbd-client -d": it has attached nothing, and somebody else may have been faster.
    "nbd-client": (1, 2, [UNLOAD]),
    "no-size": (1, 2, [DETACH, UNLOAD]),
    "/sys/block/nbd0/queue/read_ahead_kb": (1, 2, [DETACH, UNLOAD]),
    "/sys/block/nbd0/queue/scheduler": (1, 2, [DETACH, UNLOAD]),
    "mkswap": (1, 3, [DETACH, UNLOAD]),
    MIN_FREE: (1, 3, [DETACH, UNLOAD]),
    PAGE_CLUSTER: (1, 3, [DETACH, UNLOAD]),
    CGROUP: (1, 3, [DETACH, UNLOAD]),
    "swapon": (1, 4, [DETACH, UNLOAD]),
    "swapon-lies": (1, 4, [DETACH, UNLOAD]),
}


def make_fail(host: Host, point: str) -> dict[str, str]:
    """Arranges for `up` to fail there; the environment that it takes."""
    make = host.home / "make-devices"
    if point == "no devices":
        make.write_text('#!/bin/sh\nmkdir -p "$VRAMBLK_TEST_ROOT/sys/module/nbd"\n')
    elif point == "no free device":
        make.write_text(make.read_text() + 'for n in 0 1 2 3; do echo 8 >"$t/sys/block/nbd$n/size"; done\n')
    elif point == "named device":
        return {"VRAMBLK_NBD_DEVICE": "/dev/nbd7"}
    elif point.startswith("/sys/block"):
        make.write_text(make.read_text() + f'rm "$t{point}"; mkdir "$t{point}"\n')
    elif point.startswith("/"):
        host.path(point).unlink()
        host.path(point).mkdir()
    elif point in ("no-size", "swapon-lies"):
        (host.home / point).touch()
    else:
        if point == "systemd-run":
            host.path("/run/systemd/system").mkdir(parents=True)
        host.fail(point)
    return {}


def writes(lines: list[str]) -> list[str]:
    """The settings that are written in these lines of the script."""
    return [line.partition(" > ")[2] for line in lines if line.startswith("+ echo ")]


@pytest.mark.parametrize("point", FAILURES)
def test_every_failure_of_up_undoes_exactly_what_was_done(host: Host, point: str) -> None:
    status, made, undone = FAILURES[point]
    environment = make_fail(host, point)
    before = host.state()
    result = host.run("up", **environment)
    assert result.returncode == status, result.stderr
    assert host.state() == before
    assert host.calls("systemd-run ") == UP[:made] + undone
    assert not host.path("/run/vramblk-swap/records").exists()
    lines = result.stderr.splitlines()
    undoing = lines.index("vramblk-swap: undoing what was done")
    assert writes(lines[undoing:]) == [path for path in reversed(writes(lines[:undoing])) if path != point]


def test_settings_are_undone_from_the_last_to_the_first(host: Host) -> None:
    host.fail("swapon")
    lines = host.run("up").stderr.splitlines()
    undoing = lines.index("vramblk-swap: undoing what was done")
    assert [line.removeprefix("+ ") for line in lines[undoing + 1 :] if line.startswith("+ ")] == [
        f"echo max > {CGROUP}",
        "echo 15000 > /proc/sys/vm/watermark_boost_factor",
        f"echo 3 > {PAGE_CLUSTER}",
        f"echo 45056 > {MIN_FREE}",
        "echo mq-deadline > /sys/block/nbd0/queue/scheduler",
        "echo 128 > /sys/block/nbd0/queue/read_ahead_kb",
        DETACH,
        UNLOAD,
    ]


def test_a_value_that_reads_back_differently_fails_and_is_put_back(host: Host) -> None:
    """As from a kernel that bends what is written to what it allows; the first to read it sees that."""
    sed, page_cluster = host.home / "bin" / "sed", host.path(PAGE_CLUSTER)
    sed.write_text(
        f'#!/bin/sh\nif [ "$(cat {page_cluster})" = 0 ]; then echo 1 >{page_cluster}; fi\n'
        f'exec {shutil.which("sed")} "$@"\n'
    )
    sed.chmod(0o755)
    before = host.state()
    result = host.run("up")
    assert result.returncode == 1 and f"{PAGE_CLUSTER} is 1 after 0 was written to it" in result.stderr
    assert host.calls() == [*UP[:3], DETACH, UNLOAD]
    assert host.state() == before and "left as it is" not in result.stderr


def test_an_nbd_client_that_the_oom_killer_may_choose_is_said(host: Host) -> None:
    """It is no reason to fail: where it may not be set, `up` has no way to do better."""
    (host.home / "no-oom-score").touch()
    before = host.state()
    result = host.run("up")
    assert result.returncode == 0 and "the OOM killer may choose nbd-client (pid 77)" in result.stderr
    assert host.run("down").returncode == 0 and host.state() == before


def load_module(host: Host) -> None:
    """As somebody else has, before the script runs."""
    subprocess.run(
        [host.home / "make-devices"], env={"VRAMBLK_TEST_ROOT": str(host.root), "PATH": "/usr/bin:/bin"}
    )


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("tool", ["modprobe", "nbd-client", "mkswap", "swapon"])
def test_an_up_that_is_killed_is_undone_by_down(host: Host, tool: str, moment: str) -> None:
    """SIGKILL before or after any of its commands."""
    before = host.state()
    (host.home / f"kill-{moment}.{tool}").touch()
    assert host.run("up").returncode == -9
    down = host.run("down")
    assert down.returncode == 0, down.stderr
    if tool == "modprobe" and moment == "before":
        host.calls()
    assert host.state() == before and not host.path("/run/vramblk-swap/records").exists()


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
@pytest.mark.parametrize("tool", ["nbd-client", "mkswap", "swapon"])
def test_an_up_that_is_told_to_end_undoes_what_it_did(host: Host, tool: str, name: str) -> None:
    """Ctrl+C, a stop of the unit, or a terminal that closes."""
    before = host.state()
    (host.home / f"signal.{tool}").write_text(name)
    result = host.run("up")
    assert result.returncode == 130 and "undoing what was done" in result.stderr
    assert host.state() == before


def test_an_up_that_cannot_write_its_own_record_undoes_what_it_did(host: Host) -> None:
    host.path("/run/vramblk-swap/attached").mkdir(parents=True)
    before = host.state()
    result = host.run("up")
    assert result.returncode == 1 and "cannot write /" in result.stderr and host.state() == before
    assert "swapon --priority 200 /dev/nbd0" not in host.calls()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("tool", ["swapoff", "nbd-client", "modprobe"])
def test_a_down_that_is_killed_is_finished_by_the_next(host: Host, tool: str, moment: str) -> None:
    before = host.state()
    host.run("up")
    (host.home / f"kill-{moment}.{tool}").touch()
    assert host.run("down").returncode == -9
    assert host.run("down").returncode == 0 and host.state() == before


def test_a_device_that_somebody_else_took_meanwhile_is_not_detached(host: Host) -> None:
    """Between the look and nbd-client, which then fails: its connection is not ended by the undoing."""
    load_module(host)
    stub = host.home / "bin" / "nbd-client"
    pid = host.path("/sys/block/nbd0/pid")
    stub.write_text(f"#!/bin/sh\necho nbd-client $* >>{host.home}/calls\necho 99 >{pid}\nexit 1\n")
    result = host.run("up")
    assert result.returncode == 1 and "could not attach /dev/nbd0" in result.stderr
    assert host.calls() == [ATTACH] and pid.read_text() == "99\n"


def test_records_of_an_earlier_boot_are_no_records(host: Host) -> None:
    """Where /run is no tmpfs: what was set then is not set now."""
    host.run("up")
    load_module(host)
    host.write("/proc/swaps", "Filename Type Size Used Priority\n")
    host.write("/proc/sys/kernel/random/boot_id", "second\n")
    host.write("/proc/sys/vm/page-cluster", "0\n")  # as this boot's sysctl.conf has it
    host.calls()
    assert host.run("down").returncode == 0 and host.calls() == []
    assert host.read("/proc/sys/vm/page-cluster") == "0"


def test_partitions_are_warned_about(host: Host) -> None:
    load_module(host)
    host.write("/sys/module/nbd/parameters/max_part", "0\n")
    assert "max_part" not in host.run("up").stderr
    host.run("down")
    host.write("/sys/module/nbd/parameters/max_part", "16\n")
    result = host.run("up")
    assert result.returncode == 0 and "loaded with max_part=16" in result.stderr


def test_a_module_that_was_loaded_already_stays(host: Host) -> None:
    load_module(host)
    host.run("up")
    host.run("down")
    assert not [call for call in host.calls() if call.startswith("modprobe")]


def test_a_setting_that_somebody_else_changed_meanwhile_is_left_alone(host: Host) -> None:
    host.run("up")
    host.write("/proc/sys/vm/page-cluster", "5\n")
    result = host.run("down")
    assert result.returncode == 0 and "left as it is" in result.stderr
    assert host.read("/proc/sys/vm/page-cluster") == "5"
    assert host.read("/proc/sys/vm/min_free_kbytes") == "45056"


def test_if_swapoff_fails_everything_stays(host: Host) -> None:
    """Promise 10."""
    host.run("up")
    host.calls()
    before = host.state()
    host.fail("swapoff")
    result = host.run("down")
    assert result.returncode == 1 and "everything stays as it is" in result.stderr
    assert host.calls() == ["swapoff /dev/nbd0"] and host.state() == before
    host.mend("swapoff")
    assert host.run("down").returncode == 0


def test_a_killed_swapoff_may_have_done_its_work(host: Host) -> None:
    """What counts is whether the kernel still has it as swap."""
    host.run("up")
    (host.home / "swapoff-killed").touch()
    result = host.run("down")
    assert result.returncode == 0, result.stderr
    assert "nbd-client -d /dev/nbd0" in host.calls()


def test_down_wait_repeats_until_swapoff_succeeds(host: Host) -> None:
    host.run("up")
    host.calls()
    host.fail("swapoff", times=3)
    result = host.run("down", "--wait")
    assert result.returncode == 0, result.stderr
    assert host.calls().count("swapoff /dev/nbd0") == 4
    assert result.stderr.count("still swap: /dev/nbd0") == 3


def test_down_refuses_when_memory_cannot_take_it_back(host: Host) -> None:
    host.run("up")
    host.calls()
    swaps = host.read("/proc/swaps").replace("1048572 0", "1048572 1000000")
    host.write("/proc/swaps", swaps + "\n")
    host.write("/proc/meminfo", "MemTotal: 2000000 kB\nMemAvailable: 900000 kB\n")
    result = host.run("down")
    assert result.returncode == 1 and "976 MiB are in /dev/nbd0" in result.stderr
    assert host.calls() == []
    # 900000 KiB, half of min_free_kbytes (171612), and in other swap: 1000000 - 985806 = 14194 are wanted of it.
    host.write("/proc/swaps", f"{swaps}\n/dev/zram0 partition 28000 0 100\n")
    assert host.run("down").returncode == 1, "what zram takes stays in RAM, at half the size"
    host.write("/proc/swaps", f"{swaps}\n/dev/sda2 partition 20000 5807 -2\n")
    assert host.run("down").returncode == 1
    host.write("/proc/swaps", f"{swaps}\n/dev/sda2 partition 20000 5806 -2\n")
    assert host.run("down").returncode == 0


def test_a_failing_detach_is_said_and_the_settings_are_restored(host: Host) -> None:
    host.run("up")
    host.fail("nbd-client")
    result = host.run("down")
    assert result.returncode == 1 and "could not undo: connect /dev/nbd0" in result.stderr
    assert host.read("/proc/sys/vm/page-cluster") == "3"
    assert host.run("down").returncode == 1, "it stays on record"
    host.mend("nbd-client")
    host.calls()
    assert host.run("down").returncode == 0
    assert "nbd-client -d /dev/nbd0" in host.calls() and not host.path("/sys/block/nbd0/pid").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "scratch"}, "mode is scratch, not swap"),
        ({"state": "draining"}, "state is draining, not ready"),
        ({"state": "starting"}, "state is starting, not ready"),
    ],
)
def test_up_refuses_a_server_that_is_not_ready_for_swap(
    host: Host, changes: dict[str, str], words: str
) -> None:
    host.status(**changes)
    before = host.state()
    result = host.run("up")
    assert result.returncode == 1 and words in result.stderr
    assert host.calls() == [] and host.state() == before
    assert host.run("up", "--force").returncode == 0


def test_up_refuses_where_no_server_answers(host: Host) -> None:
    host.fail("curl")
    result = host.run("up")
    assert result.returncode == 1 and "does not answer on /run/vramblk/status.sock" in result.stderr
    assert host.calls() == []


def test_up_wait_waits_for_the_server(host: Host) -> None:
    host.fail("curl", times=2)
    assert host.run("up", "--wait", VRAMBLK_SWAP_TIMEOUT="30").returncode == 0


def test_no_socket_is_refused_even_by_force(host: Host) -> None:
    result = host.run("up", "--force", VRAMBLK_NBD_SOCKET="/run/vramblk/other.sock")
    assert result.returncode == 1 and "no Unix socket /run/vramblk/other.sock" in result.stderr
    assert host.calls() == []


def test_needs_root(host: Host) -> None:
    for command in ("up", "down"):
        result = host.run(command, STUB_UID="1000")
        assert result.returncode == 78 and f"sudo vramblk-swap {command}" in result.stderr
    assert host.calls() == []


def test_a_device_whose_server_died_is_never_used_again(host: Host) -> None:
    """A new server is empty: attached to live swap, the kernel would read zeros."""
    host.run("up")
    host.calls()
    host.path("/sys/block/nbd0/pid").unlink()
    for arguments in (("up",), ("up", "--force")):
        result = host.run(*arguments)
        assert (
            result.returncode == 1
            and "/dev/nbd0 is still in /proc/swaps but its server is gone" in result.stderr
        )
    shutil.rmtree(host.path("/run/vramblk-swap"))  # also when the records are lost
    result = host.run("up")
    assert (
        result.returncode == 1 and "/dev/nbd0 is still in /proc/swaps but its server is gone" in result.stderr
    )
    assert host.calls() == []


def test_a_server_without_its_supervisor_still_works(host: Host) -> None:
    """Another process with its pid is not the supervisor; but what is swapped out is not lost."""
    host.run("up")
    host.write("/proc/4242/stat", host.read("/proc/4242/stat").replace(" 22 ", " 99 ") + "\n")
    result = host.run("up")
    assert result.returncode == 1 and "is swap and works, but its server has lost its supervisor" in result.stderr
    assert json.loads(host.run("status", "--json").stdout)["swap"] == "orphaned"
    assert host.run("down").returncode == 0


def test_a_connection_that_is_gone_is_a_lost_device(host: Host) -> None:
    """The kernel goes on showing its pid, which may be another process's by now."""
    host.run("up")
    assert host.read("/sys/block/nbd0/pid") == "77"
    host.write("/proc/77/cmdline", "sleep\0/dev/nbd01\0")
    assert "its server is gone" in host.run("up", "--force").stderr
    assert json.loads(host.run("status", "--json").stdout)["swap"] == "lost"
    shutil.rmtree(host.path("/proc/77"))
    assert "its server is gone" in host.run("up", "--force").stderr


def test_a_pid_that_the_kernel_still_shows_is_no_server(host: Host) -> None:
    """Without records all that tells of a loss is that the process which attached the device is gone."""
    load_module(host)
    host.write("/proc/swaps", "Filename Type Size Used Priority\n/dev/nbd0 partition 100 50 200\n")
    host.write("/sys/block/nbd0/pid", "88\n")
    for arguments in (("up",), ("up", "--force")):
        result = host.run(*arguments)
        assert result.returncode == 1
        assert "/dev/nbd0 is still in /proc/swaps but its server is gone" in result.stderr
        assert "Type: sudo swapoff /dev/nbd0 " in result.stderr, "down has no record of it"
    assert host.calls() == []
    host.write("/proc/88/comm", "nbd-client\n")
    assert host.run("up").returncode == 0, "swap on another's NBD device, which lives"
    assert "swapon --priority 200 /dev/nbd1" in host.calls()


def test_a_worker_that_died_may_be_another_connections(host: Host) -> None:
    host.run("up")
    host.status(counters={"workers_lost": 1})
    assert host.run("up").returncode == 0 and host.run("status").returncode == 0


def test_named_device(host: Host) -> None:
    assert host.run("up", VRAMBLK_NBD_DEVICE="/dev/nbd1").returncode == 0
    assert "swapon --priority 200 /dev/nbd1" in host.calls()
    host.run("down")
    missing = host.run("up", VRAMBLK_NBD_DEVICE="/dev/nbd7")
    assert missing.returncode == 1
    assert "/dev/nbd7 (VRAMBLK_NBD_DEVICE) does not exist: there are 4 NBD devices" in missing.stderr


def test_a_named_device_in_use_is_refused_with_what_uses_it(host: Host) -> None:
    load_module(host)
    host.write("/sys/block/nbd1/pid", "99\n")
    host.write("/proc/99/comm", "nbd-client\n")
    attached = host.run("up", VRAMBLK_NBD_DEVICE="/dev/nbd1")
    assert (
        attached.returncode == 1
        and "attached to something else; type: nbd-client -c /dev/nbd1" in attached.stderr
    )
    host.write("/proc/swaps", "Filename Type Size Used Priority\n/dev/nbd1 partition 100 0 5\n")
    swap = host.run("up", VRAMBLK_NBD_DEVICE="/dev/nbd1")
    assert swap.returncode == 1 and "is swap already, and not of vramblk-swap" in swap.stderr
    assert host.calls() == []


def test_no_free_device_is_said(host: Host) -> None:
    load_module(host)
    for number in range(4):
        host.write(f"/sys/block/nbd{number}/pid", "99\n")
    result = host.run("up")
    assert result.returncode == 1 and "none of the 4 NBD devices is free" in result.stderr


def test_a_device_in_use_is_passed_over(host: Host) -> None:
    subprocess.run(
        [host.home / "make-devices"], env={"VRAMBLK_TEST_ROOT": str(host.root), "PATH": "/usr/bin:/bin"}
    )
    host.write("/sys/block/nbd0/size", "2048\n")
    host.run("up")
    assert "swapon --priority 200 /dev/nbd1" in host.calls()


def test_an_interrupted_up_is_undone_by_the_next(host: Host) -> None:
    host.run("up")
    swaps = host.path("/proc/swaps")
    swaps.write_text("Filename Type Size Used Priority\n")  # as if killed before swapon
    host.calls()
    result = host.run("up")
    assert result.returncode == 0 and "interrupted" in result.stderr
    calls = host.calls()
    assert calls[:2] == ["nbd-client -d /dev/nbd0", "modprobe -r nbd"]
    assert calls[2:] == [
        "modprobe nbd nbds_max=16 max_part=0",
        ATTACH,
        MKSWAP,
        "swapon --priority 200 /dev/nbd0",
    ]


def test_dry_run_prints_each_command_and_runs_none(host: Host) -> None:
    before = host.state()
    result = host.run("up", "--dry-run")
    assert result.returncode == 0 and host.calls() == [] and host.state() == before
    assert host.run("up", "--dry-run", STUB_UID="1000").stderr == result.stderr, "needs no root"
    for command in (
        "modprobe nbd",
        "oom_score_adj",
        ATTACH,
        "mkswap",
        "page-cluster",
        "watermark_boost_factor",
        "min_free_kbytes",
        "swap.max",
        "swapon",
    ):
        assert re.search(rf"^\+ .*{re.escape(command)}", result.stderr, re.M), command
    host.run("up")
    host.calls()
    before = host.state()
    result = host.run("down", "--dry-run")
    assert result.returncode == 0 and host.calls() == [] and host.state() == before
    printed = [line for line in result.stderr.splitlines() if line.startswith("+")]
    assert printed[0] == "+ swapoff /dev/nbd0" and printed[-1] == "+ modprobe -r nbd"
    assert "+ nbd-client -d /dev/nbd0" in printed and "+ echo 3 > /proc/sys/vm/page-cluster" in printed


def test_min_free_is_never_lowered_and_can_be_named_or_kept(host: Host) -> None:
    host.write("/proc/sys/vm/min_free_kbytes", "400000\n")
    host.run("up")
    assert host.read("/proc/sys/vm/min_free_kbytes") == "400000"
    host.run("down")
    host.run("up", VRAMBLK_MIN_FREE_KBYTES="500000")
    assert host.read("/proc/sys/vm/min_free_kbytes") == "500000"
    host.run("down")
    host.write("/proc/sys/vm/min_free_kbytes", "1000\n")
    host.run("up", VRAMBLK_MIN_FREE_KBYTES="keep")
    assert host.read("/proc/sys/vm/min_free_kbytes") == "1000"


@pytest.mark.parametrize(
    ("ram_mib", "locked_mib", "wanted"),
    [(160, 60, 16384), (64, 0, 8192), (16384, 0, 167772), (16384, 319, 177980), (131072, 400, 262144)],
)
def test_min_free_formula(host: Host, ram_mib: int, locked_mib: int, wanted: int) -> None:
    host.write("/proc/meminfo", f"MemTotal: {ram_mib * 1024} kB\nMemAvailable: 100 kB\n")
    host.write("/proc/sys/vm/min_free_kbytes", "1000\n")
    host.status(locked_bytes=locked_mib << 20)
    host.run("up")
    assert host.read("/proc/sys/vm/min_free_kbytes") == str(wanted)
    assert hostmemory.wanted_min_free_bytes(ram_mib << 20, locked_mib << 20) == wanted << 10


def test_script_and_server_have_one_formula_for_min_free(host: Host) -> None:
    """Or the server would go on warning of what the script has set."""
    lines = script_text().split("wanted_min_free() {", 1)[1].split("\n}", 1)[0]
    chance = random.Random(5)
    pairs = [
        (chance.randrange(1 << 16, 1 << chance.randrange(17, 31)), chance.randrange(1 << 33))
        for _ in range(300)
    ]
    calls = "\n".join(f"ram={ram}; wanted_min_free {locked}" for ram, locked in pairs)
    code = f"meminfo() {{ echo $ram; }}\nwanted_min_free() {{{lines}\n}}\n{calls}\n"
    found = subprocess.run(["sh", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [int(kib) << 10 for kib in found] == [
        hostmemory.wanted_min_free_bytes(ram << 10, locked) for ram, locked in pairs
    ]


def test_docker_dangers_are_named_and_strict_refuses(host: Host) -> None:
    result = host.run("up", "--strict")
    assert result.returncode == 1 and host.calls() == []
    for words in ("live-restore", "stop_grace_period", "unless-stopped"):
        assert words in result.stderr
    result = host.run("up", "--strict", **SAFE)
    assert result.returncode == 0 and "warning" not in result.stderr


@pytest.mark.parametrize(
    ("unit", "what", "remedy"),
    [
        ({"STUB_ENABLED": "disabled", "STUB_ACTIVE": "inactive"}, "is not active",
         "sudo make install-host, then sudo systemctl start vramblk-swap"),
        ({"STUB_ACTIVE": "inactive"}, "is not active", "sudo systemctl start vramblk-swap"),
        ({"STUB_ACTIVE": "failed"}, "is not active", "sudo systemctl start vramblk-swap"),
        ({"STUB_ACTIVE": "deactivating"}, "is not active", "sudo systemctl start vramblk-swap"),
        ({"STUB_REQUIRES": "sysinit.target"}, "does not require docker.service", "sudo make install-host"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("live_restore", ["false", "true"])
def test_a_unit_that_takes_no_swap_off_before_docker_is_warned_about(
    host: Host, unit: dict[str, str], what: str, remedy: str, live_restore: str
) -> None:
    """A restart of dockerd, or with live-restore only a shutdown, would end the server under live swap."""
    environment = {**SAFE, "STUB_LIVE_RESTORE": live_restore, **unit}
    result = host.run("up", "--strict", **environment)
    assert result.returncode == 1 and host.calls() == []
    (warning,) = [line for line in result.stderr.splitlines() if "warning" in line]
    assert ("a shutdown ends" if live_restore == "true" else "a restart of dockerd would end") in warning
    assert warning.endswith(f"vramblk-swap.service {what}; type: {remedy}")
    result = host.run("up", **environment)
    assert result.returncode == 0 and warning in result.stderr


@pytest.mark.parametrize("state", ["active", "activating"])
def test_a_unit_that_is_active_or_about_to_be_protects(host: Host, state: str) -> None:
    """Its own ExecStart calls `up` while it is activating."""
    result = host.run("up", "--strict", **{**SAFE, "STUB_ACTIVE": state})
    assert result.returncode == 0 and "warning" not in result.stderr


def test_a_server_whose_process_is_not_found_cannot_be_checked(host: Host) -> None:
    host.write("/proc/4242/comm", "another\n")
    result = host.run("up", "--strict", **SAFE)
    assert result.returncode == 1 and "the server's process is not found" in result.stderr
    assert host.calls() == []
    assert host.run("up", **SAFE).returncode == 0
    assert host.run("up", "--strict", **SAFE).returncode == 1, "it is as unknown when swap is on"


def test_strict_also_looks_where_swap_is_on_already(host: Host) -> None:
    assert host.run("up").returncode == 0
    host.calls()
    before = host.state()
    refused = host.run("up", "--strict", **{**SAFE, "STUB_ACTIVE": "inactive"})
    assert refused.returncode == 1 and "refused" in refused.stderr
    passed = host.run("up", "--strict", **SAFE)
    assert passed.returncode == 0 and "warning" not in passed.stderr
    assert host.calls() == [] and host.state() == before


def test_a_server_outside_docker_needs_no_docker(host: Host) -> None:
    host.write("/proc/4242/cgroup", "0::/system.slice/vramblk.service\n")
    host.write("/sys/fs/cgroup/system.slice/vramblk.service/memory.swap.max", "max\n")
    assert host.run("up", "--strict").returncode == 0
    assert host.read("/sys/fs/cgroup/system.slice/vramblk.service/memory.swap.max") == "0"


def test_under_systemd_nbd_client_gets_a_scope_of_its_own(host: Host) -> None:
    host.path("/run/systemd/system").mkdir(parents=True)
    host.run("up")
    scope, attach = host.calls()[1:3]
    assert scope.startswith("systemd-run --quiet --collect --scope --unit=vramblk-swap-nbd0-")
    assert "--property=DefaultDependencies=no" in scope and attach == ATTACH
    assert "--property=ManagedOOMPreference=omit" in scope


def test_an_older_systemd_gets_no_property_that_it_refuses(host: Host) -> None:
    host.path("/run/systemd/system").mkdir(parents=True)
    host.run("up", STUB_SYSTEMD="245")
    scope = host.calls()[1]
    assert scope.startswith("systemd-run ") and "ManagedOOMPreference" not in scope


def test_at_boot_the_stopped_container_is_started(host: Host) -> None:
    """Docker leaves it alone, since it must not come back at any other time."""
    host.fail("curl")
    started = {"STUB_STOPPED": "aabbcc", "VRAMBLK_SWAP_TIMEOUT": "30"}
    assert host.run("up", "--wait", VRAMBLK_SWAP_TIMEOUT="1", STUB_STOPPED="aabbcc").returncode == 1
    assert host.calls() == []
    assert (
        host.run("up", "--wait", "--start", STUB_ENV="VRAMBLK_MODE=scratch", STUB_STOPPED="aabbcc").returncode
        == 1
    )
    assert host.run("up", "--wait", "--start", STUB_STOPPED="aabbcc ddeeff").returncode == 1
    assert host.calls() == []
    result = host.run("up", "--wait", "--start", **started)
    assert result.returncode == 0, result.stderr
    assert host.calls()[0] == "docker start aabbcc"


def test_no_container_is_started_in_the_place_of_a_lost_server(host: Host) -> None:
    host.run("up")
    host.path("/sys/block/nbd0/pid").unlink()
    host.fail("curl")
    host.calls()
    assert host.run("up", "--wait", "--start", STUB_STOPPED="aabbcc").returncode == 1
    assert host.calls() == []


def test_status(host: Host) -> None:
    off = host.run("status")
    assert off.returncode == 3 and "swap      off" in off.stdout
    host.run("up")
    on = host.run("status")
    assert on.returncode == 0 and "/dev/nbd0" in on.stdout and "1023 MiB" in on.stdout
    answer = json.loads(host.run("status", "--json").stdout)
    assert answer["swap"] == "on" and answer["device"] == "/dev/nbd0" and answer["priority"] == 200
    assert answer["size_bytes"] == 1048572 * 1024 and answer["used_bytes"] == 0
    assert answer["server"] == {"state": "ready", "mode": "swap", "pid": 4242, "locked_bytes": 120 << 20}
    assert {"path": "/proc/sys/vm/page-cluster", "value": "0", "was": "3"} in answer["changed"]
    host.path("/sys/block/nbd0/pid").unlink()
    lost = host.run("status")
    assert lost.returncode == 1 and "lost" in lost.stdout


def test_sleep_takes_swap_off_and_wake_puts_it_back(host: Host) -> None:
    """Promise 20, the script's part."""
    assert host.run("sleep").returncode == 0 and host.run("wake").returncode == 0
    assert host.calls() == []
    host.run("up")
    host.calls()
    host.fail("swapoff")
    assert host.run("sleep").returncode == 1, "a sleep under live swap must fail"
    host.mend("swapoff")
    assert host.run("sleep").returncode == 0
    assert host.calls()[-2:] == ["nbd-client -d /dev/nbd0", "modprobe -r nbd"]
    assert host.run("wake").returncode == 0
    assert host.calls()[-1] == "swapon --priority 200 /dev/nbd0"
    assert host.run("wake").returncode == 0 and host.calls() == []


def test_a_sleep_that_failed_is_not_remembered(host: Host) -> None:
    host.run("up")
    host.fail("swapoff")
    assert host.run("sleep").returncode == 1
    host.mend("swapoff")
    host.run("down")
    host.calls()
    assert host.run("wake").returncode == 0 and host.calls() == [], "swap was off before"


def test_swap_comes_back_after_a_sleep_that_left_something_undone(host: Host) -> None:
    host.run("up")
    host.fail("nbd-client", times=1)
    assert host.run("sleep").returncode == 1
    assert host.run("wake").returncode == 0
    assert "/dev/nbd0" in host.read("/proc/swaps")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VRAMBLK_SWAP_PRIORITY", "high"), ("VRAMBLK_SWAP_PRIORITY", "40000"), ("VRAMBLK_SWAP_TIMEOUT", "0"),
        ("VRAMBLK_MIN_FREE_KBYTES", "-1"), ("VRAMBLK_NBD_DEVICE", "/dev/sda"), ("VRAMBLK_NBD_DEVICE", "/dev/nbd0p1"),
        ("VRAMBLK_NBD_SOCKET", "run/x"), ("VRAMBLK_NBD_DEVICE", "nbd0"), ("VRAMBLK_NBD_DEVICE", "/dev/nbd"),
        ("VRAMBLK_SWAP_PRIORITY", "-1"), ("VRAMBLK_SWAP_PRIORITY", "7 8"), ("VRAMBLK_MIN_FREE_KBYTES", "16M"), ("VRAMBLK_SWAP_LABEL", "much-too-long-a-label"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named(host: Host, name: str, value: str) -> None:
    result = host.run("up", **{name: value})
    assert result.returncode == 2 and f"{name}={value}: allowed" in result.stderr and host.calls() == []


def test_a_device_as_an_argument_is_told_where_it_belongs(host: Host) -> None:
    result = host.run("up", "/dev/nbd3")
    assert result.returncode == 2 and "VRAMBLK_NBD_DEVICE=/dev/nbd3 vramblk-swap up" in result.stderr


def test_a_status_socket_that_is_off_is_named(host: Host) -> None:
    result = host.run("up", VRAMBLK_STATUS_SOCKET="off")
    assert result.returncode == 1 and "VRAMBLK_STATUS_SOCKET=off" in result.stderr
    assert host.run("up", "--force", VRAMBLK_STATUS_SOCKET="off").returncode == 0


def test_the_socket_may_be_written_as_the_server_has_it(host: Host) -> None:
    assert host.run("up", VRAMBLK_NBD_SOCKET="unix:/run/vramblk/nbd.sock").returncode == 0
    assert ATTACH in host.calls()


def test_a_precondition_that_does_not_hold_is_said(host: Host) -> None:
    missing = {
        "name": "io_flusher",
        "ok": False,
        "detail": "not in engine",
        "remedy": "grant CAP_SYS_RESOURCE",
    }
    later = {"name": "min_free", "ok": False, "detail": "too small", "remedy": "vramblk-swap up does it"}
    host.status(swap_preconditions=[later, missing])
    warnings = [
        line for line in host.run("up").stderr.splitlines() if "precondition" in line or "not in" in line
    ]
    assert warnings == ["vramblk-swap: warning: io_flusher: not in engine; grant CAP_SYS_RESOURCE"]


@pytest.mark.parametrize("arguments", [(), ("sideways",), ("up", "--quick"), ("up", "--json")])
def test_bad_usage(host: Host, arguments: tuple[str, ...]) -> None:
    assert host.run(*arguments).returncode == 2 and host.calls() == []


def test_settings_file_is_read_but_never_executed(host: Host) -> None:
    host.write(
        "/etc/default/vramblk",
        f'# comment\nVRAMBLK_SWAP_PRIORITY="7"\nVRAMBLK_SWAP_LABEL=$(touch {host.root}/x)\n'
        f"touch {host.root}/y\nVRAMBLK_EXPORT_NAME='fast one'",
    )
    result = host.run("up", VRAMBLK_SWAP_LABEL="mine")
    assert result.returncode == 0, result.stderr
    calls = host.calls()
    assert (
        "swapon --priority 7 /dev/nbd0" in calls
        and "-name fast one " in calls[1]
        and "--label mine" in calls[2]
    )
    assert not host.path("/x").exists() and not host.path("/y").exists()


def test_settings_file_as_people_write_it(host: Host) -> None:
    """Blanks, the line ends of another system, and a shell's export."""
    host.write(
        "/etc/default/vramblk",
        "  VRAMBLK_SWAP_PRIORITY=7  \r\nexport VRAMBLK_SWAP_LABEL='my swap'\t\n#VRAMBLK_SWAP_LABEL=no\nOTHER=1\n",
    )
    result = host.run("up")
    assert result.returncode == 0, result.stderr
    calls = host.calls()
    assert "swapon --priority 7 /dev/nbd0" in calls and "--label my swap " in calls[2]


def test_an_unknown_variable_is_a_warning_with_the_nearest_name(host: Host) -> None:
    result = host.run("status", VRAMBLK_SWAP_PRIORTY="3", VRAMBLK_SIZE="1G", VRAMBLK_METRICS_TOKEN_FILE="/x")
    warnings = [line for line in result.stderr.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "VRAMBLK_SWAP_PRIORTY" in warnings[0] and warnings[0].endswith("VRAMBLK_SWAP_PRIORITY")
    result = host.run("status", VRAMBLK_FROBNICATION="3")
    assert result.stderr.splitlines()[0].endswith("nothing reads VRAMBLK_FROBNICATION")


def test_the_docs_list_everything_that_up_writes() -> None:
    """Files below /proc and /sys; the list of docs/swap.md is what operators check a machine against."""
    written = re.findall(r"(?:change|write_value) \"?(/\S+?)\"? ", script_text().replace("PID of nbd-client", "PID"))
    written += re.findall(r'change "\$block/queue/(\w+)"', script_text())
    names = {path.rpartition("/")[2] for path in written}
    assert {"oom_score_adj", "min_free_kbytes", "memory.swap.max", "read_ahead_kb"} <= names
    text = (SCRIPT.parents[1] / "docs" / "swap.md").read_text()
    listed = text.partition("## What `up` changes")[2].partition("### ")[0]
    assert [name for name in names if name not in listed] == []


def test_the_script_knows_the_servers_names() -> None:
    lists = re.findall(r"^(?:own|server|other)_names='([^']*)'", script_text(), re.M)
    known = {f"VRAMBLK_{name}" for text in lists for name in text.split()}
    wanted = {f"VRAMBLK_{option.name.upper()}" for option in options.OPTIONS}
    wanted |= {variable.name for variable in FOREIGN_VARIABLES if variable.user != "tests"}
    assert known == wanted


def test_other_shells_read_it_too() -> None:
    for shell in ("sh -n", "bash -n", "busybox sh -n"):
        if shutil.which(shell.split()[0]) is not None:
            for path in (SCRIPT, *LIBRARY.iterdir()):
                subprocess.run([*shell.split(), str(path)], check=True)


def test_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", str(SCRIPT), *map(str, LIBRARY.iterdir())], check=True)


def test_without_a_record_nothing_is_changed(host: Host) -> None:
    """/run is full: what is not on record would never be undone."""
    host.path("/run/vramblk-swap").mkdir(parents=True)
    host.path("/run/vramblk-swap/records").symlink_to("/dev/full")
    result = host.run("up")
    assert result.returncode == 1 and "cannot write" in result.stderr, result.stderr
    assert host.calls() == []


def test_auto_refuses_a_dry_run(host: Host) -> None:
    """It would release for real."""
    result = host.run("auto", "--dry-run")
    assert result.returncode == 2 and "--dry-run" in result.stderr


@pytest.mark.parametrize(
    "theirs", ["nbd-client\0disks.example\0/dev/nbd0\0", "qemu-nbd\0--connect=/dev/nbd0\0home.img\0"]
)
def test_down_does_not_detach_what_somebody_else_attached_since_up_was_killed(
    host: Host, theirs: str
) -> None:
    """The record is older than the connection that it stands for."""
    (host.home / "kill-before.nbd-client").touch()
    assert host.run("up").returncode == -9
    host.write("/sys/block/nbd0/pid", "900\n")
    host.write("/proc/900/cmdline", theirs)
    host.calls()
    result = host.run("down")
    assert result.returncode == 0 and "attached to something else" in result.stderr, result.stderr
    assert DETACH not in host.calls() and host.read("/sys/block/nbd0/pid") == "900"
