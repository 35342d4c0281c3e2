"""What the engine has published of an export's device, under the same names for every kind of memory."""

from __future__ import annotations

from typing import Any

#: Labels of vramblk_device_info and keys of "device" in the status document.
KEYS = ("name", "type", "vendor", "driver", "platform", "pci", "pinned")

_EXPORT_KEYS = ("name", "size_bytes", "arena_bytes", "read_only", "mode", "allocate")


def export_of(entry: dict[str, Any]) -> dict[str, Any]:
    """An export of the export table as the status document shows it: its own keys, and its device apart."""
    return {**{key: entry.get(key) for key in _EXPORT_KEYS}, "device": device_of(entry)}


def device_of(entry: dict[str, Any]) -> dict[str, Any]:
    """The device with the keys of ``KEYS`` (None where it does not tell) and whatever else it says."""
    found = {key: value for key, value in entry.items() if key not in _EXPORT_KEYS}
    nested = found.pop("device", None)
    found = {**found, **nested} if isinstance(nested, dict) else {**found, "name": nested}
    for ours, theirs in (("pci", "pci_address"), ("type", "device_type")):
        if theirs in found:
            found[ours] = found.pop(theirs)
    if isinstance(found.get("pinned"), list):
        found["pinned"] = all(found["pinned"])
    return {**dict.fromkeys(KEYS), **found}


def is_cpu(device: dict[str, Any]) -> bool:
    """Whether the "device" is a processor, and its memory system RAM."""
    return str(device["type"] or "").lower() == "cpu"


def label(value: object) -> str:
    """A value of the device as a metric's label."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
