"""host/install.sh and the systemd units: what is installed, that it is all removed, and the lines that matter."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HOST = Path(__file__).resolve().parents[3] / "host"


def install(directory: Path, command: str, prefix: str = "/usr/local") -> None:
    environment = {"SERVER_UNIT": "", **os.environ, "DESTDIR": str(directory), "PREFIX": prefix}
    subprocess.run([HOST / "install.sh", command], env=environment, check=True, capture_output=True)


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def lines(directory: Path, unit: str) -> list[str]:
    return (directory / "etc/systemd/system" / unit).read_text().splitlines()


def test_install_and_its_undo(tmp_path: Path) -> None:
    install(tmp_path, "install")
    assert files(tmp_path) == {
        "usr/local/sbin/vramblk-swap",
        *(f"usr/local/lib/vramblk-swap/{path.name}" for path in (HOST / "lib").iterdir()),
        "usr/local/share/man/man8/vramblk-swap.8",
        "etc/default/vramblk",
        "etc/systemd/system/vramblk-swap.service",
        "etc/systemd/system/vramblk-swap-sleep.service",
        "etc/systemd/system/vramblk-swap-auto.service",
        "usr/local/share/doc/vramblk-swap/vramblk-swap.sudoers",
        "usr/local/share/doc/vramblk-swap/50-vramblk-swap.rules",
    }
    assert os.access(tmp_path / "usr/local/sbin/vramblk-swap", os.X_OK)
    script = tmp_path / "usr/local/sbin/vramblk-swap"
    assert "usage: vramblk-swap" in subprocess.run([script, "--help"], capture_output=True, text=True).stdout
    (tmp_path / "usr/local/lib/vramblk-swap/of-an-earlier-version.sh").touch()
    install(tmp_path, "install")
    assert not (tmp_path / "usr/local/lib/vramblk-swap/of-an-earlier-version.sh").exists()
    install(tmp_path, "uninstall")
    assert files(tmp_path) == set()


def test_settings_of_the_operator_are_neither_overwritten_nor_removed(tmp_path: Path) -> None:
    settings = tmp_path / "etc/default/vramblk"
    settings.parent.mkdir(parents=True)
    settings.write_text("VRAMBLK_SWAP_PRIORITY=7\n")
    install(tmp_path, "install")
    install(tmp_path, "uninstall")
    assert settings.read_text() == "VRAMBLK_SWAP_PRIORITY=7\n"
    settings.unlink()
    settings.symlink_to("elsewhere")
    install(tmp_path, "install")
    assert settings.is_symlink() and not settings.exists(), "a dangling link is the operator's too"


def test_the_prefix_reaches_the_units(tmp_path: Path) -> None:
    install(tmp_path, "install", "/opt/vramblk")
    assert "ExecStart=/opt/vramblk/sbin/vramblk-swap up --wait --start" in lines(
        tmp_path, "vramblk-swap.service"
    )
    assert (tmp_path / "opt/vramblk/share/man/man8/vramblk-swap.8").exists()
    assert not [
        line for unit in tmp_path.rglob("*.service") for line in unit.read_text().splitlines() if "@" in line
    ]


def test_the_boot_unit_holds_dockerd_back_until_swap_is_off(tmp_path: Path) -> None:
    install(tmp_path, "install")
    unit = lines(tmp_path, "vramblk-swap.service")
    assert "Requires=docker.service" in unit
    assert any(line.startswith("After=docker.service") for line in unit)
    assert "ExecStop=/usr/local/sbin/vramblk-swap down --wait" in unit
    assert "TimeoutStopSec=infinity" in unit and "ManagedOOMPreference=omit" in unit
    assert not any("swap.target" in line for line in unit if not line.startswith("#")), "that makes a cycle"


@pytest.mark.parametrize(
    ("server_unit", "tied"),
    [("vramblk@0.service", ["Requires=vramblk@0.service", "After=vramblk@0.service local-fs.target"]),
     ("none", ["After=local-fs.target"])],
)  # fmt: skip
def test_the_boot_unit_can_be_tied_to_another_unit_or_none(
    tmp_path: Path, server_unit: str, tied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_UNIT", server_unit)
    install(tmp_path, "install")
    unit = lines(tmp_path, "vramblk-swap.service")
    assert [line for line in unit if line.startswith(("Requires=", "After="))] == tied


@pytest.mark.parametrize("server_unit", ["docker", "a b.service", "a|b.service", "a/b.service"])
def test_a_server_unit_that_is_none_is_refused(tmp_path: Path, server_unit: str) -> None:
    environment = {**os.environ, "DESTDIR": str(tmp_path), "SERVER_UNIT": server_unit}
    done = subprocess.run([HOST / "install.sh", "install"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and f"SERVER_UNIT={server_unit}: allowed" in done.stderr
    assert files(tmp_path) == set()


@pytest.mark.parametrize("docker", [True, False])
def test_a_running_host_without_docker_gets_a_unit_that_can_start(tmp_path: Path, docker: bool) -> None:
    systemctl = tmp_path / "bin/systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(
        f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\ncase $* in cat*docker.service) exit {int(not docker)} ;; esac\n'
    )
    systemctl.chmod(0o755)
    (tmp_path / "root/run/systemd/system").mkdir(parents=True)
    environment = {
        **os.environ, "PATH": f"{systemctl.parent}:{os.environ['PATH']}", "VRAMBLK_TEST_ROOT": f"{tmp_path}/root",
        "PREFIX": f"{tmp_path}/usr", "UNITDIR": f"{tmp_path}/etc/systemd/system", "DESTDIR": "", "SERVER_UNIT": "",
    }  # fmt: skip

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([HOST / "install.sh", command], env=environment, capture_output=True, text=True)

    done = run("install")
    assert done.returncode == 0, done.stderr
    assert ("Requires=docker.service" in lines(tmp_path, "vramblk-swap.service")) == docker
    assert ("SERVER_UNIT=NAME.service" in done.stdout) != docker
    units = "vramblk-swap.service vramblk-swap-sleep.service"
    assert (tmp_path / "calls").read_text().splitlines()[1:] == ["daemon-reload", f"enable {units}"]
    (tmp_path / "root/run/vramblk-swap").mkdir()
    (tmp_path / "root/run/vramblk-swap/records").write_text("swapon /dev/nbd0\n")
    assert run("uninstall").returncode == 1, "swap is on"
    (tmp_path / "root/run/vramblk-swap/records").unlink()
    assert run("uninstall").returncode == 0 and not list(tmp_path.rglob("vramblk-swap*.service"))
    assert f"disable {units}" in (tmp_path / "calls").read_text()


def test_the_auto_unit_cannot_stall_and_is_enabled_by_its_user_only(tmp_path: Path) -> None:
    install(tmp_path, "install")
    unit = lines(tmp_path, "vramblk-swap-auto.service")
    assert {"MemorySwapMax=0", "OOMScoreAdjust=-1000", "After=vramblk-swap.service", "Restart=always"} <= set(unit)
    assert "ExecStart=/usr/local/sbin/vramblk-swap auto" in unit


def test_the_examples_allow_exactly_what_yield_runs(tmp_path: Path) -> None:
    install(tmp_path, "install", "/opt/vramblk")
    examples = tmp_path / "opt/vramblk/share/doc/vramblk-swap"
    calls = [f"/opt/vramblk/sbin/vramblk-swap {words} all" for words in ("release", "take")]
    assert f"NOPASSWD: {', '.join(calls)}\n" in (examples / "vramblk-swap.sudoers").read_text()
    assert f'allowed = ["{calls[0]}", "{calls[1]}"];' in (examples / "50-vramblk-swap.rules").read_text()
    if visudo := shutil.which("visudo", path=f"{os.environ['PATH']}:/usr/sbin"):
        subprocess.run([visudo, "-cf", examples / "vramblk-swap.sudoers"], check=True)


def test_the_sleep_unit_is_required_by_every_way_to_sleep(tmp_path: Path) -> None:
    """Promise 20: its failure fails the sleep."""
    install(tmp_path, "install")
    unit = lines(tmp_path, "vramblk-swap-sleep.service")
    ways = {
        "systemd-suspend.service", "systemd-hibernate.service", "systemd-hybrid-sleep.service",
        "systemd-suspend-then-hibernate.service", "nvidia-suspend.service", "nvidia-hibernate.service",
    }  # fmt: skip
    for key in ("Before=", "RequiredBy="):
        (line,) = [line for line in unit if line.startswith(key)]
        assert set(line.removeprefix(key).split()) == ways
    assert "TimeoutSec=infinity" in unit and "StopWhenUnneeded=yes" in unit
    assert "ExecStart=/usr/local/sbin/vramblk-swap sleep" in unit
    assert "ExecStop=/usr/local/sbin/vramblk-swap wake" in unit


@pytest.mark.parametrize("unit", ["vramblk-swap.service", "vramblk-swap-sleep.service", "vramblk-swap-auto.service"])
def test_systemd_reads_the_units(tmp_path: Path, unit: str) -> None:
    """By its own checker where there is one."""
    known = {"Unit", "Service", "Install"}
    content = [
        line
        for line in (HOST / "systemd" / unit).read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert {line.strip("[]") for line in content if line.startswith("[")} == known
    assert all(line.startswith("[") or "=" in line for line in content)
    if shutil.which("systemd-analyze") is None:
        return
    text = (HOST / "systemd" / unit).read_text().replace("@sbindir@/vramblk-swap", "/bin/true")
    (tmp_path / unit).write_text(text)
    result = subprocess.run(["systemd-analyze", "verify", tmp_path / unit], capture_output=True, text=True)
    assert "Unknown" not in result.stderr and "Invalid" not in result.stderr, result.stderr
