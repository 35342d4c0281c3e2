"""The checker of the soak run: it reports every history that may not be, and none that may be."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.soak.model import BLOCK, Model
from tests.soak.operations import Op, Read
from tests.soak.stamps import UNIT

SIZE = 8 * BLOCK
PLACE = 2 * BLOCK


class History:
    """A made-up history of one block, unless it says otherwise."""

    def __init__(self) -> None:
        self.model = Model(SIZE)

    def submit(self, kind: str = "write", offset: int = PLACE, length: int = BLOCK) -> Op:
        if kind == "write":
            return self.model.write(offset, length, "a client")[0]
        return self.model.zero(kind, offset, length, "a client")

    def done(self, kind: str = "write", offset: int = PLACE, length: int = BLOCK) -> Op:
        op = self.submit(kind, offset, length)
        self.model.succeed(op)
        return op

    def dead(self, kind: str = "write", offset: int = PLACE, length: int = BLOCK) -> Op:
        op = self.submit(kind, offset, length)
        self.model.orphan(op)
        return op

    def reconnect(self) -> None:
        self.model.negotiated(self.model.tick())

    def content(self, op: Op | None, lo: int = PLACE, hi: int = PLACE + BLOCK) -> bytes:
        return bytes(hi - lo) if op is None else self.model.content(op, lo, hi)

    def begin_read(self, offset: int = PLACE, length: int = BLOCK) -> Read:
        return self.model.submit_read(offset, length)

    def read(self, found: Op | bytes | None, offset: int = PLACE) -> None:
        """A read that returns these bytes, or what an operation has written there."""
        data = found if isinstance(found, bytes) else self.content(found, offset, offset + BLOCK)
        self.model.finish_read(self.begin_read(offset, len(data)), data)


def stale(history: History) -> None:
    old = history.done()
    history.done()
    history.read(old)


def lost(history: History) -> None:
    history.done()
    history.read(None)


def lost_zeroing(history: History) -> None:
    old = history.done()
    history.done("write zeroes")
    history.read(old)


def lost_trim(history: History) -> None:
    old = history.done()
    history.done("trim", PLACE - 100, BLOCK + 200)
    history.read(old)


def resurrected(history: History) -> None:
    old = history.dead()
    history.reconnect()
    history.done()
    history.read(old)


def resurrected_zeroing(history: History) -> None:
    history.dead("trim")
    history.reconnect()
    history.done()
    history.read(None)


def late(history: History) -> None:
    """It had not happened when another connection negotiated, so it never may."""
    old = history.dead()
    history.reconnect()
    history.read(None)
    history.read(old)


def flickering(history: History) -> None:
    """Two writes at once, both done: one of them is last, and stays."""
    first, second = history.submit(), history.submit()
    history.model.succeed(first)
    history.model.succeed(second)
    history.read(second)
    history.read(first)


def failed_comes_back(history: History) -> None:
    op = history.submit()
    history.model.fail(op, 5)
    history.done()
    history.read(op)


def torn(history: History) -> None:
    old, new = history.done(), history.done()
    history.read(history.content(new)[:8] + history.content(old)[8:])


def torn_at_the_end(history: History) -> None:
    old, new = history.done(), history.done()
    history.read(history.content(new)[:-16] + history.content(old)[-16:])


def lost_part(history: History) -> None:
    whole = history.done()
    history.done("write", PLACE + 100, 1000)
    history.read(whole)


def too_much(history: History) -> None:
    """Of a unit that is written in part the rest stays as it was."""
    history.done()
    part = history.done("write", PLACE + 100, 1000)
    history.read(history.content(part, PLACE + 96, PLACE + 112), PLACE + 96)


def elsewhere(history: History) -> None:
    op = history.done()
    history.done("write", PLACE + BLOCK)
    history.read(history.content(op), PLACE + BLOCK)


def garbage(history: History) -> None:
    history.done()
    history.read(bytes(range(256)) * 16)


def one_bit(history: History) -> None:
    data = bytearray(history.content(history.done()))
    data[-5] ^= 1
    history.read(bytes(data))


def trim_beyond_its_ends(history: History) -> None:
    history.done()
    history.done("trim", PLACE + 2048, 100)
    history.read(None)


def false_hole(history: History) -> None:
    history.done()
    history.model.check_hole(history.begin_read(), PLACE, BLOCK)


def unseen_by_an_odd_read(history: History) -> None:
    old = history.done()
    history.done()
    history.read(history.content(old, PLACE + 3, PLACE + 9), PLACE + 3)


@pytest.mark.parametrize(
    "tell",
    [
        stale, lost, lost_zeroing, lost_trim, resurrected, resurrected_zeroing, late, flickering, failed_comes_back,
        torn, torn_at_the_end, lost_part, too_much, elsewhere, garbage, one_bit, trim_beyond_its_ends, false_hole,
        unseen_by_an_odd_read,
    ],
)  # fmt: skip
def test_what_may_not_be_is_reported(tell: Callable[[History], None]) -> None:
    history = History()
    tell(history)
    assert len(history.model.violations) == 1
    assert "by a client" in history.model.violations[0]


def concurrent(history: History) -> None:
    old, new = history.done(), history.submit()
    history.read(new)
    for found in (new, old, new):
        read = history.begin_read()
        if found is old:
            continue
        history.model.finish_read(read, history.content(found))
    history.model.succeed(new)
    history.read(new)


def either_while_it_is_written(history: History) -> None:
    old, read = history.done(), history.begin_read()
    history.done()
    history.model.finish_read(read, history.content(old))


def dead_may_happen_until_another_negotiates(history: History) -> None:
    old, new = history.dead(), history.done()
    history.read(new)
    history.read(old)


def a_connection_from_before_the_death_proves_nothing(history: History) -> None:
    opened = history.model.tick()
    old = history.dead()
    history.model.negotiated(opened)
    history.done()
    history.read(old)


def dead_has_happened(history: History) -> None:
    history.done()
    old = history.dead()
    history.reconnect()
    history.read(old)


def failed_may_have_left_both(history: History) -> None:
    old, new = history.done(), history.submit()
    history.model.fail(new, 5)
    history.read(history.content(new)[:512] + history.content(old)[512:])


def both_at_once_leave_a_mixture(history: History) -> None:
    first, second = history.submit(), history.submit()
    history.model.succeed(second)
    history.model.succeed(first)
    history.read(history.content(first)[:1600] + history.content(second)[1600:])


def pieces_end_anywhere(history: History) -> None:
    old, new = history.done(), history.submit()
    history.read(history.content(new)[:1601] + history.content(old)[1601:])
    history.model.succeed(new)
    history.read(new)


def trim_may_spare_its_ends(history: History) -> None:
    old = history.done("write", PLACE - BLOCK, 3 * BLOCK)
    history.done("trim", PLACE - 100, BLOCK + 200)
    before, after = PLACE - 100, PLACE + BLOCK
    history.read(history.content(old, before, PLACE) + bytes(BLOCK) + bytes(100), before)
    history.read(bytes(100) + history.content(old, after + 100, after + 200), after)


def parts(history: History) -> None:
    whole, part = history.done(), history.done("write", PLACE + 100, 1001)
    data = bytearray(history.content(whole))
    data[100:1101] = history.content(part, PLACE + 100, PLACE + 1101)
    history.read(bytes(data))
    history.done("write zeroes", PLACE + 7, 2)
    data[7:9] = bytes(2)
    history.read(bytes(data))
    history.read(history.done())


def holes(history: History) -> None:
    history.model.check_hole(history.begin_read(), PLACE, BLOCK)
    history.done()
    trim, read = history.submit("trim"), history.begin_read()
    history.model.check_hole(read, PLACE, BLOCK)
    history.model.succeed(trim)
    history.model.check_hole(history.begin_read(), PLACE, BLOCK)


@pytest.mark.parametrize(
    "tell",
    [
        concurrent, either_while_it_is_written, dead_may_happen_until_another_negotiates,
        a_connection_from_before_the_death_proves_nothing, dead_has_happened, failed_may_have_left_both,
        both_at_once_leave_a_mixture, pieces_end_anywhere, trim_may_spare_its_ends, parts, holes,
    ],
)  # fmt: skip
def test_what_may_be_passes(tell: Callable[[History], None]) -> None:
    history = History()
    tell(history)
    assert history.model.violations == []


class Disk:
    """A disk that executes each request at some moment while it is in flight, or has a fault.

    Args:
        fault: "lose" some operations, or execute some "again" after they have ended.
    """

    def __init__(self, seed: int, fault: str = "") -> None:
        self.chance = random.Random(seed)
        self.model = Model(SIZE)
        self.bytes = bytearray(SIZE)
        self.fault = fault
        self.flying: list[Any] = []
        self.dead: list[Op] = []
        self.old: list[Op] = []

    def run(self, steps: int) -> list[str]:
        for step in range(steps):
            if len(self.flying) < 12 and self.chance.random() < 0.6:
                self._submit()
            elif self.flying:
                self._end(self.flying.pop(self.chance.randrange(len(self.flying))))
            if self.chance.random() < 0.02:
                self._reconnect()
            if self.fault == "again" and step % 100 == 99:
                self._execute(self.chance.choice(self.old[-30:-10]))
        for each in self.flying:
            self._end(each, dies=False)
        read = self.model.submit_read(0, SIZE)
        self.model.finish_read(read, self.bytes)
        return self.model.violations

    def _submit(self) -> None:
        length = self.chance.choice((16, 333, BLOCK, BLOCK, BLOCK, 2 * BLOCK))
        offset = self.chance.randrange(SIZE - length)
        if length >= BLOCK:
            offset = offset // BLOCK * BLOCK
        kind = self.chance.choice(("read", "read", "write", "write", "trim", "write zeroes"))
        if kind == "read":
            self.flying.append(self.model.submit_read(offset, length))
        elif kind == "write":
            self.flying.append(self.model.write(offset, length, "a client")[0])
        else:
            self.flying.append(self.model.zero(kind, offset, length, "a client"))

    def _execute(self, op: Op) -> None:
        first, last = op.reach
        self.bytes[first:last] = self.model.content(op, first, last)

    def _end(self, subject: Any, *, dies: bool = True) -> None:
        chance = self.chance.random()
        if isinstance(subject, Read):
            data = bytes(self.bytes[subject.offset : subject.offset + subject.length])
            self.model.finish_read(subject, data)
        elif dies and chance < 0.05:
            self.model.orphan(subject)
            self.dead.append(subject)
        elif dies and chance < 0.1:
            self._execute(subject)
            self.model.fail(subject, 5)
        else:
            if self.fault != "lose" or len(self.old) % 30:
                self._execute(subject)
            self.model.succeed(subject)
            self.old.append(subject)

    def _reconnect(self) -> None:
        opened = self.model.tick()
        for op in self.dead:
            if self.chance.random() < 0.5:
                self._execute(op)
        self.dead.clear()
        self.model.negotiated(opened)


@pytest.mark.parametrize("seed", range(25))
def test_a_right_disk_passes(seed: int) -> None:
    assert Disk(seed).run(1500) == []


@pytest.mark.parametrize("fault", ("lose", "again"))
def test_a_disk_with_a_fault_is_found_out(fault: str) -> None:
    assert all(Disk(seed, fault).run(3000) for seed in range(10))


def test_what_the_model_keeps_is_bounded() -> None:
    """Operations on one block are forgotten when nobody can see them any more."""
    model = Model(SIZE)
    for _ in range(5000):
        op, _ = model.write(PLACE, BLOCK, "a client")
        model.succeed(op)
    assert sum(map(len, model._blocks.values())) < 100
    assert UNIT * len(model._floor) == SIZE
