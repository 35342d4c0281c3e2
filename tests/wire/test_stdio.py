"""Standard descriptors that are closed, and terminals that cannot show every character."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .harness import Server, clean_environment, eventually, http_get

pytestmark = pytest.mark.wire
#: What the shell is told, and the descriptors that are closed then.
CLOSED = {"<&-": {0}, ">&-": {1}, "2>&-": {2}, "<&- >&- 2>&-": {0, 1, 2}}


@pytest.mark.parametrize("closed", CLOSED)
def test_a_server_with_closed_descriptors_serves(closed: str, tmp_path: Path) -> None:
    """They are /dev/null, so nothing else can get their numbers: a log line must not end in a client's socket."""
    sock, status = tmp_path / "nbd.sock", tmp_path / "status.sock"
    command = [
        sys.executable, "-m", "vramblk", "--allow-cpu", "--size", "16M", "--workers", "1",
        "--listen-addr", f"unix:{sock}", "--status-socket", str(status),
    ]  # fmt: skip
    server = subprocess.Popen(
        ["sh", "-c", f"exec {shlex.join(command)} {closed}"], cwd=tmp_path, env=clean_environment(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        eventually(lambda: server.poll() is not None or (status.exists() and _ready(status)), 60)
        assert server.poll() is None, server.communicate()
        for number in range(3):
            target = os.readlink(f"/proc/{server.pid}/fd/{number}")
            assert target == "/dev/null" if number in CLOSED[closed] else target.startswith("pipe:"), number
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=30)
        assert (server.returncode, err) == (0, "")
        assert ('"ready"' in out) == (1 not in CLOSED[closed])
    finally:
        server.kill()
        server.wait()


def _ready(status: Path) -> bool:
    try:
        return http_get(status, "/readyz")[0] == 200
    except OSError:
        return False


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("arguments", ["--version", "check --device map:/nonexistent", "--size rubbish"])
def test_a_command_with_closed_descriptors_keeps_its_exit_status(arguments: str, closed: str) -> None:
    def run(redirection: str) -> subprocess.CompletedProcess[str]:
        command = f"exec {sys.executable} -m vramblk {arguments} {redirection}"
        return subprocess.run(
            ["sh", "-c", command], env=clean_environment(), capture_output=True, text=True, timeout=60
        )

    open_, shut = run(""), run(closed)
    assert shut.returncode == open_.returncode
    assert shut.stdout == ("" if 1 in CLOSED[closed] else open_.stdout)
    assert shut.stderr == ("" if 2 in CLOSED[closed] else open_.stderr)


@pytest.mark.parametrize("command", ["status", "check", "status --json", "check --json"])
def test_what_the_terminal_cannot_show_is_replaced(command: str, start: Callable[..., Server]) -> None:
    server = start("--export-name", "größe-磁盘", "--workers", "1")
    environment = clean_environment(PYTHONIOENCODING="latin-1", VRAMBLK_EXPORT_NAME="größe-磁盘")
    done = subprocess.run(
        [sys.executable, "-m", "vramblk", *command.split(), "--status-socket", str(server.status_path)],
        env=environment, capture_output=True, timeout=60,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr, done.stderr
    text = done.stdout.decode("latin-1")
    assert ("größe-??" if "json" not in command else "gr\\u00f6\\u00dfe-\\u78c1\\u76d8") in text


def test_a_message_that_the_terminal_cannot_show_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vramblk", "--device", "磁盘"],
        env=clean_environment(PYTHONIOENCODING="ascii", OCL_ICD_VENDORS="/nonexistent"),
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 78
    assert done.stderr.count(b"\n") == 1
