"""A worker after something has gone wrong once: its other clients are served as before, its lanes are each used once."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

import tests.unit.rig
from tests.unit.rig import READ, SIZE, WRITE, Rig
from tests.unit.sharedmemory import make_shared
from tests.wire import rawclient as nbd
from vramblk.config.settings import load_settings
from vramblk.errors import RuntimeFailure
from vramblk.nbd.events import ExportInfo
from vramblk.serving.connection import complete
from vramblk.serving.lanes import SMALLEST
from vramblk.serving.ringwriter import ExportView
from vramblk.shared.control import ControlWord, State
from vramblk.shared.descriptors import Op
from vramblk.shared.window import Word
from vramblk.worker.process import Worker

MakeRig = Callable[..., Rig]


class FailingEpoll:
    """An epoll that may fail once with an errno, in ``register`` or ``modify``."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.failure = 0

    def register(self, *arguments: Any) -> None:
        self._fail()
        self._inner.register(*arguments)

    def modify(self, *arguments: Any) -> None:
        self._fail()
        self._inner.modify(*arguments)

    def _fail(self) -> None:
        failure, self.failure = self.failure, 0
        if failure:
            raise OSError(failure, os.strerror(failure))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Workshop:
    """A worker in this process without an engine, and the supervisor's end of its handoff socket."""

    def __init__(self, lanes: int) -> None:
        size = lanes * SMALLEST
        self.shared = make_shared(load_settings(["--allow-cpu", "--size", "4M"], {}), 1, size, size)
        self.shared.control.store(ControlWord.STATE, State.READY)
        self.shared.written[0].resize(SIZE)
        self.window = self.shared.windows[0]
        self.handoff, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.worker = Worker(self.shared, 0, theirs, lanes)
        export = ExportView(0, "vram", SIZE, SIZE, False, self.shared.written[0])
        self.worker.loop.add_export(export, ExportInfo("vram", "", SIZE, False))
        self.epoll = self.worker.loop.pollset.epoll = FailingEpoll(self.worker.loop.pollset.epoll)  # type: ignore[assignment]
        self.clients: list[socket.socket] = []

    def hand_over(self) -> socket.socket:
        """A client's socket, whose other end the worker has taken."""
        client, server = socket.socketpair()
        self.clients.append(client)
        message = json.dumps({"id": len(self.clients), "peer": "test"}).encode()
        socket.send_fds(self.handoff, [message], [server.fileno()])
        server.close()
        self.worker.loop.take_handoffs()
        return client

    def ask_for_export(self) -> nbd.RawClient:
        """A client whose negotiation waits for its fence."""
        client = nbd.RawClient(self.hand_over())
        client.greet()
        client.send(nbd.option_bytes(nbd.GO, nbd.info_payload("vram")))
        self.worker.loop.poll(0)
        return client

    def pass_fences(self) -> None:
        """Be the engine until no negotiation waits."""
        while self.worker.loop.fences.asking:
            self.window.store(Word.FENCE_PASSED, self.window.load(Word.FENCE_ASKED))
            self.worker.loop.negotiations.pass_fence()

    def try_starved(self) -> None:
        self.worker.loop.pollset.try_again_s = 0.0
        self.worker.loop.try_starved()

    def lanes_in_use(self) -> list[int]:
        return [negotiation.lane.slot for negotiation in self.worker.loop.negotiations.by_fd.values()]


@pytest.fixture
def workshop() -> Iterator[Callable[[int], Workshop]]:
    made: list[Workshop] = []

    def make(lanes: int) -> Workshop:
        made.append(Workshop(lanes))
        return made[-1]

    yield make
    for each in made:
        for sock in (each.handoff, each.worker.loop.handoffs.sock, *each.clients):
            sock.close()


MakeWorkshop = Callable[[int], Workshop]


class FailingColumns:
    """In which nothing can be laid."""

    def lay(self, *arguments: Any) -> None:
        raise MemoryError("a test")

    lay_reads = lay_writes = lay


