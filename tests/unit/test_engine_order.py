"""Requests that overlap keep their order: what the engine leaves behind is what one request after the other leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.plain_memory import PlainMemory
from tests.unit.windows import BLOCK, Windows
from vramblk.memory.base import Batch, DeviceError
from vramblk.shared.descriptors import ZERO_HOLE

#: Requests fall into so many bytes, so that most of them overlap.
AREA = 6 * BLOCK
ARENA = 2 * BLOCK

Range = tuple[int, int]


@dataclass
class Request:
    """One entry: its ranges of the export, and what was seen of it."""

    kind: str
    ranges: Sequence[Range]
    value: int = 0
    flags: int = 0
    number: int = -1
    place: int = 0
    expected: list[bytes] = field(default_factory=list)

    def push(self, windows: Windows, index: int) -> None:
        offset, length = self.ranges[0]
        if self.kind == "read":
            self.number, self.place = windows.read(index, offset, length)
        elif self.kind == "gather":
            self.number, self.place = windows.gather(index, self.ranges)
        elif self.kind == "write":
            self.number = windows.write(index, offset, bytes([self.value]) * length)
        elif self.kind == "scatter":
            self.number = windows.scatter(index, [(at, bytes([self.value]) * size) for at, size in self.ranges])
        else:
            self.number = windows.zero(index, offset, length, self.flags)

    def apply(self, model: bytearray) -> bytes:
        """Do it to the model; what a read finds."""
        if self.kind in ("read", "gather"):
            return b"".join(model[at : at + size] for at, size in self.ranges)
        for at, size in self.ranges:
            model[at : at + size] = bytes([self.value if self.kind != "zero" else 0]) * size
        return b""


def any_range() -> st.SearchStrategy[Range]:
    """Any alignment, across arena borders."""
    return st.tuples(st.integers(0, AREA - 1), st.integers(1, 2 * BLOCK)).map(
        lambda pair: (pair[0], min(pair[1], AREA - pair[0]))
    )


def run_range() -> st.SearchStrategy[Range]:
    """What a run may hold: multiples of 16 within an arena."""

    def cut(pair: tuple[int, int]) -> Range:
        offset = pair[0] * 16
        return offset, min(pair[1] * 16, ARENA - offset % ARENA)

    return st.tuples(st.integers(0, AREA // 16 - 1), st.integers(1, ARENA // 16)).map(cut)


def apart(ranges: list[Range]) -> list[Range]:
    """Those that overlap none before: the writes of a run do not."""
    kept: list[Range] = []
    for offset, length in ranges:
        if all(offset + length <= at or at + size <= offset for at, size in kept):
            kept.append((offset, length))
    return kept


VALUES = st.integers(1, 255)
REQUESTS = st.one_of(
    st.builds(Request, st.just("read"), any_range().map(lambda one: [one])),
    st.builds(Request, st.just("gather"), st.lists(run_range(), min_size=1, max_size=4)),
    st.builds(Request, st.just("write"), any_range().map(lambda one: [one]), VALUES),
    st.builds(Request, st.just("scatter"), st.lists(run_range(), min_size=1, max_size=4).map(apart), VALUES),
    st.builds(
        Request, st.just("zero"), any_range().map(lambda one: [one]), flags=st.sampled_from([0, ZERO_HOLE])
    ),
)
#: For each round: what two workers publish before the engine's next turn.
ROUNDS = st.lists(st.tuples(st.lists(REQUESTS, max_size=5), st.lists(REQUESTS, max_size=5)), max_size=5)


def follow(windows: Windows, rounds: list[tuple[list[Request], list[Request]]]) -> None:
    """Run turns until all is done, and hold each against the same requests one by one.

    A turn takes each window's requests one behind the other, one window after the other.
    """
    model = bytearray(AREA)
    queued: list[list[Request]] = [[], []]
    step = 0
    while step < len(rounds) or any(queued):
        if step < len(rounds):
            for index in (0, 1):
                for request in rounds[step][index]:
                    request.push(windows, index)
                    queued[index].append(request)
            step += 1
        moved = windows.engine.turn()
        assert moved or not any(queued), "the engine has stopped with requests queued"
        done = [[each for each in queued[index] if each.number < windows.done(index)] for index in (0, 1)]
        model = one_of_the_orders(windows, model, done)
        for index in (0, 1):
            assert [windows.status(index, each.number) for each in done[index]] == [0] * len(done[index])
            windows.rings[index].taken = windows.done(index)
            del queued[index][: len(done[index])]
        for block in range(AREA // BLOCK):
            holds = any(model[block * BLOCK : (block + 1) * BLOCK])
            assert windows.written.blocks[block] or not holds, "a block with data counts as unwritten"


def one_of_the_orders(windows: Windows, model: bytearray, done: list[list[Request]]) -> bytearray:
    """The model after this turn's requests, in the order of windows that explains what was read and left behind."""
    memory = windows.memory.bytes[:AREA].tobytes()
    found = {
        id(request): windows.slab(index, request.place, sum(size for _, size in request.ranges))
        for index in (0, 1)
        for request in done[index]
        if request.kind in ("read", "gather")
    }
    for order in (done[0] + done[1], done[1] + done[0]):
        after = bytearray(model)
        answers = {id(request): request.apply(after) for request in order}
        if bytes(after) == memory and all(answers[key] == data for key, data in found.items()):
            return after
    raise AssertionError(f"no order explains what {done} have left behind")


def backwards(memory: PlainMemory, batch: Batch) -> None:
    """Runs of writes are one launch, which does them in any order."""
    batch.writes.reverse()


