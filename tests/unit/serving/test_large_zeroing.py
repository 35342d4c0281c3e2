"""Large TRIMs and WRITE_ZEROES go in pieces: one piece in flight for each worker, and turns among connections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.plain_memory import PlainMemory
from tests.unit.pool import Pool
from tests.unit.rig import FLUSH, READ, TRIM, WRITE, ZEROES, Rig
from tests.unit.windows import BLOCK, SIZE
from vramblk.memory.base import Batch, DeviceError
from vramblk.shared.counters import TRIM as TRIM_OP
from vramblk.shared.counters import WRITE_ZEROES

MEBI = 1 << 20
PIECE = 8 * MEBI
NO_HOLE = 2
EIO, ESHUTDOWN = 5, 108

MakePool = Callable[..., Pool]


@pytest.fixture
def make() -> Iterator[MakePool]:
    made: list[Pool] = []

    def pool(*arguments: Any, **options: Any) -> Pool:
        made.append(Pool(*arguments, **options))
        made[-1].windows.memory.bytes[:] = 7
        made[-1].windows.written.blocks[:] = 1
        return made[-1]

    yield pool
    for each in made:
        each.close()


class Pieces:
    """The ranges that were zeroed, one entry for each execution; ``failing`` are the numbers of those that fail."""

    def __init__(self, *failing: int) -> None:
        self.ranges: list[tuple[int, int]] = []
        self._failing = failing

    def __call__(self, memory: PlainMemory, batch: Batch) -> None:
        if batch.zeroes:
            offset, length = batch.zeroes[0].offset, sum(zero.length for zero in batch.zeroes)
            if (offset, length) not in self.ranges[-1:]:
                self.ranges.append((offset, length))
            if len(self.ranges) - 1 in self._failing:
                raise DeviceError(EIO, "injected")


def queue(pool: Pool, rig: Rig) -> None:
    """Let a connection come so far that it has a piece in flight, or waits for its turn."""
    connection: Any = rig.connection
    submissions = pool.submissions
    while connection.large not in submissions.zeroing.waiting:
        connection.pump()
        if submissions.zeroing.in_flight is not None and submissions.zeroing.in_flight is connection.large.current:
            break


def until(pool: Pool, condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        pool.step()
    raise AssertionError("it did not come to it")


@pytest.mark.parametrize("command", [TRIM, ZEROES])
def test_written_memory_is_zeroed_in_pieces(make: MakePool, command: int) -> None:
    """Each of at most 8 MiB; the reply comes once, behind the last."""
    pieces = Pieces()
    pool = make(before=pieces)
    rig = pool.rigs[0]
    rig.send(command, 0, SIZE, cookie=3)
    while len(pieces.ranges) < 4:
        assert pool.submissions.ring.tail - pool.submissions.ring.done() <= 1
        assert rig.replies() == b""
        pool.step()
    pool.work()
    assert rig.answers() == [(-1, 0, 3)]
    assert pieces.ranges == [(number * PIECE, PIECE) for number in range(4)]
    assert not pool.windows.memory.bytes.any() and pool.windows.marked() == []
    op = TRIM_OP if command == TRIM else WRITE_ZEROES
    assert pool.counters.cells[pool.counters.request_index(0, op)] == 1


def test_unwritten_memory_takes_one_piece(make: MakePool) -> None:
    pool = make()
    pool.windows.written.blocks[:] = 0
    pool.rigs[0].send(TRIM, 0, SIZE)
    pool.work()
    assert pool.rigs[0].answers() == [(-1, 0, 1)]
    assert pool.submissions.ring.tail == 1


@pytest.mark.parametrize("no_hole", [False, True])
@pytest.mark.parametrize(
    ("offset", "length"),
    [(1, SIZE - 2), (BLOCK - 1, PIECE + 2), (5 * BLOCK + 100, 2 * PIECE), (PIECE - 7, 3 * PIECE), (0, PIECE + 1)],
)
def test_odd_ranges_are_cut_at_block_borders(make: MakePool, offset: int, length: int, no_hole: bool) -> None:
    """Exactly the bytes asked for are zero, and every whole block of them is unwritten, at piece borders too."""
    pieces = Pieces()
    pool = make(before=pieces)
    pool.rigs[0].send(ZEROES, offset, length, flags=NO_HOLE if no_hole else 0)
    pool.work()
    assert pool.rigs[0].answers() == [(-1, 0, 1)]
    assert all(at % BLOCK == 0 for at, _ in pieces.ranges[1:])
    assert all(size <= PIECE for _, size in pieces.ranges) and len(pieces.ranges) > 1
    memory = pool.windows.memory.bytes
    assert not memory[offset : offset + length].any()
    assert int(memory.sum()) == 7 * (SIZE - length)
    unmarked = set(range(SIZE // BLOCK)) - set(pool.windows.marked())
    whole = set(range(-(-offset // BLOCK), (offset + length) // BLOCK))
    assert unmarked == (set() if no_hole else whole)


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_an_error_in_one_piece_is_the_answer(make: MakePool, failing: int) -> None:
    """No piece follows it; the request is answered once, counted as one error, and the connection goes on."""
    pieces = Pieces(failing)
    pool = make(before=pieces)
    rig = pool.rigs[0]
    rig.send(TRIM, 0, SIZE, cookie=3)
    rig.send(FLUSH, 0, 0, cookie=4)
    pool.work()
    assert rig.answers() == [(0x8001, EIO, 3), (-1, 0, 4)]
    assert len(pieces.ranges) == failing + 1
    counters = pool.counters
    assert counters.cells[counters.error_index(0, TRIM_OP, EIO)] == 1
    assert counters.cells[counters.request_index(0, TRIM_OP)] == 1
    assert set(pool.windows.marked()) == set(range(failing * PIECE // BLOCK, SIZE // BLOCK))
    rig.send(READ, 0, 512)
    pool.work()
    assert rig.answers() == [(1, 0, 1)]


def test_connections_take_turns(make: MakePool) -> None:
    """Two large zeroings of one worker advance side by side, with one piece in flight in all."""
    pieces = Pieces()
    pool = make(before=pieces)
    for number, rig in enumerate(pool.rigs):
        rig.send(TRIM, number * 2 * PIECE, 2 * PIECE)
        queue(pool, rig)
    ring = pool.submissions.ring
    while len(pieces.ranges) < 4:
        assert ring.tail - ring.done() <= 1
        pool.step()
    pool.work()
    assert [at // (2 * PIECE) for at, _ in pieces.ranges] in ([0, 1, 0, 1], [1, 0, 1, 0])
    assert [rig.answers() for rig in pool.rigs] == [[(-1, 0, 1)]] * 2


def test_others_are_answered_between_the_pieces(make: MakePool) -> None:
    """A read of another connection waits for one piece, or two, not for all."""
    pieces = Pieces()
    pool = make(before=pieces)
    storm, other = pool.rigs
    storm.send(TRIM, 0, SIZE)
    until(pool, lambda: len(pieces.ranges) == 1)
    other.send(READ, 0, BLOCK, cookie=5)
    answers: list[tuple[int, int, int]] = []
    while not answers:
        assert storm.answers() == [] and len(pieces.ranges) <= 3
        pool.step()
        answers = other.answers()
    assert answers == [(1, 0, 5)]


def gone(rig: Rig) -> None:
    rig.client.close()
    rig.connection.lose()


def broken(rig: Rig) -> None:
    rig.connection.fail("connection_lost", "a test")


@pytest.mark.parametrize("lose", [gone, broken])
@pytest.mark.parametrize("waiting", [False, True])
def test_a_connection_that_is_lost_in_the_middle_leaves_the_others_their_turn(
    make: MakePool, lose: Callable[[Rig], None], waiting: bool
) -> None:
    """Whether it has a piece in flight or waits for its turn: no piece of it follows, and the queue goes on."""
    pieces = Pieces()
    pool = make(3, before=pieces)
    first, second, third = pool.rigs
    for number, rig in enumerate((first, second, third)):
        rig.send(TRIM, number * 10 * MEBI, PIECE + MEBI)
        queue(pool, rig)
    dead = second if waiting else first
    lose(dead)
    pool.work()
    assert dead.connection.finished
    living = first if waiting else second
    assert living.answers() == [(-1, 0, 1)] and third.answers() == [(-1, 0, 1)]
    assert not pool.submissions.zeroing.waiting
    start = (10 if waiting else 0) * MEBI
    assert [at for at, _ in pieces.ranges if start <= at < start + 10 * MEBI] == [start] * (not waiting)


def test_a_request_behind_it_sees_it_done(make: MakePool) -> None:
    """A write behind a large zeroing of its block is not zeroed, a read behind it finds zeroes."""
    pool = make()
    rig = pool.rigs[0]
    rig.send(TRIM, 0, SIZE, cookie=1)
    rig.send(READ, SIZE - 512, 512, cookie=2)
    rig.send(WRITE, SIZE - 512, 512, b"n" * 512, cookie=3)
    pool.work()
    data = rig.replies()
    assert data.count(b"\7") == 0 and len(data) == 16 + 28 + 512 + 16
    assert pool.windows.memory.bytes[SIZE - 512 :].tobytes() == b"n" * 512
    assert pool.windows.marked() == [SIZE // BLOCK - 1]


def test_a_client_that_half_closes_behind_it_gets_its_answer(make: MakePool) -> None:
    """The end of the client's stream does not end what came before it, on a Unix socket."""
    pool = make()
    rig = pool.rigs[0]
    rig.send(TRIM, 0, SIZE)
    rig.client.shutdown(1)
    pool.work()
    assert rig.answers() == [(-1, 0, 1)] and rig.connection.finished
    assert not pool.windows.memory.bytes.any()


