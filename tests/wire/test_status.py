"""The observer's pages: state, health, figures, and that they agree with what clients did."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest

from . import rawclient as nbd
from .harness import Server, eventually, free_port

Start = Callable[..., Server]

METRICS = (
    "vramblk_requests_total", "vramblk_bytes_total", "vramblk_request_errors_total",
    "vramblk_request_seconds", "vramblk_batch_requests", "vramblk_connections",
    "vramblk_export_size_bytes", "vramblk_export_written_bytes", "vramblk_locked_bytes",
    "vramblk_dropped_log_lines_total", "vramblk_state", "vramblk_device_info", "vramblk_build_info",
)  # fmt: skip


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory):
    with Server(tmp_path_factory.mktemp("status"), "--workers", "2", size="32M") as server:
        yield server


def labels(name: str, **wanted: str) -> Callable[[str], bool]:
    """Whether a sample has this name and these labels, in whatever order they stand."""

    def matches(sample: str) -> bool:
        base, _, rest = sample.partition("{")
        return base == name and all(f'{key}="{value}"' in rest for key, value in wanted.items())

    return matches


def value(metrics: dict[str, float], name: str, **wanted: str) -> float:
    matches = labels(name, **wanted)
    return sum(number for sample, number in metrics.items() if matches(sample))


def test_ready_and_healthy(watched: Server) -> None:
    """/readyz and /healthz are 200 on a server that serves."""
    assert watched.get("/readyz")[0] == 200
    assert watched.get("/healthz")[0] == 200


def test_unknown_page_is_404(watched: Server) -> None:
    """A page that does not exist is 404, also with rubbish in its name."""
    for path in ("/no/such/page", "/../../etc/passwd", "/%00", "/" + "x" * 2000):
        assert 400 <= watched.get(path)[0] < 500


def test_every_promised_metric_is_there(watched: Server) -> None:
    """/metrics has every name of the contract, each with its type."""
    with watched.client("vram") as client:
        client.read(0, 4096)
        client.call(nbd.READ, 1 << 40, 512)
        status, body = watched.get("/metrics")
        assert status == 200
        types = {line.split()[2]: line.split()[3] for line in body.splitlines() if line.startswith("# TYPE")}
        for name in METRICS:
            found = types.get(name) or types.get(name.removesuffix("_total"))
            assert found, name
            if name.endswith("_total"):
                assert found == "counter"
        assert types["vramblk_request_seconds"] == types["vramblk_batch_requests"] == "histogram"


def test_status_json(watched: Server) -> None:
    """/status.json tells the state, the export with its size, and who is connected."""
    with watched.client("vram") as client:
        client.read(0, 512)
        status, body = watched.get("/status.json")
        assert status == 200
        told = json.loads(body)
        assert "ready" in str(told.get("state", "")).lower()
        assert str(32 << 20) in body and "vram" in body
        assert f"pid={os.getpid()}" in body


def test_counts_equal_what_a_client_did(watched: Server) -> None:
    """Requests, bytes and errors by operation grow by exactly what a client did."""
    before = watched.metrics()
    with watched.client("vram", structured=True, contexts=("base:allocation",)) as client:
        for index in range(7):
            client.write(index * 8192, b"m" * 8192)
        cookies = [client.submit(nbd.READ, index * 4096, 4096) for index in range(100)]
        client.gather(cookies)
        client.read(1, 999)
        client.call(nbd.FLUSH)
        client.call(nbd.TRIM, 0, 8192)
        client.call(nbd.WRITE_ZEROES, 8192, 8192)
        client.call(nbd.WRITE_ZEROES, 16384, 8192)
        client.call(nbd.CACHE, 0, 4096)
        for _ in range(4):
            client.call(nbd.BLOCK_STATUS, 0, 4096)
        for _ in range(3):
            assert client.call(nbd.READ, 32 << 20, 512).error == nbd.EINVAL
        for _ in range(2):
            assert client.call(nbd.WRITE, 32 << 20, payload=b"x" * 512).error == nbd.ENOSPC
    eventually(lambda: watched.metrics()["vramblk_connections"] == 0)
    after = watched.metrics()

    def grown(name: str, **wanted: str) -> float:
        return value(after, name, export="vram", **wanted) - value(before, name, export="vram", **wanted)

    requests = {"read": 104, "write": 9, "flush": 1, "trim": 1, "write_zeroes": 2, "cache": 1, "block_status": 4}
    assert {op: grown("vramblk_requests_total", op=op) for op in requests} == requests
    assert grown("vramblk_bytes_total", op="read") == 100 * 4096 + 999
    assert grown("vramblk_bytes_total", op="write") == 7 * 8192
    assert grown("vramblk_request_errors_total", op="read", errno="EINVAL") == 3
    assert grown("vramblk_request_errors_total", op="write", errno="ENOSPC") == 2
    for op, count in requests.items():
        timed = value(after, "vramblk_request_seconds_count", op=op) - value(before, "vramblk_request_seconds_count", op=op)
        assert timed == count, op
    assert value(after, "vramblk_batch_requests_count") > value(before, "vramblk_batch_requests_count")


def test_sizes_and_written_bytes(watched: Server) -> None:
    """Size and written bytes are the export's; a trimmed block is unwritten again."""
    with watched.client("vram") as client:
        assert client.call(nbd.TRIM, 0, 32 << 20).error == 0
        metrics = watched.metrics()
        assert value(metrics, "vramblk_export_size_bytes", export="vram") == 32 << 20
        assert value(metrics, "vramblk_export_written_bytes", export="vram") == 0
        client.write(4095, b"ab")
        assert value(watched.metrics(), "vramblk_export_written_bytes", export="vram") == 8192
        client.call(nbd.WRITE_ZEROES, 0, 4096)
        assert value(watched.metrics(), "vramblk_export_written_bytes", export="vram") == 4096
        client.call(nbd.WRITE_ZEROES, 4096, 4096, nbd.NO_HOLE)
        assert value(watched.metrics(), "vramblk_export_written_bytes", export="vram") == 4096