class FailingSocket:
    """A socket with which nothing can be done any more."""

    def fail(self, *arguments: Any) -> Any:
        raise OSError(errno.EIO, "a test")

    send = recv = recv_into = close = fail


def test_what_was_published_is_not_taken_back(make_rig: MakeRig) -> None:
    """The window's proof pushes entries of its own, before anything is submitted."""
    submissions = make_rig().submissions
    submissions.ring.push(Op.NOTHING, 0, 0, 1, 0, 0, 0, 0)
    submissions.ring.publish()
    submissions.ring.push(Op.NOTHING, 0, 0, 1, 0, 0, 0, 0)
    submissions.recover(structlog.get_logger())
    assert submissions.ring.tail == 1


def test_a_worker_that_has_lost_count_of_its_ring_sends_nothing(make_rig: MakeRig) -> None:
    """What it would take for done was never read."""
    rig = make_rig()
    rig.engine._windows[0].store(Word.DONE, 2)
    rig.send(READ, 0, 4096)
    rig.connection.pump()
    with pytest.raises(RuntimeFailure):
        complete(rig.submissions)
    rig.connection.flush()
    assert not rig.replies()


def test_a_connection_that_could_not_begin_gives_its_lane_back_once(workshop: MakeWorkshop) -> None:
    """Two connections in one lane would receive and send each other's bytes."""
    shop = workshop(2)
    worker = shop.worker
    shop.epoll.failure = errno.EPERM
    shop.hand_over()
    for negotiation in worker.loop.negotiations.by_fd.values():
        negotiation.deadline = 0.0
    worker.loop.negotiations.expire()
    for _ in range(3):
        shop.hand_over()
    assert shop.lanes_in_use() == [0, 1]
    assert shop.window.load(Word.CONNECTIONS) == 2
    assert shop.window.load(Word.CLOSED) == 2


def test_closing_gives_the_lane_back_whatever_the_kernel_says(workshop: MakeWorkshop) -> None:
    """Otherwise a worker would have one lane less for ever."""
    shop = workshop(1)
    shop.hand_over()
    (negotiation,) = shop.worker.loop.negotiations.by_fd.values()
    os.close(negotiation.sock.detach())
    negotiation.sock = FailingSocket()  # type: ignore[assignment]
    shop.worker.loop.negotiations.drop(negotiation, "a test")
    shop.hand_over()
    assert shop.lanes_in_use() == [0]


def test_each_negotiation_goes_on_behind_a_fence_whatever_happens_to_another(workshop: MakeWorkshop) -> None:
    """They wait for the same fence."""
    shop = workshop(2)
    worker = shop.worker
    shop.ask_for_export()
    shop.ask_for_export()
    first, second = worker.loop.negotiations.by_fd.values()
    first.sock = FailingSocket()  # type: ignore[assignment]
    shop.pass_fences()
    assert not worker.loop.negotiations.by_fd
    assert list(worker.loop.connections.by_fd) == [second.fd]


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOSPC])
def test_a_client_that_epoll_has_no_room_for_is_tried_again(workshop: MakeWorkshop, number: int) -> None:
    """Otherwise it would never be heard again."""
    shop = workshop(1)
    shop.epoll.failure = number
    client = nbd.RawClient(shop.hand_over())
    client.greet()
    shop.try_starved()
    client.send(nbd.option_bytes(nbd.LIST))
    shop.worker.loop.poll(0.5)
    assert [reply.type for reply in client.replies(nbd.LIST)] == [nbd.REP_SERVER, nbd.ACK]
    client.send(nbd.option_bytes(nbd.GO, nbd.info_payload("vram")))
    shop.worker.loop.poll(0.5)
    shop.epoll.failure = number
    shop.pass_fences()
    (connection,) = shop.worker.loop.connections.by_fd.values()
    shop.try_starved()
    client.replies(nbd.GO)
    client.submit(nbd.READ, 0, 4096)
    shop.worker.loop.poll(0.5)
    assert connection.replies.in_flight == 1


