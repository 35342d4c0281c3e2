"""The preconditions of swap mode as they hold now, for the status and the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config.settings import Settings
from ..swap import hostmemory, safeguards
from ..swap.requirements import Precondition
from ..system import proc
from .devices import device_of, is_cpu
from .processes import OBSERVER


def preconditions(
    settings: Settings, running: Mapping[str, proc.Process], export_table: dict[str, Any], locked_bytes: int
) -> list[Precondition]:
    """The safeguards, then what of the host is not refused but warned about; a scratch server has none.

    Args:
        running: the server's processes by role.
        locked_bytes: by all processes together.
    """
    if settings.mode != "swap":
        return []
    data_path = {role: process for role, process in running.items() if role != OBSERVER}
    ram = any(is_cpu(device_of(export)) for export in export_table.get("exports", []))
    return [
        *safeguards.read_back(safeguards.Running(settings, data_path, ram)),
        *hostmemory.hazards(locked_bytes, [process.pid for process in data_path.values()]),
    ]
