"""Two clients that the engine serves itself, while copies fail: as the executor does with a failing batch, a go is done
again before anybody else is served.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from tests.unit.plain_memory import PlainMemory
from tests.unit.sharedmemory import make_shared
from vramblk.config.settings import load_settings
from vramblk.engine.executor import Executor, engine_windows
from vramblk.engine.localclients import LocalClients
from vramblk.engine.process import describe
from vramblk.memory.base import Batch, DeviceError
from vramblk.memory.copies import Copies, MappedCopies
from vramblk.nbd.events import Begin
from vramblk.shared import moves
from vramblk.shared.control import ControlWord, State

SIZE = 1 << 20
READ, WRITE = 0, 1
EIO = 5


class Failing(Copies):
    """Copies that are done, but whose ``finish`` fails as often as ``failures`` says."""

    def __init__(self, inner: Copies, failures: list[int]) -> None:
        super().__init__(inner.size_bytes, inner.arena_bytes, [0], inner.failure)
        self.queued = True
        self._inner, self._failures = inner, failures

    def read(self, offset: int, length: int, address: int) -> int:
        return self._inner.read(offset, length, address)

    def write(self, offset: int, length: int, address: int) -> int:
        return self._inner.write(offset, length, address)

    def finish(self) -> int:
        return self._failures.pop() if self._failures else 0


class Memory(PlainMemory):
    """Gives such copies, and fails batches that touch ``bad``."""

    failures: list[int]
    bad = -1

    def copies(self) -> Copies:
        inner = MappedCopies(
            self.size_bytes, self.arena_bytes, [self.bytes.ctypes.data], lambda status: DeviceError(EIO, str(status))
        )
        return Failing(inner, self.failures)

    def execute(self, batch: Batch) -> None:
        for copy in (*batch.copies_in, *batch.copies_out):
            if copy.offset <= self.bad < copy.offset + copy.hi - copy.lo:
                raise DeviceError(EIO, "as the test asked")
        super().execute(batch)


class Served:
    """An engine with two local clients, whose ``turn`` is one of its own."""

    def __init__(self, format: Begin) -> None:
        settings = load_settings(["--allow-cpu", "--size", str(SIZE), "--listen-addr", "unix:/nowhere"], {})
        self.shared = shared = make_shared(settings, 0, 24 << 20, 24 << 20)
        windows = engine_windows(shared.windows)
        self.memory = Memory(SIZE, windows)
        self.memory.failures = self.failures = []
        shared.written[0].resize(SIZE)
        shared.control.publish_export_table(describe(shared, [self.memory]))
        shared.control.store(ControlWord.STATE, State.READY)
        self.executor = Executor(shared, [self.memory], windows)
        supervisor, engine = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.mail = os.eventfd(0, os.EFD_NONBLOCK)
        self.local = LocalClients(shared, self.executor, engine, self.mail, self.executor.idle)
        self.local._loop.learn_exports()
        self.sockets = [supervisor, engine]
        self.clients: list[socket.socket] = []
        for number in (1, 2):
            ours, theirs = socket.socketpair()
            message = json.dumps({"id": number, "peer": "test", "begun": moves.pack(format)}).encode()
            socket.send_fds(supervisor, [message], [theirs.fileno()])
            theirs.close()
            ours.setblocking(False)
            self.clients.append(ours)
        self.local._loop.take_handoffs()

    def turn(self) -> None:
        self.executor.turn()
        self.local.turn()

    def ask(self, client: socket.socket, request: bytes, length: int) -> bytes:
        """The reply, of so many bytes, after as many turns as it takes."""
        client.sendall(request)
        return self.answers(client, length)

    def answers(self, client: socket.socket, length: int) -> bytes:
        found = b""
        for _ in range(1000):
            self.turn()
            try:
                found += client.recv(length - len(found))
            except BlockingIOError:
                continue
            if len(found) == length:
                return found
        raise AssertionError(f"{len(found)} bytes of {length}")

    def close(self) -> None:
        self.local.close()
        for each in (*self.sockets, *self.clients):
            each.close()
        os.close(self.mail)
        self.local._loop.pollset.epoll.close()


SIMPLE = Begin(0, False, False, None, b"")
EXTENDED = Begin(0, True, True, None, b"")


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    found = Served(getattr(request, "param", SIMPLE))
    yield found
    found.close()


def simple(command: int, cookie: int, offset: int, length: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, 0, command, cookie, offset, length) + payload


def test_what_was_seen_and_written_over_does_not_come_back(served: Served) -> None:
    """One client's writes fail once, after they are done. Another has seen the last of them and has written since."""
    one, other = served.clients
    served.failures.append(-5)
    one.sendall(b"".join(simple(WRITE, number, 8192, 16, bytes([number]) * 16) for number in range(1, 41)))
    seen = served.ask(other, simple(READ, 1, 8192, 16), 32)[16:]
    assert seen in (bytes(16), bytes([40]) * 16)
    served.ask(other, simple(WRITE, 2, 8192, 16, b"w" * 16), 16)
    assert served.answers(one, 40 * 16)[:16] == struct.pack(">IIQ", 0x67446698, 0, 1)
    for number in range(10):
        assert served.ask(other, simple(READ, number, 8192, 16), 32)[16:] == b"w" * 16
    assert served.shared.local is not None
    assert served.shared.local.counters.cells[served.shared.local.counters.request_index(0, WRITE)] == 41


def test_a_go_that_fails_again_is_answered_one_by_one(served: Served) -> None:
    """In order: the request that fails gets its errno, the others what they asked for."""
    one, _ = served.clients
    served.memory.bytes[:] = np.arange(SIZE) & 0xFF
    served.memory.bad = 5000
    served.failures.append(-5)
    one.sendall(simple(WRITE, 1, 0, 8, b"a" * 8) + simple(READ, 2, 4996, 8) + simple(READ, 3, 0, 9))
    replies = served.answers(one, 16 + 16 + 16 + 9)
    assert replies == b"".join(
        (
            struct.pack(">IIQ", 0x67446698, 0, 1), struct.pack(">IIQ", 0x67446698, EIO, 2),
            struct.pack(">IIQ", 0x67446698, 0, 3), b"a" * 8, b"\x08",
        )
    )  # fmt: skip
    assert served.ask(one, simple(READ, 4, 100, 1), 17)[16:] == bytes([100])


@pytest.mark.parametrize("served", [EXTENDED], indirect=True)
def test_the_same_with_extended_replies(served: Served) -> None:
    one, _ = served.clients
    served.memory.bad = 64
    served.failures.append(-5)
    requests = (
        struct.pack(">IHHQQQ", 0x21E41C71, 1 << 5, WRITE, 7, 64, 2) + b"xy"
        + struct.pack(">IHHQQQ", 0x21E41C71, 0, READ, 8, 128, 3)
    )  # fmt: skip
    one.sendall(requests)
    error = struct.pack(">IHHQQQIH", 0x6E8A278C, 1, (1 << 15) + 1, 7, 64, 6, EIO, 0)
    data = struct.pack(">IHHQQQQ", 0x6E8A278C, 1, 1, 8, 128, 11, 128) + bytes(3)
    assert served.answers(one, len(error + data)) == error + data
