"""What worker and engine share, where it is easily got wrong: slots used again, marks, and whose turn it is."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tests.unit.plain_memory import PlainMemory
from tests.unit.rig import FLUSH, READ, SIZE, STATUS, WRITE, ZEROES, Rig, connect
from tests.unit.sharedmemory import make_written
from vramblk.memory.base import Batch, DeviceError
from vramblk.serving import blockstatus
from vramblk.serving.connection import complete
from vramblk.serving.lanes import SMALLEST
from vramblk.serving.submissions import Submissions
from vramblk.shared.descriptors import ENTRIES
from vramblk.shared.doorbell import DoorbellPipe
from vramblk.shared.ring import SubmissionRing
from vramblk.shared.window import Word
from vramblk.shared.written import WrittenMap

MakeRig = Callable[..., Rig]
BAD_OFFSET = 7


def byte_read(cookie: int, offset: int = 1) -> bytes:
    """A read that is never part of a run, so that it takes a ring entry."""
    return struct.pack(">IHHQQI", 0x25609513, 0, READ, cookie, offset, 1)


def fail_bad_reads(memory: PlainMemory, batch: Batch) -> None:
    if any(copy.offset == BAD_OFFSET for copy in batch.copies_out):
        raise DeviceError(5, "cannot be read")


def errors(rig: Rig, rounds: int = 100) -> list[int]:
    """Cookies of the requests that were answered with an error, once all was answered."""
    answers = []
    for _ in range(rounds):
        rig.work(1)
        answers += rig.answers()
    return [cookie for _, error, cookie in answers if error]


def test_an_entrys_status_is_its_own_until_it_was_collected(make_rig: MakeRig) -> None:
    """The ring is filled again before the worker has looked at what the engine has done: no slot is used twice."""
    rig = make_rig(before=fail_bad_reads)
    stream = b"".join(byte_read(number) for number in range(ENTRIES))
    stream += b"".join(byte_read(ENTRIES + number, BAD_OFFSET if number == 500 else 1) for number in range(ENTRIES))
    while stream:
        with suppress(BlockingIOError):
            stream = stream[rig.client.send(stream) :]
        rig.connection.pump()
    for _ in range(ENTRIES):
        if not rig.connection.pump() and not rig.connection.blocked:
            break
    rig.engine.turn()
    while rig.connection.pump():
        pass
    rig.engine.turn()
    assert errors(rig) == [ENTRIES + 500]


def test_a_new_worker_finds_no_status_of_the_dead_one(make_rig: MakeRig) -> None:
    """A status that was left behind would be taken for the new worker's, and hide one of its failures."""
    rig = make_rig(before=fail_bad_reads)
    rig.client.sendall(b"".join(byte_read(number) for number in range(40)) + byte_read(40, BAD_OFFSET))
    while rig.connection.pump():
        pass
    rig.engine.drain_window(0)
    window = rig.engine._windows[0]
    window.reset()

    client, server = socket.socketpair()
    for each in (client, server):
        each.setblocking(False)
    submissions = Submissions(SubmissionRing(window, DoorbellPipe(0, 0), rig.engine._control), window.counters)
    successor = connect(server, rig.connection.lane, window, submissions, rig.export)
    new = Rig(client, successor, submissions, rig.engine, rig.memory, rig.written, rig.export)
    client.sendall(b"".join(byte_read(number) for number in range(39)))
    assert errors(new) == []
    client.sendall(byte_read(100) + byte_read(101) + byte_read(102, BAD_OFFSET))
    assert errors(new) == [102]
    client.close()
    server.close()


@pytest.mark.parametrize("length", [4096, 512])
def test_what_is_written_after_zeroing_stays_marked_when_a_batch_is_repeated(make_rig: MakeRig, length: int) -> None:
    """Each fails at first and is repeated by itself; the zeroing must neither undo the write nor leave it unmarked."""
    failures: set[str] = set()

    def fail_once(memory: PlainMemory, batch: Batch) -> None:
        kind = "zero" if batch.zeroes else "write" if batch.writes or batch.copies_in else ""
        if kind in failures:
            failures.remove(kind)
            raise DeviceError(12, "once")

    rig = make_rig(before=fail_once)
    rig.send(WRITE, 0x5000, 4096, bytes([9]) * 4096)
    rig.work()
    assert [error for _, error, _ in rig.answers()] == [0]
    failures |= {"zero", "write"}
    rig.send(ZEROES, 0x5000, 4096, cookie=2)
    for place in range(2):
        rig.send(WRITE, 0x5000 + place * length, length, bytes([7]) * length, cookie=3)
    while rig.connection.pump():
        pass
    rig.work()
    assert [error for _, error, _ in rig.answers()] == [0, 0, 0]
    assert not failures
    assert rig.memory.bytes[0x5000] == 7 and rig.written.blocks[5]


def test_extents_hold_while_the_engine_marks() -> None:
    """A block that is marked between two looks makes no extent of nothing, nor one of less."""

    class Marked:
        """Marks the first block after each look."""

        def __init__(self, blocks: Any) -> None:
            self._blocks = blocks

        def __getitem__(self, key: Any) -> Any:
            found = self._blocks[key].copy()
            self._blocks[0] = 1
            return found

    written = make_written()
    written.resize(1 << 20)
    written.blocks = Marked(written.blocks)  # type: ignore[assignment]
    for offset in (0, 512):
        written.blocks._blocks[:] = 0  # type: ignore[attr-defined]
        assert list(written.extents(offset, 8192)) == [(8192, False)]


