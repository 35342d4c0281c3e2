"""Counts what was answered, into the worker's counters and the connection's row.

Compiled, with the types of ``tally.pxd``: every reply passes here.
"""

from __future__ import annotations

from ..shared.counters import LATENCY_BOUNDS_NS, WorkerCounters

_BOUNDS = len(LATENCY_BOUNDS_NS)


class Tally:
    """The cells that one connection to one export adds to.

    Args:
        traffic: requests, received bytes and sent bytes of the connection.
    """

    def __init__(self, counters: WorkerCounters, traffic: memoryview, export: int) -> None:
        self._cells = counters.cells
        self._traffic = traffic
        self._requests = counters.request_index(export, 0)
        self._bytes = counters.bytes_index(export, 0)
        self._latency = counters.latency_index(0, 0)
        self._sums = counters.latency_sum_index(0)
        self._receives = counters.scalar_index("receives")
        self._sends = counters.scalar_index("sends")
        self._bounds = memoryview(bytearray(8 * _BOUNDS)).cast("q")
        for index, bound in enumerate(LATENCY_BOUNDS_NS):
            self._bounds[index] = bound

    def answered(self, op: int, count: int, amount: int, elapsed_ns: int) -> None:
        """``count`` requests with ``amount`` bytes of payload in all, each after ``elapsed_ns``."""
        cells, bounds = self._cells, self._bounds
        low, high = 0, _BOUNDS
        while low < high:
            middle = (low + high) >> 1
            if bounds[middle] < elapsed_ns:
                low = middle + 1
            else:
                high = middle
        cells[self._requests + op] += count
        cells[self._bytes + op] += amount
        cells[self._latency + op * (_BOUNDS + 1) + low] += count
        cells[self._sums + op] += elapsed_ns * count
        self._traffic[0] += count

    def received(self, amount: int) -> None:
        self._traffic[1] += amount
        self._cells[self._receives] += 1

    def sent(self, amount: int) -> None:
        self._traffic[2] += amount
        self._cells[self._sends] += 1
