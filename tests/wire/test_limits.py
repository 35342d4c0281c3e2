"""Clients that mean ill or sleep: none of them may hold up another or eat the host's memory."""

from __future__ import annotations

import os
import resource
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from . import rawclient as nbd
from .harness import Server, eventually

MIB = 1 << 20
Start = Callable[..., Server]


@pytest.fixture(scope="module", params=("1", "0"))
def limited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """One worker or the engine itself, so that every client shares it with the one that misbehaves."""
    with Server(tmp_path_factory.mktemp("limits"), "--workers", request.param, size="128M") as server:
        yield server


def process_of(server: Server) -> int:
    """The one that serves the clients."""
    [pid] = server.named("worker") or server.named("engine")
    return pid


def anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def slowest_read_s(client: nbd.RawClient, count: int = 100) -> float:
    slowest = 0.0
    for index in range(count):
        begun = time.monotonic()
        assert len(client.read(index * 4096, 4096)) == 4096
        slowest = max(slowest, time.monotonic() - begun)
    return slowest


def test_negotiation_deadline(limited: Server) -> None:
    """A client that has not chosen an export within 10 s is closed, silent or busy; others go on."""
    silent, greeted, chatty = (limited.connect() for _ in range(3))
    with limited.client() as other, silent, greeted, chatty:
        begun = time.monotonic()
        silent.receive(18)
        greeted.greet()
        chatty.greet()
        ended: dict[str, float] = {}
        while len(ended) < 3 and time.monotonic() - begun < 20:
            if "chatty" not in ended:
                try:
                    chatty.ask(nbd.LIST)
                except (EOFError, ConnectionError):
                    ended["chatty"] = time.monotonic() - begun
            for name, client in (("silent", silent), ("greeted", greeted)):
                client.socket.settimeout(0.05)
                if name not in ended:
                    try:
                        if client.socket.recv(1) == b"":
                            ended[name] = time.monotonic() - begun
                    except ConnectionError:
                        ended[name] = time.monotonic() - begun
                    except TimeoutError:
                        pass
            time.sleep(0.2)
        assert set(ended) == {"silent", "greeted", "chatty"}
        assert all(8 < seconds < 14 for seconds in ended.values()), ended
        assert len(other.read(0, 512)) == 512


def test_idle_client_in_transmission_stays(limited: Server) -> None:
    """The deadline is for the negotiation only: a client that idles for longer in transmission is served."""
    with limited.client() as client:
        client.write(0, b"patience")
        time.sleep(12)
        assert client.read(0, 8) == b"patience"


def test_stalled_reader_holds_up_nobody(limited: Server) -> None:
    """A client that asks for data and reads nothing delays no other client of the same process."""
    with limited.client(structured=True) as stalled, limited.client() as other:
        for _ in range(128):
            stalled.submit(nbd.READ, 0, MIB)
        time.sleep(0.5)
        assert slowest_read_s(other) < 2
        other.write(0, b"w" * 65536)
        assert other.read(0, 65536) == b"w" * 65536


@pytest.mark.parametrize("kind", ("simple", "structured"))
def test_slow_reader_gets_2_gib(limited: Server, kind: str) -> None:
    """2 GiB of replies held back by a slow reader cost bounded memory and arrive complete in the end."""
    kinds = {} if kind == "simple" else {"structured": True}
    process = process_of(limited)
    with limited.client(**kinds) as slow, limited.client() as other:
        block = bytes(range(256)) * 4096
        for index in range(32):
            slow.write(index * MIB, block[index:] + block[:index])
        before = anonymous_bytes(process)
        stream = b"".join(slow.encode(nbd.READ, 0, 32 * MIB)[1] for _ in range(64))
        slow.send(stream)
        time.sleep(0.5)
        assert slowest_read_s(other, 50) < 2
        assert anonymous_bytes(process) - before < 64 * MIB
        expected = b"".join(block[index:] + block[:index] for index in range(32))
        for _ in range(64):
            reply = slow.wait()
            assert not reply.error and reply.data == expected
        assert anonymous_bytes(process) - before < 64 * MIB


def test_half_sent_write_holds_up_nobody(limited: Server) -> None:
    """A client that announces 64 MiB and sends half of it delays no other client."""
    with limited.client() as half, limited.client() as other:
        _, request = half.encode(nbd.WRITE, 0, payload=bytes(32 * MIB))
        half.send(request[: 16 * MIB])
        assert slowest_read_s(other) < 2
        half.send(request[16 * MIB :])
        assert half.wait().error == 0


def test_sixteen_half_sent_writes(limited: Server) -> None:
    """Sixteen clients in the middle of large writes leave room for one that works, and all finish."""
    clients = [limited.client() for _ in range(16)]
    try:
        requests = [client.encode(nbd.WRITE, index * 4 * MIB, payload=bytes([index]) * (4 * MIB))[1]
                    for index, client in enumerate(clients)]  # fmt: skip
        for client, request in zip(clients, requests, strict=True):
            client.send(request[: MIB + 13])
        with limited.client() as other:
            assert slowest_read_s(other) < 2
        for client, request in zip(clients, requests, strict=True):
            client.send(request[MIB + 13 :])
            assert client.wait().error == 0
        for index, client in enumerate(clients):
            assert client.read(index * 4 * MIB, 4 * MIB) == bytes([index]) * (4 * MIB)
    finally:
        for client in clients:
            client.close()


