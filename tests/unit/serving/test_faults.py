"""What goes wrong in one connection stays in it: exceptions, sockets without memory, TLS that has to receive."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.pool import Pool
from tests.unit.rig import FLUSH, READ, TRIM, WRITE
from tests.unit.windows import BLOCK
from vramblk.serving.connection import complete

MakePool = Callable[..., Pool]



@pytest.fixture
def make() -> Iterator[MakePool]:
    made: list[Pool] = []

    def pool(*arguments: Any, **options: Any) -> Pool:
        made.append(Pool(*arguments, **options))
        return made[-1]

    yield pool
    for each in made:
        each.close()


class Faulty:
    """A socket whose named calls raise what stands in ``faults``, one after the other, and work afterwards."""

    def __init__(self, sock: socket.socket, faults: dict[str, list[BaseException]]) -> None:
        self._sock = sock
        self.faults = faults
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._sock, name)
        if name not in ("send", "sendmsg", "recv_into"):
            return found

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if self.faults.get(name):
                raise self.faults[name].pop(0)
            return found(*arguments)

        return call


def make_faulty(pool: Pool, index: int, **faults: list[BaseException]) -> Faulty:
    connection: Any = pool.rigs[index].connection
    faulty = Faulty(connection.sock, faults)
    connection.replies._sock = connection.received._sock = faulty
    return faulty


def raise_memory_error(*arguments: object, **options: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("where", ["receive", "parse", "submit", "complete", "send"])
def test_an_exception_closes_its_connection_alone(make: MakePool, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is raised: no exception leaves the connection, it is counted, and the other client is served."""
    pool = make()
    bad, good = pool.rigs
    connection: Any = bad.connection
    target, name = {
        "receive": (connection.received, "receive"),
        "parse": (connection._parser, "next"),
        "submit": (connection._writer, "write"),
        "complete": (connection.replies, "queue"),
        "send": (connection.replies, "flush"),
    }[where]
    monkeypatch.setattr(target, name, raise_memory_error)
    bad.send(WRITE, 0, 100, b"w" * 100)
    good.send(WRITE, BLOCK, 100, b"g" * 100, cookie=7)
    pool.work()
    assert good.answers() == [(-1, 0, 7)]
    assert pool.windows.memory.bytes[BLOCK] == ord("g")
    assert connection.finished and not good.connection.finished
    assert pool.counters.scalar("internal_errors") >= 1
    good.send(READ, BLOCK, 512, cookie=8)
    pool.work()
    assert good.answers() == [(1, 0, 8)]


def test_the_lane_is_kept_until_its_requests_are_done(make: MakePool) -> None:
    """After an exception the engine may still write into the lane: it serves nobody else before."""
    pool = make()
    bad, _ = pool.rigs
    connection: Any = bad.connection
    for block in range(20):
        bad.send(READ, block * BLOCK, 4000)
    connection.pump()
    connection._parser.next = raise_memory_error
    bad.send(FLUSH, 0, 0)
    connection.pump()
    assert connection.replies.broken and connection.replies.in_flight
    assert not connection.finished
    pool.work()
    assert not connection.replies.in_flight and connection.finished


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM])
@pytest.mark.parametrize("call", ["send", "recv_into"])
def test_a_kernel_without_memory_ends_no_connection(make: MakePool, number: int, call: str) -> None:
    """The call is tried again later; until then the connection says that it is starved."""
    pool = make()
    rig = pool.rigs[0]
    faulty = make_faulty(pool, 0, **{call: [OSError(number, "no memory")]})
    rig.send(WRITE, 0, 100, b"w" * 100, cookie=5)
    connection = rig.connection
    connection.pump()
    pool.windows.run()
    complete(pool.submissions)
    connection.flush()
    assert connection.starved and not connection.finished and rig.replies() == b""
    assert not faulty.faults[call], "it was really raised"
    pool.work()
    assert not connection.starved
    assert rig.answers() == [(-1, 0, 5)]


