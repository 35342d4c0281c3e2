"""A storm of zeroing holds up nobody: not another client's reads, not a new client, not health, not the end.

Most tests run on a memory that is slow to zero, so that how long a storm lasts does not depend on the machine.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from . import rawclient as nbd
from .harness import Server, eventually
from .steering import Background, Steered, connect_and_find, slowest_s

MIB = 1 << 20
REQUESTS = 60
#: Seconds in which a read must be answered; the machine that runs this has other things to do.
READ_S = 0.4
#: Of the slow memory: a storm of 60 times 64 MiB lasts 38 s.
SLOW_S_PER_MIB = 0.01
SLOW_MIB = 64
#: There others wait for a piece or two of a storm, each of them many MiB.
SLOW_READ_S = 2.0
STORMS = {
    "trim": (nbd.TRIM, 0),
    "write zeroes": (nbd.WRITE_ZEROES, 0),
    "write zeroes, no hole": (nbd.WRITE_ZEROES, nbd.NO_HOLE),
}


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Steered]:
    with Steered(tmp_path / "slow", "--workers", "2", "--drain-timeout", "2s", size=f"{SLOW_MIB}M") as server:
        yield server
        server.heal()


def mark_written(client: nbd.RawClient) -> None:
    """Nothing of the export is unwritten afterwards."""
    assert client.call(nbd.WRITE_ZEROES, 0, client.size, nbd.NO_HOLE).error == 0


def begin_storm(client: nbd.RawClient, storm: str, requests: int = REQUESTS) -> list[int]:
    """Cookies of many requests, sent together, that zero all of the export."""
    command, flags = STORMS[storm]
    encoded = [client.encode(command, 0, client.size, flags) for _ in range(requests)]
    client.send(b"".join(data for _, data in encoded))
    return [cookie for cookie, _ in encoded]


@contextmanager
def health_watched(server: Server) -> Iterator[list[tuple[int, str]]]:
    """What /healthz answers, asked all the time until the block ends."""
    answers: list[tuple[int, str]] = []
    ended = False

    def watch() -> None:
        while not ended:
            answers.append(server.get("/healthz"))
            time.sleep(0.1)

    watcher = Background(watch)
    try:
        yield answers
    finally:
        ended = True
        watcher.result()


def unwell(answers: list[tuple[int, str]]) -> list[tuple[int, str]]:
    assert answers
    return [answer for answer in answers if answer[0] != 200]


@pytest.mark.parametrize("storm", STORMS)
def test_reads_wait_for_no_storm(start: Callable[..., Server], storm: str) -> None:
    """Thirty requests that zero the whole export delay no other client's read, on the same worker or another."""
    server = start("--workers", "2", size="256M")
    stormy, worker = connect_and_find(server)
    readers = [connect_and_find(server) for _ in range(2)]
    assert {worker} < {worker, *(pid for _, pid in readers)}, "both readers are on one worker"
    for reader, _ in readers:
        reader.read(0, 4096)
    mark_written(stormy)
    ended = False
    reading = [
        Background(lambda client=client: slowest_s(lambda: client.read(4096, 4096), lambda: ended))
        for client, _ in readers
    ]
    with health_watched(server) as answers:
        replies = stormy.gather(begin_storm(stormy, storm, REQUESTS // 2))
        ended = True
        slowest = [each.result() for each in reading]
    assert not any(reply.error for reply in replies.values())
    assert max(slowest) < READ_S, f"the slowest reads took {slowest} s"
    assert not unwell(answers)
    for client in (stormy, *(reader for reader, _ in readers)):
        client.close()


def test_slow_zeroing_is_cut_into_pieces(slow: Steered) -> None:
    """Reads of other clients go between the pieces of a zeroing, also of one that takes a minute."""
    with slow.client() as stormy, slow.client() as first, slow.client() as second:
        mark_written(stormy)
        slow.pace(zeroed_s_per_mib=SLOW_S_PER_MIB)
        with health_watched(slow) as answers:
            begin_storm(stormy, "write zeroes, no hole")
            time.sleep(0.2)
            until = time.monotonic() + 5
            reading = [
                Background(
                    lambda client=client: slowest_s(lambda: client.read(0, 4096), lambda: time.monotonic() > until)
                )
                for client in (first, second)
            ]
            slowest = [each.result(100) for each in reading]
        slow.heal()
        assert max(slowest) < SLOW_READ_S, f"the slowest reads took {slowest} s"
        assert not unwell(answers)


def test_unwritten_blocks_are_not_zeroed_again(slow: Steered) -> None:
    """Zeroing what is a hole already costs no time: sixty TRIMs of an empty export on slow memory are done at once."""
    with slow.client() as client:
        assert client.call(nbd.TRIM, 0, client.size).error == 0
        slow.pace(zeroed_s_per_mib=SLOW_S_PER_MIB)
        begun = time.monotonic()
        replies = client.gather(begin_storm(client, "trim"))
        elapsed = time.monotonic() - begun
        slow.heal()
        assert not any(reply.error for reply in replies.values())
        assert elapsed < 3
        assert client.read(0, 4096) == bytes(4096)


def test_a_new_client_gets_in_during_a_storm(slow: Steered) -> None:
    """A client that connects while a storm lasts is served within seconds, not behind it."""
    with slow.client() as stormy:
        mark_written(stormy)
        slow.pace(zeroed_s_per_mib=SLOW_S_PER_MIB)
        begin_storm(stormy, "write zeroes, no hole")
        time.sleep(0.2)
        begun = time.monotonic()
        with slow.client() as late:
            late.socket.settimeout(40)
            late.read(0, 4096)
            elapsed = time.monotonic() - begun
        slow.heal()
        assert elapsed < 8


@pytest.mark.parametrize("storm", STORMS)
def test_the_server_ends_in_a_storm(slow: Steered, storm: str) -> None:
    """SIGTERM in a storm that would last a minute ends in order within seconds of --drain-timeout, exit 0."""
    with slow.client() as stormy:
        mark_written(stormy)
        slow.pace(zeroed_s_per_mib=SLOW_S_PER_MIB)
        begin_storm(stormy, storm)
        time.sleep(0.5)
        begun = time.monotonic()
        slow.signal(signal.SIGTERM)
        try:
            assert slow.wait(12) == 0
        finally:
            slow.heal()
        assert time.monotonic() - begun < 12
    assert slow.find_event("stopped") is not None
    assert not [event for event in slow.events if event["event"] in ("engine_killed", "zero_failed")]


# Busy is not stuck


def test_a_busy_device_is_well(slow: Steered) -> None:
    """/healthz is 200 all the time while each batch takes half a second and more requests always wait."""
    clients = [slow.client() for _ in range(4)]
    slow.pace(batch_s=0.5)
    until = time.monotonic() + 6

    def keep_busy(client: nbd.RawClient, start: int) -> None:
        while time.monotonic() < until:
            requests = [(nbd.READ, None), (nbd.WRITE, b"b" * 1000), (nbd.TRIM, None)] * 8
            stream = b"".join(
                client.encode(command, start + number * 8192 + 100, 1000, payload=payload)[1]
                for number, (command, payload) in enumerate(requests)
            )
            assert not any(reply.error for reply in client.exchange(stream, len(requests)).values())

    with health_watched(slow) as answers:
        busy = [
            Background(lambda client=client, start=number * MIB: keep_busy(client, start))
            for number, client in enumerate(clients)
        ]
        for each in busy:
            each.result(60)
    slow.heal()
    for client in clients:
        client.close()
    assert not unwell(answers)
    assert slow.find_event("device_stalled") is None


def test_a_device_that_stands_still_is_reported(slow: Steered) -> None:
    """A batch that does not end makes /healthz fail, and an event names the export, since when, and what to do."""
    with slow.client() as client:
        with slow.held(client):
            event = slow.wait_event("device_stalled", 20)
            status, text = slow.get("/healthz")
            assert status == 503 and "vram" in text
        assert event["export"] == "vram" and event["level"] in ("warning", "error", "critical")
        assert any("since" in key or key.endswith("_s") for key in event), f"since when? {event}"
        texts = [value for value in event.values() if isinstance(value, str)]
        assert any(len(text.split()) >= 5 for text in texts), f"what is to be done? {event}"
        eventually(lambda: slow.get("/healthz")[0] == 200)
        assert client.read(0, 4096) == bytes(4096)
    stalled = [event for event in slow.events if event["event"] == "device_stalled"]
    assert len(stalled) == 1


def test_a_read_waits_for_no_queue_of_zeroing_requests_on_its_own_worker(tmp_path: Path) -> None:
    """Each request is one piece, so that no piece of its own follows it."""
    with (
        Steered(tmp_path / "slow", "--workers", "1", size=f"{SLOW_MIB}M") as server,
        server.client() as stormy,
        server.client() as reader,
    ):
        mark_written(stormy)
        server.pace(zeroed_s_per_mib=SLOW_S_PER_MIB)
        encoded = [stormy.encode(nbd.WRITE_ZEROES, 0, 8 * MIB, nbd.NO_HOLE) for _ in range(REQUESTS)]
        stormy.send(b"".join(data for _, data in encoded))
        until = time.monotonic() + 3
        slowest = slowest_s(lambda: reader.read(32 * MIB, 4096), lambda: time.monotonic() > until)
        server.heal()
        stormy.gather([cookie for cookie, _ in encoded])
    assert slowest < 1.0, f"the slowest read took {slowest:.1f} s"
