"""An acknowledged write stays written, whatever dead connections, stopped workers and queued requests there are.

The engine is held in the midst of another client's read where a test needs requests to wait for it together.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import rawclient as nbd
from .harness import Server, eventually
from .steering import Background, Steered, connect_and_find, sockets_of, wait_taken

MIB = 1 << 20
BLOCK = 4096
AT = 8 * MIB
OLD, NEW = b"o" * BLOCK, b"n" * BLOCK
#: For what a client does while the engine is held: it may have to wait for the engine, or not.
PAUSE_S = 1.0
#: Until a worker that has answered sleeps again, so that it is not stopped in the midst of taking requests.
SETTLED_S = 0.3
KINDS = {"simple": {}, "structured": {"structured": True}, "extended": {"extended": True}}


@pytest.fixture(scope="module", params=("1", "0"))
def single(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    """One worker, or the engine itself, serves all clients."""
    with Steered(tmp_path_factory.mktemp("single"), "--workers", request.param) as server:
        yield server


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Steered]:
    with Steered(tmp_path / "pair", "--workers", "2", tcp=True) as server:
        yield server


def connect_and_write(server: Server, *blocks: bytes, at: int = AT) -> bytes:
    """What a client reads back after it has connected anew and its writes were acknowledged."""
    with server.client() as client:
        for data in blocks:
            client.write(at, data)
        return client.read(at, len(blocks[-1]))


def first_byte(data: bytes) -> str:
    """For a failed assertion: what the block holds."""
    return {0: "zeroes", OLD[0]: "the dead connection's data", NEW[0]: "the new data"}.get(data[0], "something else")


# A dead connection


@pytest.mark.parametrize("dies", ("close", "worker killed"))
@pytest.mark.parametrize("command", (nbd.WRITE, nbd.TRIM, nbd.WRITE_ZEROES))
def test_a_dead_connection_overwrites_nothing(pair: Steered, command: int, dies: str) -> None:
    """A write that is acknowledged to a new connection outlives what a dead one left in another worker's queue."""
    with pair.client() as other:
        doomed, worker = connect_and_find(pair)
        doomed.write(AT, OLD)
        with pair.held(other):
            doomed.submit(command, AT, BLOCK, payload=OLD if command == nbd.WRITE else None)
            wait_taken(doomed)
            if dies == "close":
                doomed.close()
            else:
                os.kill(worker, signal.SIGKILL)
            client = Background(lambda: connect_and_write(pair, NEW))
            time.sleep(PAUSE_S)
        found = client.result()
        assert found == NEW, first_byte(found)
        assert other.read(AT, BLOCK) == NEW
        doomed.close()


def by_export_name(server: Server) -> bytes:
    """As ``connect_and_write``, with the oldest way into transmission."""
    with server.connect() as client:
        client.greet()
        client.send(nbd.option_bytes(nbd.EXPORT_NAME))
        client.receive(10)
        client.write(AT, NEW)
        return client.read(AT, BLOCK)


def behind_go(server: Server) -> bytes:
    """As ``connect_and_write``, with the requests sent together with GO."""
    with server.connect() as client:
        client.greet()
        write, request = client.encode(nbd.WRITE, AT, payload=NEW)
        client.send(nbd.option_bytes(nbd.GO, nbd.info_payload("")) + request)
        assert client.replies(nbd.GO)[-1].type == nbd.ACK
        assert client.gather([write])[write].error == 0
        return client.read(AT, BLOCK)


@pytest.mark.parametrize("connect", (by_export_name, behind_go))
def test_whichever_way_the_client_comes_back(pair: Steered, connect: Callable[[Server], bytes]) -> None:
    """The same for a client that comes back with EXPORT_NAME, or that does not wait for the answer to GO."""
    with pair.client() as other:
        doomed, _ = connect_and_find(pair)
        with pair.held(other):
            doomed.submit(nbd.WRITE, AT, payload=OLD)
            wait_taken(doomed)
            doomed.close()
            client = Background(lambda: connect(pair))
            time.sleep(PAUSE_S)
        found = client.result()
        assert found == NEW, first_byte(found)
        assert other.read(AT, BLOCK) == NEW


@pytest.mark.parametrize("command", (nbd.TRIM, nbd.WRITE_ZEROES))
def test_a_dead_connection_zeroes_nothing_in_the_same_process(single: Steered, command: int) -> None:
    """Zeroing that a dead connection left in the queue does not undo a later, acknowledged write beside it."""
    with single.client() as other:
        with single.client() as doomed:
            with single.held(other):
                doomed.submit(command, AT, BLOCK)
                if single.named("worker"):
                    wait_taken(doomed)  # an engine that is held takes nothing
                doomed.close()
                client = Background(lambda: connect_and_write(single, NEW))
                time.sleep(PAUSE_S)
            found = client.result()
        assert found == NEW, first_byte(found)
        assert other.read(AT, BLOCK) == NEW


