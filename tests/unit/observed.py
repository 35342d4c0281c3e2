"""A server without workers and without a device: shared memory, a real engine over a numpy array, a real observer."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.unit.plain_memory import PlainMemory
from tests.unit.sharedmemory import make_shared
from vramblk import observer
from vramblk.config.settings import Settings, load_settings
from vramblk.engine.executor import Executor, engine_windows
from vramblk.engine.process import describe
from vramblk.memory.base import Batch
from vramblk.shared.context import Shared
from vramblk.shared.control import ControlWord, State

SIZE = 64 << 20


def settings_of(*arguments: str) -> Settings:
    return load_settings(["--size", str(SIZE), *arguments], {})


class Observed:
    """``memory.before`` may be replaced to make the device slow or faulty; ``stall`` stops the engine."""

    def __init__(self, directory: Path, *arguments: str, workers: int = 2) -> None:
        settings = settings_of("--metrics-addr", "127.0.0.1:1", *arguments)
        self.log_reader, log_writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(log_writer, False)
        self.shared: Shared = make_shared(settings, workers, 1 << 20, 1 << 20, log_writer)
        self.before: Callable[[PlainMemory, Batch], None] = lambda memory, batch: None
        windows = engine_windows(self.shared.windows)
        self.memories = [
            PlainMemory(SIZE, windows, before=lambda memory, batch: self.before(memory, batch))
            for _ in settings.exports
        ]
        for written in self.shared.written:
            written.resize(SIZE)
        self.shared.control.publish_export_table(describe(self.shared, self.memories))
        self.engine = Executor(self.shared, self.memories, windows)
        self.stall = threading.Event()
        self._ended = threading.Event()
        self.control.store(ControlWord.SUPERVISOR_PID, os.getpid())
        self.control.store(ControlWord.READY_NS, time.monotonic_ns())
        self.control.store(ControlWord.STATE, State.READY)
        self.path = directory / "status.sock"
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(str(self.path))
        tcp = socket.create_server(("127.0.0.1", 0))
        self.port: int = tcp.getsockname()[1]
        for listener in (unix, tcp):
            listener.listen(64)
        self._listeners = [unix, tcp]
        self.supervisor, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._theirs = theirs
        self.status: list[int] = []
        self._threads = [
            threading.Thread(target=self._turn),
            threading.Thread(target=self._observe, args=(theirs,)),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def control(self) -> Any:
        return self.shared.control

    def _turn(self) -> None:
        while not self._ended.is_set():
            if self.stall.is_set() or not self.engine.turn():
                time.sleep(0.001)

    def _observe(self, theirs: socket.socket) -> None:
        self.status.append(observer.run(self.shared, self.log_reader, self._listeners, theirs, {}))

    def close(self) -> None:
        """Let the observer go as a dying supervisor does."""
        self.supervisor.close()
        self._ended.set()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        for sock in (*self._listeners, self._theirs):
            sock.close()
        os.close(self.log_reader)
        os.close(self.shared.log_fd)

    def get(self, path: str, tcp: bool = False, **headers: str) -> tuple[int, str]:
        """Status and body."""
        status, body, _ = self.request("GET", path, tcp, headers)
        return status, body

    def request(
        self, method: str, path: str, tcp: bool = False, headers: dict[str, str] | None = None
    ) -> tuple[int, str, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        if not tcp:
            connection.sock = self.connect()
        try:
            connection.request(method, path, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.read().decode(), dict(response.getheaders())
        finally:
            connection.close()

    def connect(self, tcp: bool = False) -> socket.socket:
        """A connection that has sent nothing."""
        if tcp:
            return socket.create_connection(("127.0.0.1", self.port), 10)
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(str(self.path))
        return sock

    def json(self, path: str) -> Any:
        status, body = self.get(path)
        assert status == 200, body
        return json.loads(body)

    def metrics(self) -> dict[str, float]:
        """Samples by name and labels as they are printed."""
        status, body = self.get("/metrics")
        assert status == 200
        lines = (line.rsplit(" ", 1) for line in body.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}