def test_a_drain_lets_it_end(make: MakePool) -> None:
    """What was read before the signal is finished; what is read afterwards is refused."""
    pieces = Pieces()
    pool = make(before=pieces)
    rig = pool.rigs[0]
    rig.send(TRIM, 0, SIZE, cookie=1)
    until(pool, lambda: len(pieces.ranges) == 1)
    pool.submissions.draining = True
    rig.send(TRIM, 0, SIZE, cookie=2)
    pool.work()
    assert rig.answers() == [(-1, 0, 1), (0x8001, ESHUTDOWN, 2)]


@pytest.mark.parametrize("length", [MEBI, PIECE])
def test_a_row_of_zeroings_has_one_piece_in_flight_too(make: MakePool, length: int) -> None:
    """Requests of one piece each are not all queued at once: others of the worker wait for one, not for all."""
    pool = make()
    storm, other = pool.rigs
    for number in range(60):
        storm.send(TRIM, number * length % SIZE, length, cookie=number)
    ring = pool.submissions.ring
    answers: list[tuple[int, int, int]] = []
    most = 0
    while len(answers) < 60:
        pool.step()
        most = max(most, ring.tail - ring.done())
        answers += storm.answers()
        storm.connection.pump()
        most = max(most, ring.tail - ring.done())
    assert most <= 1
    assert other.answers() == []


def test_a_row_of_zeroings_leaves_another_connection_its_turn(make: MakePool) -> None:
    """After one request of the storm it is the turn of the other connection that has something to zero."""
    pieces = Pieces()
    pool = make(before=pieces)
    storm, other = pool.rigs
    for _ in range(60):
        storm.send(TRIM, 0, PIECE)
    queue(pool, storm)
    other.send(TRIM, PIECE, PIECE)
    queue(pool, other)
    turns = 0
    while not other.answers():
        pool.windows.written.blocks[:] = 1
        pool.step()
        turns += 1
    assert turns <= 4
