"""An exception of one client's request costs that request, or that connection, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import rawclient as nbd
from .harness import eventually
from .steering import Background, Steered, wait_taken

MIB = 1 << 20
BLOCK = 4096
BAD = 57
AT = 8 * MIB
COUNTER = "vramblk_internal_errors_total"
MARK = b"this request is to fail where it is received"
OPS = {"read": nbd.READ, "write": nbd.WRITE, "zero": nbd.TRIM}


@pytest.fixture(params=("1", "0"))
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Steered]:
    """One worker, or the engine alone, so that the others share it with the client whose request fails."""
    with Steered(tmp_path / "server", "--workers", request.param, uncompiled=request.param == "0") as running:
        yield running
        running.heal()


@pytest.fixture(params=("1", "0"))
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Steered]:
    """Clients are served by one worker, or by the engine itself."""
    with Steered(tmp_path / "server", "--workers", request.param) as running:
        yield running
        running.heal()


def processes(server: Steered) -> tuple[list[int], list[int]]:
    return server.named("engine"), server.named("worker")


def process_of(server: Steered) -> str:
    """The one that serves the clients."""
    return "worker" if server.named("worker") else "engine"


def told(server: Steered, process: str, *words: str) -> None:
    """An exception is reported by an event, with its traceback, and counted."""
    event = server.wait_event("internal_error")
    text = event["exception"]
    assert event["process"] == process
    assert ".py:" in text and all(word in text for word in words), text
    assert sum(value for name, value in server.metrics().items() if name.startswith(COUNTER)) >= 1


@pytest.mark.parametrize("exception", ("MemoryError", "ValueError", "ZeroDivisionError"))
@pytest.mark.parametrize("op", OPS)
def test_an_exception_in_the_memory_is_one_eio(either: Steered, op: str, exception: str) -> None:
    """Of 100 requests in flight the one that raises is EIO; the others and another client's data are untouched."""
    with either.client() as client, either.client() as other:
        before = processes(either)
        data = bytes(range(1, 101)) * BLOCK
        client.write(0, data)
        other.write(AT, b"k" * BLOCK)
        either.fail(op, BAD * BLOCK, BAD * BLOCK + 1, exception=exception)
        payload = b"w" * BLOCK if op == "write" else None
        encoded = [client.encode(OPS[op], at * BLOCK, BLOCK, payload=payload) for at in range(100)]
        replies = client.exchange(b"".join(each for _, each in encoded), 100)
        errors = [replies[cookie].error for cookie, _ in encoded]
        assert errors == [nbd.EIO if at == BAD else 0 for at in range(100)]
        assert other.read(AT, BLOCK) == b"k" * BLOCK
        either.heal()
        assert client.read(BAD * BLOCK, BLOCK) == data[BAD * BLOCK : (BAD + 1) * BLOCK]
        left = {"read": data[:BLOCK], "write": b"w" * BLOCK, "zero": bytes(BLOCK)}[op]
        assert client.read(0, BLOCK) == left
        assert processes(either) == before
        told(either, "engine", exception, "injected into execute")
        assert either.get("/readyz")[0] == 200


def test_an_exception_behind_queued_commands_is_one_eio(either: Steered) -> None:
    """The same if the exception comes when some of the batch is with the device already."""
    with either.client() as client, either.client() as other:
        before = processes(either)
        client.write(0, b"a" * 100 * BLOCK)
        other.write(AT, b"k" * BLOCK)
        either.fail("write", BAD * BLOCK, BAD * BLOCK + 1, midway=True, raw=True)
        encoded = [client.encode(nbd.WRITE, at * BLOCK, payload=b"w" * BLOCK) for at in range(100)]
        replies = client.exchange(b"".join(each for _, each in encoded), 100)
        errors = [replies[cookie].error for cookie, _ in encoded]
        assert errors == [nbd.EIO if at == BAD else 0 for at in range(100)]
        either.heal()
        for at in range(100):
            held = client.read(at * BLOCK, BLOCK)
            assert held == b"w" * BLOCK or (at == BAD and held == b"a" * BLOCK)
        assert other.read(AT, BLOCK) == b"k" * BLOCK
        assert processes(either) == before
        told(either, "engine", "IndexError")


