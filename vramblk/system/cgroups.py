"""Memory limits of the own cgroup and of those above it, of version 2 and 1, as far as they can be seen.

In a container the levels above its own are usually hidden. Version 1 still tells their smallest limit
(``hierarchical_memory_limit``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config.units import format_size
from .proc import ROOT, read_fields, read_number, read_text

#: Version 1 has no word for "no limit", only numbers that no machine reaches.
_NO_LIMIT_BYTES = 1 << 60
_FILES_V2 = ("memory.max", "memory.high")
_FILES_V1 = ("memory.limit_in_bytes",)


@dataclass(frozen=True)
class Limit:
    """One limit of memory.

    Attributes:
        file: where it stands, as the user finds it.
        used_bytes: charged to that cgroup now, without file pages, which the kernel drops first.
    """

    file: Path
    limit_bytes: int
    used_bytes: int

    @property
    def left_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes)


def limits(root: Path = ROOT) -> list[Limit]:
    """Every limit that is set, from the own cgroup upwards."""
    found = []
    for directory in levels(root):
        for name in _FILES_V2:
            if (limit := read_number(directory / name)) is not None:
                used = read_number(directory / "memory.current") or 0
                found.append(Limit(directory / name, limit, _unreclaimable(directory, used, "")))
    for directory in _levels_v1(root):
        used = _unreclaimable(directory, read_number(directory / "memory.usage_in_bytes") or 0, "total_")
        for name in _FILES_V1:
            limit = read_number(directory / name)
            if limit is not None and limit < _NO_LIMIT_BYTES:
                found.append(Limit(directory / name, limit, used))
        above = read_fields(directory / "memory.stat").get("hierarchical_memory_limit", _NO_LIMIT_BYTES)
        if above < min((each.limit_bytes for each in found), default=_NO_LIMIT_BYTES):
            found.append(Limit(directory / "memory.stat", above, used))
    return found


def tightest(root: Path = ROOT) -> Limit | None:
    """The limit that leaves least."""
    return min(limits(root), key=lambda limit: limit.left_bytes, default=None)


def oom_kills(root: Path = ROOT) -> int:
    """How often the kernel has killed a process at the limit of the own cgroup or one below it."""
    for directory in levels(root):
        if (directory / "memory.events").exists():
            return read_fields(directory / "memory.events").get("oom_kill", 0)
    for directory in _levels_v1(root):
        return read_fields(directory / "memory.oom_control").get("oom_kill", 0)
    return 0


def machine_oom_kills(root: Path = ROOT) -> int:
    """How often the kernel has killed a process because memory was short, at a limit or without one."""
    return read_fields(root / "proc/vmstat").get("oom_kill", 0)


class Kills:
    """How often the kernel has killed for memory so far, to be compared with later."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._own = oom_kills(root)
        self._machine = machine_oom_kills(root)

    def since(self) -> str:
        """Why SIGKILL came and what to do about it; empty if the kernel counted nothing since."""
        if oom_kills(self._root) > self._own:
            limit = tightest(self._root)
            named = f", {limit.file} of {format_size(limit.limit_bytes)}" if limit else ""
            return (
                f"killed at the memory limit of its cgroup{named}: raise that limit or give a smaller --size"
            )
        if machine_oom_kills(self._root) > self._machine:
            return (
                "since its start the machine ran out of memory and the kernel killed something "
                "(dmesg | grep -i killed): free memory or give a smaller --size, then start the server again"
            )
        return ""


def levels(root: Path = ROOT) -> Iterator[Path]:
    """The own cgroup (version 2) and those above it, as far as they are visible."""
    return _upwards(root / "sys/fs/cgroup", _own(root, ""))


def _levels_v1(root: Path) -> Iterator[Path]:
    return _upwards(root / "sys/fs/cgroup/memory", _own(root, "memory"))


def _own(root: Path, controller: str) -> str | None:
    """Path of the own cgroup in the hierarchy of a controller; "" is that of version 2."""
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path
    return None


def _upwards(top: Path, path: str | None) -> Iterator[Path]:
    if path is None:
        return
    # Of a container without a namespace of its own only the last level is mounted, and that at the top.
    directory = top / path.strip("/")
    if ".." in path or not directory.is_dir():
        directory = top
    while True:
        yield directory
        if directory == top:
            return
        directory = directory.parent


def _unreclaimable(directory: Path, used_bytes: int, prefix: str) -> int:
    stat = read_fields(directory / "memory.stat")
    files = stat.get(f"{prefix}active_file", 0) + stat.get(f"{prefix}inactive_file", 0)
    return max(0, used_bytes - files)
