"""Which values each unit of an export may hold, and whether a read returned one of them.

A unit is 16 bytes: the granularity of the server's plain requests. Each write puts a stamp into every
unit. The stamp tells which write has left what a read finds; see ``stamps``.

Time is a counter that grows with each event in this process: a request is submitted, a reply is taken, a
connection ends. An operation lives from its ``start`` to its ``end``: its effect falls between the two.

- A success ends an operation when its reply is taken.
- An error also ends it, but it may have had its effect or not, for each unit.
- The death of its connection does not end it. It ends when a connection that was opened after the death
  completes negotiation. Until then it may still happen.

A read may return a value if its operation was submitted before the read ended, and nothing replaced the
value before the read was submitted. Two things replace a value whose operation has ended:

- a later operation that succeeded (it started after that end), and
- a read that returned another value (it started after that end): what it did not see any more cannot
  come back.

Units that a write covers in part are ``ragged``. They are checked byte by byte against the operations
that touched their block, until a later operation covers them whole. Other units that hold no whole value are
checked in the same way: a large write is executed in pieces, which end anywhere.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from .operations import NEVER, Op, Read
from .stamps import UNIT, Stamps, Truths

BLOCK = 4096
_LOG_LENGTH = 40_000
_PRUNE_AT = 48


class Model:
    """What an export of zeroes may hold after the operations that it is told of.

    Attributes:
        violations: each with the unit, what was found there, and why that may not be.
        now: the clock.
    """

    def __init__(self, size_bytes: int) -> None:
        units = size_bytes // UNIT
        self.size_bytes = size_bytes
        self.now = 1
        self.violations: list[str] = []
        self._stamps = Stamps(units)
        self._ends = np.zeros(1 << 16, np.int32)
        self._next = 1
        #: For each unit: the latest start of an operation that succeeded; that of a read, and its value;
        #: the latest end of an operation that wrote zeroes.
        self._floor = np.zeros(units, np.int32)
        self._seen = np.zeros(units, np.int32)
        self._holder = np.zeros(units, np.int32)
        self._zeroed = np.zeros(units, np.int32)
        self._ragged = np.zeros(units, bool)
        #: Units that were found wrong: reported once, and not checked any more.
        self._spoiled = np.zeros(units, bool)
        self._blocks: dict[int, list[Op]] = {}
        self._zeroes: dict[int, Op] = {}
        self._dead: list[tuple[int, Op]] = []
        self._reads: dict[int, Read] = {}
        self._log: deque[Op] = deque(maxlen=_LOG_LENGTH)
        self._began_s = time.monotonic()

    def tick(self) -> int:
        self.now += 1
        return self.now

    # Operations

    def write(self, offset: int, length: int, client: str) -> tuple[Op, bytes]:
        """A write is submitted; the operation and its payload."""
        op = self._begin("write", offset, offset + length, (offset, offset + length), client)
        return op, self.content(op, offset, offset + length)

    def zero(self, kind: str, offset: int, length: int, client: str) -> Op:
        """TRIM or WRITE_ZEROES is submitted. TRIM may leave the ends, which are not whole blocks, as they are."""
        lo, hi = offset, offset + length
        if kind == "trim":
            lo, hi = -(-lo // BLOCK) * BLOCK, hi // BLOCK * BLOCK
            hi = max(lo, hi)
        return self._begin(kind, lo, hi, (offset, offset + length), client)

    def _begin(self, kind: str, lo: int, hi: int, reach: tuple[int, int], client: str) -> Op:
        number = self._next
        self._next += 1
        if number == len(self._ends):
            self._ends = np.concatenate([self._ends, np.zeros(number, np.int32)])
        op = Op(number, kind, lo, hi, reach, client)
        op.start = self.tick()
        self._ends[number] = NEVER
        self._log.append(op)
        if op.zero:
            self._zeroes[number] = op
        first, last = reach
        for block in range(first // BLOCK, -(-last // BLOCK)):
            ops = self._blocks.get(block)
            if ops is None:
                ops = self._blocks[block] = []
            ops.append(op)
            if len(ops) >= _PRUNE_AT:
                self._prune(block, ops)
        for at in {first, last, lo, hi}:
            if at % UNIT:
                self._ragged[at // UNIT] = True
        return op

    def content(self, op: Op, lo: int, hi: int) -> bytes:
        """The bytes [lo, hi) of the export as the operation leaves them."""
        return bytes(hi - lo) if op.zero else self._stamps.content(op.number, lo, hi)

    def succeed(self, op: Op) -> None:
        """Its reply was a success."""
        op.succeeded = True
        self._end(op, "success")
        units = slice(-(-op.lo // UNIT), op.hi // UNIT)
        if units.start < units.stop:
            floor = self._floor[units]
            np.maximum(floor, op.start, out=floor)

    def fail(self, op: Op, error: int) -> None:
        """Its reply was an error; it may have left old or new values, for each unit."""
        self._end(op, f"error {error}")

    def orphan(self, op: Op) -> None:
        """Its connection died; it may still happen."""
        op.outcome = "connection died"
        op.ended_s = time.monotonic()
        self._dead.append((self.tick(), op))

    def negotiated(self, opened: int) -> None:
        """A connection that was opened at that time has completed negotiation."""
        if self._dead:
            left = []
            for died, op in self._dead:
                if died < opened:
                    self._end(op, f"connection died at {self._seconds(op.ended_s)}, another negotiated")
                else:
                    left.append((died, op))
            self._dead = left

    def _end(self, op: Op, outcome: str) -> None:
        op.outcome = outcome
        op.ended_s = time.monotonic()
        op.end = self._ends[op.number] = self.tick()
        if op.zero:
            del self._zeroes[op.number]
            first, last = op.reach
            zeroed = self._zeroed[-(-first // UNIT) : last // UNIT]
            np.maximum(zeroed, op.end, out=zeroed)

    def _prune(self, block: int, ops: list[Op]) -> None:
        """Forget operations that no read in flight, and no later one, may see in this block."""
        horizon = min((read.start for read in self._reads.values()), default=self.now)
        lo, hi = block * BLOCK, (block + 1) * BLOCK
        covers = [
            (max(op.lo, lo), min(op.hi, hi), op.start) for op in ops if op.succeeded and op.end < horizon
        ]
        ops[:] = [
            op
            for op in ops
            if not any(
                start > op.end and first <= max(op.reach[0], lo) and min(op.reach[1], hi) <= last
                for first, last, start in covers
            )
        ]

    # Reads

    def submit_read(self, offset: int, length: int) -> Read:
        read = Read(offset, length, self.tick())
        units = slice(offset // UNIT, -(-(offset + length) // UNIT))
        read.floor = self._floor[units].copy()
        read.seen = self._seen[units].copy()
        read.holder = self._holder[units].copy()
        self._reads[id(read)] = read
        return read

    def drop_read(self, read: Read) -> None:
        """It failed, or its connection died."""
        del self._reads[id(read)]

    def finish_read(self, read: Read, data: bytes | bytearray | memoryview) -> None:
        """Check what a read returned, and learn from it."""
        self.drop_read(read)
        self.tick()
        offset, end = read.offset, read.offset + len(data)
        first, last = -(-offset // UNIT), end // UNIT
        if first > last:  # within one unit
            self._check_bytes(first - 1, offset, end, data, read.start)
            return
        if offset % UNIT:
            self._check_bytes(first - 1, offset, first * UNIT, data[: first * UNIT - offset], read.start)
        if end % UNIT:
            self._check_bytes(last, last * UNIT, end, data[last * UNIT - offset :], read.start)
        if first < last:
            part = memoryview(data)[first * UNIT - offset : last * UNIT - offset]
            self._check_units(read, first, last, part)

    def check_hole(self, read: Read, offset: int, length: int) -> None:
        """An extent of a block status is said to read as zeroes; ``read`` stands for the request."""
        first, last = -(-offset // UNIT), (offset + length) // UNIT
        skip = first - read.offset // UNIT
        zeroes = np.ones(last - first, bool)
        legal = self._legal_zeroes(read, first, last, slice(skip, skip + last - first), zeroes)
        for index in np.flatnonzero(~legal & ~self._ragged[first:last] & ~self._spoiled[first:last])[
            :1
        ].tolist():
            self._spoiled[first + index] = True
            self._violate(first + index, "block status says that it reads as zeroes", read.start)

    def _check_units(self, read: Read, first: int, last: int, part: memoryview) -> None:
        skip = first - read.offset // UNIT
        here = slice(skip, skip + last - first)
        values, stamped, zero = self._stamps.attribute(first, last, part, self._next)
        ends = self._ends[values]
        legal = stamped & (ends >= read.floor[here])
        legal &= (ends >= read.seen[here]) | (values == read.holder[here])
        if zero.any():
            legal |= self._legal_zeroes(read, first, last, here, zero)
        whole = stamped | zero
        # A unit that is mended below was still ragged for this read.
        by_bytes = self._ragged[first:last] | ~whole
        wrong = np.flatnonzero(~legal & ~by_bytes & ~self._spoiled[first:last])
        if len(wrong):
            self._explain(read, first + int(wrong[0]), int(values[wrong[0]]), len(wrong))
            self._spoiled[first:last] |= ~legal
            return
        for index in np.flatnonzero(by_bytes & ~self._spoiled[first:last]).tolist():
            unit, at = first + index, index * UNIT
            if not self._check_bytes(unit, unit * UNIT, unit * UNIT + UNIT, part[at : at + UNIT], read.start):
                self._spoiled[first:last] |= ~whole
                break
        newer = (self._seen[first:last] < read.start) & legal & ~by_bytes
        np.copyto(self._seen[first:last], read.start, where=newer)
        np.copyto(self._holder[first:last], values, where=newer)

    def _legal_zeroes(self, read: Read, first: int, last: int, here: slice, zero: Any) -> Truths:
        ends = self._zeroed[first:last]
        if self._zeroes:
            ends = ends.copy()
            for op in self._zeroes.values():
                lo = max(-(-op.reach[0] // UNIT), first)
                hi = min(op.reach[1] // UNIT, last)
                if lo < hi:
                    ends[lo - first : hi - first] = NEVER
        legal = zero & (ends >= read.floor[here])
        legal &= (ends >= read.seen[here]) | (read.holder[here] == 0)
        return legal

    def _check_bytes(self, unit: int, lo: int, hi: int, data: Any, started: int) -> bool:
        """Check bytes of one unit by the operations on its block; False if they are wrong."""
        if self._spoiled[unit]:
            return True
        ops = self._blocks.get(lo // BLOCK, [])
        touching = [op for op in ops if op.reach[0] < unit * UNIT + UNIT and unit * UNIT < op.reach[1]]
        over = [op for op in touching if op.succeeded and op.end < started]
        floor = max((op.start for op in over if op.lo <= lo and hi <= op.hi), default=0)
        visible = [(op, self.content(op, lo, hi)) for op in touching if op.end >= floor]
        for index, byte in enumerate(bytes(data)):
            at = lo + index
            least = max((op.start for op in over if op.lo <= at < op.hi), default=0)
            if (byte or least) and not any(
                content[index] == byte and op.end >= least and op.reach[0] <= at < op.reach[1]
                for op, content in visible
            ):
                found = bytes(data).hex()
                self._violate(unit, f"{found}, of which no operation may have left byte {at:#x}", started)
                self._spoiled[unit] = True
                return False
        if self._ragged[unit]:
            self._mend(unit, touching)
        return True

    def _mend(self, unit: int, touching: list[Op]) -> None:
        """The unit is no longer ragged if a later operation covers it for every read in flight."""
        lo, hi = unit * UNIT, unit * UNIT + UNIT
        horizon = min((read.start for read in self._reads.values()), default=self.now)
        partial = max((op.end for op in touching if not (op.reach[0] <= lo and hi <= op.reach[1])), default=0)
        if any(
            op.succeeded and op.lo <= lo and hi <= op.hi and op.start > partial and op.end < horizon
            for op in touching
        ):
            self._ragged[unit] = False

    # Reports

    def _explain(self, read: Read, unit: int, number: int, count: int) -> None:
        floor = int(read.floor[unit - read.offset // UNIT])
        end = int(self._ends[number] if number else self._zeroed[unit])
        value = f"the value of operation {number}" if number else "zeroes"
        why = "a later operation had succeeded" if end < floor else "a read had found another value"
        self._violate(
            unit,
            f"{value}, but {why} before the read ({count} units of this read are wrong)",
            read.start,
            number,
        )

    def _violate(self, unit: int, what: str, started: int, number: int = 0) -> None:
        lines = [f"unit {unit} (bytes {unit * UNIT:#x} to {unit * UNIT + UNIT:#x}): found {what}"]
        lines.append(
            f"the read was submitted at clock {started}; now it is clock {self.now}, {self._seconds()}"
        )
        lines += self.history(unit, number)
        self.violations.append("\n  ".join(lines))

    def history(self, unit: int, number: int = 0, last: int = 12) -> Iterator[str]:
        """The last operations that touched a unit, oldest first, and the one with that number."""
        lo, hi = unit * UNIT, unit * UNIT + UNIT
        found = [op for op in self._log if op.reach[0] < hi and lo < op.reach[1]]
        kept = [op for op in found[:-last] if op.number == number] + found[-last:]
        for op in kept:
            end = "open" if op.end == NEVER else str(op.end)
            yield (
                f"operation {op.number} {op.kind} [{op.reach[0]:#x}, {op.reach[1]:#x}) by {op.client}: "
                f"clock {op.start} to {end}, {self._seconds(op.started_s)} to "
                f"{self._seconds(op.ended_s) if op.ended_s else 'now'}: {op.outcome}"
            )

    def _seconds(self, at_s: float | None = None) -> str:
        return f"{(at_s or time.monotonic()) - self._began_s:.3f} s"
