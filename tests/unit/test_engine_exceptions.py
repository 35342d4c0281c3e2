"""An exception that nobody foresaw is EIO for the request that it belongs to; the engine goes on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.plain_memory import PlainMemory
from tests.unit.windows import BLOCK, Windows
from vramblk.engine import executor
from vramblk.memory.base import Batch, DeviceError
from vramblk.shared.control import ControlWord
from vramblk.shared.descriptors import Op
from vramblk.shared.window import Word
from vramblk.system import logs

EIO, ENOMEM = 5, 12
BAD = 50 * BLOCK
ERRORS: list[tuple[type[Exception], tuple[object, ...]]] = [
    (MemoryError, ()), (ValueError, ("a value",)), (OSError, (12, "no memory")), (RecursionError, ()), (KeyError, (7,)),
]  # fmt: skip


def touches(memory: PlainMemory, batch: Batch, place: int) -> bool:
    ranges = [(copy.offset, copy.hi - copy.lo) for copy in (*batch.copies_in, *batch.copies_out)]
    ranges += list(batch.zeroes)
    for run in (*batch.reads, *batch.writes):
        ranges += [(row[0], row[1]) for row in memory.requests(run.window, run.first, run.count)]
    return any(offset <= place < offset + length for offset, length in ranges)


@pytest.mark.parametrize(("error", "arguments"), ERRORS)
def test_an_exception_of_the_memory_is_eio_for_one_request(
    error: type[Exception], arguments: tuple[object, ...]
) -> None:
    """Other requests of the batch, of this window and of others, succeed; it is counted, and logged with its traceback."""

    def fail(memory: PlainMemory, batch: Batch) -> None:
        if touches(memory, batch, BAD):
            raise error(*arguments)

    windows = Windows(2, before=fail)
    bad = windows.write(0, BAD, b"b" * BLOCK)
    good = [windows.write(0, 0, b"g" * BLOCK), windows.write(1, BLOCK, b"h" * BLOCK)]
    windows.run()
    assert windows.status(0, bad) == EIO
    assert windows.status(0, good[0]) == 0 and windows.status(1, good[1]) == 0
    assert windows.memory.bytes[0] == ord("g") and windows.memory.bytes[BLOCK] == ord("h")
    assert windows.count("internal_errors") == 2, "the batch, and the request alone"
    assert windows.count("device_errors") == 0
    after = windows.write(0, 0, b"i" * BLOCK)
    windows.run()
    assert windows.status(0, after) == 0


@pytest.mark.parametrize("op", ["gather", "scatter"])
def test_an_exception_for_one_request_of_a_run_hits_it_alone(op: str) -> None:
    """Each column has the status of its own request."""

    def fail(memory: PlainMemory, batch: Batch) -> None:
        if touches(memory, batch, BAD):
            raise MemoryError

    windows = Windows(1, before=fail)
    offsets = [BAD - BLOCK, BAD, BAD + BLOCK]
    if op == "gather":
        number, _ = windows.gather(0, [(offset, BLOCK) for offset in offsets])
    else:
        number = windows.scatter(0, [(offset, b"w" * BLOCK) for offset in offsets])
    windows.run()
    assert windows.status(0, number) == EIO
    assert windows.window(0).statuses[:3].tolist() == [0, EIO, 0]


def test_the_traceback_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """As critical, with the export; a storm of them is summed up by the limiter."""
    logged: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(logs, "limited", lambda log, event, **fields: logged.append((event, fields)))

    def fail(memory: PlainMemory, batch: Batch) -> None:
        raise MemoryError

    windows = Windows(1, before=fail)
    windows.read(0, 0, BLOCK)
    windows.run()
    assert {event for event, _ in logged} == {"internal_error"}
    assert all(fields["level"] == "critical" and fields["exc_info"] and fields["export"] == 0 for _, fields in logged)


@pytest.mark.parametrize("op", [Op.GATHER, Op.SCATTER, Op.COPY_IN, Op.COPY_OUT, Op.ZERO])
def test_an_exception_while_an_entry_is_taken_is_eio_for_it(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entries before and behind it are executed; a run's statuses are all filled."""
    windows = Windows(1)
    windows.window(0).statuses[:] = 0
    entry = executor.Entry
    armed = True

    def broken(*arguments: Any) -> Any:
        if armed and arguments[2] == op:
            raise MemoryError
        return entry(*arguments)

    monkeypatch.setattr(executor, "Entry", broken)
    windows.written.blocks[:] = 1
    windows.push(0, Op.ECHO, hi=16, offset=32)
    if op in (Op.GATHER, Op.SCATTER):
        first = windows.lay(0, [(0, 512), (512, 512)], 0)
        number = windows.push(0, op, first=first, count=2, lo=0, hi=1024)
    else:
        number = windows.push(0, op, lo=0, hi=0 if op == Op.ZERO else 512, offset=0, length=512)
    last = windows.push(0, Op.ECHO, hi=16, offset=64)
    windows.run()
    assert windows.status(0, number) == EIO
    assert windows.status(0, 0) == 0 and windows.status(0, last) == 0
    if op in (Op.GATHER, Op.SCATTER):
        assert windows.window(0).statuses[:2].tolist() == [EIO] * 2
    assert windows.count("internal_errors") == 1
    armed = False
    number = windows.write(0, 0, b"w" * BLOCK)
    windows.run()
    assert windows.status(0, number) == 0


