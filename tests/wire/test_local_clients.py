"""Clients that the engine serves itself: all with ``--workers 0``, by default the first local one."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from . import rawclient as nbd
from .harness import Server, alive, eventually

Start = Callable[..., Server]
BLOCK = 4096
SPINNING, UNPROVEN = (
    (sys.executable, str(Path(__file__).with_name(name))) for name in ("spinning_server.py", "unproven_server.py")
)


def status(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(server.get("/status.json")[1])
    return found


@pytest.fixture(params=("opencl", "map"))
def server(request: pytest.FixtureRequest, start: Start) -> Iterator[Server]:
    """A server without workers, on PoCL and on a mapped file."""
    arguments = ("--workers", "0", "--max-connections", "3", "--drain-timeout", "60s")
    if request.param == "opencl":
        yield start(*arguments)
        return
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.truncate(64 << 20)
        yield start(*arguments, "--device", f"map:{file.name}", size="max")


def test_there_are_no_worker_processes_and_all_is_counted(server: Server) -> None:
    """Status, metrics and health show the engine's clients as they show those of workers."""
    assert not server.named("worker")
    with server.client() as first, server.client(extended=True) as second:
        first.write(0, b"a" * BLOCK)
        assert second.read(0, BLOCK) == b"a" * BLOCK
        first.write(BLOCK + 1, b"b" * 5)
        assert second.read(BLOCK, 7) == b"\0bbbbb\0"
        eventually(lambda: status(server)["exports"][0]["requests"]["read"] == 2)  # counted when it is sent
        found = status(server)
        assert found["healthy"], found["health"]
        assert {row["state"] for row in found["connections"]} == {"transmission"}
        assert [row["requests"] for row in found["connections"]] == [2, 2]
        assert {row["worker"] for row in found["connections"]} == {None} and found["workers"] == []
        export = found["exports"][0]
        assert (export["requests"]["read"], export["requests"]["write"]) == (2, 2)
        assert (export["bytes"]["read"], export["bytes"]["write"]) == (BLOCK + 7, BLOCK + 5)
        assert export["written_bytes"] == 2 * BLOCK
        metrics = server.get("/metrics")[1]
        assert 'vramblk_requests_total{export="vram",op="write"} 2' in metrics
        assert 'vramblk_request_seconds_count{op="write"} 2' in metrics
        latency = eventually(lambda: _latencies(server, "read", "write"))
        assert all(0 < each["p50"] <= each["p99"] <= each["p99.9"] < 10 for each in latency)
    eventually(lambda: not status(server)["connections"])


def _latencies(server: Server, *ops: str) -> list[dict[str, float]]:
    """Percentiles as the page and ``vramblk status`` show them; empty until a sample of all ``ops`` is there."""
    found = status(server)["latency_s"]
    return [found[op] for op in ops] if all(found.get(op, {}).get("p50") for op in ops) else []


def test_a_place_is_free_again(server: Server) -> None:
    """--max-connections holds, and a freed place is usable within a second."""
    clients = [server.client() for _ in range(3)]
    with pytest.raises((ConnectionError, EOFError, OSError)):
        server.client()
    clients.pop().close()
    eventually(lambda: _connects(server), 1)
    for client in clients:
        client.close()


def _connects(server: Server) -> bool:
    try:
        server.client().close()
    except (ConnectionError, EOFError, OSError):
        return False
    return True


def test_a_drain_waits_for_the_last_client_and_refuses_requests(server: Server) -> None:
    """Requests read after the signal get ESHUTDOWN; exit 0 when the client has gone."""
    with server.client() as client:
        client.write(0, b"a" * BLOCK)
        server.signal(signal.SIGTERM)
        server.wait_event("draining")
        assert client.call(nbd.READ, 0, BLOCK).error == nbd.ESHUTDOWN
        assert server.process.poll() is None
    assert server.process.wait(20) == 0
    assert server.find_event("stopped")


def test_the_engine_ends_with_its_supervisor(server: Server) -> None:
    """In scratch mode all end, a client attached or not."""
    pids = server.remember()
    with server.client() as client:
        client.write(0, b"a" * BLOCK)
        server.process.kill()
        eventually(lambda: not any(map(alive, pids)))


