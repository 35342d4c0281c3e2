"""The receive lane: bytes from the socket land here and payloads are taken from here as they lie."""

from __future__ import annotations

import socket
import ssl
import time
from collections import deque
from collections.abc import Callable

from ..system.tls import decrypted
from .lanes import Lane
from .sockets import SHORT_OF_MEMORY

_LARGEST_RECEIVE = 4 << 20
#: What came within this time of other bytes that still wait counts as come with them, nanoseconds.
_TOGETHER_NS = 100_000
#: What comes later counts as come with the last of them: a slow client must not cost memory for each receive.
_MOST_ARRIVALS = 128
_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class ReceiveLane:
    """Bytes [position, have) are received and not yet parsed.

    Payloads that the engine still reads stand before ``position`` or, after a wrap, behind
    ``have``; ``live`` holds where each begins, oldest first.

    Attributes:
        starved: the kernel had no memory for a receive; try again a little later.

    Args:
        leftover: bytes that came behind the negotiation, at the monotonic time ``leftover_ns`` (0: now).
        on_copy: hears how many received bytes had to be copied to another place.
    """

    def __init__(
        self,
        sock: socket.socket,
        lane: Lane,
        slab: memoryview,
        leftover: bytes,
        leftover_ns: int = 0,
        on_copy: Callable[[int], None] = lambda copied_bytes: None,
    ) -> None:
        self._sock = sock
        self.space = slab[lane.rx : lane.rx + lane.rx_bytes]
        self.space[: len(leftover)] = leftover
        #: Kept behind the received bytes: any request that is waited for becomes whole without a move.
        self._low_room = lane.waited_bytes + (4 << 10)
        self.position = 0
        self.have = len(leftover)
        self.live: deque[int] = deque()
        self.starved = False
        self._on_copy = on_copy
        #: (bytes received until then, monotonic ns), oldest first, of bytes that still wait.
        self._arrivals: deque[tuple[int, int]] = deque()
        self._total = 0
        if leftover:
            self._total = len(leftover)
            self._arrivals.append((self._total, leftover_ns or time.monotonic_ns()))

    @property
    def arrived_ns(self) -> int:
        """When the byte at ``position`` came, monotonic ns; now if there is none."""
        arrivals = self._arrivals
        if len(arrivals) == 1 and self.position < self.have:
            return arrivals[0][1]
        at = self._total - (self.have - self.position)
        while arrivals and arrivals[0][0] <= at:
            arrivals.popleft()
        return arrivals[0][1] if arrivals else time.monotonic_ns()

    def _note_arrival(self, count: int) -> None:
        self._total += count
        now_ns = time.monotonic_ns()
        arrivals = self._arrivals
        if self.have - self.position == count:
            arrivals.clear()
        elif arrivals and (now_ns - arrivals[-1][1] < _TOGETHER_NS or len(arrivals) >= _MOST_ARRIVALS):
            now_ns = arrivals.pop()[1]
        arrivals.append((self._total, now_ns))

    def room(self, *, may_move: bool) -> int:
        """Bytes that could be received now; ``may_move`` as for ``receive``."""
        if self.position == self.have and not self.live:
            return len(self.space)
        if may_move and self._can_move():
            return len(self.space) - (self.have - self.position)
        return self._limit() - self.have

    @property
    def closing_in(self) -> bool:
        """So little room is left behind that waiting for more bytes in one piece is no use."""
        return self._limit() - self.have < self._low_room

    def receive(self, *, may_move: bool) -> tuple[int, bool]:
        """Take what the socket has.

        Args:
            may_move: no parsed request refers to bytes behind ``position``.

        Returns:
            bytes received (-1: nothing there or no room, 0: the client has closed), and whether
            more may be waiting.

        Raises:
            OSError: the connection is broken.
        """
        if may_move:
            self._make_room()
        room = min(self._limit() - self.have, _LARGEST_RECEIVE)
        if room <= 0:
            return -1, decrypted(self._sock)
        try:
            count = self._sock.recv_into(self.space[self.have : self.have + room])
        except _WOULD_BLOCK:
            return -1, False
        except OSError as error:
            if error.errno not in SHORT_OF_MEMORY:
                raise
            self.starved = True
            return -1, False
        if count:
            self.have += count
            self._note_arrival(count)
        return count, count == room

    def adopt(self, position: int, have: int, since_ns: int) -> None:
        """Others have received and taken: bytes [position, have) wait, the first since ``since_ns``."""
        self.position, self.have = position, have
        self._arrivals.clear()
        if have > position:
            self._arrivals.append((self._total, since_ns))

    def realign(self) -> bool:
        """Bring the next header to a multiple of 4, as kernels need payloads; False while busy."""
        if self.live:
            return False
        self._move()
        return True

    def discard(self) -> None:
        """Forget what was received and not parsed."""
        self.position = self.have

    def _limit(self) -> int:
        live = self.live
        return live[0] if live and live[0] >= self.have else len(self.space)

    def _make_room(self) -> None:
        if self.position == self.have and not self.live:
            self.position = self.have = 0
        elif self._can_move():
            self._move()

    def _can_move(self) -> bool:
        """Whether little room is left behind and the unparsed bytes fit before what is in use."""
        if len(self.space) - self.have >= self._low_room or self._limit() != len(self.space):
            return False
        free = self.live[0] if self.live else self.position
        return self.have - self.position + self._low_room <= free

    def _move(self) -> None:
        leftover = self.have - self.position
        if leftover:
            self.space[:leftover] = bytes(self.space[self.position : self.have])
            self._on_copy(leftover)
        self.position, self.have = 0, leftover