def test_every_request_of_a_client_may_raise(either: Steered) -> None:
    """A client all of whose requests raise, hundreds of them, holds up neither another client nor the end."""
    with either.client() as client, either.client() as other:
        before = processes(either)
        either.fail("write", 0, MIB, exception="RuntimeError")
        for _ in range(3):
            encoded = [client.encode(nbd.WRITE, at * 1000, payload=b"w" * 1000) for at in range(100)]
            replies = client.exchange(b"".join(each for _, each in encoded), 100)
            assert {reply.error for reply in replies.values()} == {nbd.EIO}
            other.write(AT, b"k" * BLOCK)
            assert other.read(AT, BLOCK) == b"k" * BLOCK
        either.heal()
        client.write(0, b"well again")
        assert client.read(0, 10) == b"well again"
        assert processes(either) == before
    assert either.stop() == 0


# Where a connection is served


@pytest.mark.parametrize("exception", ("MemoryError", "ZeroDivisionError"))
@pytest.mark.parametrize("call", ("recv", "send"))
def test_an_exception_in_a_connection_closes_one_connection(server: Steered, call: str, exception: str) -> None:
    """An exception while one connection is served ends that connection; the others beside it live."""
    with server.client() as others, server.client() as client:
        before = processes(server)
        others.write(AT, b"k" * BLOCK)
        client.write(0, b"c" * BLOCK)
        obeyed = server.fail_once(call, exception, MARK if call == "recv" else b"")
        client.submit(nbd.WRITE, BLOCK, payload=MARK)
        assert client.ends()
        assert not obeyed.exists()
        assert others.read(AT, BLOCK) == b"k" * BLOCK
        others.write(AT + 1, b"alive")
        with server.client() as late:
            assert late.read(0, BLOCK) == b"c" * BLOCK
            assert late.read(AT, 6) == b"kalive"
        assert processes(server) == before
        told(server, process_of(server), exception, f"injected into {call}")
        assert server.find_event("worker_died") is None


def test_an_exception_in_a_negotiation_closes_one_connection(server: Steered) -> None:
    """An exception before transmission ends that connection, too, and no other."""
    with server.client() as others:
        before = processes(server)
        with server.connect() as client:
            client.greet()
            server.fail_once("recv", "ZeroDivisionError", MARK)
            client.send(nbd.option_bytes(nbd.INFO, MARK))
            assert client.ends()
        others.write(0, b"alive")
        with server.client() as late:
            assert late.read(0, 5) == b"alive"
        assert processes(server) == before
        told(server, process_of(server), "ZeroDivisionError")


def test_requests_of_a_closed_connection_keep_their_payload(server: Steered) -> None:
    """What a connection had queued when it was closed is written as it was sent, or not at all."""
    with server.client() as other, server.client() as client:
        with server.held(other):
            writes = [client.encode(nbd.WRITE, AT + at * BLOCK, payload=b"a" * BLOCK)[1] for at in range(16)]
            sender = Background(lambda: client.send(b"".join(writes)))
            if server.named("worker"):  # an engine that is held takes nothing
                sender.result()
                wait_taken(client)
            server.fail_once("recv", "ZeroDivisionError", MARK)
            last = Background(lambda: (sender.result(), client.submit(nbd.WRITE, 0, payload=MARK)))
            late = Background(lambda: fill(server))
            time.sleep(1)
        assert late.result()
        last.result()
        assert client.ends()
        for at in range(16):
            assert other.read(AT + at * BLOCK, BLOCK) in (b"a" * BLOCK, bytes(BLOCK))
        eventually(lambda: server.metrics()["vramblk_connections"] == 1)


def fill(server: Steered) -> bool:
    """Whether a client that comes later reads what it has written."""
    with server.client() as client:
        cookies = [client.submit(nbd.WRITE, 4 * MIB + at * BLOCK, payload=b"c" * BLOCK) for at in range(64)]
        assert not any(reply.error for reply in client.gather(cookies).values())
        return client.read(4 * MIB, 64 * BLOCK) == b"c" * 64 * BLOCK
