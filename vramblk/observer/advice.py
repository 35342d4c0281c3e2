"""What people should know before anything else: in plain words, with what to do about it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..hostmemory import HAZARDS
from ..settings import Settings
from ..units import TcpAddress
from .devices import is_cpu

_SWAP_NEARLY_FULL = 0.9


@dataclass(frozen=True)
class Advice:
    """One warning.

    Attributes:
        code: snake_case, for scripts.
        severity: "error" (data or service is at stake), "warning" or "note".
    """

    code: str
    severity: str
    text: str
    remedy: str


def find_advice(document: dict[str, Any], settings: Settings) -> list[Advice]:
    """The warnings of a status document, the gravest first."""
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(_find(document, settings), key=lambda advice: order[advice.severity])


def _find(document: dict[str, Any], settings: Settings) -> Iterator[Advice]:
    yield from _device(document)
    yield from _processes(document)
    yield from _memory(document)
    yield from _drain(document)
    if settings.mode == "swap":
        yield from _swap(document)
    yield from _exposure(settings)


def _device(document: dict[str, Any]) -> Iterator[Advice]:
    engine = document["engine"]
    if engine["device_lost"]:
        yield Advice(
            "device_lost",
            "error",
            "The device is lost. Every request to it fails with EIO and its data is gone.",
            "Detach all clients, look at the kernel log (dmesg), and restart the server.",
        )
    elif engine["device_errors"]:
        yield Advice(
            "device_errors",
            "error",
            f"The device has failed {engine['device_errors']} times since the start.",
            "Look at the server's log for device_error, and run vramblk selftest when the device is free.",
        )
    if engine["checksum_mismatches"]:
        yield Advice(
            "checksum_mismatch",
            "error",
            f"{engine['checksum_mismatches']} blocks did not hold what was written to them.",
            "The device's memory is faulty: stop using it, and run vramblk selftest to see where.",
        )
    if not document["healthy"] and document["state"] == "ready" and not engine["device_lost"]:
        yield Advice(
            "unhealthy",
            "error",
            _sentence(document["health"]),
            "Look at the server's log; vramblk status --health repeats the check.",
        )
    for export in document["exports"]:
        if is_cpu(export["device"]):
            yield Advice(
                "system_ram",
                "warning",
                f"Export {export['name']} lies in system RAM, not in the memory of a GPU.",
                "Fine for a trial. For VRAM leave out --allow-cpu and choose a GPU: vramblk devices lists "
                "them.",
            )
        if export["device"]["pinned"] is False:
            yield Advice(
                "unpinned",
                "note",
                f"The device does not use the shared memory of export {export['name']} directly, so copies "
                "are slower.",
                "Nothing is wrong. A newer driver may allow it.",
            )


def _processes(document: dict[str, Any]) -> Iterator[Advice]:
    counters = document["counters"]
    if counters["workers_lost"]:
        yield Advice(
            "worker_lost",
            "error",
            f"{counters['workers_lost']} worker processes have died and are not replaced in swap mode.",
            "Their swap devices answer with EIO: vramblk-swap down for what still works, then restart the "
            "server.",
        )
    if counters["worker_restarts"]:
        yield Advice(
            "worker_restarts",
            "warning",
            f"{counters['worker_restarts']} worker processes have died and were replaced; their "
            "connections closed.",
            "Look at the server's log for worker_died and report it.",
        )
    if counters["connections_refused"]:
        yield Advice(
            "connections_refused",
            "note",
            f"{counters['connections_refused']} connections were closed because all "
            f"{document['max_connections']} places were taken.",
            "Raise --max-connections (in swap mode --workers), or see below who is connected.",
        )
    if counters["dropped_log_lines"]:
        yield Advice(
            "dropped_log_lines",
            "note",
            f"{counters['dropped_log_lines']} log lines were dropped because stdout was not read fast "
            "enough.",
            "See what reads the log: a full disk or a stopped terminal.",
        )


def _memory(document: dict[str, Any]) -> Iterator[Advice]:
    if document["state"] == "ready" and not document["locked_bytes"]:
        yield Advice(
            "not_locked",
            "note",
            "The server's own memory is not locked, so under pressure it can be swapped out and answer "
            "slowly.",
            "Grant CAP_IPC_LOCK or raise ulimit -l. It does not matter for scratch disks on a machine with "
            "free memory.",
        )


def _drain(document: dict[str, Any]) -> Iterator[Advice]:
    if document["state"] != "draining":
        return
    peers = (
        ", ".join(connection["device"] or connection["peer"] for connection in document["connections"])
        or "nobody"
    )
    if document["mode"] == "swap":
        yield Advice(
            "draining",
            "warning",
            f"The server was told to stop and waits for its clients: {peers}.",
            "sudo vramblk-swap down",
        )
    else:
        yield Advice(
            "draining",
            "warning",
            f"The server is stopping. New requests are refused. Still attached: {peers}.",
            "Unmount and disconnect: umount, then nbd-client -d.",
        )


def _swap(document: dict[str, Any]) -> Iterator[Advice]:
    for condition in document["swap_preconditions"]:
        if not condition["ok"]:
            yield Advice(
                f"precondition_{condition['name']}",
                "warning" if condition["name"] in HAZARDS else "error",
                f"A precondition of swap mode does not hold, {condition['name']}: {condition['detail']}. "
                "Under memory pressure the machine can freeze.",
                _sentence(condition["remedy"]),
            )
    for swap in document["host"]["swaps"]:
        if swap["size_bytes"] and swap["used_bytes"] >= _SWAP_NEARLY_FULL * swap["size_bytes"]:
            share = swap["used_bytes"] / swap["size_bytes"]
            yield Advice(
                "swap_nearly_full",
                "warning",
                f"{swap['device']} is {share:.0%} full.",
                "Add swap of a lower priority, or end something that uses memory.",
            )
    attached: dict[str, int] = {}
    for connection in document["connections"]:
        if connection["export"]:
            attached[connection["export"]] = attached.get(connection["export"], 0) + 1
    for name, count in attached.items():
        if count > 1:
            yield Advice(
                "swap_connections",
                "warning",
                f"Export {name} has {count} connections. With more than one, a stall can bring back stale "
                "data.",
                "Attach swap with one connection, as vramblk-swap up does.",
            )


def _exposure(settings: Settings) -> Iterator[Advice]:
    if settings.metrics_addr and not is_loopback(settings.metrics_addr) and not settings.metrics_token:
        yield Advice(
            "metrics_exposed",
            "note",
            f"Anybody who reaches {settings.metrics_addr} can read these figures.",
            "Bind --metrics-addr to 127.0.0.1, or set --metrics-token.",
        )
    for address in settings.tcp_listeners:
        if not is_loopback(address) and settings.tls != "require":
            yield Advice(
                "nbd_exposed",
                "note",
                f"Anybody who reaches {address} can read and overwrite the exports.",
                "Listen on 127.0.0.1 or a Unix socket, or use --tls require with --tls-verify-peer. In a "
                "container what counts is where the port is published.",
            )


def is_loopback(address: TcpAddress) -> bool:
    """Whether only this machine can reach the address."""
    if address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")
