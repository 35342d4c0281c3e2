"""``vramblk top`` in a real terminal. Requires tmux and fio."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wire.harness import Server, clean_environment, eventually, requires

from .conftest import Loaded

pytestmark = requires("tmux", "fio")


class Terminal:
    """A tmux server of its own with one window."""

    def __init__(self, directory: Path, command: str, columns: int = 110, rows: int = 40) -> None:
        self._tmux = ["tmux", "-S", str(directory / "tmux"), "-f", "/dev/null"]
        environment = clean_environment(LC_ALL="C.UTF-8", TERM="xterm-256color")
        self.status = directory / "status"
        self._call(
            "new-session", "-d", "-x", str(columns), "-y", str(rows), f"{command}; echo $? > {self.status}",
            environment=environment,
        )  # fmt: skip

    def _call(self, *arguments: str, environment: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            [*self._tmux, *arguments],
            env=environment or clean_environment(),
            capture_output=True,
            text=True,
            timeout=20,
        )
        return done.stdout

    def screen(self) -> str:
        return self._call("capture-pane", "-p")

    def keys(self, *keys: str) -> None:
        self._call("send-keys", *keys)

    def resize(self, columns: int, rows: int) -> None:
        self._call("resize-window", "-x", str(columns), "-y", str(rows))

    def close(self) -> None:
        self._call("kill-server")


def command(server: Server) -> str:
    return f"{sys.executable} -m vramblk top --status-socket {server.status_path}"


@pytest.fixture
def terminal(loaded: Loaded, tmp_path: Path) -> Iterator[Terminal]:
    found = Terminal(tmp_path, command(loaded.server))
    yield found
    found.close()


def test_top_shows_a_loaded_server(terminal: Terminal, artefacts: Path) -> None:
    """State, warnings, export, rates with bars, latencies and the client are on the screen; q ends with 0."""
    eventually(lambda: "▁" in terminal.screen() or "█" in terminal.screen(), 20)
    texts = (
        "ready", "scratch mode", "system RAM", "vram", "64 MiB", "MiB/s", "99 % BELOW", "read", "write", "REQUESTS/S",
        "unix:pid=",
    )  # fmt: skip
    screen = eventually(lambda: all(text in (now := terminal.screen()) for text in texts) and now, 20)
    (artefacts / "top.txt").write_text(screen)
    before = screen
    eventually(lambda: terminal.screen() != before, 10)
    terminal.keys("q")
    eventually(terminal.status.exists, 10)
    assert terminal.status.read_text().strip() == "0"


def test_top_survives_a_small_window(terminal: Terminal) -> None:
    """It goes on in 60 columns and 12 rows."""
    eventually(lambda: "ready" in terminal.screen(), 20)
    terminal.resize(60, 12)
    eventually(lambda: "ready" in terminal.screen(), 10)
    terminal.keys("q")
    eventually(lambda: terminal.status.exists() and terminal.status.read_text().strip() == "0", 10)


def test_top_says_when_the_server_is_gone(tmp_path: Path) -> None:
    """A server that ends is announced on the screen; without one top ends with 1 and one line."""
    with Server(tmp_path / "server") as server:
        terminal = Terminal(tmp_path, command(server))
        eventually(lambda: "ready" in terminal.screen(), 20)
    try:
        eventually(lambda: "no answer" in terminal.screen(), 20)
    finally:
        terminal.close()
    done = subprocess.run(
        [sys.executable, "-m", "vramblk", "status", "--status-socket", str(server.status_path)],
        env=clean_environment(), capture_output=True, text=True, timeout=30, cwd=os.fspath(tmp_path),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
