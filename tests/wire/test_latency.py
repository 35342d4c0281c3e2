"""What vramblk_request_seconds counts: from a request's own arrival to its reply."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from . import rawclient as nbd
from .harness import Server, eventually
from .steering import Steered

KIB = 1 << 10


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    with Steered(tmp_path_factory.mktemp("latency"), "--workers", "1") as running:
        yield running


def latency(server: Server, op: str) -> tuple[float, float]:
    """Seconds and requests counted so far."""
    metrics = server.metrics()
    name = f'vramblk_request_seconds_{{}}{{{{op="{op}"}}}}'
    return metrics[name.format("sum")], metrics[name.format("count")]


def counted_s(server: Server, op: str, before: tuple[float, float], requests: int) -> float:
    """Seconds counted since ``before``; a request is counted when its reply was sent, and so a little later."""
    eventually(lambda: latency(server, op)[1] - before[1] == requests)
    return latency(server, op)[0] - before[0]


@pytest.mark.parametrize("command", ("read", "write", "trim"))
def test_requests_behind_go_count_from_their_arrival(server: Steered, command: str) -> None:
    """Requests that are sent together with GO are counted with the time that they took, not with the uptime."""
    code = {"read": nbd.READ, "write": nbd.WRITE, "trim": nbd.TRIM}[command]
    before = latency(server, command)
    with server.connect() as client:
        client.greet()
        encoded = [
            client.encode(code, at * 4096, 4096, payload=bytes(4096) if command == "write" else None)
            for at in range(8)
        ]
        go = nbd.option_bytes(nbd.GO, nbd.info_payload(""))
        client.send(go + b"".join(data for _, data in encoded))
        assert client.replies(nbd.GO)[-1].type == nbd.ACK
        replies = client.gather([cookie for cookie, _ in encoded])
        assert not any(reply.error for reply in replies.values())
        client.read(1 << 20, 512)
    seconds = counted_s(server, command, before, 8 + (command == "read"))
    assert 0 < seconds < 5


@pytest.mark.parametrize(("length", "requests"), ((4 * KIB, 300), (64 * KIB, 600)))
def test_waiting_in_the_server_counts(server: Steered, length: int, requests: int) -> None:
    """Requests that wait two seconds for the engine count with two seconds, also those that had no room at once."""
    with server.client() as other, server.client() as client:
        before = latency(server, "read")
        with server.held(other):
            encoded = [client.encode(nbd.READ, at % 512 * length, length) for at in range(requests)]
            client.send(b"".join(data for _, data in encoded))
            time.sleep(2)
            late = client.submit(nbd.READ, 0, 512)
            time.sleep(0.1)
        begun = time.monotonic()
        client.gather([cookie for cookie, _ in encoded] + [late])
        elapsed = time.monotonic() - begun
        client.read(0, 512)
        seconds = counted_s(server, "read", before, requests + 3)
    assert seconds > requests * 1.9
    assert seconds < (requests + 3) * (2.5 + elapsed)