def test_connections_are_counted(watched: Server) -> None:
    """vramblk_connections is the number of clients now connected; the canary is none."""
    eventually(lambda: watched.metrics()["vramblk_connections"] == 0)
    watched.get("/healthz")
    assert watched.metrics()["vramblk_connections"] == 0
    with watched.client(), watched.client(), watched.client():
        assert watched.metrics()["vramblk_connections"] == 3
    eventually(lambda: watched.metrics()["vramblk_connections"] == 0)


def test_state_metric(watched: Server) -> None:
    """vramblk_state is 1 for exactly the state the server is in."""
    states = {name: number for name, number in watched.metrics().items() if name.startswith("vramblk_state{")}
    assert sorted(states.values()) == [0.0] * (len(states) - 1) + [1.0]
    (current,) = [name for name, number in states.items() if number]
    assert "ready" in current.lower()


def test_slow_reader_of_status_disturbs_nobody(watched: Server) -> None:
    """Clients of the status socket that stall, or send rubbish, do not stop others from reading it."""
    stalled = []
    try:
        for text in (b"", b"GET /metr", b"\x00\xff" * 100, b"GET / HTTP/1.1\r\n" * 3, b"A" * 100_000):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(watched.status_path))
            connection.settimeout(1)
            try:
                connection.sendall(text)
            except OSError:
                pass
            stalled.append(connection)
        begun = time.monotonic()
        assert watched.get("/healthz")[0] == 200
        assert time.monotonic() - begun < 5
    finally:
        for connection in stalled:
            connection.close()


def http_status(url: str, token: str | None = None) -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_metrics_address(start: Start) -> None:
    """--metrics-addr serves the same over TCP; it is off unless asked for."""
    port = free_port()
    start("--metrics-addr", f"127.0.0.1:{port}")
    for path in ("/metrics", "/healthz", "/readyz", "/status.json"):
        assert http_status(f"http://127.0.0.1:{port}{path}") == 200


def test_metrics_token(start: Start) -> None:
    """With --metrics-token figures need the token over TCP, and not on the status socket."""
    port = free_port()
    server = start("--metrics-addr", f"127.0.0.1:{port}", "--metrics-token", "s3cret")
    url = f"http://127.0.0.1:{port}/metrics"
    assert http_status(url) in (401, 403)
    assert http_status(url, "wrong") in (401, 403)
    assert http_status(url, "s3cret") == 200
    assert server.get("/metrics")[0] == 200
    assert "s3cret" not in "".join(server.raw_lines) + server.get("/status.json")[1]


def test_health_fails_when_the_engine_hangs(start: Start) -> None:
    """/healthz is answered from a read through the engine: it fails while the engine is stopped."""
    server = start()
    assert server.get("/healthz")[0] == 200
    (engine,) = server.named("engine")
    os.kill(engine, signal.SIGSTOP)
    try:
        eventually(lambda: _health(server) != 200, timeout_s=30)
    finally:
        os.kill(engine, signal.SIGCONT)
    eventually(lambda: _health(server) == 200, timeout_s=30)


def _health(server: Server) -> int:
    try:
        return server.get("/healthz")[0]
    except OSError:
        return 0


def test_log_lines_are_json_events(watched: Server) -> None:
    """Off a terminal every line of the log is one JSON object with an event."""
    with watched.client("vram") as client:
        client.call(nbd.READ, 1 << 50, 512)
    time.sleep(0.3)
    assert len(watched.events) == len(watched.raw_lines)
    assert all(isinstance(event.get("event"), str) for event in watched.events)
