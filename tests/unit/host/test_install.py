"""host/install.sh and the systemd units: what is installed, that it is all removed, and the lines that matter."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HOST = Path(__file__).resolve().parents[3] / "host"


def install(directory: Path, command: str, prefix: str = "/usr/local") -> None:
    environment = {**os.environ, "DESTDIR": str(directory), "PREFIX": prefix}
    subprocess.run([HOST / "install.sh", command], env=environment, check=True, capture_output=True)


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def lines(directory: Path, unit: str) -> list[str]:
    return (directory / "etc/systemd/system" / unit).read_text().splitlines()


def test_install_and_its_undo(tmp_path: Path) -> None:
    install(tmp_path, "install")
    assert files(tmp_path) == {
        "usr/local/sbin/vramblk-swap",
        "etc/systemd/system/vramblk-swap.service",
        "etc/systemd/system/vramblk-swap-sleep.service",
    }
    assert os.access(tmp_path / "usr/local/sbin/vramblk-swap", os.X_OK)
    install(tmp_path, "uninstall")
    assert files(tmp_path) == set()


def test_the_prefix_reaches_the_units(tmp_path: Path) -> None:
    install(tmp_path, "install", "/opt/vramblk")
    assert "ExecStart=/opt/vramblk/sbin/vramblk-swap up --wait --start" in lines(
        tmp_path, "vramblk-swap.service"
    )
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


@pytest.mark.parametrize("unit", ["vramblk-swap.service", "vramblk-swap-sleep.service"])
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
