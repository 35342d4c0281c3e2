"""The status document for scripts, /status.env: one NAME=value on a line, no quotes, nothing nested.

Values are printable ASCII and short, so a shell needs no parser. docs/reference/status.md lists them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .gpu import Reading, canonical

FORMAT = 1
_MOST_CHARACTERS = 300
_PLAIN_NAME = re.compile(r"[ -~]{1,255}")
_UNPRINTABLE = re.compile(r"[^ -~]")


def lines(document: Mapping[str, Any]) -> str:
    """The text. Its first line is ``format``, its last ``end``, so that a script sees whether it has all."""
    return "".join(f"{name}={_value(value)}\n" for name, value in _pairs(document))


def free_memory(readings: Sequence[Reading]) -> str:
    """A line with the address, free and total bytes of each GPU whose driver reports both."""
    words = [
        f"{each.pci} {each.memory_free_bytes} {each.memory_total_bytes}"
        for each in readings
        if each.memory_free_bytes is not None and each.memory_total_bytes
    ]
    return " ".join(words) + "\n"


def _pairs(document: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    yield "format", FORMAT
    for key in ("state", "mode", "pid", "locked_bytes"):
        yield key, document[key]
    gpus = {each["pci"]: each for each in document["gpus"]}
    yield "exports", len(document["exports"])
    for number, export in enumerate(document["exports"]):
        pci = canonical(str(export["device"]["pci"] or ""))
        gpu = gpus.get(pci, {})
        of_export = {
            # A name that a line cannot carry as it is would be another export's.
            "name": export["name"] if _PLAIN_NAME.fullmatch(export["name"]) else "",
            "mode": export["mode"],
            "size_bytes": export["size_bytes"],
            "read_only": export["read_only"],
            "held": export["held"],
            "missing_bytes": export["missing_bytes"],
            "written_bytes": export["written_bytes"],
            "gpu": pci,
            "gpu_free_bytes": gpu.get("memory_free_bytes"),
            "gpu_total_bytes": gpu.get("memory_total_bytes"),
        }
        yield from ((f"export_{number}_{key}", value) for key, value in of_export.items())
    yield "preconditions", len(document["swap_preconditions"])
    for number, condition in enumerate(document["swap_preconditions"]):
        for key in ("name", "ok", "detail", "remedy"):
            yield f"precondition_{number}_{key}", condition[key]
    yield "end", "yes"


def _value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _UNPRINTABLE.sub("?", str(value))[:_MOST_CHARACTERS]
