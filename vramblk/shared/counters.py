"""Counters in shared memory: 64-bit integers, each written by one process only.

The data path adds to integers that it owns; the observer reads them whenever it is asked. The
layout is computed from the number of exports alone, so all processes compute the same one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

OPS = ("read", "write", "flush", "trim", "write_zeroes", "cache", "block_status")
READ, WRITE, FLUSH, TRIM, WRITE_ZEROES, CACHE, BLOCK_STATUS = range(len(OPS))

#: NBD error numbers that a reply may carry, with the names used as metric labels.
ERRNO_NAMES = {
    1: "EPERM",
    5: "EIO",
    12: "ENOMEM",
    22: "EINVAL",
    28: "ENOSPC",
    75: "EOVERFLOW",
    95: "ENOTSUP",
    108: "ESHUTDOWN",
}
_ERRNO_INDEX = {number: index for index, number in enumerate(ERRNO_NAMES)}

#: Upper bounds of the latency histogram, nanoseconds; one more bucket takes the rest.
LATENCY_BOUNDS_NS = tuple(
    int(base * scale) for scale in (10**3, 10**4, 10**5, 10**6, 10**7, 10**8, 10**9) for base in (10, 25, 50)
)
#: Upper bounds of the batch size histogram, requests.
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

#: Scalars of a worker, by name; each is one cell.
WORKER_SCALARS = (
    "connections_opened",
    "connections_closed",
    "negotiations_failed",
    "dropped_log_lines",
    "receives",
    "sends",
    "entries",
    "doorbells",
    "sleeps",
    "copied_bytes",
    "internal_errors",
)
#: Scalars of the engine, by name.
ENGINE_SCALARS = (
    "batches",
    "batch_requests",
    "busy_ns",
    "device_errors",
    "device_lost",
    "checksum_mismatches",
    "dropped_log_lines",
    "doorbells",
    "sleeps",
    "internal_errors",
)


class _Cells:
    """A named run of 64-bit cells at the start of ``buffer``."""

    def __init__(self, buffer: memoryview, count: int) -> None:
        self.cells = buffer[: count * 8].cast("q")

    def clear(self) -> None:
        for index in range(len(self.cells)):
            self.cells[index] = 0


class WorkerCounters(_Cells):
    """What one worker has done, by export and operation.

    The data path adds to ``cells`` directly at an index that it asked for once:
    ``request_index(export, op)`` and the like.
    """

    def __init__(self, buffer: memoryview, exports: int) -> None:
        super().__init__(buffer, self.count(exports))
        self.exports = exports
        ops, errors = len(OPS), len(ERRNO_NAMES)
        self._bytes = exports * ops
        self._errors = self._bytes + exports * ops
        self._latency = self._errors + exports * ops * errors
        self._latency_sum = self._latency + ops * (len(LATENCY_BOUNDS_NS) + 1)
        self._scalars = self._latency_sum + ops

    @staticmethod
    def count(exports: int) -> int:
        """Cells needed for that many exports."""
        ops = len(OPS)
        per_export = ops * (2 + len(ERRNO_NAMES))
        return exports * per_export + ops * (len(LATENCY_BOUNDS_NS) + 2) + len(WORKER_SCALARS)

    def request_index(self, export: int, op: int) -> int:
        return export * len(OPS) + op

    def bytes_index(self, export: int, op: int) -> int:
        return self._bytes + export * len(OPS) + op

    def error_index(self, export: int, op: int, errno: int) -> int:
        return self._errors + (export * len(OPS) + op) * len(ERRNO_NAMES) + _ERRNO_INDEX[errno]

    def latency_index(self, op: int, elapsed_ns: int) -> int:
        return self._latency + op * (len(LATENCY_BOUNDS_NS) + 1) + bisect_left(LATENCY_BOUNDS_NS, elapsed_ns)

    def latency_sum_index(self, op: int) -> int:
        return self._latency_sum + op

    def scalar_index(self, name: str) -> int:
        return self._scalars + WORKER_SCALARS.index(name)

    def latency(self, op: int) -> Sequence[int]:
        """Requests per latency bucket of one operation (not cumulative), shape (buckets + 1,)."""
        start = self._latency + op * (len(LATENCY_BOUNDS_NS) + 1)
        return self.cells[start : start + len(LATENCY_BOUNDS_NS) + 1].tolist()

    def scalar(self, name: str) -> int:
        return self.cells[self.scalar_index(name)]

    def add(self, name: str, amount: int = 1) -> None:
        self.cells[self.scalar_index(name)] += amount


class EngineCounters(_Cells):
    """What the engine has done."""

    def __init__(self, buffer: memoryview) -> None:
        super().__init__(buffer, self.count())
        self._histogram = len(ENGINE_SCALARS)

    @staticmethod
    def count() -> int:
        return len(ENGINE_SCALARS) + len(BATCH_BOUNDS) + 1

    @staticmethod
    def scalar_index(name: str) -> int:
        return ENGINE_SCALARS.index(name)

    def batch_index(self, requests: int) -> int:
        return self._histogram + bisect_left(BATCH_BOUNDS, requests)

    def batches(self) -> Sequence[int]:
        """Batches per size bucket (not cumulative), shape (buckets + 1,)."""
        return self.cells[self._histogram :].tolist()

    def scalar(self, name: str) -> int:
        return self.cells[self.scalar_index(name)]

    def add(self, name: str, amount: int = 1) -> None:
        self.cells[self.scalar_index(name)] += amount
