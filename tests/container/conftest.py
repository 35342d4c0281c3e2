"""Builds the image once and gives each test a compose project that is gone afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import docker

_numbers = itertools.count()


@pytest.fixture(scope="session")
def base_image() -> str:
    """The base, pulled from a registry or made from Debian's packages."""
    if docker.missing():
        pytest.skip(docker.missing())
    name = "debian:trixie-slim"
    for obtain in (("docker", "image", "inspect"), ("docker", "pull", "-q")):
        if docker.run(*obtain, name, check=False, timeout=300).returncode == 0:
            return name
    docker.run(docker.REPOSITORY / "deploy/make-base.sh", name, timeout=docker.BUILD_TIMEOUT_S)
    return name


@pytest.fixture(scope="session")
def image(base_image: str) -> str:
    """The image with the CPU runtime, from the working tree."""
    return build(docker.IMAGE, docker.RUNTIMES)


@pytest.fixture(scope="session")
def rusticl_image(base_image: str) -> str:
    """The image with Mesa's rusticl and no other runtime, from the working tree."""
    return build(docker.RUSTICL_IMAGE, "intel")


def build(name: str, runtimes: str) -> str:
    docker.run(
        "docker", "build", "-q", "--build-arg", f"RUNTIMES={runtimes}", "-t", name, ".",
        timeout=docker.BUILD_TIMEOUT_S,
    )  # fmt: skip
    return name


@pytest.fixture
def project(image: str, tmp_path: Path) -> Iterator[Callable[..., docker.Project]]:
    """Makes projects; keyword arguments are those of docker.Project."""
    made: list[docker.Project] = []

    def make(**arguments: Any) -> docker.Project:
        number = next(_numbers)
        run_dir = tmp_path / f"run{number}"
        run_dir.mkdir()
        arguments.setdefault("command", docker.any_compose())
        arguments.setdefault("directory", docker.REPOSITORY)
        made.append(docker.Project(name=f"vramblktest{number}", run_dir=run_dir, **arguments))
        return made[-1]

    yield make
    for one in made:
        one.remove()
