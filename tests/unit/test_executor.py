"""The engine against a plain memory: one connection's requests through ring and batch, in one process."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.unit.plain_memory import PlainMemory
from tests.unit.rig import FLUSH, READ, SIZE, TRIM, WRITE, ZEROES, Rig
from vramblk.memory.base import Batch, DeviceError
from vramblk.serving.lanes import ROOMY, SMALLEST
from vramblk.shared.window import Word

MakeRig = Callable[..., Rig]


@pytest.mark.parametrize("arena_bytes", [None, 1 << 20])
def test_what_was_written_is_read_back(make_rig: MakeRig, arena_bytes: int | None) -> None:
    """Runs, single requests, odd alignment and arena borders all end up in the same bytes."""
    rig = make_rig(arena_bytes)
    model = bytearray(SIZE)
    pieces = [(i * 4096, 4096) for i in range(20)] + [
        ((1 << 20) - 100, 333),
        ((1 << 20) - 16, 32),
        (2 << 20, 70000),
    ]
    for number, (offset, length) in enumerate(pieces):
        payload = bytes([number + 1]) * length
        model[offset : offset + length] = payload
        rig.send(WRITE, offset, length, payload, cookie=number)
        if number % 7 == 0:
            rig.work()
    rig.work()
    assert [error for _, error, _ in rig.answers()] == [0] * len(pieces)
    assert rig.memory.bytes.tobytes() == bytes(model)
    for offset, length in pieces:
        rig.send(READ, offset, length)
        rig.work()
        reply = rig.replies()
        assert struct.unpack_from(">IHHQIQ", reply) == (0x668E33EF, 1, 1, 1, length + 8, offset)
        assert reply[28:] == model[offset : offset + length]


def test_a_turn_takes_all_that_is_queued_as_one_batch(make_rig: MakeRig) -> None:
    """A hundred requests cost one execution, not a hundred."""
    rig = make_rig()
    for number in range(100):
        rig.send(READ, number * 4096, 4096, cookie=number)
    while rig.connection.pump():
        pass
    assert rig.engine.turn()
    assert rig.memory.executed == 1


def test_nothing_is_acknowledged_before_it_is_executed(make_rig: MakeRig) -> None:
    """Promise 11: while the memory still works no entry is done, so no reply can have left."""
    early: list[int] = []
    rig: Rig

    def look(memory: PlainMemory, batch: Batch) -> None:
        early.append(rig.submissions.ring.done())

    rig = make_rig(before=look)
    for number in range(3):
        rig.send(WRITE, number * 4096, 4096, b"w" * 4096, cookie=number)
    while rig.connection.pump():
        pass
    assert rig.engine.turn()
    assert early == [0]
    assert rig.submissions.ring.done() == rig.submissions.ring.tail > 0


def test_an_error_hits_only_the_request_it_belongs_to(make_rig: MakeRig) -> None:
    """Promise 12: one bad range in a run: that request says EIO, its neighbours carry data, the connection lives."""

    def fail_over_64k(memory: PlainMemory, batch: Batch) -> None:
        for run in (*batch.reads, *batch.writes):
            for offset, length, _ in memory.requests(run.window, run.first, run.count):
                if offset <= 65536 < offset + length:
                    raise DeviceError(5, "injected")

    rig = make_rig(before=fail_over_64k)
    for number in range(32):
        rig.send(WRITE, number * 4096, 4096, bytes([number]) * 4096, cookie=number)
    rig.work()
    assert sorted((cookie, error) for _, error, cookie in rig.answers()) == [
        (number, 5 if number == 16 else 0) for number in range(32)
    ]
    for number in range(32):
        rig.send(READ, number * 4096, 4096, cookie=number)
    rig.work()
    assert sorted((cookie, kind, error) for kind, error, cookie in rig.answers()) == [
        (number, 0x8001 if number == 16 else 1, 5 if number == 16 else 0) for number in range(32)
    ]
    rig.send(FLUSH, 0, 0)
    rig.work()
    assert rig.answers() == [(-1, 0, 1)]


def test_a_lost_device_answers_everything_with_eio(make_rig: MakeRig) -> None:
    """After the device is gone nothing is executed any more and every request fails by name."""

    def lose(memory: PlainMemory, batch: Batch) -> None:
        raise DeviceError(5, "gone", lost=True)

    rig = make_rig(before=lose)
    for number in range(10):
        rig.send(READ, number * 4096, 4096, cookie=number)
    rig.send(WRITE, 0, 100, b"x" * 100, cookie=10)
    rig.send(TRIM, 0, 4096, cookie=11)
    rig.work()
    assert sorted((cookie, error) for _, error, cookie in rig.answers()) == [
        (number, 5) for number in range(12)
    ]
    assert rig.memory.executed == 0


def test_a_piece_of_a_large_read_that_fails_is_an_error_chunk(make_rig: MakeRig) -> None:
    """With structured replies a large read ends in one error chunk and the connection lives."""

    def fail_second_megabyte(memory: PlainMemory, batch: Batch) -> None:
        if any(copy.offset >= 1 << 20 for copy in batch.copies_out):
            raise DeviceError(5, "injected")

    rig = make_rig(before=fail_second_megabyte)
    rig.send(READ, 0, 3 << 20, cookie=7)
    data = b""
    for _ in range(200):
        rig.work(1)
        data += rig.replies()
    kinds = []
    while data:
        _, flags, kind, _, length = struct.unpack_from(">IHHQI", data)
        kinds.append((kind, flags))
        data = data[20 + length :]
    assert kinds[-1] == (0x8001, 1)
    assert all(row == (1, 0) for row in kinds[:-1])
    rig.send(FLUSH, 0, 0)
    rig.work()
    assert rig.answers() == [(-1, 0, 1)]


def test_a_failed_piece_of_a_large_write_fails_the_write(make_rig: MakeRig) -> None:
    """The payload is drained, the answer is the error, and the next request is understood."""

    def fail_first(memory: PlainMemory, batch: Batch) -> None:
        if any(copy.offset < 1000 for copy in batch.copies_in):
            raise DeviceError(5, "injected")

    rig = make_rig(before=fail_first)
    payload = bytes(2 << 20)
    header = struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 3, 0, len(payload))
    stream = header + payload + struct.pack(">IHHQQI", 0x25609513, 0, FLUSH, 4, 0, 0)
    while stream:
        try:
            stream = stream[rig.client.send(stream) :]
        except BlockingIOError:
            pass
        rig.work(2)
    rig.work()
    assert rig.answers() == [(0x8001, 5, 3), (-1, 0, 4)]


@pytest.mark.parametrize(
    "sizes", [(131072,), (100_000, 100_000, 131_072), (65536, 65552), (512, 100_000, 4096)]
)
@pytest.mark.parametrize("lane_bytes", [SMALLEST, ROOMY - 4096, ROOMY])
def test_the_smallest_lane_is_enough(make_rig: MakeRig, lane_bytes: int, sizes: tuple[int, ...]) -> None:
    """Whatever arrives in whatever pieces, there is room for what is waited for."""
    rig = make_rig(lane_bytes=lane_bytes)
    lengths = [sizes[number % len(sizes)] for number in range(60)]
    stream = b"".join(
        struct.pack(">IHHQQI", 0x25609513, 0, WRITE, number, number * 4096, length) + bytes(length)
        for number, length in enumerate(lengths)
    )
    answers = []
    for _ in range(20_000):
        if stream:
            with suppress(BlockingIOError):
                stream = stream[rig.client.send(stream) :]
        rig.work(1)
        answers += rig.answers()
        if len(answers) == len(lengths):
            break
    assert answers == [(-1, 0, number) for number in range(len(lengths))]


@pytest.mark.parametrize(("lane_bytes", "entries"), [(ROOMY, 2), (ROOMY - 4096, 3)])
def test_where_there_is_room_a_write_is_waited_for(make_rig: MakeRig, lane_bytes: int, entries: int) -> None:
    """Of three long writes the second arrives in two parts: it makes a run with the third, or stands alone."""
    rig = make_rig(lane_bytes=lane_bytes)
    stream = b"".join(
        struct.pack(">IHHQQI", 0x25609513, 0, WRITE, number, number << 17, 1 << 17) + bytes(1 << 17)
        for number in range(3)
    )
    cut = len(stream) // 2
    for part in (stream[:cut], stream[cut:]):
        while part:
            with suppress(BlockingIOError):
                part = part[rig.client.send(part) :]
            while rig.connection.pump():
                pass
    rig.work(2)
    assert rig.answers() == [(-1, 0, number) for number in range(3)]
    assert rig.submissions.ring.tail == entries


def test_the_written_map_follows_writes_and_zeroing(make_rig: MakeRig) -> None:
    """Blocks are written from their first write on, and unwritten after a whole one was zeroed."""
    rig = make_rig(1 << 20)
    for number in (3, 300, 301):
        rig.send(WRITE, number * 4096 + 16, 16, b"x" * 16)
    rig.send(WRITE, 500 * 4096 - 1, 2, b"xy")
    rig.work()
    assert rig.written.blocks.nonzero()[0].tolist() == [3, 300, 301, 499, 500]
    rig.send(TRIM, 3 * 4096, 4096)
    rig.send(ZEROES, 300 * 4096 + 1, 2 * 4096 - 1)
    rig.send(ZEROES, 499 * 4096, 4096, flags=2)
    rig.work()
    assert rig.written.blocks.nonzero()[0].tolist() == [300, 499, 500]
    assert not rig.memory.bytes[300 * 4096 + 1 : 302 * 4096].any()


def test_a_dead_workers_requests_are_finished_before_its_window_is_handed_on(make_rig: MakeRig) -> None:
    """drain_window leaves nothing in the ring, and a clean window starts at zero again."""
    rig = make_rig()
    for number in range(20):
        rig.send(WRITE, number * 4096, 4096, b"w" * 4096, cookie=number)
    while rig.connection.pump():
        pass
    window = rig.connection._window
    assert window.load(Word.TAIL) > window.load(Word.DONE)
    rig.engine.drain_window(0)
    assert rig.memory.bytes[: 20 * 4096].all()
    assert not rig.engine.waiting() and not rig.engine.turn()
    generation = window.load(Word.GENERATION)
    window.reset()
    assert window.load(Word.GENERATION) == generation + 1
    assert not rig.engine.waiting()


def test_an_entry_that_points_outside_is_refused(make_rig: MakeRig) -> None:
    """A worker whose entries make no sense gets EINVAL; nothing is executed and the engine lives."""
    rig = make_rig()
    ring = rig.submissions.ring
    far = 1 << 40
    for op, export, first, count, lo, hi, offset, length in (
        (0, 9, 0, 1, 0, 16, 0, 16),
        (0, 0, 8190, 9, 0, 16, 0, 16),
        (1, 0, 0, 1, 0, far, 0, 16),
        (2, 0, 0, 1, 0, 4096, SIZE - 1, 4096),
        (3, 0, 0, 1, 0, 4096, 0, 8192),
        (4, 0, 0, 1, 0, 0, 0, far),
        (5, 0, 0, 1, 0, 4096, far, 4096),
        (77, 0, 0, 1, 0, 0, 0, 0),
    ):
        number = ring.tail
        ring.push(op, export, first, count, lo, hi, offset, length)
        ring.publish()
        assert rig.engine.turn()
        assert ring.done() == number + 1
        assert ring.failed() and ring.take_status(number) == 22
    assert rig.memory.executed == 0
