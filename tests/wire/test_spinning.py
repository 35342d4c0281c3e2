"""Who spins and who sleeps, on any machine: nobody is overlooked, and no processor is used for nothing."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import rawclient as nbd
from .harness import Server, eventually
from .rawclient import RawClient

PROGRAM = (sys.executable, str(Path(__file__).with_name("spinning_server.py")))
BLOCK = 4096


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("spinning"), "--workers", "1", size="32M", program=PROGRAM) as running:
        yield running


@pytest.fixture(scope="module")
def restless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, RawClient]]:
    """A server whose one worker has a client and does not sleep, as if that client never paused."""
    environment = {"SPIN_NS": str(300 * 10**9)}
    directory = tmp_path_factory.mktemp("restless")
    with Server(
        directory, "--workers", "1", size="32M", program=PROGRAM, environment=environment
    ) as running, running.client() as busy:
        busy.read(0, BLOCK)
        yield running, busy


def test_a_busy_connection_does_not_keep_others_out(restless: tuple[Server, RawClient]) -> None:
    """Connections that come while the worker never sleeps are negotiated and served."""
    server, busy = restless
    for number in range(5):
        with server.client() as client:
            client.write(number * BLOCK, b"beside a busy one")
            assert busy.read(number * BLOCK, 17) == b"beside a busy one"


def test_a_slow_reader_beside_a_busy_connection_gets_all(restless: tuple[Server, RawClient]) -> None:
    """Replies that its socket did not take at once follow as soon as it reads."""
    server, busy = restless
    data = random.Random(7).randbytes(16 << 20)
    with server.client() as slow:
        for at in range(0, len(data), 1 << 20):
            slow.write(at, data[at : at + (1 << 20)])
        cookies = [slow.submit(nbd.READ, at, 1 << 20) for at in range(0, len(data), 1 << 20)]
        time.sleep(0.5)
        assert busy.read(0, BLOCK) == data[:BLOCK]
        replies = slow.gather(cookies)
    assert b"".join(bytes(replies[cookie].data) for cookie in cookies) == data


def test_a_slow_greeting_beside_a_busy_connection_ends(restless: tuple[Server, RawClient]) -> None:
    """The deadline of negotiations holds though the worker never waits for it."""
    server, _ = restless
    with server.connect() as mute:
        mute.greet()
        eventually(mute.at_end, timeout_s=20)


def cpu_ticks(server: Server) -> int:
    total = 0
    for pid in (*server.named("worker"), *server.named("engine")):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total


def test_a_client_that_is_gone_costs_nothing(start: Callable[..., Server]) -> None:
    """It leaves four requests behind while the engine stands still: the worker sleeps until that goes on.

    With one processor and real-time priorities a worker that does not sleep would never let the engine go on.
    """
    server = start("--workers", "1")
    [engine] = server.named("engine")
    with server.client() as other:
        client = server.client()
        os.kill(engine, signal.SIGSTOP)
        try:
            for number in range(4):
                client.submit(nbd.WRITE, number * BLOCK, payload=bytes(BLOCK))
            time.sleep(0.3)
            client.close()
            time.sleep(0.3)
            before = cpu_ticks(server)
            time.sleep(3)
            assert cpu_ticks(server) - before <= os.sysconf("SC_CLK_TCK") // 10
        finally:
            os.kill(engine, signal.SIGCONT)
        assert other.read(0, BLOCK) == bytes(BLOCK)


def test_a_client_that_has_shut_both_sides_costs_nothing(start: Callable[..., Server]) -> None:
    """It has asked for more than it takes, so the worker neither sees its end nor can send: it finds out and closes."""
    server = start("--workers", "1")
    with server.client() as other:
        client = server.client()
        client.socket.setblocking(False)
        requests = b"".join(client.encode(nbd.READ, 0, 65536)[1] for _ in range(2000))
        refused = 0
        while refused < 10:
            try:
                client.socket.send(requests)
                refused = 0
            except BlockingIOError:
                refused += 1
                time.sleep(0.1)
        client.socket.shutdown(socket.SHUT_RDWR)
        time.sleep(0.5)
        before = cpu_ticks(server)
        time.sleep(2)
        assert cpu_ticks(server) - before <= os.sysconf("SC_CLK_TCK") // 10
        assert other.read(0, BLOCK) == bytes(BLOCK)
        client.close()


def test_an_idle_client_costs_nothing(server: Server) -> None:
    """With a client attached that asks for nothing, worker and engine sleep: under 0.1 % of a core.

    The health canary reads 4 KiB now and then; a hundredth of a second of processor time for it is allowed.
    """
    with server.client() as client:
        client.read(0, BLOCK)
        time.sleep(0.5)
        before = cpu_ticks(server)
        time.sleep(10)
        assert cpu_ticks(server) - before <= os.sysconf("SC_CLK_TCK") // 100


def test_an_idle_server_costs_nothing(server: Server) -> None:
    """The same without any client."""
    time.sleep(0.5)
    before = cpu_ticks(server)
    time.sleep(10)
    assert cpu_ticks(server) - before <= os.sysconf("SC_CLK_TCK") // 100


def test_model_of_a_spinning_server(server: Server) -> None:
    """Random reads and writes on two connections against a bytearray."""
    rng = random.Random(3)
    model = bytearray(1 << 20)
    clients: list[RawClient] = [server.client(structured=True), server.client()]
    clients[0].write(0, bytes(model))
    for _ in range(1500):
        client = rng.choice(clients)
        offset = rng.randrange(len(model))
        length = min(rng.choice((1, 512, 4096, 70000)), len(model) - offset)
        if rng.random() < 0.5:
            model[offset : offset + length] = data = rng.randbytes(length)
            client.write(offset, data)
        else:
            assert client.read(offset, length) == model[offset : offset + length]
    for client in clients:
        client.disconnect()
        client.close()
