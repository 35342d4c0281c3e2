"""The result of a run: one JSON document, written again after each row, so that a run can continue."""

from __future__ import annotations

import json
import os
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from . import machine

Document = dict[str, Any]

_FORMAT = 1


class ResultError(Exception):
    """A file that holds something else, or a run that cannot be continued."""


class Spread(NamedTuple):
    median: float
    low: float
    high: float


class Results:
    """A document and its file.

    ``document["rows"]`` maps a row's name to ``{"unit", "samples": {server: [sample, ...]}}``; a sample that
    could not be taken is ``{"error": text}``.
    """

    def __init__(self, path: Path, document: Document) -> None:
        self.path = path
        self.document = document

    @classmethod
    def open(cls, path: Path, kind: str, options: dict[str, Any], described: dict[str, Any]) -> Results:
        """The run in ``path`` if it has the same options and machine, or a new one if there is no such file.

        Raises:
            ResultError: the file holds a run that differs; the message says in what.
        """
        if not path.exists():
            now = datetime.now(UTC).isoformat(timespec="seconds")
            head = {"format": _FORMAT, "kind": kind, "created": now, "options": options, "machine": described}
            return cls(path, head | {"servers": {}, "rows": {}})
        document = load(path)
        if different := _differences(document, kind, options, described):
            raise ResultError(
                f"{path} holds another run ({'; '.join(different)}); name another file with --output"
            )
        return cls(path, document)

    def has(self, row: str) -> bool:
        return row in self.document["rows"]

    def append(self, row: str, unit: str, samples: dict[str, list[dict[str, Any]]], **more: Any) -> None:
        self.document["rows"][row] = {"unit": unit, "samples": samples, **more}
        self.save()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.document, indent=1) + "\n")
        os.replace(part, self.path)


def load(path: Path) -> Document:
    """Raises ResultError."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: {error}") from None
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ResultError(f"{path} is not a result of these tools")
    return document


def default_path(
    directory: Path, kind: str, options: dict[str, Any], described: dict[str, Any], rows: list[str]
) -> Path:
    """Date and hardware; the first such name that is free, or that holds this run without all its rows."""
    stem = f"{datetime.now(UTC):%Y-%m-%d}-{kind}-{machine.hardware_name(described)}"
    number = 1
    while True:
        path = directory / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
        try:
            results = Results.open(path, kind, options, described)
            if not path.exists() or not all(results.has(row) for row in rows):
                return path
        except ResultError:
            pass
        number += 1


def value(sample: dict[str, Any], unit: str) -> float:
    """The rate in IOPS or MiB/s."""
    rate: float = sample["iops"] if unit == "IOPS" else sample["bytes_per_s"] / (1 << 20)
    return rate


def good(document: Document, row: str, server: str) -> list[dict[str, Any]]:
    """The samples that were taken."""
    samples = document["rows"].get(row, {}).get("samples", {}).get(server, [])
    return [sample for sample in samples if "error" not in sample]


def rates(document: Document, row: str, server: str) -> Spread | None:
    unit = document["rows"].get(row, {}).get("unit", "")
    return spread([value(sample, unit) for sample in good(document, row, server)])


def column(document: Document, row: str, server: str, key: str) -> Spread | None:
    return spread([sample[key] for sample in good(document, row, server) if sample.get(key) is not None])


def ratios(document: Document, row: str, server: str, other: str) -> Spread | None:
    """``server`` over ``other``, each repeat against the one taken next to it."""
    found = document["rows"].get(row, {})
    samples = found.get("samples", {})
    pairs = zip(samples.get(server, ()), samples.get(other, ()), strict=False)
    return spread(
        [
            value(one, found["unit"]) / value(two, found["unit"])
            for one, two in pairs
            if "error" not in one and "error" not in two
        ]
    )


def spread(values: list[float]) -> Spread | None:
    return Spread(statistics.median(values), min(values), max(values)) if values else None


def _differences(
    document: Document, kind: str, options: dict[str, Any], described: dict[str, Any]
) -> list[str]:
    before, now = document["options"] | {"kind": document["kind"]}, options | {"kind": kind}
    found = [
        f"{key} {before.get(key)!r}, now {now.get(key)!r}" for key in now if before.get(key) != now.get(key)
    ]
    machine_before = document["machine"]
    return found + [
        f"{key} {machine_before.get(key)!r}, now {described.get(key)!r}"
        for key in machine.IDENTITY
        if machine_before.get(key) != described.get(key)
    ]
