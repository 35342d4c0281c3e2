"""`make up` and `make down` from a fresh copy of the project. Needs Docker Engine, a Compose and make."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..wire import rawclient
from ..wire.rawclient import RawClient
from . import docker
from .docker import REPOSITORY, free_port, requires_docker

pytestmark = [
    pytest.mark.container,
    requires_docker,
    pytest.mark.skipif(not shutil.which("make"), reason="requires make"),
]

IMAGE = "vramblk:testup"
PROJECT = "vramblktestup"
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "build", "dist", ".env", "*_cache", "__pycache__")


@dataclass
class Clone:
    """A copy of the project, with settings that keep it apart from a server of the host."""

    directory: Path
    settings: dict[str, str]

    def make(self, target: str, check: bool = True, **settings: str) -> subprocess.CompletedProcess[str]:
        return docker.run(
            "make", "--no-print-directory", target, cwd=self.directory, env=self.settings | settings, check=check,
            timeout=docker.BUILD_TIMEOUT_S,
        )  # fmt: skip

    @property
    def containers(self) -> list[str]:
        done = docker.run("docker", "ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}")
        return done.stdout.split()


@pytest.fixture
def clone(base_image: str, tmp_path: Path) -> Iterator[Clone]:
    directory = tmp_path / "clone"
    shutil.copytree(REPOSITORY, directory, ignore=NOT_COPIED)
    # A host with a GPU runs these tests too: what `up` chooses there is another test's subject.
    (tmp_path / "host").mkdir()
    (tmp_path / "host/proc").symlink_to("/proc")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "bin/nvidia-smi").chmod(0o755)
    docker.any_compose()
    made = Clone(
        directory,
        {
            "PATH": f"{tmp_path / 'bin'}:{docker.environment()['PATH']}",
            "COMPOSE_PROJECT_NAME": PROJECT,
            "VRAMBLK_HOST_ROOT": str(tmp_path / "host"),
            "VRAMBLK_IMAGE": IMAGE,
            "VRAMBLK_RUN_DIR": str(tmp_path / "run"),
            "VRAMBLK_NBD_PORT": str(free_port()),
            "VRAMBLK_METRICS_PORT": str(free_port()),
            "VRAMBLK_SIZE": "64M",
        },
    )
    yield made
    made.make("down", check=False, FORCE="1")
    docker.run("docker", "image", "rm", IMAGE, check=False)


def test_up_twice_then_down_leaves_nothing(clone, tmp_path):
    first = clone.make("up")
    port = clone.settings["VRAMBLK_NBD_PORT"]
    assert "vramblk is healthy." in first.stdout
    assert "WARNING: no GPU is used" in first.stdout
    assert f"nbdinfo nbd://127.0.0.1:{port}/vram" in first.stdout
    mark, *written = (clone.directory / ".env").read_text().splitlines()
    assert mark.startswith("#")
    assert written == ["COMPOSE_FILE=compose.yaml"]
    with attached(clone):
        assert "tcp:" in clone.make("status").stdout
        assert clone.make("up", VRAMBLK_UP_TIMEOUT="30").returncode == 0, (
            "its own ports are not taken by others"
        )

    before = clone.containers
    clone.make("up")
    assert clone.containers == before, "nothing changed, so nothing is replaced"

    clone.make("down")
    assert "there is no container" in clone.make("logs", check=False).stderr
    assert clone.containers == []
    assert docker.run("docker", "network", "ls", "-q", "--filter", f"name={PROJECT}").stdout == ""
    assert not (tmp_path / "run").exists()


def test_up_does_not_cut_off_clients_when_something_changed(clone):
    clone.make("up")
    before = clone.containers
    with attached(clone):
        refused = clone.make("up", check=False, VRAMBLK_SIZE="32M")
        assert refused.returncode != 0
        assert "clients are attached (1)" in refused.stderr
        refused = clone.make("down", check=False)
        assert refused.returncode != 0 and "make down FORCE=1" in refused.stderr
        assert clone.containers == before
    clone.make("up", VRAMBLK_SIZE="32M")
    assert clone.containers != before
    with attached(clone) as client:
        assert client.size == 32 << 20


def test_up_does_not_lose_data_when_a_variable_is_not_typed_again(clone):
    clone.make("up", VRAMBLK_SIZE="32M")
    before = clone.containers
    with attached(clone) as client:
        client.write(4096, bytes([7]) * 8192)
    refused = clone.make("up", check=False)
    assert refused.returncode != 0
    assert "holds 8 KiB of data" in refused.stderr
    assert "(VRAMBLK_SIZE: 32M becomes 64M)" in refused.stderr
    assert clone.containers == before
    clone.make("up", FORCE="1")
    with attached(clone) as client:
        assert client.size == 64 << 20


def test_down_does_not_lose_data_unless_forced(clone):
    clone.make("up")
    before = clone.containers
    with attached(clone) as client:
        client.write(4096, bytes([7]) * 8192)
    refused = clone.make("down", check=False)
    assert refused.returncode != 0
    assert "holds 8 KiB of data, which ends with it" in refused.stderr
    docker.run("docker", "pause", before[0])
    assert "does not answer, so it may hold data" in clone.make("down", check=False).stderr
    docker.run("docker", "unpause", before[0])
    assert clone.containers == before
    with attached(clone) as client:
        client.call(rawclient.WRITE_ZEROES, 4096, 8192)
    clone.make("down")
    assert clone.containers == []
    clone.make("up")
    with attached(clone) as client:
        client.write(4096, bytes([7]) * 8192)
    clone.make("down", FORCE="1")
    assert clone.containers == []


def test_up_shows_why_the_server_ends_and_stops_it(clone):
    done = clone.make("up", check=False, VRAMBLK_SIZE="potato")
    assert done.returncode != 0
    assert "potato" in done.stderr
    assert "allowed" in done.stderr
    (container,) = clone.containers
    state = json.loads(docker.run("docker", "inspect", container).stdout)[0]["State"]
    assert state["Status"] == "exited"

    status = clone.make("status", check=False)
    assert status.returncode != 0
    assert "its container is exited; make logs shows why" in status.stderr


def test_up_tells_of_a_taken_port_before_it_builds(clone):
    port = int(clone.settings["VRAMBLK_NBD_PORT"])
    with socket.create_server(("127.0.0.1", port)):
        refused = clone.make("up", check=False)
    assert refused.returncode != 0
    assert f"port {port} is taken" in refused.stderr
    assert f"VRAMBLK_NBD_PORT={port + 10} make up" in refused.stderr
    assert "build" not in refused.stdout
    assert clone.containers == []
    assert not (clone.directory / ".env").exists()


@pytest.mark.skipif(not shutil.which("openssl"), reason="requires openssl")
@pytest.mark.skipif(not shutil.which("nbdinfo"), reason="requires nbdinfo")
def test_tls_after_a_plain_up(clone):
    """The container then wants TLS of every client, and a plain `make up` does not take that away."""
    clone.make("up")
    assert "TLS requires ./tls/ca-cert.pem" in clone.make("up", check=False, VRAMBLK_TLS="require").stderr
    (clone.directory / "tls").mkdir()
    docker.run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "tls/server-key.pem", "-out", "tls/server-cert.pem",
        cwd=clone.directory,
    )  # fmt: skip
    shutil.copy(clone.directory / "tls/server-cert.pem", clone.directory / "tls/ca-cert.pem")
    (clone.directory / "tls").rename(clone.directory / "keys")
    clone.make("up", VRAMBLK_TLS="require", VRAMBLK_TLS_DIR="./keys")
    before = clone.containers
    shown = clone.make("up").stdout
    assert clone.containers == before
    assert "VRAMBLK_TLS=require" in docker.inspect(before[0])["Config"]["Env"]
    (recipe,) = [line for line in shown.splitlines() if "look at it" in line]
    done = docker.run("sh", "-c", recipe.partition("look at it")[2])
    assert "export-size: 67108864" in done.stdout


@contextmanager
def attached(clone: Clone) -> Iterator[RawClient]:
    """A client in the transmission phase."""
    address = ("127.0.0.1", int(clone.settings["VRAMBLK_NBD_PORT"]))
    with RawClient(socket.create_connection(address, 10)) as client:
        client.greet()
        yield client.negotiate("vram")
