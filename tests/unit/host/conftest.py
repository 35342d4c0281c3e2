"""host/vramblk-swap with a machine of files and a PATH of stubs: each call is recorded and can be made to fail."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vramblk.observer import flat

SCRIPT = Path(__file__).resolve().parents[3] / "host" / "vramblk-swap"
LIBRARY = SCRIPT.parent / "lib"


def script_text() -> str:
    """The script and its parts as one text."""
    return "".join(path.read_text() for path in (SCRIPT, *sorted(LIBRARY.glob("*.sh"))))


_STUB = r"""#!/bin/sh
name=${0##*/}
echo "$name $*" >>"$STUB_HOME/calls"
t=$VRAMBLK_TEST_ROOT
if [ -e "$STUB_HOME/fail.$name" ]; then
    left=$(cat "$STUB_HOME/fail.$name")
    [ "${left:-0}" -eq 1 ] && rm "$STUB_HOME/fail.$name"
    [ "${left:-0}" -gt 1 ] && echo $((left - 1)) >"$STUB_HOME/fail.$name"
    echo "$name: told to fail" >&2
    exit 1
fi
if [ -e "$STUB_HOME/kill-before.$name" ]; then rm "$STUB_HOME/kill-before.$name"; kill -9 "$PPID"; exit 1; fi
if [ -e "$STUB_HOME/signal.$name" ]; then kill "-$(cat "$STUB_HOME/signal.$name")" "$PPID"; rm "$STUB_HOME/signal.$name"; fi
trap '[ ! -e "$STUB_HOME/kill-after.$name" ] || { rm "$STUB_HOME/kill-after.$name"; kill -9 "$PPID"; }' EXIT
case $name in
id) echo "${STUB_UID:-0}" ;;
modprobe)
    case $1 in
    -r)
        if cat "$t"/sys/block/nbd*/pid >/dev/null 2>&1; then echo 'nbd is in use' >&2; exit 1; fi
        rm -rf "$t/sys/module/nbd" "$t"/sys/block/nbd? ;;
    nbd) "$STUB_HOME/make-devices" ;;
    esac ;;
nbd-client)
    case $1 in
    -d) rm -rf "$t/sys/block/${2#/dev/}/pid" "$t/proc/$((77 + ${2#/dev/nbd}))"; echo 0 >"$t/sys/block/${2#/dev/}/size" ;;
    *)
        if [ -e "$STUB_HOME/refused" ] && grep -qx -- "$5" "$STUB_HOME/refused"; then
            echo 'nbd-client: the export needs 1 GiB more memory' >&2
            exit 1
        fi
        pid=$((77 + ${3#/dev/nbd}))
        echo "$pid" >"$t/sys/block/${3#/dev/}/pid"
        mkdir -p "$t/proc/$pid"
        printf '%s\0' @bd-client "$@" >"$t/proc/$pid/cmdline"
        echo "Uid: 0 0 0 0" >"$t/proc/$pid/status"
        [ ! -e "$STUB_HOME/no-oom-score" ] || mkdir "$t/proc/$pid/oom_score_adj"
        [ -e "$STUB_HOME/no-size" ] || echo 2097152 >"$t/sys/block/${3#/dev/}/size" ;;
    esac ;;
swapon)
    [ -e "$STUB_HOME/swapon-lies" ] || echo "$3 partition 1048572 0 $2" >>"$t/proc/swaps" ;;
swapoff)
    sed -i "\#^$1 #d" "$t/proc/swaps"
    [ ! -e "$STUB_HOME/swapoff-killed" ] || exit 137 ;;
curl) cat "$STUB_HOME/status.env" ;;
systemd-run)
    while [ "$1" != -- ]; do shift; done
    shift
    exec "$@" ;;
systemctl)
    case $* in
    --version) echo "systemd ${STUB_SYSTEMD:-252} (252.39)" ;;
    'is-enabled vramblk-swap.service') echo "${STUB_ENABLED:-disabled}"; [ "${STUB_ENABLED:-}" = enabled ] ;;
    'is-active vramblk-swap.service') echo "${STUB_ACTIVE:-inactive}"; [ "${STUB_ACTIVE:-}" = active ] ;;
    'show --property=Requires vramblk-swap.service') echo "Requires=${STUB_REQUIRES:-sysinit.target docker.service}" ;;
    *) echo "the stub knows no systemctl $*" >&2; exit 99 ;;
    esac ;;
