"""The values of all metrics, read from shared memory at each scrape."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from .. import __version__
from ..shared.context import Shared
from ..shared.control import ControlWord, State
from ..shared.counters import BATCH_BOUNDS, ERRNO_NAMES, LATENCY_BOUNDS_NS, OPS
from ..shared.holds import HeldWords
from ..swap.hostmemory import min_free_bytes
from ..system import proc
from . import processes
from .canary import Canary
from .devices import KEYS, device_of, label
from .gpu import GpuWatch
from .health import OLD_S, HealthCheck
from .metriclist import BY_NAME, COUNTER
from .preconditions import preconditions
from .sampler import Sampler
from .status import dropped_log_lines, locked_bytes, open_windows
from .totals import Totals, open_connections, queued, read_totals
from .writtenbytes import Written

Values = Iterable[tuple[Sequence[str], float]]


class Metrics(Collector):
    """The collector; ``expose`` answers a scrape."""

    def __init__(
        self,
        shared: Shared,
        sampler: Sampler,
        canary: Canary,
        health_check: HealthCheck,
        gpus: GpuWatch,
        written: Written,
    ) -> None:
        self._shared = shared
        self._sampler = sampler
        self._canary = canary
        self._health_check = health_check
        self._gpus = gpus
        self._written = written
        self._held = HeldWords(shared.control)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Nothing: what exists depends on state and device."""
        return ()

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Exposition and its content type, in the format that the Accept field asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        """All metrics of the table that have a value now."""
        shared = self._shared
        totals = read_totals(shared.client_windows)
        running = processes.processes(shared)
        yield from self._requests(totals)
        yield from self._connections(totals)
        yield from self._exports()
        yield from self._engine()
        yield from self._workers(totals)
        yield from self._server(totals, running)
        yield from self._host(running)
        yield from self._gpu()

    def _requests(self, totals: Totals) -> Iterator[Metric]:
        exports = [export.name for export in self._shared.settings.exports]
        pairs = list(itertools.product(enumerate(exports), enumerate(OPS)))
        yield _simple(
            "vramblk_requests_total", (((name, op), totals.requests[e, o]) for (e, name), (o, op) in pairs)
        )
        yield _simple(
            "vramblk_bytes_total",
            (
                ((name, op), totals.payload_bytes[e, o])
                for (e, name), (o, op) in pairs
                if op in ("read", "write")
            ),
        )
        yield _simple(
            "vramblk_request_errors_total",
            (
                ((name, op, errno), totals.errors[e, o, number])
                for (e, name), (o, op) in pairs
                for number, errno in enumerate(ERRNO_NAMES.values())
                if totals.errors[e, o, number] or (errno == "EIO" and op in ("read", "write"))
            ),
        )
        seconds = [bound / 1e9 for bound in LATENCY_BOUNDS_NS]
        latency = _family("vramblk_request_seconds", HistogramMetricFamily)
        for index, op in enumerate(OPS):
            latency.add_metric(
                (op,), _cumulative(seconds, totals.latency[index].tolist()), totals.latency_ns[index] / 1e9
            )
        yield latency

    def _connections(self, totals: Totals) -> Iterator[Metric]:
        shared = self._shared
        windows = open_windows(shared)
        yield _one("vramblk_connections", sum(map(open_connections, windows)))
        yield _one("vramblk_connections_limit", shared.connection_limit)
        yield _one("vramblk_connections_opened_total", totals.scalars["connections_opened"])
        yield _one("vramblk_connections_refused_total", shared.control.load(ControlWord.CONNECTIONS_REFUSED))
        yield _one("vramblk_negotiations_failed_total", totals.scalars["negotiations_failed"])
        exports = shared.settings.exports
        by_labels = {  # no two samples may have the same, whatever a faulty worker writes
            (str(each.id), each.peer, exports[each.export].name): each
            for window in windows
            for each in window.connections()
            if 0 <= each.export < len(exports)
        }
        rows = list(by_labels.items())
        yield _simple("vramblk_connection_requests_total", ((labels, each.requests) for labels, each in rows))
        yield _simple(
            "vramblk_connection_received_bytes_total",
            ((labels, each.received_bytes) for labels, each in rows),
        )
        yield _simple(
            "vramblk_connection_sent_bytes_total", ((labels, each.sent_bytes) for labels, each in rows)
        )

    def _exports(self) -> Iterator[Metric]:
        exports: list[dict[str, Any]] = self._shared.control.export_table().get("exports", [])
        yield _simple(
            "vramblk_export_size_bytes", (((each["name"],), each["size_bytes"]) for each in exports)
        )
        yield _simple(
            "vramblk_export_written_bytes",
            (((each["name"],), self._written.bytes_of(index)) for index, each in enumerate(exports)),
        )
        yield _simple(
            "vramblk_export_held",
            (((each["name"],), self._held.held(index)) for index, each in enumerate(exports)),
        )
        yield _simple(
            "vramblk_device_info",
            (((each["name"], *(label(device_of(each)[key]) for key in KEYS)), 1) for each in exports),
        )

    def _engine(self) -> Iterator[Metric]:
        counters = self._shared.control.engine_counters
        batches = _family("vramblk_batch_requests", HistogramMetricFamily)
        bounds = [float(bound) for bound in BATCH_BOUNDS]
        batches.add_metric((), _cumulative(bounds, counters.batches()), counters.scalar("batch_requests"))
        yield batches
        yield _one("vramblk_engine_batches_total", counters.scalar("batches"))
        yield _one("vramblk_engine_busy_seconds_total", counters.scalar("busy_ns") / 1e9)
        yield _one("vramblk_engine_sleeps_total", counters.scalar("sleeps"))
        yield _one("vramblk_queue_depth", sum(queued(window) for window in self._shared.client_windows))
        yield _one("vramblk_device_errors_total", counters.scalar("device_errors"))
        yield _one("vramblk_device_lost", counters.scalar("device_lost"))
        yield _one("vramblk_checksum_mismatches_total", counters.scalar("checksum_mismatches"))

    def _workers(self, totals: Totals) -> Iterator[Metric]:
        engine_errors = self._shared.control.engine_counters.scalar("internal_errors")
        yield _one("vramblk_internal_errors_total", engine_errors + totals.scalars["internal_errors"])
        for name in ("copied_bytes", "receives", "sends", "entries", "doorbells", "sleeps"):
            yield _one(f"vramblk_worker_{name}_total", totals.scalars[name])
        yield _one("vramblk_worker_restarts_total", self._shared.control.load(ControlWord.WORKER_RESTARTS))
        yield _one("vramblk_workers_lost", self._shared.control.load(ControlWord.WORKERS_LOST))

    def _server(self, totals: Totals, running: Mapping[str, proc.Process]) -> Iterator[Metric]:
        shared = self._shared
        state = shared.control.state
        yield _simple("vramblk_state", (((each.name.lower(),), each is state) for each in State))
        yield _one("vramblk_swap_mode", shared.settings.mode == "swap")
        if until_s := shared.control.load(ControlWord.CERTIFICATE_UNTIL_S):
            yield _one("vramblk_tls_certificate_seconds_left", until_s - time.time())
        yield _one("vramblk_healthy", self._health_check.examine(OLD_S).ok)
        outcome = self._canary.last()
        if outcome is not None and outcome.seconds is not None:
            yield _one("vramblk_canary_seconds", outcome.seconds)
        if ready_ns := shared.control.load(ControlWord.READY_NS):
            yield _one("vramblk_uptime_seconds", max(0.0, (time.monotonic_ns() - ready_ns) / 1e9))
        yield _one("vramblk_locked_bytes", locked_bytes(shared, running))
        yield _simple(
            "vramblk_process_resident_bytes",
            (((role,), each.resident_bytes) for role, each in running.items()),
        )
        yield _simple(
            "vramblk_process_locked_bytes", (((role,), each.locked_bytes) for role, each in running.items())
        )
        yield _simple(
            "vramblk_process_threads", (((role,), len(each.threads)) for role, each in running.items())
        )
        faults = self._sampler.major_faults
        yield _simple(
            "vramblk_process_major_faults",
            (
                ((role,), each.major_faults - faults.get(each.pid, each.major_faults))
                for role, each in running.items()
            ),
        )
        yield _one("vramblk_dropped_log_lines_total", dropped_log_lines(shared, totals))
        yield _simple("vramblk_build_info", (((__version__,), 1),))

    def _host(self, running: Mapping[str, proc.Process]) -> Iterator[Metric]:
        settings = self._shared.settings
        min_free = min_free_bytes()
        if min_free is not None:
            yield _one("vramblk_host_min_free_bytes", min_free)
        if settings.mode != "swap":
            return
        locked = locked_bytes(self._shared, running)
        conditions = preconditions(settings, running, self._shared.control.export_table(), locked)
        yield _simple("vramblk_swap_precondition", (((each.name,), each.ok) for each in conditions))
        swaps = processes.swap_devices()
        yield _simple("vramblk_host_swap_size_bytes", (((each.device,), each.size_bytes) for each in swaps))
        yield _simple("vramblk_host_swap_used_bytes", (((each.device,), each.used_bytes) for each in swaps))

    def _gpu(self) -> Iterator[Metric]:
        readings = self._gpus.readings()
        for name, attribute in (
            ("vramblk_gpu_memory_total_bytes", "memory_total_bytes"),
            ("vramblk_gpu_memory_used_bytes", "memory_used_bytes"),
            ("vramblk_gpu_memory_free_bytes", "memory_free_bytes"),
            ("vramblk_gpu_temperature_celsius", "temperature_celsius"),
            ("vramblk_gpu_power_watts", "power_watts"),
            ("vramblk_gpu_utilization_ratio", "utilization"),
        ):
            values = [
                ((each.pci,), value) for each in readings if (value := getattr(each, attribute)) is not None
            ]
            if values:
                yield _simple(name, values)
        clocks = [((each.pci, clock), value) for each in readings for clock, value in each.clocks.items()]
        if clocks:
            yield _simple("vramblk_gpu_clock_hertz", clocks)


def _family(name: str, kind: Any) -> Any:
    info = BY_NAME[name]
    return kind(name, info.help, labels=info.labels)


def _simple(name: str, values: Values) -> Metric:
    info = BY_NAME[name]
    family: Any = _family(name, CounterMetricFamily if info.kind == COUNTER else GaugeMetricFamily)
    for labels, value in values:
        family.add_metric([_printable(each) for each in labels], float(value))
    return family  # type: ignore[no-any-return]


def _printable(text: str) -> str:
    """Lone surrogates, which no exposition can hold, are replaced."""
    return text.encode("utf-8", "replace").decode()


def _one(name: str, value: float) -> Metric:
    return _simple(name, (((), value),))


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    names = [*(repr(bound) for bound in bounds), "+Inf"]
    return list(zip(names, (float(total) for total in itertools.accumulate(counts)), strict=True))
