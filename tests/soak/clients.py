"""Six clients that read and write the same few blocks, die, come back at once, and go on where they were."""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

from ..wire import rawclient as nbd
from .connection import Connection, Pending, SoakFailure
from .model import BLOCK, Model

#: Transport and kind of replies of each client.
CLIENTS = (
    ("unix", "simple"), ("unix", "structured"), ("unix", "extended"),
    ("tcp", "simple"), ("tcp", "structured"), ("tcp", "extended"),
)  # fmt: skip
DEATHS = ("close", "reset", "half", "half", "disconnect", "partial")
_CHANGES = (nbd.WRITE, nbd.WRITE, nbd.WRITE, nbd.TRIM, nbd.WRITE_ZEROES)
_MOST_BYTES = 6 << 20
_LARGEST = 4 << 20
_STATUS_LENGTH = 1 << 20
_COMMANDS = (nbd.READ, nbd.WRITE, nbd.TRIM, nbd.WRITE_ZEROES, nbd.BLOCK_STATUS, nbd.FLUSH, nbd.CACHE)
_WEIGHTS = (42, 42, 4, 5, 4, 2, 1)
#: Of TRIMs and WRITE_ZEROES, how many are of the whole export. More would mend what other faults have left.
_WHOLE = 0.0015
_AROUND_BLOCKS = 4
_RETRY_S = 0.01
_LINGER_S = 1.0


