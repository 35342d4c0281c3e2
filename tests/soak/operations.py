"""What the model keeps of each request that changes the export or reads it."""

from __future__ import annotations

import time
from typing import Any

#: The end of an operation that has not ended.
NEVER = 2**31 - 1


class Op:
    """One operation that changes the export.

    Attributes:
        number: in its stamps; 0 for the zeroes at the start.
        lo, hi: the bytes that it replaces when it succeeds.
        reach: the bytes [first, last) that it may replace; wider than [lo, hi) for a TRIM.
        zero: it writes zeroes, which carry no stamp.
        succeeded: its reply was a success.
    """

    __slots__ = ("client", "end", "ended_s", "hi", "kind", "lo", "number", "outcome", "reach", "start",
                 "started_s", "succeeded", "zero")  # fmt: skip

    def __init__(self, number: int, kind: str, lo: int, hi: int, reach: tuple[int, int], client: str) -> None:
        self.number = number
        self.kind = kind
        self.lo, self.hi = lo, hi
        self.reach = reach
        self.zero = kind != "write"
        self.client = client
        self.start, self.end = 0, NEVER
        self.started_s = time.monotonic()
        self.ended_s = 0.0
        self.succeeded = False
        self.outcome = "in flight"


class Read:
    """A read in flight, with what was known when it was submitted."""

    __slots__ = ("floor", "holder", "length", "offset", "seen", "start")

    def __init__(self, offset: int, length: int, start: int) -> None:
        self.offset, self.length, self.start = offset, length, start
        self.floor: Any = None
        self.seen: Any = None
        self.holder: Any = None
