"""A kernel that is short of memory for a moment: the connection waits and goes on."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from . import rawclient as nbd
from .steering import Steered

BLOCK = 4096
SHORT = ("ENOBUFS", "ENOMEM")
CALLS = ("recv", "send")


#: Who serves, and how clients come.
WAYS = pytest.mark.parametrize(
    ("server", "transport"), (("1", "unix"), ("1", "tcp"), ("0", "unix")), indirect=["server"],
    ids=("unix", "tcp", "engine"),
)  # fmt: skip


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Steered]]:
    """One server whose clients a worker serves, and one whose engine serves them itself."""
    folder = tmp_path_factory.mktemp("short")
    with (
        Steered(folder / "1", "--workers", "1", tcp=True) as worker,
        Steered(folder / "0", "--workers", "0", uncompiled=True) as engine,
    ):
        yield {"1": worker, "0": engine}


@pytest.fixture(params=("1", "0"))
def server(request: pytest.FixtureRequest, running: dict[str, Steered]) -> Iterator[Steered]:
    chosen = running[request.param]
    yield chosen
    chosen.heal()


@WAYS
@pytest.mark.parametrize("what", SHORT)
@pytest.mark.parametrize("call", CALLS)
def test_one_failure_costs_nothing(server: Steered, call: str, what: str, transport: str) -> None:
    """A recv or send that finds no memory once is tried again: every reply comes, with the right data."""
    data = random.Random(11).randbytes(64 * BLOCK)
    with server.client(transport=transport) as client:
        client.write(0, data)
        for _ in range(3):
            obeyed = server.fail_once(call, what)
            assert client.read(BLOCK, BLOCK) == data[BLOCK : 2 * BLOCK]
            assert not obeyed.exists()
            obeyed = server.fail_once(call, what)
            cookies = [client.submit(nbd.READ, at * BLOCK, BLOCK) for at in range(64)]
            replies = client.gather(cookies)
            assert b"".join(replies[cookie].data for cookie in cookies) == data
            assert not obeyed.exists()
            obeyed = server.fail_once(call, what)
            client.write(0, data)
            assert not obeyed.exists()


@pytest.mark.parametrize("call", CALLS)
def test_a_shortage_is_waited_out(server: Steered, call: str) -> None:
    """A shortage that lasts a second delays the reply, and is looked at now and then, not all the time."""
    with server.client() as client:
        client.write(0, b"patience")
        before = server.refused()
        with server.failing(call, "ENOBUFS"):
            cookie = client.submit(nbd.READ, 0, 8)
            time.sleep(1)
            tries = server.refused() - before
        assert client.gather([cookie])[cookie].data == b"patience"
        assert 2 <= tries < 3000


@pytest.mark.parametrize("call", CALLS)
def test_a_negotiation_survives(server: Steered, call: str) -> None:
    """A client that is negotiating at that moment gets in."""
    for _ in range(3):
        with server.connect() as client:
            client.greet()
            time.sleep(0.1)  # the server sleeps again, so that the next call is one that finds the order
            obeyed = server.fail_once(call, "ENOBUFS")
            client.negotiate()
            assert not obeyed.exists()
            assert len(client.read(0, BLOCK)) == BLOCK


@WAYS
def test_a_failed_send_is_told(server: Steered, transport: str) -> None:
    """A send that fails for another reason ends the connection, and the log says why."""
    with server.client(transport=transport) as client, server.client() as other:
        known = len(server.events)
        server.fail_once("send", "EHOSTUNREACH")
        client.submit(nbd.READ, 0, BLOCK)
        assert client.at_end()
        deadline = time.monotonic() + 10
        while not any("No route to host" in str(event) for event in server.events[known:]):
            assert time.monotonic() < deadline, server.events[known:]
            time.sleep(0.05)
        assert len(other.read(0, BLOCK)) == BLOCK
