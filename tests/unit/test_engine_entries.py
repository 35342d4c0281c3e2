"""What the engine makes of entries that a corrupt or hostile worker has written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.unit.plain_memory import PlainMemory
from tests.unit.windows import BLOCK, SIZE, Windows
from vramblk.memory.base import Batch, DeviceError
from vramblk.shared.descriptors import COLUMN_ROWS, COLUMNS, ENTRIES, ENTRY, ENTRY_BYTES, Op
from vramblk.shared.window import Word

EPERM, EIO, EINVAL = 1, 5, 22


def snapshot(windows: Windows) -> list[bytes]:
    """Everything that a refused entry must not touch: export, map, and all slabs."""
    slabs = [window.slab.tobytes() for window in windows.shared.windows]
    return [windows.memory.bytes.tobytes(), windows.written.blocks.tobytes(), *slabs]


# Refused entries


@pytest.mark.parametrize("op", [Op.GATHER, Op.SCATTER])
@pytest.mark.parametrize(
    "place",
    [
        lambda windows, lo, hi: windows.window(0).base + lo - 4,
        lambda windows, lo, hi: windows.window(0).base + hi - BLOCK + 4,
        lambda windows, lo, hi: windows.window(1).base + lo,
        lambda windows, lo, hi: windows.window(2).base,
        lambda windows, lo, hi: 0xFFFFFFFF * 4,
    ],
    ids=["below lo", "above hi", "another worker's slab", "the canary's slab", "the largest number"],
)
def test_a_place_outside_the_entrys_own_range_is_refused(op: Op, place: Callable[[Windows, int, int], int]) -> None:
    """EINVAL for the whole run; the export, the map and all slabs stay as they were."""
    windows = Windows(2)
    for window in windows.shared.windows:
        window.slab[:] = 0xAA
    lo = 8 * BLOCK
    first = windows.lay(0, [(0, BLOCK), (BLOCK, BLOCK), (2 * BLOCK, BLOCK)], lo)
    hi = lo + 3 * BLOCK
    windows.window(0).columns[1, first + 1] = place(windows, lo, hi) // 4
    before = snapshot(windows)
    number = windows.push(0, op, first=first, count=3, lo=lo, hi=hi)
    windows.run()
    assert windows.status(0, number) == EINVAL
    assert windows.window(0).statuses[first : first + 3].tolist() == [EINVAL] * 3
    assert snapshot(windows) == before and windows.memory.executed == 0


@pytest.mark.parametrize("op", [Op.GATHER, Op.SCATTER])
@pytest.mark.parametrize(("arena", "within"), [(0, (1 << 20) - 512), (31, (1 << 20) - 512), (32, 0), (255, 0)])
def test_a_request_outside_its_arena_is_refused(op: Op, arena: int, within: int) -> None:
    """Also where the bytes would still be inside the export."""
    windows = Windows(1, arena_bytes=1 << 20)
    first = windows.lay(0, [(0, 1024)], 0)
    windows.window(0).columns[0, first] = within // 16
    windows.window(0).columns[2, first] = 1024 // 16 | arena << 16
    before = snapshot(windows)
    number = windows.push(0, op, first=first, count=1, lo=0, hi=1024)
    windows.run()
    assert windows.status(0, number) == EINVAL
    assert snapshot(windows) == before


@pytest.mark.parametrize("op", [2, 3, 4, 5, 6, 7, 77, 255, (1 << 32) - 1])
def test_any_operation_number_is_survived(op: int) -> None:
    """Numbers that are no operation are refused; the entry behind them is executed."""
    windows = Windows(1)
    number = windows.push(0, op, length=BLOCK, offset=SIZE)
    good, _ = windows.read(0, 0, BLOCK)
    windows.run()
    assert windows.status(0, number) == (0 if op == Op.NOTHING else EINVAL)
    assert windows.status(0, good) == 0


def test_entries_of_noise_end_nothing() -> None:
    """Whatever bits an entry has: it is done, and another window's read succeeds."""
    generator = np.random.default_rng(7)
    windows = Windows(2)
    number = 0
    for turn in range(50):
        for _ in range(10):
            noise = bytearray(generator.bytes(ENTRY_BYTES))
            if turn % 2:
                noise[:4] = (turn % 8).to_bytes(4, "little")  # mostly known operations
                noise[4:8] = bytes(4)
            windows.window(0).entries[number % ENTRIES * ENTRY_BYTES :][:ENTRY_BYTES] = noise
            number += 1
        windows.window(0).columns[:] = generator.integers(0, 1 << 32, (COLUMN_ROWS, COLUMNS), np.uint32)
        windows.window(0).store(Word.TAIL, number)
        good, _ = windows.read(1, 0, BLOCK)
        windows.run()
        assert windows.done(0) == number and windows.status(1, good) == 0
    assert windows.corrupt == [] and windows.count("internal_errors") == 0


@pytest.mark.parametrize("op", [Op.GATHER, Op.SCATTER])
def test_a_refused_run_fills_all_its_statuses(op: Op) -> None:
    """A column that still holds the success of an earlier run is not taken for one of this run."""
    windows = Windows(1)
    windows.window(0).statuses[:] = 0
    number = windows.push(0, op, first=10, count=20, lo=0, hi=1 << 40)
    windows.run()
    assert windows.status(0, number) == EINVAL
    statuses = windows.window(0).statuses.tolist()
    assert statuses[10:30] == [EINVAL] * 20 and not any(statuses[:10] + statuses[30:])


