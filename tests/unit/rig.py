"""A client's socket, the connection that serves it, and the engine behind it, in one process."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from tests.unit.plain_memory import PlainMemory
from tests.unit.sharedmemory import make_shared
from vramblk.config.settings import load_settings
from vramblk.engine.executor import EngineWindow, Executor, engine_windows
from vramblk.memory.base import Batch, Memory
from vramblk.nbd.replies import ReplyFormat
from vramblk.serving.connection import Connection, complete
from vramblk.serving.lanes import SMALLEST, Lanes
from vramblk.serving.ringwriter import ExportView
from vramblk.serving.stagetimes import WorkerTiming
from vramblk.serving.submissions import Submissions
from vramblk.shared.ring import SubmissionRing

SIZE = 4 << 20
STRUCTURED = ReplyFormat(True, False)
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)


@dataclass
class Rig:
    """A client's socket, the connection that serves it, and the engine behind."""

    client: socket.socket
    connection: Connection
    submissions: Submissions
    engine: Executor
    memory: Any
    written: Any
    export: ExportView

    def send(
        self, command: int, offset: int, length: int, payload: bytes = b"", *, flags: int = 0, cookie: int = 1
    ) -> None:
        self.client.sendall(
            struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + payload
        )

    def work(self, rounds: int = 50) -> None:
        """Let connection and engine run until nothing moves."""
        for _ in range(rounds):
            moved = self.connection.pump()
            moved |= self.engine.turn()
            moved |= bool(complete(self.submissions))
            self.connection.flush()
            if not moved:
                return

    def replies(self) -> bytes:
        data = b""
        while True:
            try:
                data += self.client.recv(1 << 20)
            except BlockingIOError:
                return data

    def answers(self) -> list[tuple[int, int, int]]:
        """(chunk type or -1 for a simple reply, error, cookie) of structured replies without long data."""
        data, found = self.replies(), []
        while data:
            if data[:4] == struct.pack(">I", 0x67446698):
                _, error, cookie = struct.unpack_from(">IIQ", data)
                found.append((-1, error, cookie))
                data = data[16:]
                continue
            magic, _, kind, cookie, length = struct.unpack_from(">IHHQI", data)
            assert magic == 0x668E33EF
            error = struct.unpack_from(">I", data, 20)[0] if kind >= 1 << 15 else 0
            found.append((kind, error, cookie))
            data = data[20 + length :]
        return found

    def second(self, server: socket.socket) -> Connection:
        """Another connection of the same worker, in the same lane: one of the two must not receive payloads."""
        return connect(server, self.connection.lane, self.engine._windows[0], self.submissions, self.export)


def connect(
    server: socket.socket,
    lane: Any,
    window: Any,
    submissions: Submissions,
    export: ExportView,
    timing: WorkerTiming | None = None,
    format: ReplyFormat = STRUCTURED,
) -> Connection:
    return Connection(
        server,
        "test",
        lane,
        window,
        submissions,
        export,
        format,
        1,
        b"",
        structlog.get_logger(),
        timing=timing,
    )


def make(
    client: socket.socket,
    server: socket.socket,
    arena_bytes: int | None = None,
    before: Callable[[PlainMemory, Batch], None] = lambda memory, batch: None,
    lane_bytes: int = 4 * SMALLEST,
    open_memory: Callable[[Sequence[EngineWindow]], Memory] | None = None,
    format: ReplyFormat = STRUCTURED,
) -> Rig:
    """A rig on a pair of sockets: on a plain memory, with ``before`` as there, or on what ``open_memory`` opens."""
    shared = make_shared(load_settings(["--allow-cpu", "--size", "4M"], {}), 1, lane_bytes, lane_bytes)
    windows = engine_windows(shared.windows)
    memory: Any
    if open_memory is None:
        memory = PlainMemory(SIZE, windows, arena_bytes, before)
    else:
        memory = open_memory(windows)
        memory.attach(windows)
    shared.written[0].resize(SIZE)
    engine = Executor(shared, [memory], windows)
    for each in (client, server):
        each.setblocking(False)
    window = shared.windows[0]
    lane = Lanes(window.layout.rx_bytes, window.layout.tx_bytes, 1).take()
    assert lane is not None
    submissions = Submissions(SubmissionRing(window, shared.engine_doorbell, shared.control), window.counters)
    export = ExportView(0, "vram", SIZE, memory.arena_bytes, False, shared.written[0])
    connection = connect(server, lane, window, submissions, export, format=format)
    return Rig(client, connection, submissions, engine, memory, shared.written[0], export)