def test_flood_of_requests_is_bounded(limited: Server) -> None:
    """A client that sends requests for ever and reads nothing is no longer read from; it costs bounded memory."""
    process = process_of(limited)
    before = anonymous_bytes(process)
    with limited.client() as flood, limited.client() as other:
        flood.socket.setblocking(False)
        burst = b"".join(flood.header(nbd.READ, 0, 4096, 0, cookie) for cookie in range(1000))
        sent, stuck_since = 0, None
        while sent < 64 * MIB:
            try:
                sent += flood.socket.send(burst)
                stuck_since = None
            except BlockingIOError:
                stuck_since = stuck_since or time.monotonic()
                if time.monotonic() - stuck_since > 1:
                    break
                time.sleep(0.01)
        assert sent < 64 * MIB, "the server reads on although its replies are not taken"
        assert slowest_read_s(other) < 2
        assert anonymous_bytes(process) - before < 64 * MIB


def test_client_that_dies_with_unread_replies(limited: Server) -> None:
    """Clients that vanish with replies unread, by close and by reset, free what they held."""
    for number in range(30):
        client = limited.client(structured=number % 2 == 0)
        for _ in range(16):
            client.submit(nbd.READ, 0, 4 * MIB)
        client.close()
    eventually(lambda: limited.metrics()["vramblk_connections"] == 0, 20)
    with limited.client() as client:
        assert slowest_read_s(client) < 2


def test_reset_tcp_connections(start: Start) -> None:
    """TCP connections reset half-way through the handshake or a request leave the server unharmed."""
    server = start(tcp=True)
    for number in range(40):
        client = server.connect("tcp")
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if number % 4 > 0:
            client.greet()
        if number % 4 > 1:
            client.negotiate()
        if number % 4 > 2:
            client.send(client.encode(nbd.WRITE, 0, payload=bytes(MIB))[1][: MIB // 2])
        client.close()
    with server.client(transport="tcp") as client:
        client.write(0, b"fine")
        assert client.read(0, 4) == b"fine"


@pytest.mark.parametrize("arguments", ((), ("--workers", "0")), ids=("workers", "engine"))
def test_server_stops_with_clients_in_the_handshake(start: Start, arguments: tuple[str, ...]) -> None:
    """Stopping while clients are half-way through the handshake is clean: no crash, exit status 0."""
    server = start("--drain-timeout", "2s", *arguments, tcp=not arguments)
    clients = [server.connect("tcp" if server.port and number % 2 else "unix") for number in range(20)]
    try:
        for number, client in enumerate(clients):
            if number % 3 == 1:
                client.greet()
            elif number % 3 == 2:
                client.greet()
                client.send(nbd.option_bytes(nbd.GO, length=100)[:12])
        assert server.stop() == 0
    finally:
        for client in clients:
            client.close()


def test_small_requests_over_tcp_do_not_wait(start: Start) -> None:
    """TCP_NODELAY: a thousand small requests one after another do not take 40 ms each."""
    server = start(tcp=True)
    with server.client(transport="tcp") as client:
        begun = time.monotonic()
        for index in range(500):
            client.write(index * 512, b"t" * 512)
            client.read(index * 512, 512)
        assert time.monotonic() - begun < 10


def cpu_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_no_descriptor_left_for_a_connection(start: Start) -> None:
    """Without a descriptor to accept with, clients wait: no death, no spinning, and service as soon as there is one."""
    server = start("--workers", "1", tcp=True)
    attached = server.client()
    limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        waiting = [server.connect(), server.connect("tcp")]
        server.wait_event("accept_failed")
        begun_s, used_s = time.monotonic(), cpu_s(server.pid)
        time.sleep(3)
        share = (cpu_s(server.pid) - used_s) / (time.monotonic() - begun_s)
        assert share < 0.2
        for client in waiting:
            client.socket.settimeout(0.1)
            with pytest.raises(TimeoutError):
                client.socket.recv(1)
        attached.write(0, b"undisturbed")
        assert attached.read(0, 11) == b"undisturbed"
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
    for client in waiting:
        client.socket.settimeout(10)
        client.greet()
        client.negotiate()
        assert len(client.read(0, 4096)) == 4096
        client.close()
    with server.client() as client:
        assert client.read(0, 11) == b"undisturbed"
    attached.close()
    assert server.stop() == 0


def limit_descriptors(pid: int, most: int) -> None:
    """As the process's own user: root may not without CAP_SYS_RESOURCE."""
    owner = os.stat(f"/proc/{pid}/task")
    subprocess.run(
        ["prlimit", f"--pid={pid}", f"--nofile={most}:"], user=owner.st_uid, group=owner.st_gid, extra_groups=[], check=True
    )


@pytest.mark.parametrize("workers", ("1", "0"))
def test_no_descriptor_left_in_the_process_that_serves(start: Start, workers: str) -> None:
    """The connection that came with it is closed; those that are served go on, and so do later ones."""
    server = start("--workers", workers)
    process = process_of(server)
    with server.client() as client:
        limit_descriptors(process, 3)
        with server.connect() as refused:
            assert refused.at_end()
        assert len(client.read(0, 4096)) == 4096
        limit_descriptors(process, 1024)
        with server.client() as later:
            assert len(later.read(0, 4096)) == 4096
    assert process_of(server) == process


def test_a_long_negotiation_lets_others_have_their_turn(limited: Server) -> None:
    """Options of the largest size, one after another: a neighbour's read comes in between, not after them."""
    queries = (65536 - 12) // 4
    payload = struct.pack(">I", 4) + b"vram" + struct.pack(">I", queries) + bytes(4 * queries)
    option = nbd.option_bytes(nbd.SET_META_CONTEXT, payload)
    with limited.client() as other, limited.connect() as busy:
        other.read(0, 4096)
        busy.greet()
        busy.ask(nbd.STRUCTURED_REPLY)
        busy.socket.settimeout(0.2)

        def flood() -> None:
            with suppress(OSError):
                for _ in range(100):
                    busy.send(option)

        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        time.sleep(0.3)
        assert slowest_read_s(other, 20) < 2
        thread.join()