@pytest.mark.parametrize("fault", ["refused", "failed", "repeated"])
def test_a_failed_entry_is_counted_once(fault: str) -> None:
    """FAILURES rises by one, and when the status is taken the ring has no failure any more."""

    def fail(memory: PlainMemory, batch: Batch) -> None:
        if fault != "refused":
            raise DeviceError(EIO, "injected")

    windows = Windows(1, before=fail)
    for _ in range(5):
        if fault == "refused":
            number = windows.push(0, Op.SCATTER, first=0, count=3, lo=0, hi=1 << 40)
        elif fault == "failed":
            number = windows.write(0, 0, b"w" * BLOCK)
        else:
            number = windows.scatter(0, [(block * BLOCK, b"w" * BLOCK) for block in range(3)])
            windows.read(0, 0, BLOCK)
        failures = windows.window(0).load(Word.FAILURES)
        windows.run()
        ring = windows.rings[0]
        assert ring.failed()
        statuses = [ring.take_status(each) for each in range(number, ring.tail)]
        assert statuses[0] == (EINVAL if fault == "refused" else EIO)
        assert windows.window(0).load(Word.FAILURES) == failures + len(statuses)
        assert not ring.failed()


@pytest.mark.parametrize("kind", ["write", "scatter", "zero"])
def test_the_engine_writes_nothing_of_a_read_only_export(kind: str) -> None:
    """EPERM, whatever the worker lets through; reads go on."""
    windows = Windows(1, "--read-only")
    before = snapshot(windows)[:2]
    if kind == "write":
        number = windows.write(0, 0, b"w" * BLOCK)
    elif kind == "scatter":
        number = windows.scatter(0, [(0, b"w" * BLOCK), (BLOCK, b"w" * BLOCK)])
    else:
        number = windows.zero(0, 0, BLOCK, flags=0)
    good, _ = windows.read(0, 0, BLOCK)
    windows.run()
    assert windows.status(0, number) == EPERM
    if kind == "scatter":
        assert windows.window(0).statuses[:2].tolist() == [EPERM] * 2
    assert windows.status(0, good) == 0
    assert snapshot(windows)[:2] == before


# Entries that change


@pytest.mark.parametrize("repeated", [False, True])
def test_an_entry_that_changes_after_it_was_taken_has_no_effect(repeated: bool) -> None:
    """What is executed, answered and unmarked is what the entry said when the engine read it."""
    failures: list[DeviceError] = []

    def change(memory: PlainMemory, batch: Batch) -> None:
        if memory.executed:
            window = windows.window(0)
            for number in range(ENTRIES):
                ENTRY.pack_into(window.entries, number * ENTRY_BYTES, Op.ZERO, 0, 0, 1, 0, 0, 0, SIZE, 1)
            window.columns[:] = 0xFFFFFFFF
        if failures:
            raise failures.pop()

    windows = Windows(1, before=change)
    windows.scatter(0, [(block * BLOCK, bytes([block]) * BLOCK) for block in range(1, 9)])
    windows.run()
    expected = windows.memory.bytes.copy()
    failures += [DeviceError(EIO, "once")] * repeated
    zero = windows.zero(0, BLOCK, BLOCK)
    read, place = windows.gather(0, [(2 * BLOCK, BLOCK), (3 * BLOCK, BLOCK)])
    write = windows.scatter(0, [(6 * BLOCK, b"x" * BLOCK), (7 * BLOCK, b"y" * BLOCK)])
    windows.run()
    assert not failures
    assert [windows.status(0, number) for number in (zero, read, write)] == [0] * 3
    expected[BLOCK : 2 * BLOCK] = 0
    expected[6 * BLOCK : 7 * BLOCK], expected[7 * BLOCK : 8 * BLOCK] = ord("x"), ord("y")
    assert np.array_equal(windows.memory.bytes, expected)
    assert windows.marked() == list(range(2, 9))
    assert windows.slab(0, place, 2 * BLOCK) == b"\2" * BLOCK + b"\3" * BLOCK


def test_a_failed_request_of_a_run_that_changes_is_the_one_that_is_reported() -> None:
    """The statuses of the run stand in the columns that it named when it was taken."""

    def fail_second(memory: PlainMemory, batch: Batch) -> None:
        window: Any = windows.window(0)
        window.entries[: 4 * ENTRY_BYTES] = bytes(4 * ENTRY_BYTES)
        for run in batch.writes:
            rows = memory.requests(run.window, run.first, run.count)
            window.columns[:] = 0
            if any(offset == BLOCK for offset, *_ in rows):
                raise DeviceError(EIO, "injected")

    windows = Windows(1, before=fail_second)
    number = windows.scatter(0, [(block * BLOCK, bytes([7]) * BLOCK) for block in range(3)])
    windows.run()
    assert windows.status(0, number) == EIO
    assert windows.window(0).statuses[:3].tolist() == [0, EIO, 0]
    assert [windows.memory.bytes[block * BLOCK] for block in range(3)] == [7, 0, 7]
