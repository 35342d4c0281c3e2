"""A plain `docker run`, without Compose: what it refuses, and that `docker stop` ends it in order."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import guides
from tests.wire.rawclient import RawClient

from . import docker
from .docker import requires_docker

pytestmark = [pytest.mark.container, requires_docker]
CPU = ("--allow-cpu", "--size", "64M")
Run = Callable[..., subprocess.CompletedProcess[str]]
_numbers = itertools.count()


@pytest.fixture
def run(image: str) -> Iterator[Run]:
    """Runs the image with options of `docker run` and arguments; it is gone afterwards."""
    names: list[str] = []

    def start(*arguments: str, options: tuple[str, ...] = (), detach: str = "") -> subprocess.CompletedProcess[str]:
        names.append(detach or f"vramblktest-run{os.getpid()}-{next(_numbers)}")
        how = ("-d",) if detach else ()
        return subprocess.run(
            ["docker", "run", "--name", names[-1], *how, *options, image, *arguments],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    yield start
    for name in names:
        subprocess.run(["docker", "rm", "-f", name], capture_output=True, check=False)


def refused(done: subprocess.CompletedProcess[str], status: int, *parts: str) -> None:
    assert done.returncode == status, (done.stdout, done.stderr)
    line = done.stderr.strip().splitlines()[-1]
    for part in parts:
        assert part in line, (part, line)


def test_an_empty_secret_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "token").touch()
    mount = ("-v", f"{tmp_path}/token:/run/token", "-e", "VRAMBLK_METRICS_TOKEN_FILE=/run/token")
    refused(run(*CPU, options=mount), 2, "VRAMBLK_METRICS_TOKEN_FILE=/run/token", "empty")


def test_a_size_beyond_the_memory_limit_is_refused(run: Run) -> None:
    """The engine would be killed, and with it all data."""
    done = run("--allow-cpu", "--size", "512M", options=("--memory", "600m"))
    refused(done, 78, "512 MiB", "600 MiB", "raise the limit", "--size")
    done = run("check", "--allow-cpu", "--size", "512M", options=("--memory", "600m"))
    assert done.returncode == 78 and "raise the limit" in done.stdout


@pytest.mark.parametrize(
    ("mounts", "said"),
    [
        (("--tmpfs", "/tmp", "--tmpfs", "/var/cache/vramblk"), "is mounted noexec"),
        ((), "cannot be made: Read-only file system"),
    ],
)
def test_a_cache_that_cannot_be_used_is_named(run: Run, mounts: tuple[str, ...], said: str) -> None:
    done = run(*CPU, options=("--read-only", "--tmpfs", "/run/vramblk", *mounts))
    refused(done, 78, "/var/cache/vramblk/pocl", said, "exec")


def test_docker_stop_leaves_time_to_zero_and_to_leave(run: Run, tmp_path: Path) -> None:
    """With a client that stays attached: 10 s after the signal Docker kills."""
    name = f"vramblktest-stop{os.getpid()}"
    done = run("--allow-cpu", "--size", "256M", options=("-v", f"{tmp_path}:/run/vramblk"), detach=name)
    assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + 60
    while docker.run("docker", "exec", name, "vramblk", "status", "--health", check=False).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(tmp_path / "nbd.sock"))
        client = RawClient(sock)
        client.greet()
        client.negotiate()
        docker.run("docker", "stop", name)
    assert docker.inspect(name)["State"]["ExitCode"] == 0
    assert list(tmp_path.iterdir()) == []
    assert '"stopped"' in docker.run("docker", "logs", name).stdout


def test_the_line_of_the_guide_serves(image: str, tmp_path: Path) -> None:
    """`docker run` as docs/guides/containers.md prints it, without a GPU, on ports and a directory of its own."""
    (line,) = [line for line in guides.commands("docs/guides/containers.md", "Plain docker run") if "docker run" in line]
    name = f"vramblktest-guide{os.getpid()}"
    for old, new in (
        ("--name vram ", f"--name {name} "), (" --gpus all", ""), ("127.0.0.1:10809:", "127.0.0.1::"),
        ("127.0.0.1:10810:", "127.0.0.1::"), ("/run/vramblk:", f"{tmp_path}:"), (" vramblk --size 8G", f" {image} --size 64M --allow-cpu"),
    ):  # fmt: skip
        assert old in line, old
        line = line.replace(old, new, 1)
    try:
        subprocess.run(line.split(), check=True, capture_output=True, text=True, timeout=120)
        deadline = time.monotonic() + 60
        while not (tmp_path / "nbd.sock").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "nbd.sock"))
            assert client.recv(8) == b"NBDMAGIC"
    finally:
        logs = subprocess.run(["docker", "logs", name], capture_output=True, text=True, check=False)
        subprocess.run(["docker", "rm", "-f", name], capture_output=True, check=False)
        print(logs.stdout, logs.stderr)
