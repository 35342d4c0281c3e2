"""vramblk-swap yield: VRAM for a command, as root and as a user who may do only that."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from . import conftest
from .conftest import SCRIPT, Host


@pytest.fixture
def sliced(host: Host) -> Host:
    host.status(exports=["vram-0", "vram-1"])
    assert host.run("up").returncode == 0
    (host.home / "bin" / "sleep").unlink()
    (host.home / "bin" / "flock").unlink()
    host.calls()
    return host


def swaps(host: Host) -> int:
    return len(host.read("/proc/swaps").splitlines()) - 1


def environment(host: Host) -> dict[str, str]:
    return {
        "PATH": f"{host.home}/bin:{os.environ['PATH']}", "VRAMBLK_TEST_ROOT": str(host.root),
        "STUB_HOME": str(host.home), "VRAMBLK_SWAP_TIMEOUT": "1", "XDG_RUNTIME_DIR": str(host.home),
    }  # fmt: skip


def start(host: Host, *command: str, **changes: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["sh", SCRIPT, "yield", "--", *command], env=environment(host) | changes, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in (signal.SIGINT, signal.SIGHUP)],
    )  # fmt: skip


def until(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(("command", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill $$", 143)])
def test_the_command_has_the_vram_and_its_status_is_the_exit_status(sliced: Host, command: str, status: int) -> None:
    done = sliced.run("yield", "--", "sh", "-c", f'cat "$VRAMBLK_TEST_ROOT/proc/swaps"; {command}')
    assert done.returncode == status, done.stderr
    assert done.stdout.splitlines() == ["Filename Type Size Used Priority"] and swaps(sliced) == 2


def test_a_command_that_does_not_exist(sliced: Host) -> None:
    assert sliced.run("yield", "--", "/no/such/command").returncode == 127 and swaps(sliced) == 2


def test_without_swap_the_command_just_runs(sliced: Host) -> None:
    sliced.run("down")
    sliced.calls()
    done = sliced.run("yield", "--", "sh", "-c", "exit 3")
    assert done.returncode == 3 and sliced.calls() == []


def test_its_input_and_arguments_are_its_own(sliced: Host) -> None:
    yielding = start(sliced, "sh", "-c", 'cat; echo "$# $1 $2"', "x", "a  b", "--json")
    out, _ = yielding.communicate("words\n", timeout=60)
    assert out == "words\n2 a  b --json\n" and yielding.returncode == 0


@pytest.mark.parametrize(("name", "status"), [("TERM", 143), ("HUP", 129)])
def test_a_signal_reaches_the_command_and_the_vram_comes_back(sliced: Host, name: str, status: int) -> None:
    running = sliced.home / "running"
    yielding = start(sliced, "sh", "-c", f": >{running}; exec sleep 1000")
    until(running)
    yielding.send_signal(getattr(signal, f"SIG{name}"))
    _, errors = yielding.communicate(timeout=60)
    assert yielding.returncode == status, errors
    assert swaps(sliced) == 2


@pytest.mark.parametrize(("name", "status"), [("TERM", 143), ("HUP", 129)])
def test_a_signal_during_the_release_starts_no_command_and_takes_back(sliced: Host, name: str, status: int) -> None:
    stub = sliced.home / "bin" / "swapoff"
    stub.write_text(stub.read_text().replace("name=", ': >"$STUB_HOME/releasing"; sleep 1\nname=', 1))
    yielding = start(sliced, "touch", str(sliced.home / "ran"))
    until(sliced.home / "releasing")
    yielding.send_signal(getattr(signal, f"SIG{name}"))
    _, errors = yielding.communicate(timeout=60)
    assert yielding.returncode == status, errors
    assert swaps(sliced) == 2 and not (sliced.home / "ran").exists()


def test_ctrl_c_ends_the_command_and_not_the_taking_back(sliced: Host) -> None:
    """The terminal sends it to the whole group."""
    running = sliced.home / "running"
    yielding = start(sliced, "sh", "-c", f": >{running}; exec sleep 1000")
    until(running)
    os.killpg(yielding.pid, signal.SIGINT)
    _, errors = yielding.communicate(timeout=60)
    assert yielding.returncode == 130, errors
    assert swaps(sliced) == 2


def test_a_command_that_outlives_a_signal_is_waited_for(sliced: Host) -> None:
    running = sliced.home / "running"
    yielding = start(sliced, "sh", "-c", f"trap 'exit 5' TERM; : >{running}; while :; do sleep 0.1; done")
    until(running)
    yielding.terminate()
    assert yielding.wait(60) == 5 and swaps(sliced) == 2


def test_the_last_of_several_takes_back(sliced: Host) -> None:
    running = sliced.home / "running"
    first = start(sliced, "sh", "-c", f": >{running}; read line")
    until(running)
    second = start(sliced, "true")
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 0 and "another yield goes on" in errors and swaps(sliced) == 0
    first.communicate("\n", timeout=60)
    assert first.returncode == 0 and swaps(sliced) == 2


def test_what_stays_behind_holds_no_lock(sliced: Host) -> None:
    """nbd-client does: a lock that it had inherited would be held until swap is off."""
    stub = sliced.home / "bin" / "nbd-client"
    stub.write_text(stub.read_text().replace("name=", 'ls -l "/proc/$$/fd" >>"$STUB_HOME/open"\nname=', 1))
    assert sliced.run("yield", "--", "true").returncode == 0
    held = (sliced.home / "open").read_text()
    assert "-> " in held and "yields" not in held and "private/lock" not in held


def test_what_cannot_be_released_does_not_keep_the_command_from_running(sliced: Host) -> None:
    sliced.fail("swapoff", times=1)
    done = sliced.run("yield", "--", "sh", "-c", "exit 4")
    assert done.returncode == 4 and "warning: not all VRAM was released" in done.stderr and swaps(sliced) == 2


def test_a_vram_that_does_not_come_back_is_said_and_the_status_stays(sliced: Host) -> None:
    (sliced.home / "refused").write_text("vram-0\nvram-1\n")
    done = sliced.run("yield", "--", "sh", "-c", "exit 6")
    assert done.returncode == 6 and "to try again: sudo vramblk-swap take all" in done.stderr


def test_a_user_runs_the_command_as_himself_and_only_two_as_root(sliced: Host) -> None:
    """Through sudo, or where that allows nothing through pkexec; whatever runs as root is what the examples allow."""
    for tool, allowed in (("sudo", True), ("pkexec", False)):
        for name in ("sudo", "pkexec"):
            stub = sliced.home / "bin" / name
            stub.write_text(
                "#!/bin/sh\n"
                f'case "{name} $*" in sudo\\ -n\\ -l*) exit {int(not allowed)} ;; esac\n'
                f'echo "{name} $*" >>"$STUB_HOME/rights"\n'
                '[ "$1" != -n ] || shift\nSTUB_UID=0 exec "$@"\n'
            )
            stub.chmod(0o755)
        done = sliced.run("yield", "--", "sh", "-c", 'echo "uid $STUB_UID"', STUB_UID="1000")
        assert done.returncode == 0 and done.stdout == "uid 1000\n", done.stderr
        rights = sliced.home / "rights"
        prefix = "sudo -n" if tool == "sudo" else "pkexec"
        assert rights.read_text().splitlines() == [f"{prefix} {SCRIPT} {words} all" for words in ("release", "take")]
        rights.unlink()
        assert swaps(sliced) == 2


def test_a_user_without_rights_is_told_what_gives_them(sliced: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = sliced.home / "host" / "vramblk-swap"
    shutil.copytree(SCRIPT.parent, copy.parent)
    # Without the system's own directories, where sudo and pkexec may be.
    copy.write_text(copy.read_text().replace("}:/usr/sbin:/usr/bin:/sbin:/bin\n", "}\n"))
    monkeypatch.setattr(conftest, "SCRIPT", copy)
    tools = sliced.home / "only"
    tools.mkdir()
    for tool in ("sh", "env", "sed", "sort", "awk", "tr", "readlink", "flock", "true"):
        (tools / tool).symlink_to(shutil.which(tool) or "/bin/false")
    done = sliced.run("yield", "--", "sh", "-c", "exit 2", STUB_UID="1000", PATH=f"{sliced.home}/bin:{tools}")
    assert done.returncode == 2 and "docs/swap.md has a line for sudoers" in done.stderr and swaps(sliced) == 2


def test_dry_run_prints_all_of_it(sliced: Host) -> None:
    done = sliced.run("yield", "--dry-run", "--", "touch", "x", STUB_UID="1000")
    assert done.returncode == 0 and sliced.calls() == []
    printed = [line for line in done.stderr.splitlines() if line.startswith("+")]
    assert "+ swapoff /dev/nbd0" in printed and "+ touch x" in printed


@pytest.mark.parametrize("arguments", [(), ("--",), ("true",)])
def test_yield_without_a_command(sliced: Host, arguments: tuple[str, ...]) -> None:
    assert sliced.run("yield", *arguments).returncode == 2 and sliced.calls() == []
