"""A worker in this process whose loop does not run, with connections, and the engine behind it."""

from __future__ import annotations

import json
import socket
import struct

from tests.unit.rig import connect
from tests.unit.windows import BLOCK, SIZE, Windows
from vramblk.engine.process import describe
from vramblk.nbd.events import ExportInfo
from vramblk.serving.connection import Connection, complete
from vramblk.serving.ringwriter import ExportView
from vramblk.shared.control import ControlWord, State
from vramblk.shared.window import Word
from vramblk.worker.process import Worker


def request(command: int, offset: int, payload: bytes = b"", cookie: int = 1) -> bytes:
    length = len(payload) or BLOCK
    return struct.pack(">IHHQQI", 0x25609513, 0, command, cookie, offset, length) + payload


class One:
    """A worker of two, in this process and not looping, with connections; and the engine, which tests turn."""

    def __init__(self) -> None:
        self.windows = Windows(2, slab_part=8 << 20)
        for index in (0, 1):
            self.windows.window(index).store(Word.READY, 1)
        self.handoff, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.worker = Worker(self.windows.shared, 0, theirs, 4)
        self._theirs = theirs
        self.window = self.windows.window(0)
        control = self.windows.shared.control
        control.publish_export_table(describe(self.windows.shared, [self.windows.memory]))
        control.store(ControlWord.STATE, State.READY)
        self._export = ExportView(0, "vram", SIZE, SIZE, False, self.windows.written)
        self.worker.loop.add_export(self._export, ExportInfo("vram", "", SIZE, False))
        self.clients: list[socket.socket] = []

    def connect(self) -> tuple[socket.socket, Connection]:
        lane = self.worker.loop.admission.lanes.take()
        client, server = socket.socketpair()
        for each in (client, server):
            each.setblocking(False)
        connection = connect(server, lane, self.window, self.worker.loop.submissions, self._export)
        self.worker.loop.connections.by_fd[server.fileno()] = connection
        self.worker.loop.pollset.interest[server.fileno()] = 0
        self.worker.loop.admission.count_opened()
        self.clients.append(client)
        return client, connection

    def hand_over(self, **more: object) -> socket.socket:
        """A new client, as the supervisor hands it over, ``more`` in its message; the worker has not taken it yet."""
        client, server = socket.socketpair()
        client.settimeout(5)
        message = json.dumps({"id": 7, "peer": "test", **more}).encode()
        socket.send_fds(self.handoff, [message], [server.fileno()])
        server.close()
        self.clients.append(client)
        return client

    def fence(self) -> None:
        """Another worker's new client: the engine begins the fence and executes what was published before."""
        window = self.windows.window(1)
        window.store(Word.FENCE_ASKED, window.load(Word.FENCE_PASSED) + 1)
        self.windows.run()
        assert window.load(Word.FENCE_ASKED) == window.load(Word.FENCE_PASSED)

    def finish(self) -> None:
        self.windows.run()
        for connection in complete(self.worker.loop.submissions):
            connection.flush()
            self.worker.loop.connections.refresh(connection)

    def close(self) -> None:
        for sock in (*self.clients, self.handoff, self._theirs):
            sock.close()
        for connection in self.worker.loop.connections.by_fd.values():
            connection.sock.close()
        self.worker.loop.pollset.epoll.close()
