"""Warnings of the status document: what is wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..config.exposure import (
    GROUP_REMEDY,
    METRICS_REMEDY,
    NBD_REMEDY,
    behind_published_ports,
    exposed_listeners,
    exposed_metrics,
)
from ..config.settings import Settings
from ..config.units import format_days, format_size
from ..swap.hostmemory import HAZARDS
from ..system.certificate import WARNING_S, as_date
from .devices import is_cpu

_SWAP_NEARLY_FULL = 0.9


@dataclass(frozen=True)
class OperatorWarning:
    """One warning.

    Attributes:
        code: snake_case, for scripts.
        severity: "error" (data or service is at stake), "warning" or "note".
    """

    code: str
    severity: str
    text: str
    remedy: str


def find_warnings(document: dict[str, Any], settings: Settings) -> list[OperatorWarning]:
    """The warnings of a status document, the gravest first."""
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(_find(document, settings), key=lambda each: order[each.severity])


def _find(document: dict[str, Any], settings: Settings) -> Iterator[OperatorWarning]:
    yield from _device(document, settings)
    yield from _processes(document)
    yield from _socket_files(document)
    yield from _memory(document)
    yield from _missing(document)
    yield from _drain(document)
    if settings.mode == "swap":
        yield from _swap(document)
    yield from _certificate(document)
    yield from _exposure(document, settings)


def _device(document: dict[str, Any], settings: Settings) -> Iterator[OperatorWarning]:
    engine = document["engine"]
    if engine["device_lost"]:
        yield OperatorWarning(
            "device_lost",
            "error",
            "The device is lost. Every request to it fails with EIO and its data is gone.",
            "Detach all clients, look at the kernel log (dmesg), and restart the server.",
        )
    elif engine["device_errors"]:
        yield OperatorWarning(
            "device_errors",
            "error",
            f"The device has failed {engine['device_errors']} times since the start.",
            "Look at the server's log for device_error, and run vramblk selftest when the device is free.",
        )
    if engine["checksum_mismatches"]:
        yield OperatorWarning(
            "checksum_mismatch",
            "error",
            f"{engine['checksum_mismatches']} blocks did not hold what was written to them.",
            "The device's memory is faulty: stop using it, and run vramblk selftest to see where.",
        )
    if not document["healthy"] and document["state"] == "ready" and not engine["device_lost"]:
        yield OperatorWarning(
            "unhealthy",
            "error",
            _sentence(document["health"]),
            "Look at the server's log; vramblk status --health repeats the check.",
        )
    for export in document["exports"]:
        if is_cpu(export["device"]):
            yield OperatorWarning(
                "system_ram",
                "warning",
                f"Export {export['name']} lies in system RAM, not in the memory of a GPU.",
                f"Fine for a trial. For VRAM {_without_cpu(settings)}.",
            )
        if export["device"]["pinned"] is False:
            yield OperatorWarning(
                "unpinned",
                "note",
                f"The device does not use the shared memory of export {export['name']} directly, so copies "
                "are slower.",
                "Nothing is wrong. A newer driver may allow it.",
            )


def _processes(document: dict[str, Any]) -> Iterator[OperatorWarning]:
    counters = document["counters"]
    if counters["workers_lost"]:
        yield OperatorWarning(
            "worker_lost",
            "error",
            f"{counters['workers_lost']} worker processes have died and are not replaced in swap mode.",
            "Their swap devices answer with EIO: vramblk-swap down for what still works, then restart the "
            "server.",
        )
    if counters["worker_restarts"]:
        yield OperatorWarning(
            "worker_restarts",
            "warning",
            f"{counters['worker_restarts']} worker processes have died and were replaced; their "
            "connections closed.",
            "Look at the server's log for worker_died and report it.",
        )
    if counters["connections_refused"]:
        yield OperatorWarning(
            "connections_refused",
            "note",
            f"{counters['connections_refused']} connections were closed because no place was free for them.",
            "Raise --max-connections, or see below who is connected. In swap mode --workers is the limit.",
        )
    if counters["dropped_log_lines"]:
        yield OperatorWarning(
            "dropped_log_lines",
            "note",
            f"{counters['dropped_log_lines']} log lines were dropped because stdout was not read fast "
            "enough.",
            "See what reads the log: a full disk or a stopped terminal.",
        )


def _socket_files(document: dict[str, Any]) -> Iterator[OperatorWarning]:
    for path in document["socket_files_gone"]:
        yield OperatorWarning(
            "socket_gone",
            "error",
            f"The socket file {path} is gone: somebody removed or replaced it. New clients do not find the "
            "server.",
            "Attached clients are served as before. Detach them when you can and restart the server, which "
            "makes the file again.",
        )


def _memory(document: dict[str, Any]) -> Iterator[OperatorWarning]:
    if document["state"] == "ready" and not document["locked_bytes"]:
        yield OperatorWarning(
            "not_locked",
            "note",
            "The server's own memory is not locked, so under pressure it can be swapped out and answer "
            "slowly.",
            "Grant CAP_IPC_LOCK or raise ulimit -l. It does not matter for scratch disks on a machine with "
            "free memory.",
        )


def _missing(document: dict[str, Any]) -> Iterator[OperatorWarning]:
    for export in document["exports"]:
        if export["missing_bytes"]:
            missing, size = format_size(export["missing_bytes"]), format_size(export["size_bytes"])
            yield OperatorWarning(
                "memory_missing",
                "error",
                f"A client of export {export['name']} was refused: {missing} of its {size} were missing on "
                f"{export['device']['name']}.",
                "Free memory of the device and attach again, or serve less: --size, --slices.",
            )


def _drain(document: dict[str, Any]) -> Iterator[OperatorWarning]:
    if document["state"] != "draining":
        return
    peers = (
        ", ".join(connection["device"] or connection["peer"] for connection in document["connections"])
        or "nobody"
    )
    if document["mode"] == "swap":
        yield OperatorWarning(
            "draining",
            "warning",
            f"The server is stopping and waits for its clients: {peers}.",
            "sudo vramblk-swap down",
        )
    else:
        yield OperatorWarning(
            "draining",
            "warning",
            f"The server is stopping. New requests are refused. Still attached: {peers}.",
            "Unmount and disconnect: umount, then nbd-client -d.",
        )


def _swap(document: dict[str, Any]) -> Iterator[OperatorWarning]:
    for condition in document["swap_preconditions"]:
        if not condition["ok"]:
            yield OperatorWarning(
                f"precondition_{condition['name']}",
                "warning" if condition["name"] in HAZARDS else "error",
                f"A precondition of swap mode does not hold, {condition['name']}: {condition['detail']}. "
                "Under memory pressure the machine can freeze.",
                _sentence(condition["remedy"]),
            )
    for swap in document["host"]["swaps"]:
        if swap["size_bytes"] and swap["used_bytes"] >= _SWAP_NEARLY_FULL * swap["size_bytes"]:
            share = swap["used_bytes"] / swap["size_bytes"]
            yield OperatorWarning(
                "swap_nearly_full",
                "warning",
                f"{swap['device']} is {share:.0%} full.",
                "Add swap of a lower priority, or end something that uses memory.",
            )


def _certificate(document: dict[str, Any]) -> Iterator[OperatorWarning]:
    until_s = document["tls"]["certificate_until"]
    if until_s is None or (left_s := until_s - document["time"]) >= WARNING_S:
        return
    ended = left_s <= 0
    yield OperatorWarning(
        "certificate_expires",
        "error" if ended else "warning",
        f"The TLS certificate expired on {as_date(until_s)}. Clients refuse it."
        if ended
        else f"The TLS certificate expires on {as_date(until_s)}, in {format_days(left_s)}.",
        "Replace the files in --tls-certificates and send SIGHUP to the server.",
    )


def _exposure(document: dict[str, Any], settings: Settings) -> Iterator[OperatorWarning]:
    for address, who in exposed_listeners(settings):
        yield OperatorWarning(
            "nbd_exposed",
            "warning",
            _sentence(f"{who} can read and write the exports: {address} asks no client who it is"),
            _sentence(NBD_REMEDY),
        )
    for each in document["socket_groups"]:
        yield OperatorWarning(
            "swap_socket_group",
            "warning",
            f"Every account of group {each['group']} can open {each['path']} and attach a swap export "
            "that has no client.",
            _sentence(GROUP_REMEDY),
        )
    if (metrics := exposed_metrics(settings)) is not None:
        yield OperatorWarning(
            "metrics_exposed",
            "note",
            f"Anybody who reaches {metrics} can read these metrics.",
            _sentence(METRICS_REMEDY),
        )


def _without_cpu(settings: Settings) -> str:
    """How to undo what let a CPU be served, by who said it."""
    source = settings.source_of("allow_cpu")
    if behind_published_ports():
        return "give the container a GPU; make up does where the host has one"
    if source.startswith("flag "):
        return "leave out --allow-cpu and choose a GPU: vramblk devices lists them"
    return f"switch allow_cpu off ({source}) and choose a GPU: vramblk devices lists them"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")
