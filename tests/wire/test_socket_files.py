"""A socket file that somebody removes or replaces: clients that are attached go on, and the server says it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from .harness import Server, clean_environment, eventually, free_port

pytestmark = pytest.mark.wire
Start = Callable[..., Server]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def server(start: Start, port: int) -> Server:
    return start("--workers", "1", "--metrics-addr", f"127.0.0.1:{port}")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vramblk", *arguments], env=clean_environment(), capture_output=True, text=True,
        timeout=30,
    )  # fmt: skip


@pytest.mark.parametrize("way", ["removed", "replaced"])
def test_status_health_and_log_say_that_the_path_is_gone(server: Server, way: str, port: int) -> None:
    """A file of another server in its place is the same to clients."""
    assert server.get("/readyz")[0] == 200
    with server.client() as client:
        server.unix_path.unlink()
        other = socket.socket(socket.AF_UNIX)
        if way == "replaced":
            other.bind(str(server.unix_path))
        try:
            event = server.wait_event("socket_gone")
            assert event["path"] == str(server.unix_path)
            code, line = server.get("/readyz")
            assert code == 503 and str(server.unix_path) in line
            # What it holds is whole, and who is attached is served: nothing to restart it for.
            code, line = server.get("/healthz")
            assert code == 200 and str(server.unix_path) in line and "gone" in line
            warnings = json.loads(server.get("/status.json")[1])["warnings"]
            (found,) = [each for each in warnings if each["code"] == "socket_gone"]
            assert found["severity"] == "error" and str(server.unix_path) in found["text"]
            client.write(0, b"x" * 512)
        finally:
            other.close()
            server.unix_path.unlink(missing_ok=True)
    assert len([each for each in server.events if each.get("event") == "socket_gone"]) == 1


def test_nothing_is_said_while_it_drains(server: Server) -> None:
    with server.client():
        server.process.terminate()
        eventually(lambda: server.get("/readyz")[1].startswith("draining"))
        assert "gone" not in server.get("/healthz")[1]
    assert server.wait() == 0
    assert server.find_event("socket_gone") is None


def test_the_status_command_tells_a_removed_socket_from_a_dead_server(server: Server, port: int) -> None:
    server.status_path.unlink()
    done = command("status", "--status-socket", str(server.status_path))
    assert done.returncode == 1
    assert str(server.pid) in re.findall(r"\d+", done.stderr.partition("runs as process")[2])
    assert "removed" in done.stderr and done.stderr.count("\n") == 1
    done = command("status", "--status-socket", "off", "--metrics-addr", f"127.0.0.1:{port}")
    assert done.returncode == 0 and str(server.status_path) in done.stdout
