"""For callgrind: clients that each ask the engine's short path for one request after another.

An argument such as ``read:2000`` is a client with that many requests. Each is served by a process of its own, all
forked from one, so that their totals differ by the requests alone. Prints the ids of these processes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import socket
import struct
import sys

import vramblk.engine.direct
from vramblk.config.settings import load_settings
from vramblk.memory.base import DeviceError
from vramblk.memory.copies import MappedCopies
from vramblk.nbd.replies import ReplyFormat
from vramblk.serving.lanes import Lanes
from vramblk.serving.tally import Tally
from vramblk.shared.context import Shared, make_shared
from vramblk.shared.window import WindowLayout

SIZE, LANE = 1 << 20, 1 << 20
#: So little that the copy hardly counts: each processor does it in another way.
BLOCK = 512
READ, WRITE = 0, 1
REPLY = 16


def ask(client: socket.socket, command: int, count: int) -> None:
    """The client: as many requests, the next when the last was answered."""
    payload = bytes(BLOCK) if command == WRITE else b""
    reply = REPLY + (BLOCK if command == READ else 0)
    for cookie in range(count):
        place = cookie * BLOCK % SIZE
        client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, cookie, place, BLOCK) + payload)
        assert len(client.recv(reply, socket.MSG_WAITALL)) == reply


def serve(server: socket.socket, count: int, shared: Shared) -> None:
    """The engine, as it serves its only client; returns when that has gone."""
    server.setblocking(False)
    assert shared.local is not None
    window = shared.local
    lane = Lanes(LANE, LANE, 1).take()
    assert lane is not None
    memory = mmap.mmap(-1, SIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    copies = MappedCopies(SIZE, SIZE, [address], lambda status: DeviceError(5, str(status)))
    cells = shared.control.engine_counters.cells
    path = vramblk.engine.direct.DirectPath(
        server.fileno(), window, lane, 0, ReplyFormat(False, False), copies, memoryview(bytearray(SIZE // 4096)),
        Tally(window.counters, window.traffic(lane.slot), 0), shared.control,
        memoryview(bytearray(8 * len(cells))).cast("q"), read_only=False, drains=True, piece_bytes=1 << 16,
    )  # fmt: skip
    epoll = select.epoll()
    epoll.register(server, select.EPOLLIN | select.EPOLLRDHUP)
    served = 0
    while not path.ended:
        served += path.linger(epoll, epoll.fileno(), -1, 0, True)
    assert served == count


def main() -> None:
    shared = make_shared(load_settings(["--size", "1M"], {}), [], WindowLayout(LANE, LANE, 1), 2)
    for argument in sys.argv[1:]:
        name, _, number = argument.partition(":")
        command, count = {"read": READ, "write": WRITE}[name], int(number)
        client, server = socket.socketpair()
        asking = os.fork()
        if not asking:
            server.close()
            ask(client, command, count)
            os._exit(0)
        client.close()
        serving = os.fork()
        if not serving:
            serve(server, count, shared)
            os._exit(0)
        server.close()
        for child in (asking, serving):
            assert not os.waitpid(child, 0)[1]
        print(serving, flush=True)


if __name__ == "__main__":
    main()
