"""From when a request's latency is counted: from its own arrival, however long it then waits in the lane."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.pool import Pool
from tests.unit.rig import FLUSH, READ, TRIM, WRITE
from tests.unit.windows import BLOCK, SIZE
from vramblk.nbd.replies import ReplyFormat
from vramblk.serving.connection import Connection
from vramblk.serving.lanes import Lane
from vramblk.serving.receive import ReceiveLane
from vramblk.shared.counters import FLUSH as FLUSH_OP

MakePool = Callable[..., Pool]
MS = 1_000_000
WAIT_NS = 60 * MS


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool()
    yield made
    made.close()


def latency_ns(pool: Pool, op: int) -> int:
    """Sum of the latencies of one operation."""
    return pool.counters.cells[pool.counters.latency_sum_index(op)]


def wait() -> None:
    time.sleep(WAIT_NS / 1e9)


def test_time_in_the_engine_counts(pool: Pool) -> None:
    rig = pool.rigs[0]
    rig.send(WRITE, 0, BLOCK, b"w" * BLOCK)
    rig.connection.pump()
    wait()
    pool.work()
    assert WAIT_NS <= latency_ns(pool, WRITE) < 100 * WAIT_NS


def test_time_in_the_lane_counts(pool: Pool) -> None:
    """A request that was received and waits behind a large zeroing has waited since it came."""
    pool.windows.written.blocks[:] = 1
    rig = pool.rigs[0]
    rig.send(TRIM, 0, SIZE)
    rig.send(READ, 0, BLOCK)
    rig.connection.pump()
    wait()
    pool.work()
    assert WAIT_NS <= latency_ns(pool, READ) < 100 * WAIT_NS


def test_time_before_it_came_does_not_count(pool: Pool) -> None:
    """A request that comes while an earlier one waits is timed from its own arrival."""
    pool.windows.written.blocks[:] = 1
    rig = pool.rigs[0]
    rig.send(TRIM, 0, SIZE)
    rig.send(READ, 0, BLOCK)
    rig.connection.pump()
    wait()
    rig.send(FLUSH, 0, 0)
    pool.work()
    assert latency_ns(pool, READ) >= WAIT_NS
    assert 0 < latency_ns(pool, FLUSH_OP) < latency_ns(pool, READ) - WAIT_NS // 2


def test_a_refused_request_counts_from_its_arrival_too(pool: Pool) -> None:
    pool.windows.written.blocks[:] = 1
    rig = pool.rigs[0]
    rig.send(TRIM, 0, SIZE)
    rig.send(READ, SIZE, BLOCK)
    rig.connection.pump()
    wait()
    pool.work()
    assert WAIT_NS <= latency_ns(pool, READ) < 100 * WAIT_NS


@pytest.mark.parametrize("known", [False, True])
def test_requests_behind_go_are_not_timed_from_boot(pool: Pool, known: bool) -> None:
    """They came with the negotiation's last bytes, whose time is handed over; without it they came just now."""
    lane = pool.rigs[1].connection.lane
    request = struct.pack(">IHHQQI", 0x25609513, 0, READ, 9, 0, BLOCK)
    client, server = socket.socketpair()
    for each in (client, server):
        each.setblocking(False)
    began_ns = time.monotonic_ns()
    came_ns = time.monotonic_ns() - WAIT_NS if known else 0
    connection = Connection(
        server, "test", lane, pool.window, pool.submissions, pool.export, ReplyFormat(True, False), 1, request,
        pool.rigs[0].connection._log, came_ns,
    )  # fmt: skip
    connection.pump()
    pool.work()
    connection.flush()
    assert client.recv(1 << 16)
    elapsed = latency_ns(pool, READ)
    assert (WAIT_NS if known else 0) < elapsed < 100 * WAIT_NS
    assert known or elapsed < time.monotonic_ns() - began_ns
    client.close()
    server.close()


class Stream:
    """A receive lane on a pair of sockets."""

    def __init__(self) -> None:
        self.theirs, ours = socket.socketpair()
        ours.setblocking(False)
        self._ours = ours
        self.lane = ReceiveLane(ours, Lane(0, 0, 1 << 20, 0, 0), memoryview(bytearray(1 << 20)), b"")

    def receive(self, count: int) -> int:
        """Let so many bytes come; a time when they were there."""
        self.theirs.sendall(b"x" * count)
        assert self.lane.receive(may_move=True)[0] == count
        return time.monotonic_ns()

    def close(self) -> None:
        self.theirs.close()
        self._ours.close()


@pytest.fixture
def stream() -> Iterator[Stream]:
    made = Stream()
    yield made
    made.close()


def test_each_byte_has_the_time_of_its_own_receive(stream: Stream) -> None:
    times = []
    for _ in range(3):
        times.append(stream.receive(100))
        time.sleep(0.005)
    for number, came in enumerate(times):
        for at in (0, 50, 99):
            stream.lane.position = number * 100 + at
            arrived = stream.lane.arrived_ns
            assert arrived <= came and (not number or arrived > times[number - 1])


def test_a_request_in_two_parts_came_with_its_first_byte(stream: Stream) -> None:
    came = stream.receive(10)
    time.sleep(0.005)
    stream.receive(18)
    assert stream.lane.arrived_ns <= came


def test_a_lane_without_bytes_answers_now(stream: Stream) -> None:
    stream.receive(10)
    stream.lane.position = 10
    before = time.monotonic_ns()
    assert before <= stream.lane.arrived_ns <= time.monotonic_ns()


def test_times_survive_a_move_of_the_bytes(stream: Stream) -> None:
    """What is not parsed is moved to the front of the lane; its time goes with it."""
    stream.receive(100)
    time.sleep(0.005)
    came = stream.receive(100)
    stream.lane.position = 150
    assert stream.lane.realign()
    time.sleep(0.005)
    assert came - 5 * MS < stream.lane.arrived_ns <= came


def test_a_stream_in_tiny_parts_costs_bounded_memory(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """The times of bytes that wait are merged where there would be too many of them."""
    clock = [1]
    lane: Any = stream.lane
    monkeypatch.setattr("vramblk.serving.receive.time.monotonic_ns", lambda: clock.__setitem__(0, clock[0] + MS) or clock[0])
    for _ in range(5000):
        stream.theirs.send(b"x")
        lane.receive(may_move=True)
    assert len(lane._arrivals) <= 4096
    assert lane.arrived_ns == 1 + MS