# A worker that stands still


def finished(worker: int, sockets: set[str]) -> bool:
    """Whether a worker has closed the last of these sockets."""
    return not sockets & sockets_of(worker)


@pytest.mark.parametrize("transport", ("unix", "tcp"))
@pytest.mark.parametrize("command", (nbd.WRITE, nbd.TRIM, nbd.WRITE_ZEROES))
def test_a_stopped_worker_writes_nothing_for_a_client_that_is_gone(pair: Steered, command: int, transport: str) -> None:
    """What lay unread in the socket of a client that is gone is not executed once its worker goes on."""
    before = {pid: sockets_of(pid) for pid in pair.named("worker")}
    doomed, worker = connect_and_find(pair, transport)
    doomed.write(AT, OLD)
    theirs = sockets_of(worker) - before[worker]
    time.sleep(SETTLED_S)
    os.kill(worker, signal.SIGSTOP)
    try:
        doomed.submit(command, AT, BLOCK, payload=OLD if command == nbd.WRITE else None)
        if transport == "unix":
            doomed.socket.shutdown(socket.SHUT_RDWR)
        doomed.close()
        with pair.client(transport=transport) as client:
            client.write(AT, OLD)
            client.write(AT, NEW)
            os.kill(worker, signal.SIGCONT)
            eventually(lambda: finished(worker, theirs))
            found = client.read(AT, BLOCK)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert found == NEW, first_byte(found)


@pytest.mark.parametrize("transport", ("unix", "tcp"))
def test_a_stopped_worker_does_not_finish_a_large_write(pair: Steered, transport: str) -> None:
    """The rest of a 2 MiB write, unread when its client went, overwrites no later one."""
    old, new, left = b"o" * 2 * MIB, b"n" * 2 * MIB, 64 << 10
    before = {pid: sockets_of(pid) for pid in pair.named("worker")}
    doomed, worker = connect_and_find(pair, transport)
    theirs = sockets_of(worker) - before[worker]
    _, request = doomed.encode(nbd.WRITE, AT, payload=old)
    doomed.send(request[:-left])
    if transport == "unix":
        wait_taken(doomed)
    time.sleep(PAUSE_S)
    os.kill(worker, signal.SIGSTOP)
    try:
        doomed.send(request[-left:])
        if transport == "unix":
            doomed.socket.shutdown(socket.SHUT_RDWR)
        doomed.close()
        with pair.client(transport=transport) as client:
            client.write(AT, old)
            client.write(AT, new)
            os.kill(worker, signal.SIGCONT)
            eventually(lambda: finished(worker, theirs))
            found = client.read(AT, len(new))
    finally:
        os.kill(worker, signal.SIGCONT)
    assert found == new, f"{found.count(b'o')} bytes of the dead connection's, from {found.find(b'o')} on"


@pytest.mark.parametrize("kind", KINDS)
def test_half_closed_unix_client_gets_its_replies(single: Steered, kind: str) -> None:
    """A client of a Unix socket that only stops sending is not gone: all it asked for is done and answered."""
    with single.client() as other, single.client(**KINDS[kind]) as client:
        encoded = [client.encode(nbd.WRITE, AT + at * BLOCK, payload=bytes([at]) * BLOCK) for at in range(32)]
        encoded += [client.encode(nbd.READ, AT + at * BLOCK, BLOCK) for at in range(32)]
        cookies = [cookie for cookie, _ in encoded]
        writes, reads = cookies[:32], cookies[32:]

        def send_and_stop() -> None:
            client.send(b"".join(request for _, request in encoded))
            client.socket.shutdown(socket.SHUT_WR)

        with single.held(other):
            sender = Background(send_and_stop)  # an engine that is held takes nothing
            time.sleep(0.2)
        sender.result()
        replies = client.gather(writes + reads)
        assert client.at_end()
    assert not any(replies[cookie].error for cookie in writes)
    assert [bytes(replies[cookie].data) for cookie in reads] == [bytes([at]) * BLOCK for at in range(32)]


# The order of one connection's requests


