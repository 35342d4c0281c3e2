"""The preconditions of swap mode as they hold now: read back from the kernel, not from what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..hostmemory import hazards
from ..settings import Settings
from ..swapsafety import Precondition
from .devices import device_of, is_cpu
from .processes import Process


def preconditions(
    settings: Settings, processes: Sequence[Process], geometry: dict[str, Any], locked_bytes: int
) -> list[Precondition]:
    """Every precondition of swap mode, its name as the metric's label; a scratch server has none.

    The last are those that are not refused but warned about.

    Args:
        locked_bytes: by all processes together.
    """
    if settings.mode != "swap":
        return []
    path = [process for process in processes if process.in_data_path]

    def all_of(name: str, failing: list[str], good: str, remedy: str) -> Precondition:
        return Precondition(
            name, bool(path) and not failing, f"not in {', '.join(failing)}" if failing else good, remedy
        )

    container = "compose.swap.yaml grants it to a container"
    ram = any(is_cpu(device_of(export)) for export in geometry.get("exports", []))
    return [
        all_of(
            "memory_locked",
            [each.role for each in path if not each.locked_bytes],
            "every process of the data path is locked",
            f"grant CAP_IPC_LOCK and restart; {container}",
        ),
        all_of(
            "io_flusher",
            [each.role for each in path if not each.io_flusher],
            "set in every thread of the data path",
            f"grant CAP_SYS_RESOURCE as root and restart; {container}",
        ),
        all_of(
            "oom_score",
            [each.role for each in path if each.oom_score_adj != -1000],
            "-1000 in every process of the data path",
            f"grant oom_score_adj -1000 and restart; {container}",
        ),
        all_of(
            "realtime",
            [each.role for each in path if not each.realtime],
            "SCHED_FIFO in every thread of the data path",
            f"grant CAP_SYS_NICE, see that the cgroup's real-time budget is not 0, and restart; {container}",
        ),
        Precondition(
            "unix_only",
            not settings.tcp_listeners,
            "only Unix sockets" if not settings.tcp_listeners else "listens on TCP",
            "listen on unix:/run/vramblk/nbd.sock only",
        ),
        Precondition(
            "device_memory",
            not ram,
            "an export lies in system RAM" if ram else "no export lies in system RAM",
            "choose a GPU or a map: device",
        ),
        *hazards(locked_bytes, [each.pid for each in path]),
    ]