docker)
    case $* in
    *LiveRestore*) echo "${STUB_LIVE_RESTORE:-false}" ;;
    *StopTimeout*) echo "${STUB_GRACE:-10}" ;;
    'ps '*) echo "${STUB_STOPPED:-}" ;;
    *Config.Env*) echo PATH=/bin; echo "${STUB_ENV:-VRAMBLK_MODE=swap}" ;;
    'start '*) rm -f "$STUB_HOME/fail.curl" ;;
    *RestartPolicy*) echo "${STUB_RESTART:-unless-stopped}" ;;
    esac ;;
timeout)
    while case $1 in -k) shift ;; -* | [0-9]*) ;; *) break ;; esac; do shift; done
    exec "$@" ;;
mdadm)
    md=$t/sys/block/${2#/dev/}/md
    case $* in
    --build*)
        mkdir -p "$md/dev-${7#/dev/}" "$md/dev-${9#/dev/}" "$md/../queue"
        echo in_sync >"$md/dev-${7#/dev/}/state"
        echo in_sync,write_mostly >"$md/dev-${9#/dev/}/state"
        echo 128 >"$md/../queue/read_ahead_kb"
        echo 2097152 >"$md/../size"
        echo idle >"$md/sync_action" ;;
    --stop*) rm -rf "$t/sys/block/${2#/dev/}" ;;
    *' --add '*)
        md=$t/sys/block/${1#/dev/}/md
        mkdir "$md/dev-${3#/dev/}"
        echo spare >"$md/dev-${3#/dev/}/state"
        echo '524288 / 2097152' >"$md/sync_completed" ;;
    esac ;;
wipefs)
    case $* in
    *--no-act*) [ ! -e "$STUB_HOME/busy" ] ;;
    *--all*) [ -e "$STUB_HOME/stubborn" ] || rm -f "$STUB_HOME/signatures" ;;
    *) cat "$STUB_HOME/signatures" 2>/dev/null || exit 0 ;;
    esac ;;
mkswap) case $5 in /dev/md*) echo "0xff6,$4,$2,swap" >"$STUB_HOME/signatures" ;; esac ;;
sleep) # the kernel has time to remove what was failed
    for each in "$t"/sys/block/md*/md/dev-*/state; do
        [ "$(cat "$each" 2>/dev/null)" != remove ] || rm -r "${each%/state}"
    done
    for each in "$t"/sys/block/md*/md/dev-nbd*/state; do
        action=${each%/dev-*}/sync_action
        [ "$(cat "$each" 2>/dev/null)" = spare ] || continue
        case $(cat "$action") in
        idle) [ -e "$STUB_HOME/no-recovery" ] || echo recover >"$action" ;;
        recover)
            echo in_sync >"$each"
            echo idle >"$action"
            [ ! -e "$STUB_HOME/dies-meanwhile" ] || echo faulty >"$each" ;;
        esac
    done
    exit 0 ;;
esac
"""
_DEVICES = r"""#!/bin/sh
t=$VRAMBLK_TEST_ROOT
mkdir -p "$t/sys/module/nbd"
for n in 0 1 2 3; do
    mkdir -p "$t/sys/block/nbd$n/queue"
    echo 0 >"$t/sys/block/nbd$n/size"
    echo 128 >"$t/sys/block/nbd$n/queue/read_ahead_kb"
    echo "none [mq-deadline] kyber" >"$t/sys/block/nbd$n/queue/scheduler"
