"""A service manager (systemd) is told what the server does; sockets that it passes are refused."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .harness import REPOSITORY, Server, clean_environment, eventually

pytestmark = pytest.mark.wire
Start = Callable[..., Server]
STUCK_SERVER = (sys.executable, str(REPOSITORY / "tests" / "wire" / "slow_server.py"))


class Manager:
    """The socket of a service manager, and what came."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.sock.bind(address.replace("@", "\0"))
        self.sock.setblocking(False)
        self.environment = {"NOTIFY_SOCKET": address}
        self.lines: list[str] = []
        self.senders: set[int] = set()

    def read(self) -> list[str]:
        while True:
            try:
                data, ancillary, _, _ = self.sock.recvmsg(4096, 256)
            except BlockingIOError:
                return self.lines
            self.lines += data.decode().splitlines()
            self.senders.add(int.from_bytes(ancillary[0][2][:4], sys.byteorder))

    def wait(self, line: str, timeout_s: float = 30) -> None:
        eventually(lambda: line in self.read(), timeout_s)


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = f"@vramblk-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    made = Manager(name)
    yield made
    made.sock.close()


def test_ready_reload_and_stop_are_told_by_the_main_process(start: Start, manager: Manager) -> None:
    """NotifyAccess=main: what another process sends would be dropped."""
    server = start("--workers", "1", environment=manager.environment)
    manager.wait("READY=1")
    assert any(line.startswith("STATUS=") and "vram" in line for line in manager.lines)
    assert "STOPPING=1" not in manager.lines
    server.signal(signal.SIGHUP)
    manager.wait("RELOADING=1")
    eventually(lambda: manager.read().count("READY=1") == 2)
    (stamp,) = [line for line in manager.lines if line.startswith("MONOTONIC_USEC=")]
    assert abs(int(stamp.partition("=")[2]) / 1e6 - time.monotonic()) < 30
    with server.client():
        server.signal(signal.SIGTERM)
        manager.wait("STOPPING=1")
        assert server.process.poll() is None
    assert server.wait() == 0
    manager.read()
    assert manager.senders == {server.pid}
    assert "WATCHDOG=1" not in manager.lines


def test_the_watchdog_is_fed_while_the_canary_comes_back(start: Start, tmp_path: Path) -> None:
    """And not any more while the engine stands still; again afterwards. Without the observer it is fed too."""
    manager = Manager(str(tmp_path / "notify"))
    with manager.sock:
        environment = {**manager.environment, "WATCHDOG_USEC": "1500000"}
        server = start("--workers", "1", environment=environment)
        eventually(lambda: manager.read().count("WATCHDOG=1") >= 3)
        (engine,) = server.named("engine")
        os.kill(engine, signal.SIGSTOP)
        try:
            eventually(lambda: server.get("/healthz")[0] == 503, 20)
            manager.read()
            time.sleep(1)
            before = manager.read().count("WATCHDOG=1")
            time.sleep(2)
            assert manager.read().count("WATCHDOG=1") == before
        finally:
            os.kill(engine, signal.SIGCONT)
        eventually(lambda: manager.read().count("WATCHDOG=1") > before + 1)
        (observer,) = server.named("observer")
        os.kill(observer, signal.SIGSTOP)
        os.kill(observer, signal.SIGKILL)
        before = manager.read().count("WATCHDOG=1")
        eventually(lambda: manager.read().count("WATCHDOG=1") > before + 1)


def test_a_watchdog_of_another_process_is_not_fed(start: Start, tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    with manager.sock:
        start("--workers", "1", environment={**manager.environment, "WATCHDOG_USEC": "300000", "WATCHDOG_PID": "1"})
        manager.wait("READY=1")
        time.sleep(1)
        assert "WATCHDOG=1" not in manager.read()


def test_a_manager_that_has_gone_stops_nothing(start: Start, tmp_path: Path) -> None:
    server = start("--workers", "1", environment={"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    with server.client() as client:
        assert client.read(0, 512) == bytes(512)


def test_socket_activation_is_refused_by_name(tmp_path: Path) -> None:
    """Its own process id stands in LISTEN_PID, as systemd sets it; another's means another's sockets."""
    command = f"LISTEN_FDS=1 LISTEN_PID=$$ exec {sys.executable} -m vramblk --allow-cpu --size 16M"
    done = subprocess.run(
        ["sh", "-c", f"{command} --listen-addr unix:{tmp_path}/s --status-socket off"],
        env=clean_environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "LISTEN_FDS=1" in done.stderr and "--listen-addr" in done.stderr


def test_sockets_of_another_process_are_not_ours(start: Start) -> None:
    start("--workers", "1", environment={"LISTEN_FDS": "1", "LISTEN_PID": "1"})


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="requires systemd-analyze")
@pytest.mark.parametrize("drop_in", [False, True])
def test_systemd_accepts_the_unit(drop_in: bool, tmp_path: Path) -> None:
    folder = REPOSITORY / "deploy" / "systemd"
    text = (folder / "vramblk.service").read_text().replace("/opt/vramblk/bin/vramblk", "/bin/true")
    (tmp_path / "vramblk.service").write_text(text)
    if drop_in:
        (tmp_path / "vramblk.service.d").mkdir()
        shutil.copy(folder / "swap.conf", tmp_path / "vramblk.service.d")
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "vramblk.service"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
