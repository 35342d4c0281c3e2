"""A device that fails: the request it belongs to gets the error, everything else goes on.

The server runs with memories that fail on demand; see ``faulty_server.py``.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from . import rawclient as nbd
from .harness import Server, eventually

MIB = 1 << 20
KINDS = {"simple": {}, "structured": {"structured": True}, "extended": {"extended": True}}
#: Clients are served by workers, or by the engine itself.
WORKERS = (2, 0)
PROGRAM = (sys.executable, str(Path(__file__).with_name("faulty_server.py")))


class Faulty:
    """A server whose memory fails where ``fail`` says."""

    def __init__(self, directory: Path, workers: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = directory / "faults.json"
        self.heal()
        self.server = Server(directory, "--workers", str(workers), size="32M", program=PROGRAM)

    def fail(self, op: str, lo: int, hi: int, errno: int = nbd.EIO, **more: Any) -> None:
        self._write([{"op": op, "lo": lo, "hi": hi, "errno": errno, **more}])

    def heal(self) -> None:
        self._write([])

    def _write(self, faults: list[dict[str, Any]]) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(faults))
        os.replace(fresh, self._file)


@pytest.fixture(scope="module", params=WORKERS)
def module_faulty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    faulty = Faulty(tmp_path_factory.mktemp("faulty"), request.param)
    with faulty.server:
        yield faulty


@pytest.fixture
def faulty(module_faulty: Faulty):
    yield module_faulty
    module_faulty.heal()


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, faulty: Faulty):
    with faulty.server.client(**KINDS[request.param]) as raw:
        yield raw


def content(length: int) -> bytes:
    return random.Random(3).randbytes(length)


def test_failed_read_is_one_request(faulty: Faulty, client: nbd.RawClient) -> None:
    """Of 200 reads in flight the one on the bad block is EIO; all others bring their data; then all is well."""
    data = content(200 * 4096)
    client.write(0, data)
    bad = 57 * 4096
    faulty.fail("read", bad, bad + 1)
    for _ in range(3):
        cookies = [client.submit(nbd.READ, index * 4096, 4096) for index in range(200)]
        replies = client.gather(cookies)
        for index, cookie in enumerate(cookies):
            reply = replies[cookie]
            if index == 57:
                assert reply.error == nbd.EIO and not reply.data
                assert reply.simple == (not client.structured and not client.extended)
            else:
                assert not reply.error and reply.data == data[index * 4096 : (index + 1) * 4096]
    faulty.heal()
    assert client.read(bad, 4096) == data[bad : bad + 4096]


@pytest.mark.parametrize("errno", (nbd.EIO, nbd.ENOMEM, nbd.ENOSPC))
def test_failed_write_is_one_request(faulty: Faulty, client: nbd.RawClient, errno: int) -> None:
    """Of 100 writes in flight the one on the bad block has the device's error, the others are written."""
    assert client.call(nbd.WRITE_ZEROES, 0, MIB).error == 0
    faulty.fail("write", 31 * 4096, 32 * 4096, errno)
    data = content(100 * 4096)
    cookies = [client.submit(nbd.WRITE, at, payload=data[at : at + 4096]) for at in range(0, len(data), 4096)]
    replies = client.gather(cookies)
    assert [replies[cookie].error for cookie in cookies] == [errno if index == 31 else 0 for index in range(100)]
    faulty.heal()
    assert client.read(0, 31 * 4096) == data[: 31 * 4096]
    assert client.read(32 * 4096, 68 * 4096) == data[32 * 4096 :]


@pytest.mark.parametrize("command", (nbd.TRIM, nbd.WRITE_ZEROES))
def test_failed_zeroing_is_told(faulty: Faulty, client: nbd.RawClient, command: int) -> None:
    """TRIM and WRITE_ZEROES that fail are EIO, and leave the data readable."""
    client.write(8 * MIB, b"z" * 65536)
    faulty.fail("zero", 8 * MIB, 8 * MIB + 65536)
    assert client.call(command, 8 * MIB, 65536).error == nbd.EIO
    assert client.read(8 * MIB, 65536) == b"z" * 65536
    faulty.heal()
    assert client.call(command, 8 * MIB, 65536).error == 0
    assert client.read(8 * MIB, 65536) == bytes(65536)


