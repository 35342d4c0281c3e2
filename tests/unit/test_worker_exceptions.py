"""An exception in a worker ends one connection or one negotiation, never the worker."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.unit.oneworker import One, request
from tests.unit.rig import READ
from vramblk.nbd.events import Begin
from vramblk.shared import moves
from vramblk.shared.window import Word
from vramblk.worker import connections, negotiations

GREETING = b"NBDMAGICIHAVEOPT"
GO = struct.pack(">Q", 0x49484156454F5054) + struct.pack(">II", 7, 4 + 4 + 2) + struct.pack(">I4sH", 4, b"vram", 0)


@pytest.fixture
def one() -> Iterator[One]:
    made = One()
    yield made
    made.close()


def fail(*arguments: object, **options: object) -> Any:
    raise MemoryError


def closed(client: socket.socket) -> bool:
    """Whether the worker has closed its end, whatever it sent before."""
    with suppress(ConnectionResetError):  # with bytes unread
        while client.recv(4096):
            pass
    return True


def free_lanes(one: One) -> int:
    return len(one.worker.loop.admission.lanes._free)


def state(one: One) -> tuple[int, int, int]:
    """Connections now open, lanes that are free, slots of the table in use."""
    return one.window.load(Word.CONNECTIONS), free_lanes(one), len(one.window.connections())


def test_a_handoff_that_fails_gives_everything_back(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is closed and counted out, its lane and its row of the table are free; the next is served."""
    before = state(one)
    with monkeypatch.context() as patch:
        patch.setattr(negotiations, "Negotiation", fail)
        client = one.hand_over()
        one.worker.loop.take_handoffs()
        assert closed(client)
    assert state(one) == before
    assert one.window.counters.scalar("internal_errors") == 1
    assert one.window.load(Word.CLOSED) == 1
    client = one.hand_over()
    one.worker.loop.take_handoffs()
    assert client.recv(16) == GREETING


@pytest.mark.parametrize("step", ("Connection", "PollSet.add"))
def test_a_moved_connection_that_fails_gives_everything_back(
    one: One, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """One that another process has served until now, and that has not become a connection of this one."""
    begun = moves.pack(Begin(0, False, False, None, b""))
    before = state(one)
    with monkeypatch.context() as patch:
        patch.setattr(f"vramblk.worker.connections.{step}", fail)
        client = one.hand_over(begun=begun)
        one.worker.loop.take_handoffs()
        assert closed(client)
    assert state(one) == before and not one.worker.loop.connections.by_fd
    assert one.window.counters.scalar("internal_errors") == 1
    assert one.window.load(Word.CLOSED) == one.window.load(Word.HANDOFFS) == 1
    client = one.hand_over(begun=begun)
    one.worker.loop.take_handoffs()
    assert len(one.worker.loop.connections.by_fd) == 1
    client.close()


def test_a_negotiation_that_fails_gives_everything_back(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(one)
    client = one.hand_over()
    one.worker.loop.take_handoffs()
    assert client.recv(16) == GREETING
    monkeypatch.setattr(negotiations.Negotiation, "advance", fail)
    client.sendall(struct.pack(">I", 1))
    one.worker.loop.poll(0)
    assert closed(client) and state(one) == before
    assert one.window.counters.scalar("internal_errors") == 1


def test_a_transmission_that_cannot_begin_gives_everything_back(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(one)
    monkeypatch.setattr(connections, "Connection", fail)
    monkeypatch.setattr(negotiations.Negotiation, "advance", lambda self: Begin(0, False, False, None, b""))
    client = one.hand_over()
    one.worker.loop.take_handoffs()
    assert closed(client) and state(one) == before
    assert not one.worker.loop.negotiations.by_fd and not one.worker.loop.connections.by_fd and not one.worker.loop.pollset.interest


def test_an_exception_of_the_loop_does_not_end_the_worker(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted, and the loop goes on; entries that were not submitted are taken back."""
    turns: list[int] = []

    def loop() -> bool:
        turns.append(1)
        if len(turns) < 4:
            one.worker.loop.submissions.ring.push(0, 0, 0, 0, 0, 0, 0, 0)
            raise ValueError
        return True

    monkeypatch.setattr(one.worker, "_turn", loop)
    one.worker.serve()
    assert len(turns) == 4 and one.window.counters.scalar("internal_errors") == 3
    assert one.worker.loop.submissions.ring.tail == 0


def test_a_client_gets_its_answer_to_go_after_its_fence(one: One) -> None:
    """Not before the engine has passed it; nothing polls meanwhile."""
    client = one.hand_over()
    one.worker.loop.take_handoffs()
    assert client.recv(18)[:16] == GREETING
    client.sendall(struct.pack(">I", 1) + GO)
    one.worker.loop.poll(0)
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)
    assert one.worker.loop.fences.asking and not one.worker.loop.fences.passed
    one.windows.run()
    assert one.worker.loop.fences.passed
    one.worker.loop.turn()
    assert client.recv(4096)
    assert len(one.worker.loop.connections.by_fd) == 1


def test_the_doorbell_of_the_worker_is_emptied(one: One) -> None:
    """Else it would be reported all the time, and the worker not sleep."""
    one.windows.shared.doorbells[0].ring()
    one.worker.loop.poll(0)
    assert one.worker.loop.pollset.epoll.poll(0) == []


def test_a_connection_with_an_exception_is_closed_by_the_worker(one: One) -> None:
    """Its lane comes back once the engine has done what it had queued."""
    before = free_lanes(one)
    client, connection = one.connect()
    client.sendall(request(READ, 0) + request(READ, 4096))
    connection.pump()
    broken: Any = connection
    broken._parser.next = fail
    client.sendall(request(READ, 0))
    connection.pump()
    one.worker.loop.connections.refresh(connection)
    assert free_lanes(one) == before - 1
    one.finish()
    assert free_lanes(one) == before and connection.fd not in one.worker.loop.connections.by_fd