MANY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@MANY
@given(ROUNDS)
def test_batches_leave_what_one_by_one_leaves(rounds: list[tuple[list[Request], list[Request]]]) -> None:
    """Random overlapping entries of two windows, whatever turns they fall into."""
    follow(Windows(2, arena_bytes=ARENA, slab_part=1 << 18, before=backwards), rounds)


@MANY
@given(ROUNDS, st.sets(st.integers(0, 40)), st.booleans())
def test_batches_that_fail_leave_what_one_by_one_leaves(
    rounds: list[tuple[list[Request], list[Request]]], failing: set[int], executed: bool
) -> None:
    """Some batches fail, before or after the memory has done them, and are repeated request by request."""
    calls: list[int] = []
    repeated: set[int] = set()

    def fail(memory: PlainMemory, batch: Batch) -> None:
        calls.append(len(calls))
        backwards(memory, batch)
        requests = len(batch.copies_in) + len(batch.copies_out) + len(batch.zeroes)
        requests += sum(run.count for run in (*batch.reads, *batch.writes))
        if calls[-1] in failing and requests > 1 and not repeated:
            repeated.add(1)  # so that its parts succeed
            if executed:
                memory._before = lambda memory, batch: None
                memory.execute(batch)
                memory._before = fail
            raise DeviceError(5, "injected")
        repeated.clear()

    follow(Windows(2, arena_bytes=ARENA, slab_part=1 << 18, before=fail), rounds)


@pytest.mark.parametrize("second", [0, 1])
def test_a_write_and_zeroing_of_one_block_keep_their_order(second: int) -> None:
    """In one window and across two, where the engine takes the first window first."""
    for write_first in (True, False):
        windows = Windows(2)
        windows.write(0, 0, b"old" * 16)
        windows.run()
        acts = [lambda w, i: w.write(i, 0, b"new" * 16), lambda w, i: w.zero(i, 0, BLOCK)]
        first, then = acts if write_first else acts[::-1]
        first(windows, 0)
        then(windows, second)
        windows.run()
        assert windows.memory.bytes[:3].tobytes() == (b"\0\0\0" if write_first else b"new")
        assert windows.marked() == ([] if write_first else [0])


def test_requests_that_do_not_overlap_share_a_batch() -> None:
    """Order costs nothing where it does not matter: a turn of many kinds is one execution."""
    windows = Windows(2)
    for index in (0, 1):
        base = index * 16 * BLOCK
        windows.scatter(index, [(base + block * BLOCK, b"s" * BLOCK) for block in range(3)])
        windows.write(index, base + 4 * BLOCK, b"w" * 100)
        windows.zero(index, base + 6 * BLOCK, BLOCK)
        windows.read(index, base + 4 * BLOCK, 50)
        windows.gather(index, [(base, BLOCK), (base + BLOCK, BLOCK)])
    assert windows.run() == 1 and windows.memory.executed == 1


@pytest.mark.parametrize("second", [0, 1])
def test_runs_of_writes_that_overlap_share_no_batch(second: int) -> None:
    """One launch has no order: the later run waits for the next turn, also if it is another window's."""
    windows = Windows(2, before=backwards)
    windows.scatter(0, [(0, b"1" * 32), (BLOCK, b"1" * 32)])
    windows.scatter(second, [(2 * BLOCK, b"2" * 32), (16, b"2" * 32)])
    assert windows.run() == 2
    assert windows.memory.bytes[16] == ord("2")


def batches_of(*requests: Request) -> list[Batch]:
    """The batches of requests that one window publishes before the engine takes any; every block is marked."""
    seen: list[Batch] = []
    windows = Windows(1, arena_bytes=ARENA, before=lambda _, batch: seen.append(batch))
    windows.written.blocks[:] = 1
    for request in requests:
        request.push(windows, 0)
    windows.run()
    return seen


def run_of(kind: str, *blocks: int) -> Request:
    return Request(kind, [(block * BLOCK, BLOCK) for block in blocks], 7)


OVERLAPPING = {
    "a run of writes": [run_of("scatter", 2, 8)],
    "a write": [Request("write", [(3 * BLOCK - 1, 1)], 7)],
    "zeroing": [Request("zero", [(BLOCK, BLOCK + 1)])],
    "a write below a read by itself": [
        Request("write", [(2 * BLOCK, 16)], 7), Request("read", [(2 * BLOCK, 16)]), run_of("scatter", 9)
    ],
}  # fmt: skip


@pytest.mark.parametrize("writes", OVERLAPPING)
def test_a_batch_with_reads_of_what_it_writes_is_not_apart(writes: str) -> None:
    """Its reads come behind its writes, whatever else is written before and after them."""
    for others in ([run_of("scatter", 4, 5)], []):
        requests = [*others, *OVERLAPPING[writes], run_of("gather", 0, 2), run_of("scatter", 11)]
        (batch,) = batches_of(*requests)
        assert batch.reads and not batch.apart


def test_a_batch_with_reads_of_other_blocks_is_apart() -> None:
    """Reads may overlap each other, and a read by itself, which comes last, what is written."""
    (batch,) = batches_of(
        run_of("gather", 0, 1), run_of("scatter", 4, 5), Request("write", [(6 * BLOCK, 10)], 7),
        Request("zero", [(7 * BLOCK, BLOCK)]), Request("read", [(4 * BLOCK, BLOCK)]), run_of("gather", 1, 2, 8),
        run_of("scatter", 9), run_of("gather", 0, 8),
    )  # fmt: skip
    assert len(batch.reads) == 3 and len(batch.writes) == 2 and batch.apart


def test_a_run_of_writes_to_what_was_read_before_waits_for_the_next_batch() -> None:
    """So the reads that a batch has taken are apart from what comes behind them."""
    first, second = batches_of(run_of("gather", 0, 1), run_of("scatter", 4), run_of("scatter", 1))
    assert first.apart and len(first.writes) == 1
    assert not second.reads
