"""--export-max-connections: clients of one export cannot take the places of another's."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from . import rawclient as nbd
from .harness import Server, eventually

pytestmark = pytest.mark.wire
Start = Callable[..., Server]


@pytest.fixture
def server(start: Start, tmp_path: Path) -> Server:
    config = tmp_path / "config.yaml"
    config.write_text(
        "max_connections: 8\nexport_max_connections: 2\n"
        "exports:\n  - {name: a, size: 16M}\n  - {name: b, size: 16M, max_connections: 1}\n"
    )
    return start("--workers", "2", "--config", str(config), size=None)


def refused(server: Server, name: str) -> str:
    """The text with which an export is refused; the connection can ask for another afterwards."""
    with server.connect() as client:
        client.greet()
        (reply,) = client.go(name)
        assert reply.type == nbd.ERR_POLICY, reply
        assert client.go(name, ())[0].type == nbd.ERR_POLICY
        return reply.data.decode()


def test_three_clients_of_one_do_not_shut_out_the_other(server: Server) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(server.client("a"))
        for _ in range(4):
            text = refused(server, "a")
            assert "all 2 places" in text and "--export-max-connections" in text
        stack.enter_context(server.client("b"))
        assert server.wait_event("connection_refused")["export"] == "a"
    eventually(lambda: not json.loads(server.get("/status.json")[1])["connections"])
    shown = json.loads(server.get("/status.json")[1])["exports"]
    assert [each["max_connections"] for each in shown] == [2, 1]


def test_a_place_is_free_again_and_info_takes_none(server: Server) -> None:
    with server.client("b"):
        assert "all 1 places" in refused(server, "b")
        with server.connect() as client:
            client.greet()
            assert client.ask(nbd.INFO, nbd.info_payload("b"))[-1].type == nbd.ACK
            assert client.go("a")[-1].type == nbd.ACK

    def attached() -> bool:
        try:
            server.client("b").close()
        except AssertionError:
            return False
        return True

    eventually(attached, 2)


def test_export_name_has_no_error_reply(server: Server) -> None:
    with server.client("b"), server.connect() as client:
        client.greet()
        client.send(nbd.option_bytes(nbd.EXPORT_NAME, b"b"))
        assert client.at_end()


def test_many_at_once_are_never_more(start: Start) -> None:
    """Over several workers, and with the last places asked for at the same time."""
    server = start("--workers", "4", "--export-max-connections", "5")
    for _ in range(5):
        clients = [server.connect() for _ in range(24)]
        try:
            for client in clients:
                client.greet()
            for client in clients:
                client.send(nbd.option_bytes(nbd.GO, nbd.info_payload("")))
            replies = [client.replies(nbd.GO)[-1].type for client in clients]
            assert replies.count(nbd.ACK) == 5
        finally:
            for client in clients:
                client.close()
        eventually(lambda: not json.loads(server.get("/status.json")[1])["connections"])


def test_the_places_of_a_worker_that_has_died_are_free(start: Start) -> None:
    server = start("--workers", "2", "--export-max-connections", "1")
    with server.client(""):
        for pid in server.named("worker"):
            os.kill(pid, signal.SIGKILL)

    eventually(server.takes_a_client, 5)
