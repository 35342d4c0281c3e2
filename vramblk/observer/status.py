"""The status document, /status.json: the state of the server for people and scripts, in one versioned schema.

Keys are added without notice. ``SCHEMA`` is raised when a key is removed or changes its meaning.
docs/reference/status.md describes every key.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .. import __version__
from ..config.settings import Settings
from ..shared.context import Shared
from ..shared.control import ControlWord, State
from ..shared.counters import ENGINE_SCALARS, ERRNO_NAMES, OPS
from ..shared.holds import HeldWords
from ..shared.window import Window, Word
from ..swap.hostmemory import min_free_bytes
from ..system import proc
from . import processes
from .devices import export_of
from .gpu import GpuWatch
from .health import OLD_S, HealthCheck
from .preconditions import preconditions
from .sampler import Sampler
from .socketfiles import SocketFiles
from .totals import Totals, open_connections, queued, read_totals
from .warnings import find_warnings
from .writtenbytes import Written

SCHEMA = 1


class StatusDocument:
    """Builds the document from shared memory and /proc."""

    def __init__(
        self,
        shared: Shared,
        sampler: Sampler,
        health_check: HealthCheck,
        gpus: GpuWatch,
        written: Written,
        files: SocketFiles,
    ) -> None:
        self._shared = shared
        self._sampler = sampler
        self._health_check = health_check
        self._gpus = gpus
        self._written = written
        self._files = files
        self._held = HeldWords(shared.control)

    def build(self) -> dict[str, Any]:
        """The document, plain JSON values."""
        shared, settings = self._shared, self._shared.settings
        control = shared.control
        export_table = control.export_table()
        running = processes.processes(shared)
        totals = read_totals(shared.client_windows)
        locked = locked_bytes(shared, running)
        conditions = preconditions(settings, running, export_table, locked)
        connections = self._connections(export_table)
        ready_ns = control.load(ControlWord.READY_NS)
        health = self._health_check.examine(OLD_S)
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "version": __version__,
            "state": control.state.name.lower(),
            "mode": settings.mode,
            "pid": control.load(ControlWord.SUPERVISOR_PID),
            "time": round(time.time(), 3),
            "uptime_s": round((time.monotonic_ns() - ready_ns) / 1e9, 3) if ready_ns else None,
            "healthy": health.ok,
            "health": health.text,
            "tls": {
                "mode": settings.tls,
                "certificate_until": control.load(ControlWord.CERTIFICATE_UNTIL_S) or None,
            },
            "listen": [str(address) for address in settings.listen_addr],
            "socket_files_gone": self._files.gone(),
            "socket_groups": [
                {"path": path, "group": group} for path, group in self._shared.socket_groups
            ],
            "locked_bytes": locked,
            "exports": self._exports(export_table, totals),
            "connections": connections,
            "max_connections": shared.connection_limit,
            "workers": [
                _worker(window) for window in shared.worker_windows
            ],
            "engine": {
                **{name: control.engine_counters.scalar(name) for name in ENGINE_SCALARS},
                "pid": control.load(ControlWord.ENGINE_PID),
                "queued_requests": sum(queued(window) for window in shared.client_windows),
            },
            "counters": {
                **totals.scalars,
                "connections_refused": control.load(ControlWord.CONNECTIONS_REFUSED),
                "worker_restarts": control.load(ControlWord.WORKER_RESTARTS),
                "workers_lost": control.load(ControlWord.WORKERS_LOST),
                "dropped_log_lines": dropped_log_lines(shared, totals),
            },
            "now": self._sampler.latest(),
            "latency_s": self._sampler.latency(),
            "processes": [self._process(role, each) for role, each in running.items()],
            "gpus": [asdict(reading) for reading in self._gpus.readings()],
            "host": {
                "min_free_bytes": min_free_bytes(),
                "swaps": [asdict(each) for each in processes.swap_devices()]
                if settings.mode == "swap"
                else [],
            },
            "swap_preconditions": [each._asdict() for each in conditions],
            "drain": _drain(shared, settings),
        }
        document["warnings"] = [asdict(each) for each in find_warnings(document, settings)]
        return document

    def _exports(self, export_table: dict[str, Any], totals: Totals) -> list[dict[str, Any]]:
        return [
            {
                **export_of(export),
                "max_connections": self._shared.settings.exports[index].places,
                "held": self._held.held(index),
                "missing_bytes": self._held.missing(index) or None,
                "written_bytes": self._written.bytes_of(index),
                "requests": dict(zip(OPS, totals.requests[index].tolist(), strict=True)),
                "bytes": dict(zip(OPS[:2], totals.payload_bytes[index, :2].tolist(), strict=True)),
                "errors": _errors(totals, index),
            }
            for index, export in enumerate(export_table.get("exports", []))
        ]

    def _connections(self, export_table: dict[str, Any]) -> list[dict[str, Any]]:
        names = [export["name"] for export in export_table.get("exports", [])]
        sockets = [address.path for address in self._shared.settings.unix_listeners]
        now_ns = time.monotonic_ns()
        found = []
        for window in open_windows(self._shared):
            for each in window.connections():
                requests_rate, received_rate, sent_rate = self._sampler.rates(window.index, each.id)
                state = each.state.name.lower()
                found.append(
                    {
                        "id": each.id,
                        "peer": each.peer,
                        "device": processes.nbd_device_of(each.peer, sockets)
                        if self._shared.settings.mode == "swap"
                        else None,
                        "worker": None if window is self._shared.local else window.index,
                        "state": state,
                        "export": names[each.export]
                        if state == "transmission" and 0 <= each.export < len(names)
                        else None,
                        "age_s": round((now_ns - each.since_ns) / 1e9, 1),
                        "requests": each.requests,
                        "received_bytes": each.received_bytes,
                        "sent_bytes": each.sent_bytes,
                        "requests_per_s": round(requests_rate, 1),
                        "received_bytes_per_s": round(received_rate, 1),
                        "sent_bytes_per_s": round(sent_rate, 1),
                    }
                )
        return sorted(found, key=lambda row: row["id"])

    def _process(self, role: str, process: proc.Process) -> dict[str, Any]:
        before = self._sampler.major_faults.get(process.pid, process.major_faults)
        return {
            "role": role,
            "pid": process.pid,
            "resident_bytes": process.resident_bytes,
            "locked_bytes": process.locked_bytes,
            "major_faults": process.major_faults,
            "threads": len(process.threads),
            "oom_score_adj": process.oom_score_adj,
            "io_flusher": process.io_flusher,
            "realtime": process.realtime,
            "major_faults_since_ready": process.major_faults - before,
        }


def _worker(window: Window) -> dict[str, Any]:
    return {
        "index": window.index,
        "pid": window.load(Word.WORKER_PID),
        "ready": bool(window.load(Word.READY)),
        "generation": window.load(Word.GENERATION),
        "connections": open_connections(window),
        "queued_requests": queued(window),
    }


def _errors(totals: Totals, export: int) -> dict[str, dict[str, int]]:
    """Errors by operation and name of the errno, those that happened."""
    found: dict[str, dict[str, int]] = {}
    for op, row in zip(OPS, totals.errors[export].tolist(), strict=True):
        names = {name: count for name, count in zip(ERRNO_NAMES.values(), row, strict=True) if count}
        if names:
            found[op] = names
    return found


def _drain(shared: Shared, settings: Settings) -> dict[str, Any] | None:
    if shared.control.state is not State.DRAINING:
        return None
    deadline_ns = shared.control.load(ControlWord.DRAIN_DEADLINE_NS)
    swap = settings.mode == "swap"
    return {
        "seconds_left": None
        if swap or not deadline_ns
        else max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)
    }


def open_windows(shared: Shared) -> Sequence[Window]:
    """Windows whose connections are alive; a worker that is lost for good takes its table with it."""
    if not shared.control.load(ControlWord.WORKERS_LOST):
        return shared.client_windows
    return [
        window
        for window in shared.client_windows
        if window is shared.local or proc.alive(window.load(Word.WORKER_PID))
    ]


def dropped_log_lines(shared: Shared, totals: Totals) -> int:
    """Log lines that any process has dropped."""
    control = shared.control
    return (
        totals.scalars["dropped_log_lines"]
        + control.engine_counters.scalar("dropped_log_lines")
        + control.load(ControlWord.DROPPED_LOG_LINES)
    )


def locked_bytes(shared: Shared, running: Mapping[str, proc.Process]) -> int:
    """Locked memory of all processes: as the supervisor found it at ready, otherwise as /proc says now."""
    at_ready = shared.control.load(ControlWord.LOCKED_BYTES)
    return at_ready or sum(each.locked_bytes for each in running.values())
