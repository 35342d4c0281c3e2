"""A server under a steady load, its page, and the directory in which pictures and reports are kept."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wire.harness import REPOSITORY, Server, find_program, free_port

from .webdriver import Browser


@pytest.fixture(scope="session")
def artefacts() -> Path:
    """Kept after the run: VRAMBLK_TEST_ARTEFACTS, otherwise tests/artefacts."""
    found = Path(os.environ.get("VRAMBLK_TEST_ARTEFACTS", REPOSITORY / "tests" / "artefacts"))
    found.mkdir(parents=True, exist_ok=True)
    return found


class Loaded:
    """A server with a TCP address for people, and fio on it."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port
        self.url = f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """A server of 64 MiB with a gentle mixed load on its first half that lasts as long as the module's tests."""
    if not find_program("fio"):
        pytest.skip("requires fio")
    port = free_port()
    directory = tmp_path_factory.mktemp("loaded")
    with Server(directory, "--metrics-addr", f"127.0.0.1:{port}", "--workers", "2") as server:
        command = [
            "fio", "--name=load", "--ioengine=nbd", f"--uri={server.unix_uri('vram')}", "--rw=randrw", "--bs=16k",
            "--size=32M", "--iodepth=8", "--rate_iops=300,300", "--time_based", "--runtime=600",
        ]  # fmt: skip
        load = subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield Loaded(server, port)
        finally:
            load.kill()
            load.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    missing = [name for name in ("chromium", "chromedriver") if not find_program(name)]
    if missing:
        pytest.skip(f"requires {', '.join(missing)}")
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()
