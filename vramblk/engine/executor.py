"""Executes what the workers have queued. It uses rings and memories, but no processes and no messages.

One turn takes what the windows hold, makes one batch of it for each export, executes it, and only then
says that the entries are done. What a worker wrote is read once, into memory of the engine's own, and
checked there. A turn ends early

- before an entry that overlaps an earlier one in a way that the batch's order would swap,
- when it has enough to do: others' requests must not wait for a storm of somebody else's,
- around an entry for a range that fails (see ``suspects``).

When a batch fails its requests are repeated one by one in the order in which they were taken, so that an
error hits the request it belongs to: reads, writes and zeroing may be repeated, since none of them has
been acknowledged. A failure that is no DeviceError is logged with its traceback and answered with EIO.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from ..memory.base import Batch, ChecksumError, Copy, DeviceError, Memory, Run, Zero
from ..memory.copies import Copies
from ..nbd.constants import Error
from ..shared.barrier import full_barrier
from ..shared.context import Shared
from ..shared.control import ControlWord
from ..shared.counters import EngineCounters
from ..shared.descriptors import (
    COLUMN_ROWS,
    COLUMNS,
    ENTRIES,
    GATHER_JOINS,
    MOST_ZERO_BYTES,
    ZERO_HOLE,
    Columns,
    Op,
)
from ..shared.doorbell import worker_doorbell
from ..shared.ring import CompletionRing
from ..shared.window import Window, Word
from ..shared.written import BLOCK_BYTES
from ..system import logs
from .fences import Fences
from .intake import REFUSED, SUSPECT, WAIT, Entry, Intake
from .stagetimes import EngineTiming
from .suspects import Suspects

_PROGRESS, _EXPORT, _SINCE = (
    word * 8 for word in (ControlWord.ENGINE_PROGRESS, ControlWord.ENGINE_EXPORT, ControlWord.ENGINE_SINCE_NS)
)
_GATHER, _SCATTER, _COPY_OUT, _COPY_IN, _ZERO, _ECHO, _NOTHING = map(int, Op)
#: The order in which a memory does the parts of a batch, by op: see ``base.Memory.execute``.
_RANKS = {_SCATTER: 0, _COPY_IN: 1, _ZERO: 2, _GATHER: 3, _COPY_OUT: 4}
#: Parts of which rank and above an op must not overlap; reads, which come last, may overlap any. A run of
#: writes must overlap none: all runs of writes are one launch, without an order.
_ANY = 8
_MUST_NOT_MEET = {_COPY_IN: 2, _ZERO: 3, _COPY_OUT: _ANY}
_WRITING = frozenset((_SCATTER, _COPY_IN, _ZERO))
#: Columns of a turn's runs; a worker's run may have as many as its window.
TURN_COLUMNS = 2 * COLUMNS
#: Fences are looked at in each so-manieth turn, at each so-manieth look for work, and before sleep.
_FENCE_TURNS, _FENCE_LOOKS = 8, 16
#: A turn takes nothing more after so many bytes of payload, or bytes to zero.
_TURN_BYTES, _TURN_ZERO_BYTES = 64 << 20, 8 << 20
#: Zeroing skips blocks that are unwritten, unless fewer bytes than this lie between two written ones.
_ZERO_GAP_BYTES = 256 << 10
_BATCHES, _BATCH_REQUESTS = map(EngineCounters.scalar_index, ("batches", "batch_requests"))
_MASK64, _MASK63 = (1 << 64) - 1, (1 << 63) - 1


class EngineWindow:
    """A window as the memories see it: the slab is the worker's, the columns are the engine's own.

    Args:
        columns: shape (COLUMN_ROWS, TURN_COLUMNS), uint32; one table for all windows, see ``engine_windows``.
    """

    def __init__(self, window: Window, columns: npt.NDArray[np.uint32]) -> None:
        self.index: int = window.index
        self.base = window.base
        self.slab = window.slab
        self.slab_address = window.slab_address
        self.columns = columns


def engine_windows(windows: Sequence[Window]) -> list[EngineWindow]:
    """Windows for the memories. The columns of a turn's runs lie one behind the other in one table."""
    columns = np.zeros((COLUMN_ROWS, TURN_COLUMNS), np.uint32)
    return [EngineWindow(window, columns) for window in windows]