class Workload:
    """What clients ask for: mostly a few hot blocks, so that requests overlap."""

    def __init__(self, size_bytes: int, chance: random.Random) -> None:
        self._chance = chance
        self._blocks = size_bytes // BLOCK
        self._size = size_bytes
        arena_like = [self._blocks // 4, self._blocks // 2, self._blocks - 1, 0]
        self.hot = [*arena_like, *(chance.randrange(self._blocks) for _ in range(20))]

    def place(self) -> tuple[int, int]:
        """Offset and length of a request."""
        chance = self._chance
        kind = chance.random()
        # Squared, so that the first are much hotter than the last.
        block = self.hot[int(len(self.hot) * chance.random() ** 2)]
        if kind < 0.55:
            offset, length = block * BLOCK, BLOCK
        elif kind < 0.70:
            offset, length = (block - chance.randint(0, 3)) * BLOCK, chance.randint(1, 8) * BLOCK
        elif kind < 0.80:
            offset, length = block * BLOCK + chance.randint(-6000, 6000), chance.randint(1, 9000)
        elif kind < 0.88:
            unit = chance.choice((16, 512))
            offset, length = (
                block * BLOCK + chance.randrange(0, BLOCK, unit),
                chance.randint(1, 6000 // unit) * unit,
            )
        elif kind < 0.99:
            offset, length = chance.randrange(self._blocks) * BLOCK, chance.randint(1, 16) * BLOCK
        else:
            offset, length = chance.randrange(self._size), chance.randint(1 << 17, _LARGEST)
        offset = min(max(offset, 0), self._size - 1)
        return offset, min(length, self._size - offset)

    def request(self, *, status: bool) -> tuple[int, int, int, int]:
        """Command, offset, length and flags."""
        chance = self._chance
        (command,) = chance.choices(_COMMANDS, _WEIGHTS)
        if command == nbd.BLOCK_STATUS and not status:
            command = nbd.READ
        offset, length = (0, 0) if command == nbd.FLUSH else self.place()
        flags = 0
        if command in (nbd.TRIM, nbd.WRITE_ZEROES) and chance.random() < _WHOLE:
            offset, length = 0, self._size
        if command == nbd.WRITE_ZEROES:
            flags = chance.choice((0, nbd.NO_HOLE, nbd.FAST_ZERO, nbd.NO_HOLE | nbd.FUA))
        elif command == nbd.BLOCK_STATUS:
            length = min(length * chance.randint(1, 64), _STATUS_LENGTH, self._size - offset)
        elif command == nbd.WRITE and chance.random() < 0.05:
            flags = nbd.FUA
        return command, offset, length, flags

    def hot_places(self) -> list[tuple[int, int]]:
        """Offsets and lengths of the hot blocks, each with some around it."""
        places = []
        for block in self.hot:
            first = max(block - _AROUND_BLOCKS, 0)
            last = min(block + _AROUND_BLOCKS + 1, self._blocks)
            places.append((first * BLOCK, (last - first) * BLOCK))
        return places

    def block(self) -> tuple[int, int]:
        """Offset and length of a hot block."""
        return self.hot[int(len(self.hot) * self._chance.random() ** 2)] * BLOCK, BLOCK


class Client:
    """One of the six.

    Attributes:
        lingering: connections that are half-closed or have sent DISC; their replies still come.
        counts: requests with a reply by command, errors as "errno N", deaths by their manner.
        failed: requests that were answered with an error; the caller takes them.
        lost: connections that the server has closed, with the time; the caller knows whether it had reason.
    """

    def __init__(
        self,
        number: int,
        addresses: dict[str, Path | tuple[str, int]],
        model: Model,
        work: Workload,
        chance: random.Random,
    ) -> None:
        transport, self.replies = CLIENTS[number % len(CLIENTS)]
        self._address = addresses[transport]
        self._model, self._work, self._chance = model, work, chance
        self._name = f"client {number} ({transport}, {self.replies})"
        self._connections = 0
        self._todo: deque[tuple[int, int, int, int]] = deque()
        self._retry_s = 0.0
        self.connection: Connection | None = None
        self.lingering: list[tuple[float, Connection]] = []
        self.counts: Counter[str] = Counter()
        self.lost: list[tuple[float, Connection]] = []
        self.resting = False
        self.failed: list[Pending] = []

    def connections(self) -> Iterator[Connection]:
        if self.connection is not None:
            yield self.connection
        for _, connection in self.lingering:
            yield connection

    def work(self) -> None:
        """Reconnect if need be, top up what is in flight, send."""
        self._let_go()
        connection = self.connection
        if connection is not None and connection.ended:
            self.lost.append((time.monotonic(), connection))
            self._mourn(connection)
            connection = self.connection = None
        if connection is None:
            if self.resting or time.monotonic() < self._retry_s:
                return
            connection = self._connect()
            if connection is None:
                return
        if connection.ready and not self.resting:
            self._top_up(connection)
        if connection.out:
            connection.flush()

    def _connect(self) -> Connection | None:
        self._connections += 1
        name = f"{self._name} connection {self._connections}"
        try:
            self.connection = Connection(self._address, self.replies, self._model, name, self._completed)
        except OSError:
            self._retry_s = time.monotonic() + _RETRY_S
            return None
        self._depth = self._chance.choice((1, 2, 4, 8, 16, 16))
        return self.connection

    def _top_up(self, connection: Connection) -> None:
        pending = connection.pending
        if len(pending) > self._depth // 2:
            return  # so that a worker takes several at once
        while len(pending) < self._depth and len(connection.out) < _MOST_BYTES:
            if self._todo:
                request = self._todo.popleft()
            else:
                request = self._work.request(status=self.replies != "simple")
            connection.submit(*request)

    def _completed(self, pending: Pending) -> None:
        self.counts["requests"] += 1
        if pending.error:
            self.counts[f"errno {pending.error}"] += 1
            self.failed.append(pending)
        elif pending.command == nbd.WRITE and len(self._todo) < 32 and self._chance.random() < 0.15:
            self._todo.append((nbd.READ, pending.offset, pending.length, 0))

    def survey(self) -> None:
        """Read all hot blocks, next of all."""
        self._todo.extendleft((nbd.READ, *place, 0) for place in self._work.hot_places())

    def die(self, manner: str | None = None) -> None:
        """End the connection in some manner, mostly with changes of hot blocks unanswered."""
        connection = self.connection
        if connection is None or connection.ended or not connection.ready:
            return
        manner = manner or self._chance.choice(DEATHS)
        self.counts["deaths"] += 1
        if self._chance.random() < 0.5:
            for _ in range(self._chance.randint(1, 6)):
                connection.submit(self._chance.choice(_CHANGES), *self._work.block())
        connection.flush()
        self.connection = None
        if manner in ("half", "disconnect"):
            if manner == "disconnect" and not connection.out:
                connection.submit(nbd.DISC, 0, 0)
                del connection.pending[max(connection.pending)]
                connection.flush()
            if not connection.out and not connection.ended:
                if manner == "half":
                    connection.half_close()
                self._mourn(connection)
                self.lingering.append((time.monotonic() + self._chance.random() * _LINGER_S, connection))
                return
        if manner == "partial" and not connection.out and not connection.ended:
            connection.submit(nbd.WRITE, *self._work.block())
            del connection.out[self._chance.randint(1, len(connection.out) - 1) :]
            connection.flush()
        connection.close(reset=manner == "reset")
        self._mourn(connection)

    def _mourn(self, connection: Connection) -> None:
        """After a death: write the same places again with new values, at once, and read them."""
        changed = [each for each in connection.pending.values() if each.command in _CHANGES]
        places = list(
            dict.fromkeys((each.offset, each.length) for each in changed if each.length <= 1 << 16)
        )[:16]
        self._todo.extendleft((nbd.WRITE, *place, 0) for place in places)
        self._todo.extend((nbd.READ, *place, 0) for place in places)

    def _let_go(self) -> None:
        left = []
        for until_s, connection in self.lingering:
            # On a Unix socket what was sent before a half-close is answered.
            if connection.ended and connection.half_closed and connection.unix and connection.pending:
                self.lost.append((time.monotonic(), connection))
            if not connection.ended and time.monotonic() > until_s:
                connection.close()
            if not connection.ended:
                left.append((until_s, connection))
        self.lingering = left

    def finish(self) -> bool:
        """Send nothing new; whether everything is answered."""
        self.resting = True
        self._todo.clear()
        self.work()
        return self.connection is None or (self.connection.ready and not self.connection.pending)

    def leave(self) -> None:
        for connection in self.connections():
            connection.close()
        self.connection, self.lingering = None, []

    def check_answers(self, limit_s: float) -> None:
        """No request waits longer than that.

        Raises:
            SoakFailure: one does.
        """
        now = time.monotonic()
        for connection in self.connections():
            if not connection.ready and now - connection.opened_s > limit_s:
                raise SoakFailure(f"{connection.name}: not negotiated after {limit_s:.0f} s")
            for pending in connection.pending.values():
                if now - pending.submitted_s > limit_s:
                    raise SoakFailure(
                        f"{connection.name}: command {pending.command} at {pending.offset:#x} of {pending.length} "
                        f"bytes has no reply after {limit_s:.0f} s"
                    )
                break  # the oldest comes first