@pytest.mark.parametrize("number", [errno.ECONNRESET, errno.EPIPE, errno.EIO])
@pytest.mark.parametrize("call", ["send", "recv_into"])
def test_any_other_error_closes_the_connection_with_its_reason(make: MakePool, number: int, call: str) -> None:
    pool = make()
    rig = pool.rigs[0]
    make_faulty(pool, 0, **{call: [OSError(number, "the reason")]})
    rig.send(WRITE, 0, 100, b"w" * 100)
    pool.work()
    assert rig.connection.finished and "the reason" in str(rig.connection.replies.broken)


@pytest.mark.parametrize("times", [1, 3])
def test_tls_that_has_to_receive_before_it_sends_is_not_tried_in_a_loop(make: MakePool, times: int) -> None:
    """One call of send for each flush; the queue says what it waits for, and nothing is lost."""
    pool = make()
    rig = pool.rigs[0]
    faulty = make_faulty(pool, 0, send=[ssl.SSLWantReadError() for _ in range(times)])
    rig.send(WRITE, 0, 100, b"w" * 100, cookie=5)
    connection = rig.connection
    connection.pump()
    pool.windows.run()
    complete(pool.submissions)
    for attempt in range(times):
        connection.flush()
        assert faulty.calls.count("send") == attempt + 1
        assert connection.replies.wants_read and connection.replies.waiting and not connection.finished
    connection.flush()
    assert not connection.replies.wants_read and not connection.replies.waiting
    assert rig.answers() == [(-1, 0, 5)]


@pytest.mark.parametrize("error", [BlockingIOError, InterruptedError, ssl.SSLWantWriteError])
def test_a_full_socket_is_waited_for(make: MakePool, error: type[OSError]) -> None:
    """It waits for room, not for input, and is not starved."""
    pool = make()
    rig = pool.rigs[0]
    make_faulty(pool, 0, send=[error()])
    rig.send(WRITE, 0, 100, b"w" * 100, cookie=5)
    rig.connection.pump()
    pool.windows.run()
    complete(pool.submissions)
    rig.connection.flush()
    assert rig.connection.replies.waiting
    assert not rig.connection.replies.wants_read and not rig.connection.starved
    pool.work()
    assert rig.answers() == [(-1, 0, 5)]


@pytest.mark.parametrize("command", [READ, WRITE, TRIM])
def test_a_client_that_is_gone_has_nothing_more_executed(make: MakePool, command: int) -> None:
    """What it had sent and nobody had taken is dropped; the other client goes on."""
    pool = make()
    bad, good = pool.rigs
    pool.windows.written.blocks[0] = 1
    bad.send(command, 0, 100, b"w" * 100 if command == WRITE else b"")
    bad.client.close()
    assert bad.connection.is_gone() and not good.connection.is_gone()
    bad.connection.lose()  # as its worker does before another connection begins
    good.send(FLUSH, 0, 0, cookie=9)
    pool.work()
    assert pool.windows.memory.executed == 0
    assert bad.connection.finished and good.answers() == [(-1, 0, 9)]


@pytest.mark.parametrize("step", ["lay_reads", "lay_writes", "push"])
def test_an_exception_while_a_run_is_laid_leaks_nothing_of_the_ring(make: MakePool, step: str) -> None:
    """Columns and entries that were taken for it are given back: runs of others go on for ever."""
    pool = make()
    bad, good = pool.rigs
    writer: Any = bad.connection._writer

    class Broken:
        def __init__(self, whole: Any) -> None:
            self._whole = whole

        def __getattr__(self, name: str) -> Any:
            return raise_memory_error if name == step else getattr(self._whole, name)

    if step == "push":
        writer._ring = Broken(writer._ring)
    else:
        writer.columns = Broken(writer.columns)
    payload = b"w" * BLOCK if step == "lay_writes" else b""
    for block in range(5):
        bad.send(WRITE if payload else READ, block * BLOCK, BLOCK, payload)
    pool.work()
    assert bad.connection.finished
    for block in range(10):
        for _ in range(4):
            good.send(READ, block * BLOCK, BLOCK, cookie=block)
        pool.work()
        assert good.answers() == [(1, 0, block)] * 4
