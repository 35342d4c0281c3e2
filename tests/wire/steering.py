"""Orders to a server of ``steered_server.py``, and what many tests of deaths and storms need to see of a server."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .harness import Server, eventually
from .rawclient import RawClient

PROGRAM = (sys.executable, str(Path(__file__).with_name("steered_server.py")))


class Steered(Server):
    """A server that obeys: see ``steered_server.py`` for what the orders do.

    Args:
        uncompiled: run the short path of the engine's own clients as plain Python, whose receives and sends obey, too.
    """

    def __init__(self, directory: Path, *arguments: str, uncompiled: bool = False, **options: Any) -> None:
        environment = {"STEERED_DIRECT": "uncompiled"} if uncompiled else {}
        super().__init__(directory, *arguments, program=PROGRAM, environment=environment, **options)

    @contextmanager
    def held(self, client: RawClient) -> Iterator[None]:
        """The engine stands still, in the midst of a read of ``client``'s, until the block ends."""
        self._remove("held")
        (self.directory / "hold").touch()
        try:
            cookie = client.submit(0, 0, 4096)
            eventually((self.directory / "held").exists)
            yield
        finally:
            self._remove("hold")
        assert client.gather([cookie])[cookie].error == 0

    def pace(self, **pace: float) -> None:
        self._order("pace.json", pace)

    def fail(self, op: str, lo: int, hi: int, **more: Any) -> None:
        self._order("faults.json", [{"op": op, "lo": lo, "hi": hi, "errno": 5, **more}])

    def fail_calls(self, rate: float, status: int, seed: int, **more: Any) -> None:
        self._order("calls.json", {"rate": rate, "status": status, "seed": seed, **more})

    def heal(self) -> None:
        self._order("faults.json", [])
        for name in ("calls.json", "pace.json"):
            self._remove(name)
        for path in (*self.directory.glob("recv-*"), *self.directory.glob("send-*")):
            path.unlink(missing_ok=True)

    def fail_once(self, call: str, what: str, mark: bytes = b"") -> Path:
        """The next ``recv`` or ``send`` on a client's socket fails; the path is gone once it has."""
        path = self.directory / f"{call}-{what}"
        fresh = self.directory / f".{call}-{what}"
        fresh.write_bytes(mark)
        os.replace(fresh, path)
        return path

    @contextmanager
    def failing(self, call: str, what: str) -> Iterator[None]:
        """Every ``recv`` or ``send`` on a client's socket fails until the block ends."""
        path = self.directory / f"{call}-{what}-always"
        path.touch()
        try:
            yield
        finally:
            path.unlink()

    def refused(self) -> int:
        """How many calls on clients' sockets have failed so far."""
        path = self.directory / "refused"
        return path.stat().st_size if path.exists() else 0

    def executed(self) -> list[tuple[float, int]]:
        """Monotonic seconds and requests of each batch so far."""
        lines = (self.directory / "executed").read_text().splitlines()
        return [(float(at), int(count)) for at, count in map(str.split, lines)]

    def _order(self, name: str, what: Any) -> None:
        fresh = self.directory / f".{name}"
        fresh.write_text(json.dumps(what))
        os.replace(fresh, self.directory / name)

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            (self.directory / name).unlink()


def sockets_of(pid: int) -> set[str]:
    """The sockets that a process holds, by inode."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            target = os.readlink(path)
            if target.startswith("socket:"):
                found.add(target)
    return found


def connect_and_find(server: Server, transport: str = "unix", **negotiate: Any) -> tuple[RawClient, int]:
    """A client in transmission, and the worker that serves it."""
    before = {pid: sockets_of(pid) for pid in server.named("worker")}
    client = server.client(transport=transport, **negotiate)
    (pid,) = [pid for pid, sockets in before.items() if sockets_of(pid) - sockets]
    return client, pid


def taken(client: RawClient) -> bool:
    """Whether the server has taken from the socket all that was sent. For Unix sockets."""
    waiting = fcntl.ioctl(client.socket, termios.TIOCOUTQ, struct.pack("i", 0))
    return struct.unpack("i", waiting)[0] == 0


def wait_taken(client: RawClient) -> None:
    assert client.socket.family == socket.AF_UNIX
    eventually(lambda: taken(client))


class Background:
    """A function in a thread, with its result or its exception."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error

    def result(self, timeout_s: float = 30) -> Any:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"not finished within {timeout_s} s"
        if self._error is not None:
            raise self._error
        return self._result

    @property
    def running(self) -> bool:
        return self._thread.is_alive()


def slowest_s(call: Callable[[], Any], until: Callable[[], bool]) -> float:
    """The longest that one of many calls took."""
    slowest = 0.0
    while not until():
        begun = time.monotonic()
        call()
        slowest = max(slowest, time.monotonic() - begun)
    return slowest
