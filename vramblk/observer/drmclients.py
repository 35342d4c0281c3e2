"""Use of an Intel GPU's memory, added up from what xe and i915 report of each of its clients in /proc.

The format is the kernel's Documentation/gpu/drm-usage-stats. Memory that the driver itself holds, such as the
screen's, belongs to no client and is not counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..system import proc

DRIVERS = ("xe", "i915")
#: Memory regions of the device's own, as the two drivers name them; what else there is lies in system RAM.
_REGIONS = ("drm-resident-vram", "drm-resident-local")
_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_DEVICES = "/dev/dri/"
#: Inode of the first pid namespace, in which every process has a number.
_FIRST_PID_NAMESPACE = 0xEFFFFFFC


class _Hidden(Exception):
    """There is a process whose files may not be seen."""


def used_bytes(address: str, root: Path = proc.ROOT) -> int | None:
    """Memory of the GPU at a PCI address that all clients together have resident, in bytes.

    None if the driver does not report it, or if not every process can be seen: in a container of its own pid
    namespace, or as a user who may not read others' /proc/PID/fd.
    """
    try:
        if os.stat(root / "proc/self/ns/pid").st_ino != _FIRST_PID_NAMESPACE:
            return None
        clients = {}
        for text in _fdinfos(root):
            fields = parse(text)
            if fields.get("drm-pdev") != address or fields.get("drm-driver") not in DRIVERS:
                continue
            resident = resident_bytes(fields)
            if resident is not None:
                clients[fields.get("drm-client-id")] = resident  # several descriptors may be one client's
        return sum(clients.values()) if clients else None
    except (OSError, _Hidden):
        return None


def parse(text: str) -> dict[str, str]:
    """Keys and values of one fdinfo file."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {key: value.strip() for key, colon, value in pairs if colon}


def resident_bytes(fields: dict[str, str]) -> int | None:
    """Bytes of the device's own memory that a client has resident; None if the driver does not report any."""
    found = [_bytes(value) for key, value in fields.items() if key.startswith(_REGIONS)]
    told = [value for value in found if value is not None]
    return sum(told) if told else None


def _bytes(value: str) -> int | None:
    number, _, unit = value.partition(" ")
    if not number.isdecimal() or unit.strip() not in _UNITS:
        return None
    return int(number) * _UNITS[unit.strip()]


def _fdinfos(root: Path) -> Iterator[str]:
    """What /proc tells of each descriptor of a DRM device; few of the descriptors are such."""
    for process in os.scandir(root / "proc"):
        if not process.name.isdecimal():
            continue
        try:
            descriptors = os.listdir(f"{process.path}/fd")
        except PermissionError:
            raise _Hidden from None
        except OSError:
            continue  # it has ended
        for descriptor in descriptors:
            try:
                if not os.readlink(f"{process.path}/fd/{descriptor}").startswith(_DEVICES):
                    continue
                with open(f"{process.path}/fdinfo/{descriptor}", encoding="utf-8", errors="replace") as file:
                    yield file.read()
            except PermissionError:
                raise _Hidden from None
            except OSError:
                continue
