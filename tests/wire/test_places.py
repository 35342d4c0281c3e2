"""Clients that hold places and do nothing with them keep out nobody who negotiates."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from . import rawclient as nbd
from .certificates import Certificates
from .harness import Server, eventually

Start = Callable[..., Server]


def open_connections(server: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(server.get("/status.json")[1])["connections"]
    return found


def closed(client: nbd.RawClient) -> bool:
    """Whether the server has closed a connection on which it has sent its greeting."""
    client.socket.settimeout(0.5)
    try:
        client.receive(18)
        return client.at_end()
    except (EOFError, ConnectionError):
        return True
    except TimeoutError:
        return False


@pytest.mark.parametrize("arguments", (("--workers", "2"), ("--workers", "0"), ()), ids=("workers", "engine", "both"))
def test_silent_clients_make_way(start: Start, arguments: tuple[str, ...]) -> None:
    """The oldest negotiation first, and never a client that has negotiated, however long it idles."""
    server = start("--max-connections", "6", *arguments)
    with ExitStack() as stack:
        idle = [stack.enter_context(server.client()) for _ in range(3)]
        silent = [stack.enter_context(server.connect()) for _ in range(9)]
        assert [closed(client) for client in silent] == [True] * 6 + [False] * 3
        idle += [stack.enter_context(server.client()) for _ in range(3)]
        assert all(map(closed, silent))
        for number, client in enumerate(idle):
            client.write(number * 4096, b"served" * 100)
            assert client.read(number * 4096, 600) == b"served" * 100
        with server.connect() as beyond:
            assert beyond.at_end()
        idle.pop().close()
        eventually(lambda: _served(server), 1)
        assert "6 connections are open" in server.wait_event("connection_refused")["reason"]


def _served(server: Server, transport: str = "unix") -> bool:
    try:
        server.client(transport=transport).close()
    except (ConnectionError, EOFError):
        return False
    return True


def test_eighty_clients_without_a_certificate(start: Start, certificates: Certificates) -> None:
    """Silent, greeted or within the TLS handshake: a client with a certificate is served, on TCP and on Unix."""
    server = start(
        "--tls", "require", "--tls-verify-peer", "--tls-certificates", str(certificates.server), tcp=True
    )  # fmt: skip
    with ExitStack() as stack:
        for number in range(80):
            client = stack.enter_context(server.connect("tcp" if number % 2 else "unix"))
            if number % 3:
                client.greet()
            if number % 3 == 2:
                assert client.ask(nbd.STARTTLS)[-1].type == nbd.ACK
        for transport in ("unix", "tcp"):
            good = stack.enter_context(server.connect(transport))
            good.greet()
            good.start_tls(certificates.context(certificates.client))
            good.negotiate("vram")
            assert len(good.read(0, 4096)) == 4096


def test_places_are_kept_for_unix_sockets(start: Start) -> None:
    """TCP clients that have negotiated and idle take seven of eight places; the last is for a Unix socket."""
    server = start("--max-connections", "8", "--workers", "2", tcp=True)
    with ExitStack() as stack:
        for _ in range(7):
            stack.enter_context(server.client(transport="tcp"))
        assert not _served(server, "tcp")
        assert "7 TCP connections" in server.wait_event("connection_refused")["reason"]
        with server.client() as local:
            assert len(local.read(0, 4096)) == 4096
            assert not _served(server)


def test_one_address_cannot_take_all_places(start: Start) -> None:
    """Half of what other machines may have; this machine's own clients find a place after that."""
    address = _own_address()
    if address is None:
        pytest.skip("requires a network address beside loopback")
    server = start("--max-connections", "8", "--workers", "2", "--listen-addr", "0.0.0.0:0")
    port = server.wait_event("ready")["uris"][-1].partition("0.0.0.0:")[2].partition("/")[0]

    def connect(host: str) -> nbd.RawClient:
        return nbd.RawClient(socket.create_connection((host, int(port)), 10))

    with ExitStack() as stack:
        for _ in range(3):
            client = stack.enter_context(connect(address))
            client.greet()
            client.negotiate()
        eventually(lambda: [each["state"] for each in open_connections(server)] == ["transmission"] * 3)
        with connect(address) as beyond:
            assert beyond.at_end()
        assert f"from {address}" in server.wait_event("connection_refused")["reason"]
        for client in (stack.enter_context(connect("127.0.0.1")), stack.enter_context(server.connect())):
            client.greet()
            client.negotiate()


def _own_address() -> str | None:
    """An address of this machine that other machines could have; connections to it stay within the machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        host = str(probe.getsockname()[0])
    return None if host.startswith("127.") else host


def test_a_worker_that_stands_still_keeps_nobody_out(start: Start) -> None:
    """A slow negotiation at the other worker makes way, although the server is not full."""
    server = start("--max-connections", "12", "--workers", "2", tcp=True)
    stopped, _ = server.named("worker")
    os.kill(stopped, signal.SIGSTOP)
    try:
        with ExitStack() as stack:
            for _ in range(8):  # more than the other worker has places for, fewer than all
                stack.enter_context(server.connect("tcp"))
            server.wait_event("worker_stalled")
            time.sleep(1)
            begun = time.monotonic()
            client = stack.enter_context(server.client())
            assert len(client.read(0, 4096)) == 4096
            assert time.monotonic() - begun < 3, "it has waited until a negotiation was too slow"
    finally:
        os.kill(stopped, signal.SIGCONT)


def test_workers_that_stand_still_leave_the_engines_place(start: Start) -> None:
    """By default the engine serves the first local client, whatever the workers do."""
    server = start(tcp=True)
    workers = server.named("worker")
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    try:
        with ExitStack() as stack:
            for _ in workers:
                stack.enter_context(server.connect("tcp"))
            server.wait_event("worker_stalled")
            begun = time.monotonic()
            client = stack.enter_context(server.client())
            assert len(client.read(0, 4096)) == 4096
            assert time.monotonic() - begun < 3
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
