"""A cache that PoCL cannot load kernels from is named, with what to do: it is not a missing GPU or a crash."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vramblk.memory import caches
from vramblk.memory.devices import CPU, DeviceInfo, choose

ROOT = Path(__file__).resolve().parents[3]


def in_mounts(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script where ``noexec`` and ``readonly`` below ``directory`` are mounted so."""
    for name in ("noexec", "readonly"):
        (directory / name).mkdir()
    mounts = "mount -t tmpfs -o noexec none noexec && mount -t tmpfs -o ro none readonly || exit 99"
    environment = {name: text for name, text in os.environ.items() if not name.startswith("VRAMBLK_")}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"cd {directory} && {{ {mounts}; }} && {script}"],
        env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("requires mounts of its own (root)")
    return done


COMMAND = f"{shlex.quote(sys.executable)} -m vramblk {{}} --allow-cpu --size 16M --listen-addr unix:$PWD/s"


@pytest.mark.parametrize(
    ("place", "said"), [("noexec/pocl", "is mounted noexec"), ("readonly/pocl", "Read-only file system")]
)
def test_a_server_names_the_directory_and_the_mount_option(place: str, said: str, tmp_path: Path) -> None:
    script = f"POCL_CACHE_DIR=$PWD/{place} {COMMAND.format('')} --status-socket off"
    done = in_mounts(script, tmp_path)
    assert done.returncode == 78, done.stderr
    assert done.stderr.count("\n") == 1
    for part in (str(tmp_path / place), said, "POCL_CACHE_DIR", "exec"):
        assert part in done.stderr, part


def test_check_and_devices_say_it_too(tmp_path: Path) -> None:
    done = in_mounts(f"POCL_CACHE_DIR=$PWD/noexec/pocl {COMMAND.format('check')}", tmp_path)
    assert done.returncode == 78
    assert "is mounted noexec" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "vramblk", "devices"], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "POCL_CACHE_DIR": "/proc/nowhere/pocl"},
    )  # fmt: skip
    assert "/proc/nowhere/pocl" in done.stdout and "cannot be made" in done.stdout


def test_where_no_directory_is_given_the_first_that_can_be_used_is_taken(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    caches.choose(environ)
    assert environ["POCL_CACHE_DIR"] == str(tmp_path / "cache" / "pocl")
    assert caches.problem(environ) is None
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)  # where others could put libraries
    environ = {"XDG_CACHE_HOME": str(tmp_path / "open")}
    caches.choose(environ)
    assert not environ["POCL_CACHE_DIR"].startswith(str(tmp_path / "open"))


def test_a_broken_cpu_does_not_hide_that_no_gpu_was_found() -> None:
    """Who did not ask for the processor is not told about its cache."""
    broken = DeviceInfo(0, 0, caches.POCL, "cpu", CPU, "", "", 1 << 30, 1 << 30, None, "its cache is broken")
    with pytest.raises(Exception, match=r"no GPU found|was given no GPU"):
        choose([broken], None, None, allow_cpu=False)
    with pytest.raises(Exception, match="its cache is broken"):
        choose([broken], None, None, allow_cpu=True)


def test_a_machine_without_any_place_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only root without /tmp: what is said is which cache is missing, and one that is there is enough."""

    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    environ = {"POCL_CACHE_DIR": str(tmp_path / "pocl")}
    caches.choose(environ)
    assert caches.problem(environ) is None
    environ = {"POCL_CACHE_DIR": "/proc/nowhere/pocl", "XDG_CACHE_HOME": "/proc/nowhere"}
    caches.choose(environ)
    assert "/proc/nowhere/pocl" in (caches.problem(environ) or "")