def in_order(server: Steered, client: nbd.RawClient, *requests: tuple[int, int, int | bytes]) -> list[nbd.Reply]:
    """Replies to requests (command, offset, length or payload) that reach the engine together."""
    cookies, stream = [], b""
    for command, offset, what in requests:
        length, payload = (0, what) if isinstance(what, bytes) else (what, None)
        cookie, data = client.encode(command, offset, length, payload=payload)
        cookies.append(cookie)
        stream += data
    with server.client() as other, server.held(other):
        sender = Background(lambda: client.send(stream))
        time.sleep(0.2)
    sender.result()
    replies = client.gather(cookies)
    assert not any(reply.error for reply in replies.values())
    return [replies[cookie] for cookie in cookies]


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, single: Steered) -> Iterator[nbd.RawClient]:
    with single.client(**KINDS[request.param]) as raw:
        raw.write(AT, OLD)
        yield raw


@pytest.mark.parametrize("command", (nbd.TRIM, nbd.WRITE_ZEROES))
def test_write_behind_zeroing_holds(single: Steered, client: nbd.RawClient, command: int) -> None:
    """A write sent behind a zeroing of the same block is what the block holds."""
    in_order(single, client, (command, AT, BLOCK), (nbd.WRITE, AT, NEW))
    found = client.read(AT, BLOCK)
    assert found == NEW, first_byte(found)


@pytest.mark.parametrize("command", (nbd.TRIM, nbd.WRITE_ZEROES))
def test_zeroing_behind_a_write_holds(single: Steered, client: nbd.RawClient, command: int) -> None:
    """A zeroing sent behind a write of the same block leaves zeroes."""
    in_order(single, client, (nbd.WRITE, AT, NEW), (command, AT, BLOCK))
    assert client.read(AT, BLOCK) == bytes(BLOCK)


def test_read_before_a_write_gives_the_old_data(single: Steered, client: nbd.RawClient) -> None:
    """A read sent ahead of a write of the same block gives what the block held before."""
    reply, _ = in_order(single, client, (nbd.READ, AT, BLOCK), (nbd.WRITE, AT, NEW))
    assert reply.data == OLD, first_byte(reply.data)
    assert client.read(AT, BLOCK) == NEW


def test_read_before_a_zeroing_gives_the_old_data(single: Steered, client: nbd.RawClient) -> None:
    """A read sent ahead of a TRIM of the same block gives what the block held before."""
    reply, _ = in_order(single, client, (nbd.READ, AT, BLOCK), (nbd.TRIM, AT, BLOCK))
    assert reply.data == OLD, first_byte(reply.data)
    assert client.read(AT, BLOCK) == bytes(BLOCK)


@pytest.mark.parametrize("length", (BLOCK, 16 << 10))
def test_last_of_many_writes_holds(single: Steered, client: nbd.RawClient, length: int) -> None:
    """Of eight writes of the same range in one send, the last is what the range holds, wholly."""
    payloads = [bytes([number]) * length for number in range(1, 9)]
    for _ in range(5):
        in_order(single, client, *((nbd.WRITE, AT, payload) for payload in payloads))
        assert client.read(AT, length) == payloads[-1]


@pytest.mark.parametrize("unit", (1, 512, BLOCK))
@pytest.mark.parametrize("seed", range(2))
def test_overlapping_requests_keep_their_order(single: Steered, client: nbd.RawClient, unit: int, seed: int) -> None:
    """Forty overlapping reads, writes and zeroings in one send do what they would do one after another."""
    chance = random.Random(f"{seed} {unit}")
    units = 4 * BLOCK // unit
    expected = bytearray(4 * BLOCK)
    client.write(AT, bytes(4 * BLOCK))
    requests: list[tuple[int, int, int | bytes]] = []
    reads: list[bytes | None] = []
    for number in range(40):
        lo, hi = sorted(chance.sample(range(units + 1), 2))
        offset, length = lo * unit, (hi - lo) * unit
        command = chance.choice((nbd.READ, nbd.READ, nbd.WRITE, nbd.WRITE, nbd.TRIM, nbd.WRITE_ZEROES))
        if command == nbd.WRITE:
            expected[offset : offset + length] = bytes([number + 1]) * length
            requests.append((command, AT + offset, bytes([number + 1]) * length))
        else:
            if command != nbd.READ:
                expected[offset : offset + length] = bytes(length)
            requests.append((command, AT + offset, length))
        reads.append(bytes(expected[offset : offset + length]) if command == nbd.READ else None)
    replies = in_order(single, client, *requests)
    wrong = [
        number
        for number, (reply, data) in enumerate(zip(replies, reads, strict=True))
        if data is not None and reply.data != data
    ]
    assert not wrong, f"reads {wrong} of {sum(data is not None for data in reads)} give what they should not"
    assert client.read(AT, len(expected)) == expected