def test_large_read_never_brings_wrong_data(faulty: Faulty, client: nbd.RawClient) -> None:
    """A read of 24 MiB that fails near its end is EIO; only a simple reply under way may end the connection."""
    data = content(24 * MIB)
    client.write(0, data)
    faulty.fail("read", 23 * MIB, 23 * MIB + 1)
    cookie = client.submit(nbd.READ, 0, 24 * MIB)
    try:
        reply = client.wait()
    except (EOFError, ConnectionError):
        assert not client.structured and not client.extended
        return
    assert reply.cookie == cookie and reply.error == nbd.EIO
    faulty.heal()
    assert client.read(0, 24 * MIB) == data


def test_large_write_failure_is_told(faulty: Faulty, client: nbd.RawClient) -> None:
    """A write of 24 MiB that fails near its end is EIO, its payload is drained, the connection lives."""
    faulty.fail("write", 23 * MIB, 23 * MIB + 1)
    assert client.call(nbd.WRITE, 0, payload=content(24 * MIB)).error == nbd.EIO
    faulty.heal()
    client.write(0, content(24 * MIB))
    assert client.read(0, 24 * MIB) == content(24 * MIB)


def test_single_requests_fail_alone(faulty: Faulty, client: nbd.RawClient) -> None:
    """At queue depth 1 a failed read or write is EIO, aligned or not, and the next one is served."""
    client.write(0, content(65536))
    faulty.fail("read", 4096, 8192)
    for offset, length in ((4096, 4096), (4097, 100), (0, 65536), (5000, 1)):
        assert client.call(nbd.READ, offset, length).error == nbd.EIO
    assert client.read(8192, 4096) == content(65536)[8192 : 12288]
    faulty.fail("write", 4096, 8192)
    for offset, length in ((4096, 4096), (4097, 100), (0, 65536)):
        assert client.call(nbd.WRITE, offset, payload=b"x" * length).error == nbd.EIO
    faulty.heal()
    assert client.read(0, 65536) == content(65536)


def test_batch_that_fails_as_a_whole_is_repeated(faulty: Faulty, client: nbd.RawClient) -> None:
    """A failure that belongs to no single request reaches no client: each is repeated by itself."""
    data = content(128 * 4096)
    client.write(0, data)
    faulty.fail("read", 0, 32 * MIB, together=True)
    cookies = [client.submit(nbd.READ, index * 4096, 4096) for index in range(128)]
    replies = client.gather(cookies)
    assert b"".join(replies[cookie].data for cookie in cookies) == data


def test_errors_are_counted_by_name(faulty: Faulty) -> None:
    """vramblk_request_errors_total counts the failed request under its errno's name."""
    name = "vramblk_request_errors_total"

    def counted() -> float:
        metrics = faulty.server.metrics()
        return sum(value for sample, value in metrics.items()
                   if sample.startswith(name) and 'op="write"' in sample and 'errno="ENOMEM"' in sample)  # fmt: skip

    with faulty.server.client() as client:
        before = counted()
        faulty.fail("write", 0, 1, nbd.ENOMEM)
        assert client.call(nbd.WRITE, 0, payload=b"x").error == nbd.ENOMEM
        eventually(lambda: counted() == before + 1)


@pytest.mark.parametrize("workers", WORKERS)
def test_lost_device(tmp_path: Path, workers: int) -> None:
    """After the device is lost every request is EIO on every connection, /healthz fails, the server stays up."""
    faulty = Faulty(tmp_path / "lost", workers)
    with faulty.server as server, server.client() as first, server.client(structured=True) as second:
        first.write(0, b"before")
        assert server.get("/healthz")[0] == 200
        faulty.fail("read", 0, 4096, lost=True)
        assert first.call(nbd.READ, 0, 4096).error == nbd.EIO
        faulty.heal()
        for client in (first, second):
            for command, length in ((nbd.READ, 4096), (nbd.WRITE_ZEROES, 4096), (nbd.TRIM, 4096)):
                assert client.call(command, MIB, length).error == nbd.EIO
            assert client.call(nbd.WRITE, MIB, payload=b"x" * 4096).error == nbd.EIO
            cookies = [client.submit(nbd.READ, index * 4096, 4096) for index in range(64)]
            assert {reply.error for reply in client.gather(cookies).values()} == {nbd.EIO}
        eventually(lambda: server.get("/healthz")[0] != 200, 15)
        with server.client() as late:
            assert late.call(nbd.READ, 0, 512).error == nbd.EIO
        assert server.find_event("device_lost")
        assert server.process.poll() is None
