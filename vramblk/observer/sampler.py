"""The last ten minutes, one sample a second, for the page and for ``vramblk top``."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..shared.context import Shared
from ..shared.control import State
from ..shared.counters import OPS, READ, WRITE
from ..system import logs
from . import processes, threads
from .heat import Heat
from .stall import StallWatch
from .totals import Cells, Totals, open_connections, quantile_s, queued, read_totals

INTERVAL_S = 1.0
SAMPLES = 600
#: How long the percentiles of the status document look back.
LATENCY_SPAN_S = 60
#: A device error this recent makes the server unhealthy.
ERROR_SPAN_S = 60.0

#: Columns of the history; rates are per second, latencies seconds or None.
COLUMNS = (
    "time", "read_bytes", "write_bytes", "read_requests", "write_requests", "other_requests", "errors",
    "read_p50", "read_p99", "write_p50", "write_p99", "busy", "queued", "connections",
)  # fmt: skip


class Sampler:
    """Differences between snapshots of the counters.

    Attributes:
        major_faults: of each process id as they were when the server was first seen ready.
    """

    def __init__(self, shared: Shared, stalls: StallWatch) -> None:
        self._shared = shared
        self._stalls = stalls
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._rows: deque[tuple[Any, ...]] = deque(maxlen=SAMPLES)
        self._latency: deque[Any] = deque(maxlen=LATENCY_SPAN_S + 1)
        self._number = 0
        self._previous: tuple[float, Totals, int] | None = None
        self._connections: dict[tuple[int, int], tuple[float, tuple[int, int, int]]] = {}
        self._rates: dict[tuple[int, int], tuple[float, float, float]] = {}
        self._heat = Heat(shared.client_windows)
        self._sizes: list[tuple[int, int]] = []
        self._errors = (0, 0)
        self._last_error_at: float | None = None
        self.major_faults: dict[int, int] = {}

    def start(self) -> None:
        """Take a sample every second from now on."""
        threads.start(self._run, "sampler")

    def close(self) -> None:
        """Take no further sample."""
        self._closing.set()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._closing.is_set():
            try:
                self.tick()
            except Exception:
                logs.limited(logs.get(), "observer_sample_failed", level="error", exc_info=True)
            due = max(due + INTERVAL_S, time.monotonic() + INTERVAL_S / 2)
            self._closing.wait(max(0.0, due - time.monotonic()))

    def tick(self) -> None:
        """Take one sample."""
        self._stalls.look()
        shared = self._shared
        now = time.monotonic()
        totals = read_totals(shared.client_windows)
        engine = shared.control.engine_counters
        busy_ns = engine.scalar("busy_ns")
        errors = (engine.scalar("device_errors"), engine.scalar("checksum_mismatches"))
        with self._lock:
            if errors != self._errors:
                self._errors, self._last_error_at = errors, now
            if self._previous is not None:
                self._rows.append(self._row(now, totals, busy_ns, *self._previous))
                self._number += 1
            self._latency.append(totals.latency)
            self._previous = (now, totals, busy_ns)
            self._rate_connections(now)
            self._heat.sample(self._export_sizes())
        if not self.major_faults and shared.control.state is State.READY:
            self.major_faults = {each.pid: each.major_faults for each in processes.processes(shared).values()}

    def _row(
        self, now: float, totals: Totals, busy_ns: int, before: float, old: Totals, old_busy_ns: int
    ) -> tuple[Any, ...]:
        seconds = max(now - before, 1e-3)
        requests = _grown(totals.requests, old.requests).sum(axis=0)
        payload = _grown(totals.payload_bytes, old.payload_bytes).sum(axis=0)
        latency = _grown(totals.latency, old.latency)
        windows = self._shared.client_windows
        return (
            round(time.time(), 2),
            *(round(float(payload[op]) / seconds, 1) for op in (READ, WRITE)),
            *(round(float(requests[op]) / seconds, 1) for op in (READ, WRITE)),
            round(float(sum(requests.tolist()) - int(requests[READ]) - int(requests[WRITE])) / seconds, 1),
            round(float(_grown(totals.errors, old.errors).sum()) / seconds, 2),
            *(_rounded(quantile_s(latency[op], share)) for op in (READ, WRITE) for share in (0.5, 0.99)),
            round(min(max((busy_ns - old_busy_ns) / 1e9 / seconds, 0.0), 1.0), 4),
            sum(queued(window) for window in windows),
            sum(map(open_connections, windows)),
        )

    def _rate_connections(self, now: float) -> None:
        found = {}
        for window in self._shared.client_windows:
            if not open_connections(window):
                continue
            for each in window.connections():
                key = (window.index, each.id)
                counts = (each.requests, each.received_bytes, each.sent_bytes)
                found[key] = (now, counts)
                before, old = self._connections.get(key, (now, counts))
                seconds = max(now - before, 1e-3)
                if counts < old:  # it has been served elsewhere meanwhile
                    old = (0, 0, 0)
                requests, received, sent = (
                    (new - was) / seconds for new, was in zip(counts, old, strict=True)
                )
                self._rates[key] = (requests, received, sent)
        self._connections = found
        self._rates = {key: rate for key, rate in self._rates.items() if key in found}

    def _export_sizes(self) -> Sequence[tuple[int, int]]:
        if not self._sizes:
            exports = self._shared.control.export_table().get("exports", [])
            self._sizes = [(int(each["size_bytes"]), int(each["arena_bytes"])) for each in exports]
        return self._sizes

    def rates(self, window: int, connection: int) -> tuple[float, float, float]:
        """Requests, received bytes and sent bytes per second of a connection."""
        with self._lock:
            return self._rates.get((window, connection), (0.0, 0.0, 0.0))

    def history(self, since: int = 0) -> dict[str, Any]:
        """Samples after number ``since``, in the order of ``COLUMNS``; ``next`` is what to ask for later."""
        with self._lock:
            fresh = (
                min(max(self._number - since, 0), len(self._rows))
                if since <= self._number
                else len(self._rows)
            )
            rows = list(self._rows)[len(self._rows) - fresh :] if fresh else []
            return {
                "schema": 1,
                "interval_s": INTERVAL_S,
                "columns": COLUMNS,
                "rows": rows,
                "next": self._number,
            }

    def latest(self) -> dict[str, Any]:
        """The last sample by column, empty before there is one."""
        with self._lock:
            return dict(zip(COLUMNS, self._rows[-1], strict=True)) if self._rows else {}

    def latency(self) -> dict[str, dict[str, float | None]]:
        """Percentiles over the last minute in seconds, by operation; None where there was no request."""
        with self._lock:
            if not self._latency:
                return {}
            buckets = _grown(self._latency[-1], self._latency[0])
        return {
            op: {f"p{share * 100:g}": quantile_s(buckets[index], share) for share in (0.5, 0.95, 0.99, 0.999)}
            for index, op in enumerate(OPS)
        }

    def heat(self, export: int) -> list[int]:
        """See ``Heat.levels``."""
        with self._lock:
            return self._heat.levels(export)

    def recent_device_error(self) -> bool:
        """Whether the device has failed a request within the last minute."""
        with self._lock:
            return self._last_error_at is not None and time.monotonic() - self._last_error_at < ERROR_SPAN_S


def _grown(cells: Cells, before: Cells) -> Cells:
    """What was counted in between; nothing where a faulty worker's count was put back to 0."""
    grown: Cells = np.maximum(cells - before, 0)
    return grown


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 8)
