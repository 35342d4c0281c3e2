"""``vramblk status``: the status document of a running server, as a table or as JSON."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from ..config.settings import Settings
from ..config.units import format_latency, format_seconds, format_size, printable
from ..errors import RuntimeFailure
from ..system.certificate import as_date
from .observerclient import StatusServer, printable_document, understood


def status(settings: Settings, json: bool, health: bool, env: bool = False) -> int:
    """Print the server's status; with ``health`` one line and exit status 0 only if it is healthy.

    Args:
        env: print /status.env, whose lines need no parser.

    Raises:
        RuntimeFailure: nothing answers, or not with a status document.
    """
    server = StatusServer(settings)
    if health:
        code, body = server.get("/healthz")
        text = printable(body.decode(errors="replace").strip())
        print(json_format.dumps({"healthy": code == 200, "health": text}) if json else text)
        return 0 if code == 200 else 1
    if env:
        code, body = server.get("/status.env")
        if code != HTTPStatus.OK:
            raise RuntimeFailure(f"/status.env: HTTP status {code}; an older server?")
        print("\n".join(map(printable, body.decode(errors="replace").splitlines())))
        return 0
    document = server.json("/status.json")
    if json:
        print(json_format.dumps(document, indent=2))
        return 0
    with understood():
        text = "\n".join(as_text(printable_document(document)))
    print(text)
    return 0


def as_text(document: dict[str, Any]) -> list[str]:
    """The status document, whose texts are printable, in lines for people, warnings first."""
    lines = [headline(document)]
    for warning in document["warnings"]:
        lines += [f"{warning['severity'].upper()}: {warning['text']}", f"  -> {warning['remedy']}"]
    lines.append(f"health: {document['health']}")
    if (tls := document.get("tls", {})).get("certificate_until"):
        lines.append(f"TLS: {tls['mode']}, certificate until {as_date(tls['certificate_until'])}")
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
        f"export {export['name']}: {format_size(size)} on {device['name']}"
        + (f" ({device['type']})" if device["type"] else "")
        + (", read-only" if export["read_only"] else "")
        + ("" if export["held"] else ", memory given back while no client is attached"),
        f"  written {format_size(written)} ({written / size:.0%}), "
        f"read {format_size(payload['read'])} in {requests['read']} requests, "
        f"wrote {format_size(payload['write'])} in {requests['write']}, {errors} errors",
    ]


def connection_rows(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """A table of the connections; the first row is its head."""
    rows: list[tuple[str, ...]] = [("CLIENT", "EXPORT", "REQUESTS/S", "FROM CLIENT", "TO CLIENT", "AGE")]
    for each in document["connections"]:
        rows.append(
            (
                each["device"] or each["peer"],
                each["export"] or each["state"],
                f"{each['requests_per_s']:.0f}",
                f"{format_size(each['received_bytes_per_s'])}/s",
                f"{format_size(each['sent_bytes_per_s'])}/s",
                format_seconds(each["age_s"]),
            )
        )
    return rows


def latency_rows(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """A table of latencies of what was asked for within the last minute; the first row is its head."""
    rows: list[tuple[str, ...]] = [("OPERATION", "MEDIAN", "95 % BELOW", "99 % BELOW", "99.9 % BELOW")]
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
