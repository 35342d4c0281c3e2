"""Runs docker and compose for the tests: projects of their own, ports of their own, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGE, RUSTICL_IMAGE = "vramblk:test", "vramblk:rusticl-test"
COMPOSE_V1 = ("docker-compose",)
COMPOSE_V2 = ("docker", "compose")
#: The OpenCL runtimes in the image under test.
RUNTIMES = "nvidia cpu"
BUILD_TIMEOUT_S = 800
HEALTHY_WITHIN_S = 10


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The caller's environment without any option of the server, and with the plugins of the set-up."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VRAMBLK_", "COMPOSE_", "RUSTICL_"))
    }
    plugins = REPOSITORY / "build/docker-config"
    if plugins.exists():
        clean["DOCKER_CONFIG"] = str(plugins)
    return clean | dict(extra or {})


def run(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    timeout: float = 120,
    stdin: str | None = None,
    cwd: Path = REPOSITORY,
) -> subprocess.CompletedProcess[str]:
    """Output is text, stdout and stderr apart; a failure shows both."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd, env=environment(env), input=stdin, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    if check and done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


@cache
def missing() -> str:
    """Why nothing can run here, or an empty string."""
    if not shutil.which("docker"):
        return "requires Docker Engine (docker)"
    if run("docker", "version", check=False).returncode:
        return "requires a Docker daemon that answers"
    return ""


requires_docker = pytest.mark.skipif(bool(missing()), reason=missing() or "requires Docker Engine")


@cache
def works(*command: str) -> bool:
    return bool(shutil.which(command[0])) and run(*command, "version", check=False).returncode == 0


def compose_command(implementation: str) -> Sequence[str]:
    """Skips, by name, where it is not installed."""
    command = COMPOSE_V1 if implementation == "docker-compose" else COMPOSE_V2
    if not works(*command):
        pytest.skip(f"requires {' '.join(command)}")
    return command


def any_compose() -> Sequence[str]:
    for command in (COMPOSE_V2, COMPOSE_V1):
        if works(*command):
            return command
    pytest.skip("requires docker compose or docker-compose")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(condition: Callable[[], Any], timeout_s: float = 20, interval_s: float = 0.1) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not true within {timeout_s} s"
        time.sleep(interval_s)
    return value


def inspect(name: str) -> dict[str, Any]:
    return json.loads(run("docker", "inspect", name).stdout)[0]


@dataclass
class Project:
    """The appliance under test: one compose project with its own ports and its own /run/vramblk."""

    name: str
    directory: Path
    run_dir: Path
    files: Sequence[Path] = (REPOSITORY / "compose.yaml",)
    command: Sequence[str] = COMPOSE_V2
    settings: dict[str, str] = field(default_factory=dict)
    nbd_port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)

    @property
    def env(self) -> dict[str, str]:
        return {
            "COMPOSE_PROJECT_NAME": self.name,
            "COMPOSE_FILE": ":".join(map(str, self.files)),
            "VRAMBLK_IMAGE": IMAGE,
            "VRAMBLK_RUN_DIR": str(self.run_dir),
            "VRAMBLK_NBD_PORT": str(self.nbd_port),
            "VRAMBLK_METRICS_PORT": str(self.metrics_port),
            "VRAMBLK_SIZE": "256M",
            **self.settings,
        }

    @property
    def uri(self) -> str:
        return f"nbd://127.0.0.1:{self.nbd_port}/vram"

    @property
    def socket_uri(self) -> str:
        return f"nbd+unix:///vram?socket={self.run_dir}/nbd.sock"

    def compose(
        self, *arguments: str, check: bool = True, timeout: float = 180
    ) -> subprocess.CompletedProcess[str]:
        return run(*self.command, *arguments, env=self.env, check=check, timeout=timeout, cwd=self.directory)

    def start(self, wait: bool = True) -> float:
        """Seconds from `up` to healthy."""
        began = time.monotonic()
        self.compose("up", "-d", "--no-build")
        if wait:
            eventually(lambda: self.health() in ("healthy", "gone"), 60)
            assert self.health() == "healthy", self.logs()
        return time.monotonic() - began

    @property
    def container(self) -> str:
        return self.compose("ps", "-q", "-a" if self.command == COMPOSE_V2 else "vramblk").stdout.strip()

    def health(self) -> str:
        state = inspect(self.container)["State"]
        return state["Health"]["Status"] if state["Status"] == "running" else "gone"

    def exec(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run("docker", "exec", self.container, *command, check=check)

    def logs(self) -> str:
        done = run("docker", "logs", self.container, check=False)
        return done.stdout + done.stderr

    def clients(self) -> int:
        return len(json.loads(self.exec("vramblk", "status", "--json").stdout)["connections"])

    def remove(self) -> None:
        self.compose("kill", check=False)
        self.compose("down", "--remove-orphans", "-t", "1", check=False)