def test_a_client_that_leaves_while_it_waits_for_a_fence_gives_its_lane_back(workshop: MakeWorkshop) -> None:
    """The engine may be busy for long, and clients come again."""
    shop = workshop(1)
    shop.ask_for_export().close()
    shop.worker.loop.poll(0.5)
    assert not shop.lanes_in_use()
    client = shop.ask_for_export()
    shop.pass_fences()
    shop.pass_fences()
    assert client.replies(nbd.GO)[-1].type == nbd.ACK
    assert len(shop.worker.loop.connections.by_fd) == 1


def test_a_drain_ends_what_waits_for_a_fence(workshop: MakeWorkshop) -> None:
    """It has a second, as any negotiation."""
    shop = workshop(1)
    shop.ask_for_export()
    shop.shared.control.store(ControlWord.STATE, State.DRAINING)
    shop.worker.loop.negotiations.expire()
    assert 0.5 < shop.worker.loop.timeout_s() <= 1.0  # type: ignore[operator]


def reads(cookies: range) -> bytes:
    return b"".join(
        struct.pack(">IHHQQI", 0x25609513, 0, READ, cookie, cookie % 8 * 4096, 4096) for cookie in cookies
    )


def test_an_exception_while_a_run_is_laid_leaves_the_columns_to_the_workers_other_connections(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig()
    monkeypatch.setattr(rig.connection._writer, "columns", FailingColumns())
    rig.client.sendall(reads(range(4)))
    rig.work()
    assert rig.connection.ended

    client, server = socket.socketpair()
    for each in (client, server):
        each.setblocking(False)
    other = Rig(client, rig.second(server), rig.submissions, rig.engine, rig.memory, rig.written, rig.export)
    for start in range(10):
        other.client.sendall(reads(range(start * 4, start * 4 + 4)))
        other.work()
        assert len(other.answers()) == 4, f"round {start}: no answer; {rig.submissions.ring.columns.largest()} columns"
    client.close()
    server.close()


@pytest.mark.parametrize("value", [0, (1 << 64) - 1])
def test_words_of_the_window_may_hold_anything(workshop: MakeWorkshop, value: int) -> None:
    """They are counts that begin anew."""
    shop = workshop(1)
    for word in (Word.HANDOFFS, Word.CONNECTIONS, Word.CLOSED, Word.FENCE_ASKED, Word.FENCE_PASSED):
        shop.window.store(word, value)
    for _ in range(2):
        shop.ask_for_export().close()
        shop.window.store(Word.CONNECTIONS, value)
        shop.worker.loop.poll(0.5)
    shop.ask_for_export()
    shop.pass_fences()
    assert len(shop.worker.loop.connections.by_fd) == 1
    assert shop.window.load(Word.HANDOFFS) == value + 3 & (1 << 64) - 1


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_nothing_of_a_client_that_has_gone_is_executed_once_another_connection_begins(
    workshop: MakeWorkshop, family: int, waits: bool
) -> None:
    """Neither what is still in the socket nor what waits for its turn; on TCP the end of the stream is enough."""
    if family == socket.AF_UNIX:
        client, server = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
    with client, server:
        rig = tests.unit.rig.make(client, server)
        worker = workshop(1).worker
        fd = rig.connection.fd
        worker.loop.connections.by_fd[fd], worker.loop.pollset.interest[fd] = rig.connection, 0
        worker.loop.connections.refresh(rig.connection)
        rig.send(WRITE, 0, 4096, b"x" * 4096)
        time.sleep(0.1)
        if waits:
            rig.connection.received.receive(may_move=True)
            rig.connection.blocked = True
            worker.loop.connections.refresh(rig.connection)
        if family == socket.AF_UNIX:
            client.close()
        else:
            client.shutdown(socket.SHUT_WR)
            time.sleep(0.1)
        words = worker.loop.window.words
        words[Word.FENCES * 8] += 1
        worker.loop.fences.see()
        worker.loop.turn()
        rig.engine.turn()
        assert words[Word.FENCES_SEEN * 8] == words[Word.FENCES * 8]
        assert not worker.loop.connections.by_fd and not rig.memory.bytes.any()