@pytest.mark.parametrize("tail", [ENTRIES + 1, 1 << 60, (1 << 64) - 1])
def test_a_count_that_cannot_be_holds_nobody_up(make_rig: MakeRig, tail: int) -> None:
    """A worker that says it has queued more than its ring holds is left alone; the engine's turn ends."""
    rig = make_rig()
    window = rig.engine._windows[0]
    window.store(Word.TAIL, tail)
    assert not rig.engine.turn()
    assert not rig.engine.waiting()
    rig.engine.drain_window(0)
    assert window.load(Word.TAIL) == 0


@pytest.mark.parametrize("command", [FLUSH, STATUS])
def test_a_flood_leaves_others_their_turn(make_rig: MakeRig, command: int) -> None:
    """Requests that the worker answers itself: it stops after some, and goes on where it stopped."""
    rig = make_rig()
    for cookie in range(200):
        rig.send(command, 0, 4096 if command == STATUS else 0, cookie=cookie)
    rig.connection.pump()
    assert 0 < rig.connection.replies.in_flight <= 64
    assert rig.connection.blocked
    answers: list[tuple[int, int, int]] = []
    while len(answers) < 200:
        rig.work(1)
        answers += rig.answers()
    assert [cookie for _, _, cookie in answers] == list(range(200))


def test_the_map_is_not_read_in_vain(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks for block status and takes no answer: once there is no room, nothing is looked up."""
    looks = []
    extents = WrittenMap.extents
    monkeypatch.setattr(
        WrittenMap, "extents", lambda *arguments: looks.append(1) or extents(*arguments)  # type: ignore[func-returns-value]
    )
    rig = make_rig(lane_bytes=SMALLEST)
    rig.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    stream = b"".join(struct.pack(">IHHQQI", 0x25609513, 0, STATUS, number, 0, 4096) for number in range(2000))
    idle = 0
    while idle < 10:  # until the lanes of both directions are full
        with suppress(BlockingIOError):
            rig.client.send(stream)
        moved = rig.connection.pump()
        idle = 0 if complete(rig.submissions) or moved else idle + 1
    seen = len(looks)
    for _ in range(50):
        assert not rig.connection.pump()
    assert rig.connection.blocked and seen > 1000
    assert len(looks) == seen


def test_what_came_before_the_end_is_answered(make_rig: MakeRig) -> None:
    """A client that has shut its side, behind one that has filled the ring: its requests are not dropped."""
    rig = make_rig()
    client, server = socket.socketpair()
    for each in (client, server):
        each.setblocking(False)
    other = rig.second(server)
    client.sendall(b"".join(byte_read(number) for number in range(ENTRIES)))
    while other.pump():
        pass
    rig.client.sendall(byte_read(5000))
    rig.client.shutdown(socket.SHUT_WR)
    while rig.connection.pump():
        pass
    assert rig.connection.ended and rig.connection.blocked
    assert not rig.connection.finished
    for _ in range(50):
        rig.engine.turn()
        for each in complete(rig.submissions):
            each.resume()
        rig.connection.pump()
        rig.connection.replies.flush()
    assert [cookie for _, _, cookie in rig.answers()] == [5000]
    assert rig.connection.finished
    client.close()
    server.close()


def test_a_status_of_a_large_range_is_cut_short(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is asked about, so much of the map is read for one answer; the client asks on from there."""
    monkeypatch.setattr(blockstatus, "_MOST_BYTES", 8192)
    rig = make_rig()
    rig.send(STATUS, 4096, 1 << 20)
    rig.work()
    _, _, kind, _, length = struct.unpack_from(">IHHQI", data := rig.replies())
    assert (kind, data[20 : 20 + length]) == (5, struct.pack(">III", 1, 8192, 3))


def test_only_one_piece_of_zeroing_is_in_flight_for_a_worker(make_rig: MakeRig) -> None:
    """All that a worker has queued behind a piece waits for it, so requests of one piece count too."""
    rig = make_rig()
    rig.written.blocks[:] = 1
    for cookie in range(60):
        rig.send(ZEROES, 0, SIZE, flags=2, cookie=cookie)
    for _ in range(20):
        rig.connection.pump()
    assert rig.connection.replies.in_flight == 1
    rig.work(400)
    assert [error for _, error, _ in rig.answers()] == [0] * 60


def test_connections_of_a_worker_zero_in_turn(make_rig: MakeRig) -> None:
    """None waits for all that another has to zero."""
    rig = make_rig()
    rig.written.blocks[:] = 1
    client, server = socket.socketpair()
    for each in (client, server):
        each.setblocking(False)
    other = rig.second(server)
    both = {rig.connection: rig.client, other: client}
    order: list[Any] = []
    for sock in both.values():
        for cookie in range(5):
            sock.sendall(struct.pack(">IHHQQI", 0x25609513, 2, ZEROES, cookie, 0, SIZE))
    for _ in range(60):
        for connection in both:
            connection.pump()
        if rig.submissions.in_flight:
            order.append(rig.submissions.in_flight[0].owner)
        rig.engine.turn()
        for connection in complete(rig.submissions):
            connection.resume()
    assert len(order) == 10
    assert all(order[number] is not order[number + 1] for number in range(1, 8)), "one was behind the first at first"
    client.close()
    server.close()
