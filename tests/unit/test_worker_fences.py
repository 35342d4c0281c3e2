"""What a worker does when a new connection has begun elsewhere, and while it waits for its own fence."""

from __future__ import annotations

import errno
import select
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.oneworker import One, request
from tests.unit.rig import READ, WRITE
from tests.unit.sharedmemory import rings
from tests.unit.windows import BLOCK
from vramblk.serving.connection import complete
from vramblk.shared.control import ControlWord
from vramblk.shared.window import Word


@pytest.fixture
def one() -> Iterator[One]:
    made = One()
    yield made
    made.close()


def test_published_entries_of_a_client_that_is_gone_are_taken_back(one: One) -> None:
    """Single requests and runs: they are done without being executed, and a later client's write stays."""
    client, connection = one.connect()
    one.fence()
    client.sendall(b"".join(request(WRITE, block * BLOCK, b"o" * BLOCK) for block in range(3)))
    connection.pump()
    client.sendall(request(WRITE, 100, b"o" * 50))
    connection.pump()
    client.close()
    one.windows.write(1, 0, b"n" * BLOCK)
    one.windows.run()
    assert one.windows.done(0) < one.worker.loop.submissions.ring.tail
    one.worker.loop.fences.see()
    one.finish()
    assert one.windows.done(0) == one.worker.loop.submissions.ring.tail
    assert one.windows.memory.bytes[:BLOCK].tobytes() == b"n" * BLOCK
    assert not one.windows.memory.bytes[BLOCK:].any()


def test_entries_of_clients_that_are_there_stay(one: One) -> None:
    """They are executed and answered once the worker has looked, whoever else is gone."""
    gone, of_gone = one.connect()
    there, of_there = one.connect()
    one.fence()
    for sock, connection, block in ((gone, of_gone, 0), (there, of_there, 1), (gone, of_gone, 2), (there, of_there, 3)):
        sock.sendall(request(WRITE, block * BLOCK, bytes([65 + block]) * BLOCK, cookie=block))
        connection.pump()
    gone.close()
    one.worker.loop.fences.see()
    one.finish()
    assert [chr(one.windows.memory.bytes[block * BLOCK] or 95) for block in range(4)] == ["_", "B", "_", "D"]
    assert there.recv(1 << 16) == b"".join(struct.pack(">IIQ", 0x67446698, 0, cookie) for cookie in (1, 3))


def test_what_was_published_before_the_fence_is_not_taken_back(one: One) -> None:
    """It was executed before the new client was let in."""
    client, connection = one.connect()
    client.sendall(request(WRITE, 0, b"o" * BLOCK))
    connection.pump()
    one.fence()
    client.close()
    one.worker.loop.fences.see()
    one.finish()
    assert one.windows.memory.bytes[0] == ord("o")


def test_the_lane_of_a_client_that_is_gone_is_free_once_its_entries_are_done(one: One) -> None:
    """Not before: the engine completes them in order, taken back or not."""
    client, connection = one.connect()
    one.fence()
    client.sendall(request(READ, 0) + request(READ, BLOCK))
    connection.pump()
    client.close()
    one.worker.loop.fences.see()
    assert connection.fd in one.worker.loop.connections.by_fd and not connection.finished
    one.finish()
    assert connection.fd not in one.worker.loop.connections.by_fd
    assert one.window.load(Word.CLOSED) == 1


def test_a_fence_is_seen_with_nothing_in_flight(one: One) -> None:
    one.connect()
    one.fence()
    assert one.window.load(Word.FENCES) == 1 and one.window.load(Word.FENCES_SEEN) == 0
    one.worker.loop.fences.see()
    assert one.window.load(Word.FENCES_SEEN) == 1


def test_a_sleeping_engine_is_woken_for_what_was_held(one: One) -> None:
    """Else the entries of clients that are there would wait for the next doorbell."""
    client, connection = one.connect()
    one.fence()
    client.sendall(request(READ, 0))
    connection.pump()
    one.windows.run()
    one.windows.shared.control.store(ControlWord.ENGINE_SLEEPING, 1)
    one.worker.loop.fences.see()
    assert rings(one.windows.shared.engine_doorbell)
    assert one.windows.engine.waiting()


def test_negotiations_that_end_while_a_fence_is_asked_for_wait_for_the_next(one: One) -> None:
    """One fence for several; one that comes later is not let in by a fence that was begun before it."""
    worker: Any = one.worker

    class Waiting:
        fd = -1
        fenced = False

        def pass_fence(self) -> None:
            self.fenced = True

    first, second, third = Waiting(), Waiting(), Waiting()
    worker.loop.fences.waiting = [first, second]
    worker.loop.fences.ask()
    worker.loop.fences.waiting = [third]
    one.windows.run()
    assert worker.loop.fences.passed
    worker.loop.negotiations.pass_fence()
    assert first.fenced and second.fenced and not third.fenced
    assert not worker.loop.fences.passed
    one.windows.run()
    assert worker.loop.fences.passed
    worker.loop.negotiations.pass_fence()
    assert third.fenced and worker.loop.fences.asking == worker.loop.fences.waiting == []


def interest_of(one: One, error: BaseException) -> int:
    """What epoll is asked for after a send of a reply has raised this."""
    client, connection = one.connect()
    client.sendall(request(READ, 0))
    connection.pump()
    one.windows.run()
    complete(one.worker.loop.submissions)

    class Full:
        def send(self, data: memoryview) -> int:
            raise error

    connection.replies._sock = Full()  # type: ignore[assignment]
    connection.flush()
    one.worker.loop.connections.refresh(connection)
    return one.worker.loop.pollset.interest[connection.fd]


@pytest.mark.parametrize(
    ("make", "sends"),
    [(BlockingIOError, True), (ssl.SSLWantWriteError, True), (ssl.SSLWantReadError, False)],
)
def test_epoll_is_asked_for_what_the_send_waits_for(one: One, make: Callable[[], BaseException], sends: bool) -> None:
    """A socket that TLS has to receive from is writable all the time: asking for that would be a busy loop."""
    interest = interest_of(one, make())
    assert bool(interest & select.EPOLLOUT) is sends
    assert interest & select.EPOLLIN


def test_a_starved_connection_is_tried_again_by_a_timer(one: One) -> None:
    """Epoll would report the socket all the time; the worker sleeps for some milliseconds instead."""
    interest = interest_of(one, OSError(errno.ENOBUFS, "no memory"))
    assert interest == 0
    timeout_s = one.worker.loop.timeout_s()
    assert timeout_s is not None and 0 < timeout_s <= 0.01


def test_a_client_that_has_only_shut_its_sending_side_is_not_gone(one: One) -> None:
    """On a Unix socket it still waits for its answers."""
    client, connection = one.connect()
    one.fence()
    client.sendall(request(WRITE, 0, b"o" * BLOCK))
    connection.pump()
    client.shutdown(socket.SHUT_WR)
    one.worker.loop.fences.see()
    one.finish()
    assert one.windows.memory.bytes[0] == ord("o")
    assert client.recv(64) == struct.pack(">IIQ", 0x67446698, 0, 1)
