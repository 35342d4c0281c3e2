"""What the workers have counted, summed over their windows.

The counters of a window go on when its worker is replaced, so sums never fall. A faulty worker may write
anything: what no counting leads to is taken for 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..shared.counters import ERRNO_NAMES, LATENCY_BOUNDS_NS, OPS, WORKER_SCALARS
from ..shared.descriptors import ENTRIES, ENTRY, ENTRY_BYTES
from ..shared.window import CONNECTIONS, Window, Word

Cells = npt.NDArray[np.int64]

#: A counter beyond it was not counted up to it.
_MOST_COUNTED = 1 << 62
_BUCKETS = len(LATENCY_BOUNDS_NS) + 1


@dataclass(frozen=True)
class Totals:
    """Sums since the start of the server.

    Attributes:
        requests: answered requests, shape (exports, ops).
        payload_bytes: payload of successful reads and writes, shape (exports, ops).
        errors: failed requests, shape (exports, ops, errno), errno in the order of ``ERRNO_NAMES``.
        latency: requests per bucket, not cumulative, shape (ops, buckets + 1).
        latency_ns: sum of latencies, nanoseconds, shape (ops,).
        scalars: ``WORKER_SCALARS`` by name.
    """

    requests: Cells
    payload_bytes: Cells
    errors: Cells
    latency: Cells
    latency_ns: Cells
    scalars: dict[str, int]


def read_totals(windows: Sequence[Window]) -> Totals:
    """Sums over the windows of all workers, living and dead."""
    each = np.array([np.frombuffer(window.counters.cells, np.int64) for window in windows])
    each[(each < 0) | (each >= _MOST_COUNTED)] = 0
    cells = np.sum(each, axis=0)
    counters = windows[0].counters
    exports, ops, errors = counters.exports, len(OPS), len(ERRNO_NAMES)

    def part(start: int, *shape: int) -> Cells:
        found: Cells = cells[start : start + int(np.prod(shape))].reshape(shape)
        return found

    return Totals(
        requests=part(counters.request_index(0, 0), exports, ops),
        payload_bytes=part(counters.bytes_index(0, 0), exports, ops),
        errors=part(counters.error_index(0, 0, next(iter(ERRNO_NAMES))), exports, ops, errors),
        latency=part(counters.latency_index(0, 0), ops, _BUCKETS),
        latency_ns=part(counters.latency_sum_index(0), ops),
        scalars={name: int(cells[counters.scalar_index(name)]) for name in WORKER_SCALARS},
    )


def quantile_s(buckets: Cells, share: float) -> float | None:
    """Seconds below which that share of the requests lies, interpolated; None without requests.

    The last bucket has no upper bound; its lower one stands for it.
    """
    total = int(buckets.sum())
    if total <= 0:
        return None
    wanted = share * total
    below = 0
    for index, count in enumerate(buckets.tolist()):
        if count and below + count >= wanted:
            low = LATENCY_BOUNDS_NS[index - 1] if index else 0
            high = LATENCY_BOUNDS_NS[index] if index < len(LATENCY_BOUNDS_NS) else low
            return float(low + (high - low) * (wanted - below) / count) / 1e9
        below += count
    return LATENCY_BOUNDS_NS[-1] / 1e9


def open_connections(window: Window) -> int:
    """Open connections as a worker reports them, at most as many as its table has rows."""
    return min(window.load(Word.CONNECTIONS), CONNECTIONS)


def queued(window: Window) -> int:
    """Requests that the engine has not completed yet, as a glance at the ring tells."""
    done, tail = window.load(Word.DONE), window.load(Word.TAIL)
    if not 0 < tail - done <= ENTRIES:
        return 0
    return sum(
        ENTRY.unpack_from(window.entries, number % ENTRIES * ENTRY_BYTES)[3] or 1
        for number in range(done, tail)
    )
