"""``vramblk relay``: what a real observer answers on its Unix socket, over TCP."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.observed import Observed
from vramblk.cli import main

ROOT = Path(__file__).resolve().parents[2]


class Relay:
    """The program, in a process of its own."""

    def __init__(self, status_socket: Path, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("VRAMBLK_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vramblk", "relay", "--metrics-addr", f"127.0.0.1:{self.port}",
             "--status-socket", str(status_socket), *arguments],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith(f"http://127.0.0.1:{self.port}/")

    def get(self, path: str, **fields: str) -> tuple[int, bytes, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", path, headers=fields)
        answer = connection.getresponse()
        found = answer.status, answer.read(), answer.headers
        connection.close()
        return found

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


@pytest.fixture
def observed(tmp_path: Path) -> Iterator[Observed]:
    found = Observed(tmp_path)
    yield found
    found.close()


@pytest.fixture
def relay(observed: Observed) -> Iterator[Relay]:
    found = Relay(observed.path)
    yield found
    assert found.end() == 0, "SIGTERM is an orderly end"


def test_every_page_of_the_server(observed: Observed, relay: Relay) -> None:
    """Metrics with their type, health with its status, the page with its policy, queries, and 404."""
    status, body, headers = relay.get("/metrics")
    assert status == 200 and b"vramblk_build_info" in body
    assert headers["Content-Type"].startswith("text/plain")
    assert "openmetrics" in relay.get("/metrics", Accept="application/openmetrics-text")[2]["Content-Type"]
    assert "script-src 'sha256-" in relay.get("/")[2]["Content-Security-Policy"]
    assert json.loads(relay.get("/status.json")[1])["schema"] == 1
    assert json.loads(relay.get("/history.json?since=7")[1])["next"] >= 0
    assert relay.get("/map.json?export=9")[0] == 404
    assert relay.get("/healthz")[0] == 200
    observed.control.engine_counters.add("device_lost")
    assert relay.get("/healthz")[0] == 503


def test_a_foreign_name_is_refused(relay: Relay) -> None:
    """As on the server's own address: no page elsewhere may read the answers through a name of its own."""
    assert relay.get("/metrics", Host="evil.example")[0] == 403


def test_a_configured_name_is_answered(observed: Observed) -> None:
    """As Prometheus calls the exporter of deploy/monitoring."""
    relay = Relay(observed.path, "--metrics-host", "exporter")
    try:
        assert relay.get("/metrics", Host="exporter:10810")[0] == 200
    finally:
        relay.end()


def test_without_a_server_it_answers_502_and_then_the_next_one(tmp_path: Path) -> None:
    relay = Relay(tmp_path / "status.sock")
    try:
        status, body, _ = relay.get("/metrics")
        assert status == 502 and b"No such file" in body
        observed = Observed(tmp_path)
        try:
            assert relay.get("/metrics")[0] == 200
        finally:
            observed.close()
    finally:
        assert relay.end() == 0


def test_a_token_guards_it_like_the_server(observed: Observed) -> None:
    relay = Relay(observed.path, "--metrics-token", "s3cret")
    try:
        assert relay.get("/metrics")[0] == 401
        assert relay.get("/metrics", Authorization="Bearer s3cret")[0] == 200
        assert relay.get("/readyz")[0] == 200
    finally:
        relay.end()


def test_silent_clients_do_not_hold_it_up(relay: Relay) -> None:
    silent = [socket.create_connection(("127.0.0.1", relay.port)) for _ in range(40)]
    began = time.monotonic()
    assert relay.get("/metrics")[0] == 200
    assert time.monotonic() - began < 4
    for sock in silent:
        sock.close()


@pytest.mark.parametrize("arguments", [[], ["--metrics-addr", "127.0.0.1:1", "--status-socket", "off"]])
def test_it_says_what_it_needs(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["relay", *arguments], {}) == 2
    assert "relay needs an address to listen on" in capsys.readouterr().err
