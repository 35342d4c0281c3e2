"""What goes wrong once in a worker, or one client's load, does not stop the clients beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import rawclient as nbd
from .steering import Background, Steered


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Steered]:
    with Steered(tmp_path / "server", "--workers", "1", size="64M") as server:
        yield server
        server.heal()


def test_an_exception_before_a_workers_first_request_leaves_its_ring_whole(alone: Steered) -> None:
    mark = b"this payload makes recv raise"
    first = alone.client()
    gone = alone.fail_once("recv", "MemoryError", mark)
    first.submit(nbd.WRITE, 0, payload=mark.ljust(4096))
    assert first.at_end()
    assert not gone.exists()
    with alone.client() as second:
        second.socket.settimeout(5)
        assert second.read(0, 4096) == bytes(4096)


def test_a_new_client_is_not_dropped_because_the_engine_is_busy_for_longer_than_a_negotiation_may_take(
    alone: Steered,
) -> None:
    with alone.client() as busy:
        with alone.held(busy):
            connecting = Background(alone.client)
            time.sleep(11.5)
        client = connecting.result()
        assert client.read(0, 4096) == bytes(4096)
        client.close()
