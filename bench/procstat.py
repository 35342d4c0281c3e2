"""CPU time and memory of a server: the sums over its processes, read from /proc.

The children of a server may have sessions of their own, so its processes are those that descend
from the first one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PPID, _UTIME, _CSTIME, _START = 1, 11, 14, 19  # fields of stat(5), counted from the state


@dataclass(frozen=True)
class Process:
    """``start`` tells a process from a later one that got the same number."""

    pid: int
    start: int


def tree(root: int) -> list[Process]:
    """``root`` and all that descend from it, parents first; empty if it is gone."""
    children: dict[int, list[Process]] = {}
    found: list[Process] = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _fields(int(entry))):
            process = Process(int(entry), int(fields[_START]))
            children.setdefault(int(fields[_PPID]), []).append(process)
            if process.pid == root:
                found.append(process)
    for process in found:
        found.extend(children.get(process.pid, ()))
    return found


def alive(process: Process) -> bool:
    fields = _fields(process.pid)
    return bool(fields) and int(fields[_START]) == process.start and fields[0] != "Z"


def cpu_seconds(root: int) -> float:
    """User and system time so far, that of children which have ended included."""
    ticks = 0
    for process in tree(root):
        fields = _fields(process.pid)
        ticks += sum(int(each) for each in fields[_UTIME : _CSTIME + 1])
    return ticks / _TICKS_PER_S


def memory(root: int) -> dict[str, int]:
    """Bytes locked (VmLck), resident (VmRSS) and proportional (PSS).

    Pages that several processes share count in each of them for the first two, and once in all for PSS,
    which is 0 where it may not be read.
    """
    total = dict.fromkeys(("locked_bytes", "resident_bytes", "proportional_bytes"), 0)
    for process in tree(root):
        total["locked_bytes"] += _kilobytes(process.pid, "status", "VmLck:")
        total["resident_bytes"] += _kilobytes(process.pid, "status", "VmRSS:")
        total["proportional_bytes"] += _kilobytes(process.pid, "smaps_rollup", "Pss:")
    return total


def _fields(pid: int) -> list[str]:
    """stat(5) from the state on; the name before it may hold anything, even parentheses."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _kilobytes(pid: int, file: str, key: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(key)), 0)
