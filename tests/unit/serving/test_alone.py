"""One plain read or write that comes alone takes no columns, and is answered as one in a run is."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.unit.plain_memory import PlainMemory
from tests.unit.pool import Pool
from tests.unit.rig import FLUSH, READ, WRITE
from tests.unit.windows import BLOCK
from vramblk.memory.base import Batch, DeviceError

COOKIE = 0xF1E2D3C4B5A69788
EIO = 5


class Broken:
    """Fails batches while ``now`` is set."""

    now = False

    def __call__(self, memory: PlainMemory, batch: Batch) -> None:
        if self.now and (batch.copies_in or batch.copies_out):
            raise DeviceError(EIO, "injected")


@pytest.fixture
def broken() -> Broken:
    return Broken()


@pytest.fixture
def pool(broken: Broken) -> Iterator[Pool]:
    made = Pool(1, before=broken)
    yield made
    made.close()


def send(pool: Pool, command: int, offset: int) -> None:
    payload = b"w" * BLOCK if command == WRITE else b""
    pool.rigs[0].send(command, offset, BLOCK, payload, cookie=COOKIE)


def columns_free(pool: Pool) -> int:
    return pool.submissions.ring.columns.largest()


@pytest.mark.parametrize("command", [READ, WRITE])
def test_it_takes_one_entry_and_no_columns(pool: Pool, command: int) -> None:
    free = columns_free(pool)
    send(pool, command, 5 * BLOCK)
    pool.rigs[0].connection.pump()
    assert pool.submissions.ring.tail == 1 and columns_free(pool) == free
    pool.work()
    data = pool.rigs[0].replies()
    if command == READ:
        assert data == struct.pack(">IHHQIQ", 0x668E33EF, 1, 1, COOKIE, BLOCK + 8, 5 * BLOCK) + bytes(BLOCK)
    else:
        assert data == struct.pack(">IIQ", 0x67446698, 0, COOKIE)
        assert pool.windows.memory.bytes[5 * BLOCK : 6 * BLOCK].tobytes() == b"w" * BLOCK
    counters = pool.counters
    assert counters.cells[counters.request_index(0, command)] == 1
    assert counters.cells[counters.bytes_index(0, command)] == BLOCK


@pytest.mark.parametrize("command", [READ, WRITE])
def test_its_failure_is_the_answer_with_its_cookie(pool: Pool, broken: Broken, command: int) -> None:
    """And is counted once; the next request succeeds."""
    broken.now = True
    send(pool, command, 0)
    pool.work()
    assert pool.rigs[0].answers() == [(0x8001, EIO, COOKIE)]
    counters = pool.counters
    assert counters.cells[counters.error_index(0, command, EIO)] == 1
    assert counters.cells[counters.request_index(0, command)] == 1
    assert counters.cells[counters.bytes_index(0, command)] == 0
    broken.now = False
    send(pool, command, 0)
    pool.work()
    assert [error for _, error, _ in pool.rigs[0].answers()] == [0]


@pytest.mark.parametrize("command", [READ, WRITE])
def test_it_succeeds_beside_one_that_fails(pool: Pool, broken: Broken, command: int) -> None:
    """Both are complete when the worker looks: only the other's status is an error."""
    send(pool, command, 0)
    pool.rigs[0].connection.pump()
    pool.windows.run()
    broken.now = True
    pool.rigs[0].send(READ, 8 * BLOCK, 100, cookie=2)
    pool.rigs[0].connection.pump()
    pool.work()
    assert pool.rigs[0].answers() == [(1 if command == READ else -1, 0, COOKIE), (0x8001, EIO, 2)]


def test_its_reply_keeps_its_place(pool: Pool) -> None:
    """Before and behind others, whatever they are."""
    rig = pool.rigs[0]
    for number, command in enumerate((READ, FLUSH, WRITE, FLUSH, READ, WRITE)):
        payload = b"w" * BLOCK if command == WRITE else b""
        rig.send(command, 0, 0 if command == FLUSH else BLOCK, payload, cookie=number)
        rig.connection.pump()
    pool.work()
    assert [cookie for _, _, cookie in rig.answers()] == list(range(6))