def test_an_engine_without_a_pause_ends_with_its_supervisor(start: Start) -> None:
    """More connections than it tries one by one, some of them never idle, and it looks for work before it sleeps."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.truncate(64 << 20)
        server = start("--workers", "0", "--device", f"map:{file.name}", size="max", program=SPINNING)
        pids = server.remember()
        clients = [server.client() for _ in range(6)]
        busy = [threading.Thread(target=_read_on, args=(client,)) for client in clients[:3]]
        for thread in busy:
            thread.start()
        try:
            time.sleep(0.3)
            server.process.kill()
            eventually(lambda: not any(map(alive, pids)))
        finally:
            for client in clients:
                with suppress(OSError):
                    client.socket.shutdown(socket.SHUT_RDWR)
            for thread in busy:
                thread.join()
            for client in clients:
                client.close()


def _read_on(client: nbd.RawClient) -> None:
    """Never without requests in flight."""
    requests = struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, 0, nbd.READ, 1, 0, 16 * BLOCK) * 32
    with suppress(ConnectionError, EOFError, OSError):
        client.send(requests)
        while True:
            client.send(requests)
            client.receive(32 * (16 + 16 * BLOCK))


def test_the_engine_dies_and_with_it_the_server(server: Server) -> None:
    """An event names it, exit 1, and the client's connection ends."""
    with server.client() as client:
        os.kill(server.named("engine")[0], signal.SIGKILL)
        assert server.process.wait(20) == 1
        assert server.find_event("engine_died")
        with pytest.raises((ConnectionError, EOFError, OSError)):
            client.read(0, BLOCK)


def test_a_window_that_fails_its_proof_is_a_failed_start(start: Start) -> None:
    """One line on stderr, without a traceback, and exit 1."""
    server = start("--workers", "0", ready=False, program=UNPROVEN)
    assert server.wait(60) == 1
    assert server.stderr.splitlines() == ["vramblk: bytes did not survive: injected"]


def test_an_engine_that_takes_no_client_is_named(start: Start) -> None:
    """It is the engine that stands still, not a worker; a client that it has not taken waits."""
    server = start("--workers", "0")
    [engine] = server.named("engine")
    os.kill(engine, signal.SIGSTOP)
    try:
        client = server.connect()
        event = server.wait_event("engine_stalled")
        assert event["child"] == engine and event["waiting"] == 1 and "worker" not in event
    finally:
        os.kill(engine, signal.SIGCONT)
    with client:
        client.greet()
        client.negotiate()
        server.wait_event("engine_resumed")


def test_a_refused_write_whose_payload_comes_late(server: Server) -> None:
    """What is not plain, and not whole either, is received by the general code; then the short path goes on."""
    with server.client() as client:
        size = 64 << 20
        cookie, data = client.encode(nbd.WRITE, size, BLOCK, payload=b"x" * BLOCK)
        client.send(data[:100])
        time.sleep(0.2)
        client.send(data[100:])
        assert client.gather([cookie])[cookie].error == nbd.ENOSPC
        client.write(size - 1, b"y")
        assert client.read(size - 1, 1) == b"y"


def test_a_refused_write_whose_payload_does_not_come(start: Start) -> None:
    """The engine sleeps meanwhile, also one that spins before it sleeps."""
    server = start("--workers", "0", program=SPINNING)
    [engine] = server.named("engine")
    with server.client() as client:
        cookie, data = client.encode(nbd.WRITE, 64 << 20, BLOCK, payload=b"x" * BLOCK)
        client.send(data[:100])
        time.sleep(0.3)
        before_s = _processor_s(engine)
        time.sleep(1)
        assert _processor_s(engine) - before_s < 0.5
        client.send(data[100:])
        assert client.gather([cookie])[cookie].error == nbd.ENOSPC


def _processor_s(pid: int) -> float:
    text = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(text[11]) + int(text[12])) / os.sysconf("SC_CLK_TCK")


def test_a_client_that_reads_its_replies_late(server: Server) -> None:
    """Replies that the socket does not take wait, others are served meanwhile, and no byte is lost."""
    length = 256 << 10
    with server.client(structured=True) as client, server.client() as other:
        blocks = [bytes([number]) * length for number in range(1, 9)]
        for number, data in enumerate(blocks):
            client.write(number * length, data)
        cookies = [client.submit(nbd.READ, number % 8 * length, length) for number in range(64)]
        for number in range(20):
            other.write((32 << 20) + number, b"o")
        replies = client.gather(cookies)
        assert all(replies[cookie].data == blocks[number % 8] for number, cookie in enumerate(cookies))
        assert client.read(32 << 20, 20) == b"o" * 20


def served_by_workers(server: Server) -> int:
    return sum(worker["connections"] for worker in status(server)["workers"])