class _Part:
    """What a turn does for one export: a batch, and the entries that it was made of.

    Attributes:
        closed: nothing may join it.
        noted: entries whose ranges the intake knows. Those of reads matter only if a write follows.
    """

    __slots__ = ("batch", "closed", "entries", "noted")

    def __init__(self) -> None:
        self.batch = Batch(apart=True)
        self.entries: list[Entry] = []
        self.closed = False
        self.noted = 0


class Executor:
    """Serves the windows from the memories; ``turn`` does what is waiting, or a bounded part of it.

    Args:
        memories: one for each export, in their order.
        windows: as the memories know them, from ``engine_windows``.
        corrupt: called with a window whose ring holds what no ring can; it is not served any more.
        timing: times the stages of each batch; without it nothing is wrapped.
    """

    def __init__(
        self,
        shared: Shared,
        memories: Sequence[Memory],
        windows: Sequence[EngineWindow],
        corrupt: Callable[[int], None] = lambda window: None,
        timing: EngineTiming | None = None,
    ) -> None:
        self._windows = shared.windows
        self._doorbells = [
            worker_doorbell(window, pipe)
            for window, pipe in zip(shared.windows, shared.doorbells, strict=True)
        ]
        self._control = shared.control
        self._control_words = shared.control.words
        self._counters = shared.control.engine_counters
        self._memories = memories
        self._read_only = [export.read_only for export in shared.settings.exports]
        self._written = shared.written
        self._lost = [False] * len(memories)
        self._held = [True] * len(memories)
        self._sizes = [memory.size_bytes for memory in memories]
        self._intakes = [
            Intake(memory.size_bytes, memory.arena_bytes, written.blocks.data)
            for memory, written in zip(memories, shared.written, strict=True)
        ]
        self._suspects = [Suspects(intake) for intake in self._intakes]
        self._rings = [CompletionRing(window) for window in shared.windows]
        self._slab_bytes = [len(window.slab) for window in shared.windows]
        self._bases = [window.base for window in shared.windows]
        self._heads = [window.load(Word.DONE) for window in shared.windows]
        self._corrupt = [False] * len(shared.windows)
        self._theirs = [Columns(window.columns.data) for window in shared.windows]
        self._columns = Columns(windows[0].columns.data)
        self._report_corrupt = corrupt
        self._fences = Fences(shared.client_windows, self._doorbells, self._heads, self._corrupt)
        self._turns = self._looks = self._next = 0
        self._progress = 0
        self._mismatch = False
        #: Shared memory only shows the counters; they are kept here.
        self._cells = self._counters.cells
        self.counts = memoryview(bytearray(8 * len(self._cells))).cast("q")
        self.counts[:] = self._cells
        self._log = logs.get()
        # What the turn has taken so far.
        self._parts: dict[int, _Part] = {}
        self._taken: list[int] = []
        #: Windows that had an entry refused since their last run of reads: what the next one would join may
        #: have been that, and before it in the batch is another, with replies between that are laid already.
        self._refused: set[int] = set()
        self._used = self._requests = self._payload_bytes = self._zero_bytes = 0
        if timing is not None:
            self._take = timing.take(self._take, self._heads)  # type: ignore[assignment, method-assign]
            self._execute = timing.execute(self._execute)  # type: ignore[assignment, method-assign]
            self.turn = timing.turn(self.turn, lambda: self._requests)  # type: ignore[method-assign]

    def waiting(self) -> bool:
        """Whether a window holds entries that can be taken; now and then also whether a fence can pass."""
        index = 0
        for head in self._heads:
            tail = self._rings[index].tail()
            if tail != head and not self._corrupt[index]:
                if not self._fences.held or self._fences.limit(index, tail) != head:
                    return True
            index += 1
        self._looks += 1
        return not self._looks % _FENCE_LOOKS and self._fences.waiting()

    def idle(self) -> bool:
        """Whether there is nothing to do at all, fences included."""
        return not self.waiting() and not self._fences.waiting()

    def turn(self) -> bool:
        """Execute what is queued, or a bounded part of it; False if there was nothing."""
        self._turns += 1
        passed = not self._turns % _FENCE_TURNS and self._fences.serve()
        self._used = self._requests = self._payload_bytes = self._zero_bytes = 0
        rings, heads = self._rings, self._heads
        count = len(rings)
        index = self._next
        waits, full = -1, False
        for _ in range(count):
            if index >= count:
                index = 0
            if rings[index].tail() != heads[index] and not self._corrupt[index]:
                if not self._take(index) and waits < 0:
                    waits = index
                if self._payload_bytes >= _TURN_BYTES or self._zero_bytes >= _TURN_ZERO_BYTES:
                    self._next, full = index + 1, True  # the others come first next time
                    break
            index += 1
        if waits >= 0 and not (full and self._turns & 1):
            self._next = waits  # what comes first in a turn waits for nothing
        taken = self._taken
        if not taken:
            return self._fences.serve() or passed
        try:
            for export, part in self._parts.items():
                try:
                    if part.entries:
                        self._execute(export, part)
                except Exception:
                    self._note_internal(export)
                    for each in part.entries:
                        self._refuse(each.window, each.number, each.op, each.first, each.count, Error.EIO)
        finally:
            self._parts.clear()
            for index in taken:
                rings[index].complete(heads[index])
            full_barrier()
            for index in taken:
                self._doorbells[index].wake_unordered()
            taken.clear()
        counts, cells = self.counts, self._cells
        bucket = self._counters.batch_index(self._requests)
        counts[_BATCHES] = cells[_BATCHES] = counts[_BATCHES] + 1 & _MASK63
        requests = counts[_BATCH_REQUESTS] + self._requests & _MASK63
        counts[_BATCH_REQUESTS] = cells[_BATCH_REQUESTS] = requests
        counts[bucket] = cells[bucket] = counts[bucket] + 1 & _MASK63
        return True

    def taken(self, windows: Iterable[int]) -> int:
        """Entries of these windows that were executed so far."""
        return sum(self._heads[index] for index in windows)

    def drain_window(self, index: int) -> None:
        """Finish all that a dead worker had queued; its window may then be made clean."""
        tail = self._rings[index].tail()
        # What is held from there on must not run any more: later connections have been served since.
        while self._heads[index] < self._fences.limit(index, tail) and not self._corrupt[index]:
            self.turn()
        # Before the supervisor makes the window clean: else old entries would look like new ones.
        self._rings[index].forget()
        self._heads[index] = 0
        self._corrupt[index] = False
        self._fences.forget(index)

    # Taking

    def _take(self, index: int) -> bool:
        """Take entries of a window; False if one has to wait for the next turn."""
        before = head = self._heads[index]
        ring = self._rings[index]
        tail = ring.tail()
        if not 0 < tail - head <= ENTRIES:
            self._corrupt[index] = True
            self._log.error("ring_corrupt", window=index)
            self._report_corrupt(index)
            return True
        if self._fences.held:
            tail = self._fences.limit(index, tail)
        all_taken = True
        while head < tail:
            entry = ring.entry(head)
            if entry[0] != _NOTHING:
                try:
                    if not self._add(index, head, entry):
                        all_taken = False
                        break
                except Exception:
                    self._note_internal(entry[1])
                    self._refuse(index, head, entry[0], entry[2], entry[3], Error.EIO)
            head += 1
            if self._payload_bytes >= _TURN_BYTES or self._zero_bytes >= _TURN_ZERO_BYTES:
                break
        if head != before:
            self._heads[index] = head
            self._taken.append(index)
        return all_taken

    def _add(self, index: int, number: int, entry: tuple[int, ...]) -> bool:
        """Make an entry part of the turn, or refuse it; False if it has to wait for the next turn."""
        op, export, first, count, lo, hi, offset, length, flags = entry
        sane = export < len(self._memories) and lo <= hi <= self._slab_bytes[index]
        if op <= _SCATTER:
            sane = sane and first + count <= COLUMNS
        elif op == _ECHO:
            sane = sane and offset + hi - lo <= self._slab_bytes[index]
        else:
            sane = (
                sane
                and op <= _ZERO
                and (length <= MOST_ZERO_BYTES if op == _ZERO else hi - lo == length)
                and offset + length <= self._sizes[export]
            )
        if not sane:
            self._refuse(index, number, op, first, count, Error.EINVAL)
            return True
        if not self._held[export] and op != _ECHO:
            self._refuse(index, number, op, first, count, Error.EIO)  # only a faulty worker asks for it
            return True
        if self._read_only[export] and op in _WRITING:
            self._refuse(index, number, op, first, count, Error.EPERM)
            return True
        intake = self._intakes[export]
        part = self._parts.get(export)
        if part is None:
            part = self._parts[export] = _Part()
            intake.begin()
        elif part.closed:
            return False
        if op in _WRITING:
            self._note(intake, part)
        batch = part.batch
        at = self._used
        ranges: Sequence[tuple[int, int]] = ()
        if op == _GATHER or op == _SCATTER:
            if at + count > TURN_COLUMNS:
                return False
            base = self._bases[index]
            rank = _ANY if op == _GATHER else 0
            found = intake.take_run(
                self._theirs[index], self._columns, first, at, count, base + lo, base + hi, rank
            )
            if found == REFUSED:
                self._refuse(index, number, op, first, count, Error.EINVAL)
                return True
            if found < 0:
                if found == WAIT:
                    return False
                places = [intake.place(self._columns, column) for column in range(at, at + count)]
                if any(self._suspects[export].touches(*place) for place in places):
                    if part.entries:
                        return False
                    part.closed = True
                found = sum(size for _, size in places)
            self._used += count
            self._payload_bytes += found
            part.entries.append(Entry(index, number, op, first, at, count, lo, hi, 0, 0, flags, ranges))
            if op == _GATHER:
                joins = bool(flags & GATHER_JOINS) and index not in self._refused
                self._refused.discard(index)
                if part.noted and batch.apart and intake.meets(self._columns, at, count, _RANKS[_GATHER]):
                    batch.apart = False
                batch.reads.append(Run(index, at, count, lo, hi, joins))
            else:
                self._note(intake, part)
                batch.writes.append(Run(index, at, count, lo, hi))
        elif op == _ECHO:
            self._payload_bytes += hi - lo
            part.entries.append(Entry(index, number, op, 0, 0, 1, lo, hi, offset, length, flags, ranges))
            batch.echoes.append(Copy(index, lo, hi, offset))
        else:
            rank = _MUST_NOT_MEET[op]
            if op == _ZERO:
                ranges = self._ranges_to_zero(export, offset, length)
            found = 0
            for place, size in ranges if op == _ZERO else ((offset, length),):
                seen = intake.scan(place, size, rank)
                found = seen or found
                if seen == WAIT:
                    break
            if found == WAIT:
                return False
            if found == SUSPECT and self._suspects[export].touches(offset, length):
                if part.entries:
                    return False
                part.closed = True
            part.entries.append(Entry(index, number, op, 0, 0, 1, lo, hi, offset, length, flags, ranges))
            if op == _COPY_OUT:
                self._payload_bytes += length
                batch.copies_out.append(Copy(index, lo, hi, offset))
            elif op == _COPY_IN:
                self._payload_bytes += length
                self._note(intake, part)
                batch.copies_in.append(Copy(index, lo, hi, offset))
            else:
                self._note(intake, part)
                if not flags & ZERO_HOLE:
                    self._mark_range(export, offset, length)
                for place, size in ranges:
                    self._zero_bytes += size
                    batch.zeroes.append(Zero(place, size))
        self._requests += count
        return True

    def _note(self, intake: Intake, part: _Part) -> None:
        """Have the intake know what all entries of a part touch, and mark what they write."""
        entries = part.entries
        for number in range(part.noted, len(entries)):
            entry = entries[number]
            op = entry.op
            if op == _GATHER or op == _SCATTER:
                intake.commit_run(self._columns, entry.at, entry.count, _RANKS[op], op == _SCATTER)
            elif op == _ZERO:
                for place, size in entry.ranges:
                    intake.commit(place, size, _RANKS[op], False)
            elif op != _ECHO:
                intake.commit(entry.offset, entry.length, _RANKS[op], op == _COPY_IN)
        part.noted = len(entries)

    def _ranges_to_zero(self, export: int, offset: int, length: int) -> list[tuple[int, int]]:
        """What of a range does not read as zeroes already, with small gaps between."""
        found: list[tuple[int, int]] = []
        if not length:
            return found
        # In a piece that its worker took for unwritten, gaps would be most of it.
        gap = _ZERO_GAP_BYTES if length <= _TURN_ZERO_BYTES else 0
        for extent, holds in self._written[export].extents(offset, length):
            if holds:
                if found and offset - sum(found[-1]) <= gap:
                    found[-1] = (found[-1][0], offset + extent - found[-1][0])
                else:
                    found.append((offset, extent))
            offset += extent
        return found

    # Executing

    def _execute(self, export: int, part: _Part) -> None:
        if self._run(export, part.batch) is None:
            for entry in part.entries:
                if entry.op == _ZERO:
                    self._unmark(export, entry)
        else:
            self._isolate(export, part.entries)

    def _run(self, export: int, batch: Batch, *, alone: bool = False) -> int | None:
        """NBD errno of executing a batch, None for success."""
        if self._lost[export]:
            return int(Error.EIO)
        self._mismatch = False
        control = self._control_words
        control[_SINCE] = time.monotonic_ns()
        control[_EXPORT] = export + 1
        try:
            self._memories[export].execute(batch)
            return None
        except DeviceError as failure:
            self._note_failure(export, failure, alone=alone)
            return int(failure.errno)
        except Exception:
            self._note_internal(export)
            return int(Error.EIO)
        finally:
            self._end_of_work()

    def _isolate(self, export: int, entries: Sequence[Entry]) -> None:
        """Repeat each request of an export by itself and note which of them fail."""
        for entry in entries:
            try:
                status = self._repeat(export, entry)
            except Exception:
                self._note_internal(export)
                self._refuse(entry.window, entry.number, entry.op, entry.first, entry.count, Error.EIO)
            else:
                if status is not None:
                    self._rings[entry.window].fail(entry.number, status)

    def _repeat(self, export: int, entry: Entry) -> int | None:
        """NBD errno of executing one entry by itself, None for success."""
        if entry.op == _GATHER or entry.op == _SCATTER:
            return self._repeat_run(export, entry)
        status = self._run(export, _single(entry), alone=True)
        if status is None:
            if entry.op == _ZERO:
                self._unmark(export, entry)
        elif entry.op != _ECHO:
            self._blame(export, entry.offset, entry.length)
        return status

    def _repeat_run(self, export: int, entry: Entry) -> int | None:
        columns, base = self._columns, self._bases[entry.window]
        ring = self._rings[entry.window]
        worst = None
        for number in range(entry.count):
            column = entry.at + number
            lo = columns.position(column) - base
            hi = lo + columns.length(column)
            batch = Batch()
            runs = batch.reads if entry.op == _GATHER else batch.writes
            runs.append(Run(entry.window, column, 1, lo, hi))
            status = self._run(export, batch, alone=True)
            ring.set_column_status(entry.first + number, 1, status or 0)
            if status is not None:
                self._blame(export, *self._intakes[export].place(self._columns, column))
                worst = worst or status
        return worst

    def _blame(self, export: int, offset: int, length: int) -> None:
        """A request for a range has failed by itself: later ones are executed alone."""
        if self._lost[export]:
            return
        self._suspects[export].failed(offset, length)
        if self._mismatch:
            # Else zeroing would pass over a block that was never written, and it would stay unreadable.
            self._mark_range(export, offset, length)

    # Noting

    def _refuse(self, index: int, number: int, op: int, first: int, count: int, errno: int) -> None:
        """Complete an entry with an error for all of its requests."""
        self._refused.add(index)
        if op <= _SCATTER:
            self._rings[index].set_column_status(first, count, errno)
        self._rings[index].fail(number, errno)

    def copies(self, export: int) -> Copies | None:
        """Copies of an export without a batch, for as long as ``needs_batches`` is false; None if never."""
        return self._memories[export].copies()

    def hold(self, export: int, held: bool) -> None:
        """The memory of an export is there from now on, or is not: then its requests fail, but for echoes."""
        self._held[export] = held
        if not held:
            self._suspects[export].clear()
            self._written[export].blocks[:] = 0

    def apart(self, export: int, work: Callable[[], bool]) -> bool:
        """Do something with an export's memory that is no request. The observer sees a busy engine."""
        control = self._control_words
        control[_SINCE] = time.monotonic_ns()
        control[_EXPORT] = export + 1
        try:
            return work()
        finally:
            self._end_of_work()

    def _end_of_work(self) -> None:
        self._control_words[_EXPORT] = 0
        self._progress += 1
        self._control_words[_PROGRESS] = self._progress & _MASK64

    def needs_batches(self, export: int) -> bool:
        """Whether requests have failed lately, so that each must be looked at."""
        return self._lost[export] or bool(self._suspects[export])

    def note_failure(self, export: int, failure: DeviceError) -> None:
        """Copies outside of a batch have failed."""
        self._note_failure(export, failure, alone=False)

    def repeat_copy(self, export: int, copy: Copy, *, reads: bool) -> int:
        """Do one of them by itself; NBD errno, 0 for success."""
        batch = Batch()
        (batch.copies_out if reads else batch.copies_in).append(copy)
        status = self._run(export, batch, alone=True)
        if status is None:
            return 0
        self._blame(export, copy.offset, copy.hi - copy.lo)
        return status

    def count(self, index: int, amount: int = 1) -> None:
        """Add to a cell of ``EngineCounters``."""
        self.counts[index] = self._cells[index] = self.counts[index] + amount & _MASK63

    def add(self, name: str, amount: int = 1) -> None:
        """Add to one of ``counters.ENGINE_SCALARS``."""
        self.count(self._counters.scalar_index(name), amount)

    def _note_failure(self, export: int, failure: DeviceError, *, alone: bool) -> None:
        if isinstance(failure, ChecksumError):
            self._mismatch = True
            if alone:  # what a whole batch has met is met again by one of its requests
                self.add("checksum_mismatches", failure.blocks)
                logs.limited(
                    self._log, "checksum_mismatch", level="error", export=export, blocks=failure.blocks,
                    offset=failure.offset,
                )  # fmt: skip
            return
        self.add("device_errors")
        if failure.lost and not self._lost[export]:
            self._lost[export] = True
            self.add("device_lost")
            self._log.error("device_lost", export=export, detail=failure.detail)
        else:
            logs.limited(self._log, "device_error", export=export, detail=failure.detail)

    def note_internal(self, export: int) -> None:
        """As ``note_failure``, after an exception that nobody foresaw; called while it is handled."""
        self._note_internal(export)

    def _note_internal(self, export: int) -> None:
        """An exception that nobody foresaw; called while it is handled."""
        self.add("internal_errors")
        logs.limited(self._log, "internal_error", level="critical", export=export, exc_info=True)

    def _mark_range(self, export: int, offset: int, length: int) -> None:
        self._written[export].blocks[offset // BLOCK_BYTES : -(-(offset + length) // BLOCK_BYTES)] = 1

    def _unmark(self, export: int, entry: Entry) -> None:
        """After zeroing: whole blocks become unwritten, or written ones if no hole is wanted."""
        if not entry.flags & ZERO_HOLE:
            self._mark_range(export, entry.offset, entry.length)  # a hole before it may have unmarked them
            return
        size_bytes = self._memories[export].size_bytes
        for offset, length in entry.ranges:
            end = offset + length
            last = -(-end // BLOCK_BYTES) if end == size_bytes else end // BLOCK_BYTES
            first = -(-offset // BLOCK_BYTES)
            if first < last:
                self._written[export].blocks[first:last] = 0


def _single(entry: Entry) -> Batch:
    batch = Batch()
    if entry.op == _ZERO:
        batch.zeroes += [Zero(offset, length) for offset, length in entry.ranges]
        return batch
    copies = {_COPY_OUT: batch.copies_out, _COPY_IN: batch.copies_in, _ECHO: batch.echoes}[entry.op]
    copies.append(Copy(entry.window, entry.lo, entry.hi, entry.offset))
    return batch
