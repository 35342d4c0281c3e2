"""Starts a server in a directory of its own, watches its log, and ends it with all its processes."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .rawclient import RawClient

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 30


def requires(*programs: str) -> pytest.MarkDecorator:
    """Skip, by name, where a program is missing."""
    missing = [name for name in programs if not find_program(name)]
    return pytest.mark.skipif(bool(missing), reason=f"requires {', '.join(missing)}")


def find_program(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def eventually(condition: Callable[[], Any], timeout_s: float = 10, interval_s: float = 0.02) -> Any:
    """The first true value of the condition; fails if there is none in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not true within {timeout_s} s"
        time.sleep(interval_s)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def descendants(pid: int) -> dict[int, str]:
    """Process names (15 characters, as in comm) of all processes below ``pid``, by process id."""
    found: dict[int, str] = {}
    parents: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            name, rest = (entry / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:
            continue
        state, parent = rest.split()[:2]
        if state not in "ZX":
            parents.setdefault(int(parent), []).append((int(entry.name), name))
    queue = [pid]
    while queue:
        for child, name in parents.get(queue.pop(), []):
            found[child] = name
            queue.append(child)
    return found


def clean_environment(**extra: str) -> dict[str, str]:
    """This environment without any setting of the server, and with the source tree importable."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VRAMBLK_")}
    return environment | {"PYTHONPATH": str(REPOSITORY)} | extra


class Server:
    """One server on a Unix socket, and on TCP too if asked, with its files under ``directory``.

    Args:
        arguments: further options; ``--size`` and the like may be overridden here.
        program: what to run instead of ``python -m vramblk``.
        status: whether there is a status socket.
    """

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        tcp: bool = False,
        size: str | None = "64M",
        program: tuple[str, ...] = (sys.executable, "-m", "vramblk"),
        status: bool = True,
        environment: dict[str, str] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.unix_path = directory / "nbd.sock"
        self.status_path = directory / "status.sock"
        self.port = free_port() if tcp else 0
        self.events: list[dict[str, Any]] = []
        self.raw_lines: list[str] = []
        self._known: dict[int, str] = {}
        self._changed = threading.Condition()
        command = [*program, "--allow-cpu", "--listen-addr", f"unix:{self.unix_path}"]
        if tcp:
            command += ["--listen-addr", f"127.0.0.1:{self.port}"]
        if size is not None:
            command += ["--size", size]
        command += ["--status-socket", str(self.status_path) if status else "off", *arguments]
        self.stderr_path = directory / "stderr"
        with self.stderr_path.open("w") as stderr:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, text=True,
                env=clean_environment(**(environment or {})), cwd=directory,
            )  # fmt: skip
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text()

    def __enter__(self) -> Server:
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if self.process.poll() is None:
                self.stop()
            leftovers = self.leftovers()
            assert not leftovers or kind is not None, f"processes left behind: {leftovers}"
        finally:
            self.kill()

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.raw_lines.append(line)
                try:
                    self.events.append(json.loads(line))
                except ValueError:
                    pass
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def find_event(self, name: str) -> dict[str, Any] | None:
        with self._changed:
            return next((event for event in self.events if event.get("event") == name), None)

    def wait_event(self, name: str, timeout_s: float = 10) -> dict[str, Any]:
        """The first log event of this name; fails if the server ends or the time is over."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.find_event(name)
            if found is not None:
                return found
            ended = self.process.poll() is not None and not self._reader.is_alive()
            if ended or time.monotonic() > deadline:
                what = f"exit status {self.process.poll()}" if ended else f"nothing in {timeout_s} s"
                log = "".join(self.raw_lines)
                raise AssertionError(f"no event {name}: {what}\nstderr: {self.stderr}\nlog:\n{log}")
            with self._changed:
                self._changed.wait(0.1)

    def wait_ready(self) -> dict[str, Any]:
        event = self.wait_event("ready", START_TIMEOUT_S)
        self.remember()
        return event

    def remember(self) -> dict[int, str]:
        """Processes of this server that live now; they must be gone when it has ended."""
        now = descendants(self.pid)
        self._known |= now
        return now

    def named(self, role: str) -> list[int]:
        """Process ids of one role: worker, engine or observer."""
        name = f"vramblk-{role}"[:15]
        return [pid for pid, found in self.remember().items() if found == name]

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Exit status; fails if it does not end in time."""
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s} s\n{''.join(self.raw_lines[-20:])}") from None
        self._reader.join(5)
        return status

    def stop(self) -> int:
        """SIGTERM, and wait for the end."""
        self.remember()
        self.signal(signal.SIGTERM)
        status = self.wait()
        assert status == 0, f"exit status {status}\nstderr: {self.stderr}\n{''.join(self.raw_lines[-20:])}"
        return status

    def leftovers(self, timeout_s: float = 10) -> dict[int, str]:
        """Processes of this server that outlive it."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = {pid: name for pid, name in self._known.items() if alive(pid)}
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.05)

    def kill(self) -> None:
        """End whatever is left, by process id."""
        if self.process.poll() is None:
            self.remember()
            self.process.kill()
            self.process.wait()
        for pid, name in self._known.items():
            if alive(pid) and Path(f"/proc/{pid}/comm").read_text().strip() == name:
                os.kill(pid, signal.SIGKILL)

    def connect(self, transport: str = "unix") -> RawClient:
        """A connection that has sent nothing yet."""
        if transport == "unix":
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(10)
            connection.connect(str(self.unix_path))
        else:
            connection = socket.create_connection(("127.0.0.1", self.port), 10)
        return RawClient(connection)

    def client(self, name: str = "", transport: str = "unix", **negotiate: Any) -> RawClient:
        """A connection in transmission."""
        client = self.connect(transport)
        try:
            client.greet()
            return client.negotiate(name, **negotiate)
        except BaseException:
            client.close()
            raise

    def takes_a_client(self) -> bool:
        """Whether one gets into transmission now; it leaves again."""
        try:
            self.client().close()
        except (AssertionError, EOFError, OSError):
            return False
        return True

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page on the status socket."""
        return http_get(self.status_path, path)

    def metrics(self) -> dict[str, float]:
        """Samples of /metrics by name and labels as they are printed."""
        status, body = self.get("/metrics")
        assert status == 200
        lines = (line.rsplit(" ", 1) for line in body.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def unix_uri(self, name: str = "") -> str:
        return f"nbd+unix:///{name}?socket={self.unix_path}"

    def tcp_uri(self, name: str = "") -> str:
        return f"nbd://localhost:{self.port}/{name}"


class _UnixHTTPConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


def http_get(path: Path, url: str) -> tuple[int, str]:
    """Status and body of an HTTP GET over a Unix socket."""
    connection = _UnixHTTPConnection(path)
    try:
        connection.request("GET", url)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()