def test_the_first_local_client_is_the_engines(start: Start) -> None:
    """The next one is a worker's; a place that is free again is taken again; TCP is never the engine's."""
    server = start(tcp=True)
    with server.client() as first, server.client() as second, server.client(transport="tcp") as third:
        assert served_by_workers(server) == 2 and len(status(server)["connections"]) == 3
        first.write(0, b"1" * BLOCK)
        assert second.read(0, BLOCK) == third.read(0, BLOCK) == b"1" * BLOCK
        first.close()
        eventually(lambda: len(status(server)["connections"]) == 2)
        with server.client():
            assert served_by_workers(server) == 2
    server.stop()


@pytest.mark.parametrize("kind", [{}, {"structured": True}, {"extended": True}])
def test_a_client_with_many_requests_moves_to_a_worker(start: Start, kind: dict[str, bool]) -> None:
    """With a request half received, and with others waiting in the socket; no byte is lost."""
    server = start()
    with server.client(**kind) as client:
        data = os.urandom(32 * BLOCK)
        client.write(0, data)
        for _ in range(40):
            cookies = [client.submit(nbd.READ, n * BLOCK, BLOCK) for n in range(32)]
            replies = client.gather(cookies)
            assert b"".join(bytes(replies[cookie].data) for cookie in cookies) == data
        assert not server.find_event("client_moved")
        deadline_s = time.monotonic() + 60
        while not server.find_event("client_moved"):  # how many requests a go has depends on the scheduler too
            assert time.monotonic() < deadline_s
            encoded = [client.encode(nbd.READ, n % 32 * BLOCK, BLOCK) for n in range(8 * 32)]
            client.send(b"".join(text for _, text in encoded))
            for part in range(8):
                replies = client.gather([cookie for cookie, _ in encoded[part * 32 : part * 32 + 32]])
                assert all(not reply.error for reply in replies.values())
        assert served_by_workers(server) == 1
        client.write(BLOCK, b"w" * BLOCK)
        assert client.read(0, 3 * BLOCK) == data[:BLOCK] + b"w" * BLOCK + data[2 * BLOCK : 3 * BLOCK]
        with server.client() as other:  # the engine has a place again
            assert served_by_workers(server) == 1
            assert other.read(BLOCK, BLOCK) == b"w" * BLOCK
        found = status(server)
        assert found["healthy"] and found["counters"]["connections_refused"] == 0
        assert {row["state"] for row in found["connections"]} == {"transmission"}
    eventually(lambda: not status(server)["connections"])
    server.stop()


def test_a_client_among_busy_ones_moves_to_a_worker(start: Start) -> None:
    """Beside an idle one it stays, with one request in flight."""
    server = start(tcp=True)
    with server.client() as local, server.client(transport="tcp") as other:
        local.write(0, b"l" * BLOCK)
        for _ in range(600):
            assert local.read(0, BLOCK) == b"l" * BLOCK
        assert not _moves(server)
        deadline_s = time.monotonic() + 60
        while not _moves(server):
            assert time.monotonic() < deadline_s
            other.read(0, BLOCK)
            other.read(BLOCK, BLOCK)
            local.read(0, BLOCK)
        assert local.read(0, BLOCK) == b"l" * BLOCK
    server.stop()


def test_a_client_with_large_requests_moves_after_a_quarter_as_many_batches_of_others(start: Start) -> None:
    """Alone it stays: batches for its own commands between the writes are not those of others."""
    size = 256 << 10
    server = start(tcp=True)
    with server.client() as local, server.client(transport="tcp") as other:
        for _ in range(200):
            local.write(0, b"l" * size)
            assert not local.call(nbd.WRITE_ZEROES, size, size).error
        assert not _moves(server)
        deadline_s = time.monotonic() + 60
        while not _moves(server):
            assert time.monotonic() < deadline_s
            other.read(0, BLOCK)
            for _ in range(3):
                assert local.read(0, size) == b"l" * size
        assert local.read(0, size) == b"l" * size
    server.stop()


def _moves(server: Server) -> int:
    return sum(event.get("event") == "client_moved" for event in server.events)


def test_clients_that_have_moved_leave_nothing_behind(start: Start) -> None:
    """The engine's memory does not grow with the number of those that it has given away."""
    server = start()
    [engine] = server.named("engine")
    requests = struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, 0, nbd.READ, 1, 0, 1) * 32
    sizes_kib = []
    for _ in range(31):
        with server.client() as client:
            moved = _moves(server)
            while _moves(server) == moved:
                client.send(requests * 8)
                client.receive(8 * 32 * (16 + 1))
        status_text = Path(f"/proc/{engine}/status").read_text()
        sizes_kib.append(int(status_text.split("VmRSS:")[1].split()[0]))
    assert sizes_kib[-1] - sizes_kib[10] < 512
    server.stop()
