"""The one list of all metrics: names, types, labels and help.

The collector, the dashboard, docs/reference/metrics.md and the test of the alert rules are all held to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .devices import KEYS

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


@dataclass(frozen=True)
class MetricInfo:
    """One row of the table.

    Attributes:
        name: as it is queried; counters end in ``_total``, histograms lack ``_bucket`` and the like.
        when: empty if it is always there, otherwise when it is.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    when: str = ""


METRICS: tuple[MetricInfo, ...] = (
    MetricInfo("vramblk_requests_total", COUNTER, "Answered requests, failed ones too.", ("export", "op")),
    MetricInfo("vramblk_bytes_total", COUNTER, "Payload of successful reads and writes.", ("export", "op")),
    MetricInfo(
        "vramblk_request_errors_total",
        COUNTER,
        "Requests answered with an error.",
        ("export", "op", "errno"),
        "EIO of read and write always, others once they have happened",
    ),
    MetricInfo(
        "vramblk_request_seconds",
        HISTOGRAM,
        "Time from a request's receipt to its reply being handed to the socket. Requests of a local client"
        " that the engine answers together count from the first one's receipt: none took longer.",
        ("op",),
    ),
    MetricInfo("vramblk_batch_requests", HISTOGRAM, "Requests that the engine executed together."),
    MetricInfo("vramblk_connections", GAUGE, "Clients now connected, negotiating ones too."),
    MetricInfo("vramblk_connections_limit", GAUGE, "Clients that can be connected at once."),
    MetricInfo("vramblk_connections_opened_total", COUNTER, "Connections that workers have taken."),
    MetricInfo(
        "vramblk_connections_refused_total", COUNTER, "Connections closed because all places were taken."
    ),
    MetricInfo(
        "vramblk_negotiations_failed_total",
        COUNTER,
        "Connections that ended in a failed or refused negotiation.",
    ),
    MetricInfo(
        "vramblk_connection_requests_total",
        COUNTER,
        "Requests of a connection.",
        ("connection", "client", "export"),
        "while a client is connected",
    ),
    MetricInfo(
        "vramblk_connection_received_bytes_total",
        COUNTER,
        "Bytes received from a client.",
        ("connection", "client", "export"),
        "while a client is connected",
    ),
    MetricInfo(
        "vramblk_connection_sent_bytes_total",
        COUNTER,
        "Bytes sent to a client.",
        ("connection", "client", "export"),
        "while a client is connected",
    ),
    MetricInfo(
        "vramblk_export_size_bytes", GAUGE, "Size of the export.", ("export",), "once the engine is ready"
    ),
    MetricInfo(
        "vramblk_export_written_bytes",
        GAUGE,
        "Bytes in 4 KiB blocks that hold data.",
        ("export",),
        "once the engine is ready",
    ),
    MetricInfo(
        "vramblk_export_held",
        GAUGE,
        "1 while the memory of the export is held, 0 while it is given back.",
        ("export",),
        "once the engine is ready",
    ),
    MetricInfo("vramblk_engine_batches_total", COUNTER, "Batches that the engine has executed."),
    MetricInfo("vramblk_engine_busy_seconds_total", COUNTER, "Time in which the engine executed batches."),
    MetricInfo(
        "vramblk_engine_sleeps_total", COUNTER, "Times that the engine had no work and went to sleep."
    ),
    MetricInfo(
        "vramblk_queue_depth", GAUGE, "Requests that wait for the engine at the moment of the scrape."
    ),
    MetricInfo("vramblk_worker_copied_bytes_total", COUNTER, "Bytes that workers had to copy in memory."),
    MetricInfo("vramblk_worker_receives_total", COUNTER, "Calls of recv on client sockets."),
    MetricInfo("vramblk_worker_sends_total", COUNTER, "Calls of send on client sockets."),
    MetricInfo("vramblk_worker_entries_total", COUNTER, "Entries that workers have put into the rings."),
    MetricInfo("vramblk_worker_doorbells_total", COUNTER, "Times that a worker had to wake the engine."),
    MetricInfo("vramblk_worker_sleeps_total", COUNTER, "Times that a worker went to sleep."),
    MetricInfo("vramblk_worker_restarts_total", COUNTER, "Workers that died and were replaced."),
    MetricInfo("vramblk_workers_lost", GAUGE, "Workers that died and are not replaced, in swap mode."),
    MetricInfo("vramblk_device_errors_total", COUNTER, "Errors that the device has reported."),
    MetricInfo("vramblk_device_lost", GAUGE, "Exports whose device is lost."),
    MetricInfo("vramblk_checksum_mismatches_total", COUNTER, "Blocks that did not hold what was written."),
    MetricInfo(
        "vramblk_internal_errors_total", COUNTER, "Errors of the program itself, logged with a traceback."
    ),
    MetricInfo(
        "vramblk_healthy", GAUGE, "1 if the server is healthy: as /healthz, at most five seconds older."
    ),
    MetricInfo(
        "vramblk_canary_seconds",
        GAUGE,
        "Time that the last health check's reads took.",
        (),
        "once one has been answered",
    ),
    MetricInfo("vramblk_state", GAUGE, "1 for the state that the server is in.", ("state",)),
    MetricInfo("vramblk_swap_mode", GAUGE, "1 in swap mode."),
    MetricInfo(
        "vramblk_tls_certificate_seconds_left",
        GAUGE,
        "Time until the first TLS certificate in use ends; negative after that.",
        (),
        "with --tls-certificates",
    ),
    MetricInfo(
        "vramblk_uptime_seconds", GAUGE, "Time since the server became ready.", (), "once it is ready"
    ),
    MetricInfo(
        "vramblk_locked_bytes",
        GAUGE,
        "Locked memory of supervisor, workers and engine at ready; what they share counts once.",
    ),
    MetricInfo("vramblk_process_resident_bytes", GAUGE, "Resident memory.", ("process",)),
    MetricInfo(
        "vramblk_process_locked_bytes",
        GAUGE,
        "Locked and resident memory, at most; what processes share counts in each.",
        ("process",),
    ),
    MetricInfo("vramblk_process_major_faults", GAUGE, "Major page faults since ready.", ("process",)),
    MetricInfo("vramblk_process_threads", GAUGE, "Threads.", ("process",)),
    MetricInfo("vramblk_dropped_log_lines_total", COUNTER, "Log lines dropped because stdout was not read."),
    MetricInfo(
        "vramblk_swap_precondition",
        GAUGE,
        "1 if the precondition of swap mode holds now.",
        ("name",),
        "in swap mode",
    ),
    MetricInfo("vramblk_host_min_free_bytes", GAUGE, "The host's vm.min_free_kbytes, in bytes."),
    MetricInfo(
        "vramblk_host_swap_size_bytes",
        GAUGE,
        "Size of a swap area on an NBD device.",
        ("device",),
        "in swap mode",
    ),
    MetricInfo(
        "vramblk_host_swap_used_bytes",
        GAUGE,
        "Use of a swap area on an NBD device.",
        ("device",),
        "in swap mode",
    ),
    MetricInfo(
        "vramblk_gpu_memory_total_bytes", GAUGE, "Memory of the GPU.", ("pci",), "if its driver reports it"
    ),
    MetricInfo(
        "vramblk_gpu_memory_used_bytes",
        GAUGE,
        "Memory of the GPU that all programs use.",
        ("pci",),
        "if its driver reports it",
    ),
    MetricInfo(
        "vramblk_gpu_memory_free_bytes",
        GAUGE,
        "Memory of the GPU that no program uses.",
        ("pci",),
        "if its driver reports it",
    ),
    MetricInfo(
        "vramblk_gpu_temperature_celsius", GAUGE, "Temperature.", ("pci",), "if its driver reports it"
    ),
    MetricInfo("vramblk_gpu_power_watts", GAUGE, "Power.", ("pci",), "if its driver reports it"),
    MetricInfo(
        "vramblk_gpu_utilization_ratio",
        GAUGE,
        "Share of time with kernels.",
        ("pci",),
        "if its driver reports it",
    ),
    MetricInfo("vramblk_gpu_clock_hertz", GAUGE, "Clock.", ("pci", "clock"), "if its driver reports it"),
    MetricInfo(
        "vramblk_device_info",
        GAUGE,
        "The device of an export; the value is 1.",
        ("export", *(key if key != "name" else "device" for key in KEYS)),
        "once the engine is ready",
    ),
    MetricInfo("vramblk_build_info", GAUGE, "The value is 1.", ("version",)),
)
BY_NAME = {info.name: info for info in METRICS}
