"""Executes what the workers have queued. It knows rings and memories, no process and no message.

One turn takes everything that all windows hold, makes one batch of it for each export, executes
it, and only then says that the entries are done. When a batch fails its requests are repeated one
by one, so that an error hits the request it belongs to: reads, writes and zeroing may be repeated,
since none of them has been acknowledged.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from . import logs
from .memory.base import Batch, ChecksumError, Copy, DeviceError, Memory, Run, Zero
from .nbd.constants import Error
from .shared.barrier import full_barrier
from .shared.context import Shared
from .shared.marks import mark_run
from .shared.window import COLUMNS, ENTRIES, ENTRY, ENTRY_BYTES, GATHER_JOINS, ZERO_HOLE, Op, Window, Word
from .shared.written import BLOCK_BYTES

_TAIL, _DONE, _FAILURES, _SLEEPING = (
    word * 8 for word in (Word.TAIL, Word.DONE, Word.FAILURES, Word.WORKER_SLEEPING)
)
_GATHER, _SCATTER, _COPY_OUT, _COPY_IN, _ZERO, _ECHO = (
    int(op) for op in (Op.GATHER, Op.SCATTER, Op.COPY_OUT, Op.COPY_IN, Op.ZERO, Op.ECHO)
)


class Executor:
    """Serves the windows from the memories; ``turn`` does everything that is waiting.

    Args:
        memories: one for each export, in their order.
    """

    def __init__(self, shared: Shared, memories: Sequence[Memory]) -> None:
        self._windows = shared.windows
        self._bells = shared.bells
        self._control = shared.control
        self._counters = shared.control.engine_counters
        self._memories = memories
        self._written = shared.written
        self._lost = [False] * len(memories)
        self._words = [window.words for window in shared.windows]
        self._slab_bytes = [len(window.slab) for window in shared.windows]
        self._heads = [window.load(Word.DONE) for window in shared.windows]
        self._columns = [window.columns.data for window in shared.windows]
        self._blocks = [written.blocks.data for written in shared.written]
        self._arena_blocks = [-(-memory.arena_bytes // BLOCK_BYTES) for memory in memories]
        self._log = logs.get()

    def waiting(self) -> bool:
        """Whether a window holds entries that were not taken yet."""
        index = 0
        for head in self._heads:
            if self._words[index][_TAIL] != head:
                return True
            index += 1
        return False

    def turn(self) -> bool:
        """Execute all that is queued; False if there was nothing."""
        heads = self._heads
        taken: list[tuple[int, int, int]] = []
        batches: dict[int, Batch] = {}
        requests = 0
        for index, words in enumerate(self._words):
            tail = words[_TAIL]
            head = heads[index]
            if tail != head:
                if not 0 < tail - head <= ENTRIES:
                    self._drop_entries(index, tail)
                    continue
                requests += self._decode(index, head, tail, batches)
                taken.append((index, head, tail))
                heads[index] = tail
        if not taken:
            return False
        for export, batch in batches.items():
            self._execute(export, batch, taken)
        for index, _, tail in taken:
            self._words[index][_DONE] = tail
        full_barrier()
        for index, _, _ in taken:
            if self._words[index][_SLEEPING]:
                os.eventfd_write(self._bells[index], 1)
        cells = self._counters.cells
        cells[0] += 1
        cells[1] += requests
        cells[self._counters.batch_index(requests)] += 1
        return True

    def _drop_entries(self, index: int, tail: int) -> None:
        """A worker says that it has queued what its ring cannot hold: it has gone mad, and is left alone."""
        self._heads[index] = self._words[index][_DONE] = tail
        logs.limited(self._log, "ring_corrupt", level="error", window=index)

    def retire(self, index: int) -> None:
        """Finish all that a dead worker had queued; its window may then be made clean."""
        while self._words[index][_TAIL] != self._heads[index]:
            self.turn()
        # Before the supervisor makes the window clean: else old entries would look like new ones.
        self._words[index][_TAIL] = self._words[index][_DONE] = 0
        self._heads[index] = 0

    def _decode(self, index: int, head: int, tail: int, batches: dict[int, Batch]) -> int:
        entries = self._windows[index].entries
        requests = 0
        while head != tail:
            op, export, first, count, lo, hi, offset, length, flags = ENTRY.unpack_from(
                entries, head % ENTRIES * ENTRY_BYTES
            )
            head += 1
            requests += count
            if not self._sane(index, op, export, first, count, lo, hi, offset, length):
                self._fail_entry(index, head - 1, Error.EINVAL)
                continue
            batch = batches.get(export)
            if batch is None:
                batch = batches[export] = Batch()
            if op == _GATHER:
                batch.reads.append(Run(index, first, count, lo, hi, bool(flags & GATHER_JOINS)))
            elif op == _SCATTER:
                blocks, arena_blocks = self._blocks[export], self._arena_blocks[export]
                if not mark_run(blocks, arena_blocks, self._columns[index], first, count):
                    self._fail_entry(index, head - 1, Error.EINVAL)
                    continue
                batch.writes.append(Run(index, first, count, lo, hi))
            elif op == _COPY_OUT:
                batch.copies_out.append(Copy(index, lo, hi, offset))
            elif op == _COPY_IN:
                batch.copies_in.append(Copy(index, lo, hi, offset))
                self._mark_range(export, offset, length)
            elif op == _ZERO:
                batch.zeroes.append(Zero(offset, length))
            else:
                batch.echoes.append(Copy(index, lo, hi, offset))
        return requests

    def _execute(self, export: int, batch: Batch, taken: Sequence[tuple[int, int, int]]) -> None:
        error: DeviceError | None = None
        if not self._lost[export]:
            try:
                self._memories[export].execute(batch)
            except DeviceError as failure:
                error = failure
                self._note(export, failure)
            if error is None:
                if batch.zeroes:
                    self._unmark_zeroes(export, taken)
                return
        self._isolate(export, taken)

    def _unmark_zeroes(self, export: int, taken: Sequence[tuple[int, int, int]]) -> None:
        for index, head, tail in taken:
            entries = self._windows[index].entries
            for number in range(head, tail):
                entry = ENTRY.unpack_from(entries, number % ENTRIES * ENTRY_BYTES)
                if entry[0] == _ZERO and entry[1] == export and self._sane(index, *entry[:8]):
                    self._unmark(export, entry[6], entry[7], entry[8])

    def _isolate(self, export: int, taken: Sequence[tuple[int, int, int]]) -> None:
        """Repeat each request of an export by itself and note which of them fail."""
        for index, head, tail in taken:
            window = self._windows[index]
            for number in range(head, tail):
                slot = number % ENTRIES
                op, entry_export, first, count, lo, hi, offset, length, flags = ENTRY.unpack_from(
                    window.entries, slot * ENTRY_BYTES
                )
                if entry_export != export or not self._sane(
                    index, op, export, first, count, lo, hi, offset, length
                ):
                    continue
                # Marked again, since a zeroing that was repeated before it may have unmarked its blocks.
                if op == _SCATTER:
                    mark_run(
                        self._blocks[export], self._arena_blocks[export], self._columns[index], first, count
                    )
                elif op == _COPY_IN:
                    self._mark_range(export, offset, length)
                if op in (_GATHER, _SCATTER):
                    status = self._isolate_run(export, window, op, first, count)
                else:
                    status = self._attempt(export, _single(op, index, lo, hi, offset, length))
                    if op == _ZERO and not status:
                        self._unmark(export, offset, length, flags)
                if status:
                    self._fail_entry(index, number, status)

    def _fail_entry(self, index: int, number: int, status: int) -> None:
        self._windows[index].entry_status[number % ENTRIES] = status
        self._words[index][_FAILURES] += 1

    def _sane(
        self,
        index: int,
        op: int,
        export: int,
        first: int,
        count: int,
        lo: int,
        hi: int,
        offset: int,
        length: int,
    ) -> bool:
        """Whether an entry stays within its window and export.

        The places in a run's columns are checked by the kernels, which know the slabs only as a whole.
        """
        if export >= len(self._memories) or not lo <= hi <= self._slab_bytes[index]:
            return False
        if op <= _SCATTER:
            return first + count <= COLUMNS
        if op == _ECHO:
            return offset + hi - lo <= self._slab_bytes[index]
        if op != _ZERO and hi - lo != length:
            return False
        return op <= _ZERO and offset + length <= self._memories[export].size_bytes

    def _isolate_run(self, export: int, window: Window, op: int, first: int, count: int) -> int:
        worst = 0
        for column in range(first, first + count):
            _, position4, shape, _, _ = (int(value) for value in window.columns[:, column])
            lo = position4 * 4 - window.base
            hi = lo + (shape & 0xFFFF) * 16 + (shape >> 16 & 0xF) * 4
            run = Run(window.index, column, 1, lo, hi)
            batch = Batch()
            (batch.reads if op == _GATHER else batch.writes).append(run)
            status = self._attempt(export, batch)
            window.statuses[column] = status
            worst = worst or status
        return worst

    def _attempt(self, export: int, batch: Batch) -> int:
        """NBD errno of executing a batch by itself, 0 for success."""
        if self._lost[export]:
            return Error.EIO
        try:
            self._memories[export].execute(batch)
        except DeviceError as failure:
            self._note(export, failure, alone=True)
            return failure.errno
        return 0

    def _note(self, export: int, failure: DeviceError, *, alone: bool = False) -> None:
        if isinstance(failure, ChecksumError):
            if alone:  # what a whole batch has met is met again by one of its requests
                self._counters.add("checksum_mismatches", failure.blocks)
                logs.limited(
                    self._log, "checksum_mismatch", level="error", export=export, blocks=failure.blocks,
                    offset=failure.offset,
                )  # fmt: skip
            return
        self._counters.add("device_errors")
        if failure.lost and not self._lost[export]:
            self._lost[export] = True
            self._counters.add("device_lost")
            self._log.error("device_lost", export=export, detail=failure.detail)
        else:
            logs.limited(self._log, "device_error", export=export, detail=failure.detail)

    def _mark_range(self, export: int, offset: int, length: int) -> None:
        self._written[export].blocks[offset // BLOCK_BYTES : -(-(offset + length) // BLOCK_BYTES)] = 1

    def _unmark(self, export: int, offset: int, length: int, flags: int) -> None:
        """After zeroing: whole blocks become unwritten, or written ones where no hole is wanted."""
        if not flags & ZERO_HOLE:
            self._mark_range(export, offset, length)
            return
        end = offset + length
        last = -(-end // BLOCK_BYTES) if end == self._memories[export].size_bytes else end // BLOCK_BYTES
        first = -(-offset // BLOCK_BYTES)
        if first < last:
            self._written[export].blocks[first:last] = 0


def _single(op: int, index: int, lo: int, hi: int, offset: int, length: int) -> Batch:
    batch = Batch()
    if op == _COPY_OUT:
        batch.copies_out.append(Copy(index, lo, hi, offset))
    elif op == _COPY_IN:
        batch.copies_in.append(Copy(index, lo, hi, offset))
    elif op == _ZERO:
        batch.zeroes.append(Zero(offset, length))
    else:
        batch.echoes.append(Copy(index, lo, hi, offset))
    return batch
