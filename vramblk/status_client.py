"""``vramblk status``: asks a running server over its status socket, or over --metrics-addr if given."""

from __future__ import annotations

import http.client
import json as json_format
import socket
from collections.abc import Sequence
from typing import Any

from .errors import RuntimeFailure
from .settings import Settings
from .units import Address, UnixAddress, format_bytes

TIMEOUT_S = 10.0
_MOST_BYTES = 16 << 20
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def status(settings: Settings, json: bool, health: bool) -> int:
    """Print what the server says of itself; with ``health`` one line and exit status 0 only if it is well.

    Raises:
        RuntimeFailure: nothing answers.
    """
    server = StatusServer(settings)
    if health:
        code, body = server.get("/healthz")
        text = clean(body.decode(errors="replace").strip())
        print(json_format.dumps({"healthy": code == 200, "health": text}) if json else text)
        return 0 if code == 200 else 1
    document = server.json("/status.json")
    print(json_format.dumps(document, indent=2) if json else "\n".join(as_text(document)))
    return 0


class StatusServer:
    """The place where a server's observer answers."""

    def __init__(self, settings: Settings) -> None:
        self._places = _places(settings)
        self._token = settings.metrics_token
        if not self._places:
            raise RuntimeFailure(
                "there is nothing to ask: the status socket is off; give --status-socket or --metrics-addr"
            )

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a page.

        Raises:
            RuntimeFailure: no place answers; the text says why and what to try.
        """
        problems = []
        for place in self._places:
            try:
                return self._ask(place, path)
            except (OSError, http.client.HTTPException) as error:
                problems.append(_why(place, error))
        raise RuntimeFailure("no server answers: " + "; ".join(problems))

    def json(self, path: str) -> Any:
        """A JSON page; errors as ``get``, and for a server that refuses."""
        code, body = self.get(path)
        if code == 401:
            raise RuntimeFailure("the server asks for a token: give --metrics-token or VRAMBLK_METRICS_TOKEN")
        try:
            if code == 200:
                return json_format.loads(body)
        except ValueError:
            pass
        raise RuntimeFailure(f"the server's answer to {path} is not understood (HTTP status {code})")

    def _ask(self, place: Address, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("localhost", timeout=TIMEOUT_S)
        headers = {}
        try:
            if isinstance(place, UnixAddress):
                connection.sock = socket.socket(socket.AF_UNIX)
                connection.sock.settimeout(TIMEOUT_S)
                connection.sock.connect(place.path)
            else:
                host = _ANY.get(place.host, place.host)
                connection.sock = socket.create_connection((host, place.port), TIMEOUT_S)
                if self._token:
                    headers["Authorization"] = f"Bearer {self._token}"
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            body = response.read(_MOST_BYTES + 1)
            if len(body) > _MOST_BYTES:
                raise http.client.HTTPException("the answer is too long")
            return response.status, body
        finally:
            connection.close()


def _places(settings: Settings) -> list[Address]:
    """Where to ask: what a flag names and nothing else; otherwise the address, then the socket."""
    unix: list[Address] = [UnixAddress(settings.status_socket)] if settings.status_socket else []
    tcp: list[Address] = [settings.metrics_addr] if settings.metrics_addr else []
    given_by_flag = {name for name in ("metrics_addr", "status_socket") if _is_flag(settings.source_of(name))}
    if given_by_flag == {"status_socket"}:
        return unix
    if "metrics_addr" in given_by_flag:
        return tcp or unix
    return tcp + unix


def _is_flag(source: str) -> bool:
    return source.startswith("flag ")


def _why(place: Address, error: Exception) -> str:
    reason = (
        error.strerror
        if isinstance(error, OSError) and error.strerror
        else str(error) or type(error).__name__
    )
    hint = ""
    if isinstance(error, PermissionError):
        hint = " (try sudo)"
    elif isinstance(error, FileNotFoundError):
        hint = " (is the server running? name its socket with --status-socket)"
    path = place.path if isinstance(place, UnixAddress) else place
    return f"{path}: {reason}{hint}"


def clean(text: object) -> str:
    """Text that may come from a client, without anything that a terminal would obey."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text)
    )


def as_text(document: dict[str, Any]) -> list[str]:
    """The status document in lines for people, warnings first."""
    lines = [headline(document)]
    for warning in document["warnings"]:
        lines += [
            f"{warning['severity'].upper()}: {clean(warning['text'])}",
            f"  -> {clean(warning['remedy'])}",
        ]
    lines.append(f"health: {clean(document['health'])}")
    for export in document["exports"]:
        lines.append("")
        lines += _export_lines(export)
    lines += ["", *_table(connection_rows(document))] if document["connections"] else ["", "no clients"]
    slow = latency_rows(document)
    if len(slow) > 1:
        lines += ["", "latency over the last minute", *_table(slow)]
    return lines


def headline(document: dict[str, Any]) -> str:
    """Version, state and mode in one line."""
    uptime = document["uptime_s"]
    parts = [f"vramblk {document['version']}", document["state"], f"{document['mode']} mode"]
    parts += [f"process {document['pid']}", f"{format_size(document['locked_bytes'])} locked"]
    if uptime is not None:
        parts.insert(2, f"up {format_seconds(uptime)}")
    return ", ".join(parts)


def _export_lines(export: dict[str, Any]) -> list[str]:
    size, written = export["size_bytes"], export["written_bytes"]
    device = export["device"]
    requests, payload = export["requests"], export["bytes"]
    errors = sum(count for by_errno in export["errors"].values() for count in by_errno.values())
    return [
        f"export {clean(export['name'])}: {format_bytes(size)} on {clean(device['name'])}"
        + (f" ({clean(device['type'])})" if device["type"] else "")
        + (", read-only" if export["read_only"] else ""),
        f"  written {format_bytes(written)} ({written / size:.0%}), "
        f"read {format_size(payload['read'])} in {requests['read']} requests, "
        f"wrote {format_size(payload['write'])} in {requests['write']}, {errors} errors",
    ]


def connection_rows(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """A table of the connections; the first row is its head."""
    rows: list[tuple[str, ...]] = [("CLIENT", "EXPORT", "REQUESTS/S", "FROM CLIENT", "TO CLIENT", "AGE")]
    for each in document["connections"]:
        rows.append(
            (
                clean(each["device"] or each["peer"]),
                clean(each["export"] or each["state"]),
                f"{each['requests_per_s']:.0f}",
                f"{format_size(each['received_bytes_per_s'])}/s",
                f"{format_size(each['sent_bytes_per_s'])}/s",
                format_seconds(each["age_s"]),
            )
        )
    return rows


def latency_rows(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """A table of latencies of what was asked for within the last minute; the first row is its head."""
    rows: list[tuple[str, ...]] = [("OPERATION", "HALF BELOW", "95 % BELOW", "99 % BELOW", "99.9 % BELOW")]
    for op, found in document["latency_s"].items():
        if found["p50"] is not None:
            rows.append((op, *(format_latency(value) for value in found.values())))
    return rows


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def format_size(size_bytes: float) -> str:
    """Three figures and a binary unit."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1000 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def format_latency(seconds: float | None) -> str:
    """Microseconds or milliseconds; a dash for None."""
    if seconds is None:
        return "-"
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def format_seconds(seconds: float) -> str:
    """Such as 42s, 3m10s, 5h02m or 4d07h."""
    whole = int(seconds)
    for size, big, small, part in ((86400, "d", "h", 3600), (3600, "h", "m", 60), (60, "m", "s", 1)):
        if whole >= size:
            return f"{whole // size}{big}{whole % size // part:02d}{small}"
    return f"{whole}s"
