"""The table of ``vramblk devices``."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from typing import Any

from ..config.units import format_size
from ..errors import PreconditionError
from ..memory import caches
from ..memory.devices import CPU, NOTHING_FOUND, DeviceInfo, discover
from ..memory.passthrough import unmet_requirement

_COLUMNS = ("platform", "device", "name", "type", "vendor", "driver", "memory", "largest", "pci", "usable")
_NUMBERS = ("memory", "largest")
_LABEL = max(map(len, _COLUMNS)) + 2


def print_devices(json: bool) -> int:
    """Print every platform's devices to stdout, as a table or as JSON; exit status 0, also with none."""
    problem = None
    try:
        devices = discover()
        if not devices:
            problem = unmet_requirement() or caches.problem() or NOTHING_FOUND
    except PreconditionError as error:
        devices, problem = [], str(error)
    if json:
        result = {"devices": [_row(device) for device in devices], "problem": problem}
        print(json_module.dumps(result, indent=2))
    elif problem is not None:
        print(problem)
    else:
        _print_table(devices)
    return 0


def usability(device: DeviceInfo) -> str:
    """The word yes, or what stands in the way."""
    if device.problem is not None:
        return device.problem
    return "with --allow-cpu (system RAM)" if device.type == CPU else "yes"


def _row(device: DeviceInfo) -> dict[str, Any]:
    return {
        "platform_index": device.platform_index,
        "device_index": device.device_index,
        "platform": device.platform,
        "name": device.name,
        "type": device.type,
        "vendor": device.vendor,
        "driver": device.driver,
        "memory_bytes": device.memory_bytes,
        "largest_allocation_bytes": device.largest_allocation_bytes,
        "pci_address": device.pci_address,
        "usable": device.problem is None,
        "needs_allow_cpu": device.type == CPU,
        "reason": device.problem or ("system RAM" if device.type == CPU else None),
    }


def _print_table(devices: Sequence[DeviceInfo]) -> None:
    """A table where the terminal is wide enough, otherwise a paragraph for each device."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [_cells(device) for device in devices]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, overflow="fold", justify="right" if column in _NUMBERS else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    if console.measure(table, options=console.options.update(width=1000)).maximum <= console.width:
        console.print(table)
        return
    for row in rows:
        print(
            *(f"{column:<{_LABEL}}{cell}" for column, cell in zip(_COLUMNS, row, strict=True)),
            sep="\n",
            end="\n\n",
        )


def _cells(device: DeviceInfo) -> tuple[str, ...]:
    return (
        f"{device.platform_index} {device.platform}",
        str(device.device_index),
        device.name,
        device.type,
        device.vendor,
        device.driver,
        format_size(device.memory_bytes),
        format_size(device.largest_allocation_bytes),
        device.pci_address or "-",
        usability(device),
    )