done
"""
_STUBS = (
    "id", "modprobe", "nbd-client", "mkswap", "swapon", "swapoff", "curl", "systemctl", "systemd-run", "docker",
    "sleep", "flock", "timeout", "mdadm", "wipefs",
)  # fmt: skip

MEGABYTE_KIB = 1024
GPU = "0000:01:00.0"


@dataclass
class Host:
    """A machine of files below ``root``; ``home`` holds the stubs and what they recorded."""

    root: Path
    home: Path

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def write(self, name: str, text: str) -> None:
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_text(text)

    def read(self, name: str) -> str:
        return self.path(name).read_text().strip()

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the script; nothing of this machine's own settings reaches it."""
        return subprocess.run(
            [shutil.which("sh") or "/bin/sh", str(SCRIPT), *arguments],
            # A shell cannot trap what was ignored when it started, as for jobs in the background and under nohup.
            preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in (signal.SIGINT, signal.SIGHUP)],
            env={
                "PATH": f"{self.home}/bin:{os.environ['PATH']}",
                "VRAMBLK_TEST_ROOT": str(self.root),
                "STUB_HOME": str(self.home),
                "VRAMBLK_SWAP_TIMEOUT": "1",
                **environment,
            },
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def fail(self, tool: str, times: int = 1_000) -> None:
        (self.home / f"fail.{tool}").write_text(f"{times}\n")

    def mend(self, tool: str) -> None:
        (self.home / f"fail.{tool}").unlink()

    def calls(self, *without: str) -> list[str]:
        """What was called since the last time, without looking."""
        log = self.home / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        looks = ("id ", "curl ", "sleep ", "flock ", "timeout ", "docker i", "docker p", "systemctl ", *without)
        return [line for line in lines if not line.startswith(looks)]

    def status(self, **changes: object) -> None:
        """What the server answers, by its own code."""
        answer: dict[str, Any] = {
            "state": "ready", "mode": "swap", "pid": 1, "locked_bytes": 120 << 20, "swap_preconditions": [], "gpus": [],
            "exports": ["vram"], **changes,
        }  # fmt: skip
        answer["exports"] = [
            {
                "name": "", "mode": "swap", "size_bytes": 1 << 30, "read_only": False, "held": False,
                "missing_bytes": None, "written_bytes": 0, "device": {"pci": GPU},
                **({"name": each} if isinstance(each, str) else each),
            }
            for each in answer["exports"]
        ]  # fmt: skip
        (self.home / "status.env").write_text(flat.lines(answer))

    def state(self) -> dict[str, str]:
        """Every file of the machine, apart from the lock."""
        return {
            str(path.relative_to(self.root)): path.read_text()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and path.name not in ("lock", "boot", "output") and "4242" not in path.parts
        }


@pytest.fixture
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="vs-") as directory:
        host = Host(Path(directory) / "r", Path(directory) / "h")
        (host.home / "bin").mkdir(parents=True)
        for name in _STUBS:
            stub = host.home / "bin" / name
            stub.write_text(_STUB)
            stub.chmod(0o755)
        (host.home / "make-devices").write_text(_DEVICES)
        (host.home / "make-devices").chmod(0o755)
        host.write("/proc/swaps", "Filename Type Size Used Priority\n")
        host.write(
            "/proc/meminfo", f"MemTotal: {16384 * MEGABYTE_KIB} kB\nMemAvailable: {8192 * MEGABYTE_KIB} kB\n"
        )
        host.write("/proc/sys/vm/min_free_kbytes", "45056\n")
        host.write("/proc/sys/vm/page-cluster", "3\n")
        host.write("/proc/sys/vm/watermark_boost_factor", "15000\n")
        host.write("/proc/sys/kernel/random/boot_id", "first\n")
        host.write("/proc/sys/kernel/random/uuid", "11111111-2222-3333-4444-555555555555\n")
        host.write("/proc/4242/comm", "vramblk-supervi\n")
        owner = "\t".join([str(os.getuid())] * 4)
        host.write("/proc/4242/status", f"Name:\tvramblk-supervi\nUid:\t{owner}\nNSpid:\t4242\t1\n")
        host.path("/proc/4242/fd").mkdir()
        host.path("/proc/4242/fd/3").symlink_to("socket:[99]")
        host.write(
            "/proc/4242/net/unix",
            "Num RefCount Protocol Flags Type St Inode Path\n"
            "00000000f807b4b6: 00000002 00000000 00010000 0001 01 99 /run/vramblk/nbd.sock\n",
        )
        host.write(
            "/proc/4242/stat", f"4242 (vramblk-supervi) S 1 {' '.join(str(n) for n in range(5, 53))}\n"
        )
        host.write("/proc/4242/cgroup", f"0::/system.slice/docker-{'ab' * 32}.scope\n")
        host.path("/proc/4242/root").symlink_to(host.root)
        cgroup = f"/sys/fs/cgroup/system.slice/docker-{'ab' * 32}.scope"
        host.write(f"{cgroup}/memory.swap.max", "max\n")
        host.path("/run/vramblk").mkdir(parents=True)
        host.status()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(host.path("/run/vramblk/nbd.sock")))
            host.path("/run/vramblk/nbd.sock").chmod(0o600)
            yield host