def test_a_device_error_keeps_its_own_number() -> None:
    """ENOMEM of the device is not made EIO, and is no internal error."""

    def fail(memory: PlainMemory, batch: Batch) -> None:
        raise DeviceError(ENOMEM, "the device has no memory")

    windows = Windows(1, before=fail)
    number, _ = windows.read(0, 0, BLOCK)
    windows.run()
    assert windows.status(0, number) == ENOMEM
    assert windows.count("internal_errors") == 0 and windows.count("device_errors") == 2


def test_what_is_executed_is_shown_while_it_is_executed() -> None:
    """The export and since when; nothing afterwards, failed or not; the progress word moves with each execution."""
    seen: list[tuple[int, int]] = []
    control = None

    def look(memory: PlainMemory, batch: Batch) -> None:
        assert control is not None
        seen.append((control.load(ControlWord.ENGINE_EXPORT), control.load(ControlWord.ENGINE_SINCE_NS)))
        if len(seen) % 2:
            raise MemoryError

    windows = Windows(1, before=look)
    control = windows.shared.control
    windows.read(0, 0, BLOCK)
    windows.run()
    assert [export for export, _ in seen] == [1, 1] and seen[0][1] <= seen[1][1]
    assert control.load(ControlWord.ENGINE_EXPORT) == 0
    assert control.load(ControlWord.ENGINE_PROGRESS) == 2


def test_a_failed_write_stays_marked() -> None:
    """It may have written: the block does not count as one that reads as zero."""

    def fail(memory: PlainMemory, batch: Batch) -> None:
        raise MemoryError

    windows = Windows(1, before=fail)
    windows.write(0, 3 * BLOCK, b"w" * 10)
    windows.scatter(0, [(5 * BLOCK, b"w" * 16), (7 * BLOCK, b"w" * 16)])
    windows.run()
    assert windows.marked() == [3, 5, 7]
    assert windows.window(0).load(Word.FAILURES) == 2


def test_a_failed_zeroing_unmarks_nothing() -> None:
    """Neither when the batch fails nor when it fails alone."""

    def fail(memory: PlainMemory, batch: Batch) -> None:
        if batch.zeroes:
            raise ValueError

    windows = Windows(1, before=fail)
    windows.written.blocks[:8] = 1
    number = windows.zero(0, 0, 8 * BLOCK)
    windows.run()
    assert windows.status(0, number) == EIO
    assert windows.marked() == list(range(8))


def test_an_exception_while_a_run_is_repeated_leaves_no_stale_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request that was not executed again has the success of an earlier run in its column."""

    def fail(memory: PlainMemory, batch: Batch) -> None:
        if touches(memory, batch, BAD):
            raise DeviceError(EIO, "injected")

    def no_memory(*arguments: object) -> None:
        raise MemoryError

    windows = Windows(1, before=fail)
    monkeypatch.setattr(executor.Suspects, "failed", no_memory)
    number = windows.scatter(0, [(offset, b"w" * BLOCK) for offset in (BAD - BLOCK, BAD, BAD + BLOCK)])
    windows.run()
    assert windows.status(0, number) == EIO
    for status, offset in zip(windows.window(0).statuses[:3], (BAD - BLOCK, BAD, BAD + BLOCK), strict=True):
        assert status == EIO or (status == 0 and windows.memory.bytes[offset] == ord("w"))
