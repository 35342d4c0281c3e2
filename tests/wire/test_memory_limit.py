"""A server whose memory is system RAM, in a cgroup with a limit: refused, or its death is explained."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .harness import Server, clean_environment

pytestmark = pytest.mark.wire
Start = Callable[..., Server]
MIB = 1 << 20


class Group:
    """A cgroup of its own with a limit of memory, version 1 or 2."""

    def __init__(self, directory: Path, limit: str) -> None:
        self.directory = directory
        self._limit = limit
        directory.mkdir()

    def limit(self, size_bytes: int) -> None:
        (self.directory / self._limit).write_text(str(size_bytes))

    def run(self, directory: Path) -> Path:
        """A program that runs the server inside."""
        program = directory / "in-cgroup"
        program.write_text(
            f'#!/bin/sh\necho $$ >{self.directory}/cgroup.procs\nexec {sys.executable} -m vramblk "$@"\n'
        )
        program.chmod(0o755)
        return program

    def remove(self) -> None:
        deadline = time.monotonic() + 10
        while True:
            try:
                return self.directory.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


@pytest.fixture
def group() -> Iterator[Group]:
    for top, limit in (
        ("/sys/fs/cgroup", "memory.max"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
    ):
        try:
            made = Group(Path(top) / f"vramblk-test-{os.getpid()}", limit)
        except OSError:
            continue
        if (made.directory / limit).exists():
            break
        made.remove()
    else:
        pytest.skip("requires a cgroup with a limit of memory")
    try:
        yield made
    finally:
        made.remove()


def test_a_size_beyond_the_limit_is_refused(group: Group, start: Start, tmp_path: Path) -> None:
    group.limit(300 * MIB)
    server = start("--workers", "2", size="256M", ready=False, program=(str(group.run(tmp_path)),))
    assert server.wait(60) == 78
    assert server.stderr.count("\n") == 1
    for part in ("256 MiB", "300 MiB", str(group.directory), "raise the limit", "--size"):
        assert part in server.stderr, part
    assert server.find_event("engine_died") is None


def test_max_fits_into_the_limit(group: Group, start: Start, tmp_path: Path) -> None:
    group.limit(400 * MIB)
    server = start("--workers", "1", size="max", program=(str(group.run(tmp_path)),))
    (size,) = [value for name, value in server.metrics().items() if name.startswith("vramblk_export_size")]
    assert 0 < size < 300 * MIB


def test_a_file_on_tmpfs_counts(group: Group, start: Start, tmp_path: Path) -> None:
    group.limit(300 * MIB)
    file = Path(f"/dev/shm/vramblk-test-{os.getpid()}")
    try:
        file.touch()
        os.truncate(file, 280 * MIB)
        arguments = ("--device", f"map:{file}", "--workers", "2")
        server = start(*arguments, size="max", ready=False, program=(str(group.run(tmp_path)),))
        assert server.wait(60) == 78
        assert "280 MiB" in server.stderr and "raise the limit" in server.stderr
    finally:
        file.unlink()


def test_check_says_it_before(group: Group, tmp_path: Path) -> None:
    group.limit(300 * MIB)
    done = subprocess.run(
        [group.run(tmp_path), "check", "--allow-cpu", "--size", "256M", "--listen-addr", "127.0.0.1:0"],
        env=clean_environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 78
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("  missing")]
    assert "256 MiB" in line and "300 MiB" in line


def test_a_kill_at_the_limit_is_told_from_one_by_hand(group: Group, start: Start, tmp_path: Path) -> None:
    """The kernel's counter decides, before anybody is told to start the server again."""
    program = (str(group.run(tmp_path)),)
    server = start("--workers", "1", size="64M", program=program)
    (engine,) = server.named("engine")
    os.kill(engine, signal.SIGKILL)
    assert server.wait(30) == 1
    assert "start the server again" in server.stderr and "limit" not in server.stderr

    group.limit(400 * MIB)
    server = start("--workers", "1", size="64M", program=program)
    (engine,) = server.named("engine")
    Path(f"/proc/{engine}/oom_score_adj").write_text("1000")
    hog = f"import os; open('{group.directory}/cgroup.procs', 'w').write(str(os.getpid())); b'x' * ({400 * MIB})"
    subprocess.run([sys.executable, "-c", hog], timeout=60, check=False)
    assert server.wait(30) == 1
    assert server.stderr.count("\n") == 1
    assert "raise that limit" in server.stderr and str(group.directory) in server.stderr
    assert "limit" in server.find_event("engine_died")["out_of_memory"]
