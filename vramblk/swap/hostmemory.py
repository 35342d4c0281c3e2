"""What of this machine's memory management can bite swap mode although every safeguard is granted.

None of it can be refused: the host script changes some of it only after the server is ready, and some
of it is the host's own business. So it is said: by ``vramblk check``, in the log at ready, in the status
and in the metrics.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..config.units import format_size
from ..system import cgroups, proc
from ..system.proc import ROOT, read_number, read_text
from .requirements import Precondition

_KIB = 1 << 10
#: With less a machine of 160 to 224 MiB was seen to hang; see docs/swap.md.
LEAST_MIN_FREE_KIB = 16 << 10
MOST_MIN_FREE_KIB = 256 << 10

#: Names of what ``hazards`` gives.
HAZARDS = ("min_free", "swap_max", "memory_limit", "huge_pages")


def wanted_min_free_bytes(ram_bytes: int, locked_bytes: int) -> int:
    """What vm.min_free_kbytes should be, 1 % of RAM and 1/32 of what is locked, within limits; whole KiB.

    host/vramblk-swap has the same formula, and a test compares the two.
    """
    wanted_kib = (ram_bytes * 32 + locked_bytes * 100) // (3200 * _KIB)
    return min(max(wanted_kib, LEAST_MIN_FREE_KIB), MOST_MIN_FREE_KIB, ram_bytes // 8 // _KIB) * _KIB


def hazards(locked_bytes: int, pids: Iterable[int] = (), root: Path = ROOT) -> list[Precondition]:
    """Everything that can bite, and whether it does now.

    Args:
        locked_bytes: locked by all processes of the server.
        pids: processes of the data path, for what is a process's own.
    """
    return [
        _min_free(locked_bytes, root),
        _swap_max(root),
        _memory_limit(root),
        _huge_pages(pids, root),
    ]


def min_free_bytes(root: Path = ROOT) -> int | None:
    """vm.min_free_kbytes in bytes."""
    return read_number(root / "proc/sys/vm/min_free_kbytes", _KIB)


def _min_free(locked_bytes: int, root: Path) -> Precondition:
    now, ram = min_free_bytes(root), proc.memory_bytes("MemTotal", root)
    if now is None or ram is None:
        return Precondition("min_free", False, "vm.min_free_kbytes cannot be read", "read it on the host")
    wanted = wanted_min_free_bytes(ram, locked_bytes)
    detail = f"vm.min_free_kbytes is {now // _KIB}"
    if now >= wanted:
        return Precondition("min_free", True, detail, "")
    why = (
        f"and {wanted // _KIB} is wanted (1 % of {format_size(ram)} of RAM and 1/32 of "
        f"{format_size(locked_bytes)} locked, within limits): the server's sends are made of this reserve "
        "while nothing can be reclaimed"
    )
    remedy = f"sysctl vm.min_free_kbytes={wanted // _KIB}; vramblk-swap up does it"
    return Precondition("min_free", False, f"{detail}, {why}", remedy)


def _swap_max(root: Path) -> Precondition:
    levels = [(directory, read_text(directory / "memory.swap.max")) for directory in cgroups.levels(root)]
    found = [(directory, text) for directory, text in levels if text is not None]
    remedy = "vramblk-swap up writes 0 there"
    if not found:
        return Precondition(
            "swap_max",
            False,
            "this cgroup has no memory.swap.max, so what is not locked of the server can be swapped out",
            f"start it in a cgroup of its own, of version 2 (a container or a systemd service); {remedy}",
        )
    if any(text == "0" for _, text in found):
        return Precondition("swap_max", True, "memory.swap.max of the own cgroup is 0", "")
    directory, text = found[0]
    detail = f"memory.swap.max of the own cgroup {directory} is {text}, not 0"
    return Precondition("swap_max", False, detail, remedy)


def _memory_limit(root: Path) -> Precondition:
    for limit in cgroups.limits(root):
        return Precondition(
            "memory_limit",
            False,
            f"{limit.file} is {format_size(limit.limit_bytes)}: at this limit the server waits for "
            "memory, or is killed, although the machine has some",
            "lift it: no memory limit in Compose; MemoryMax=infinity, MemoryHigh=infinity in systemd",
        )
    return Precondition("memory_limit", True, "no limit of a cgroup can be seen from here", "")


def _huge_pages(pids: Iterable[int], root: Path) -> Precondition:
    """A page that is touched may become a huge one: 2 MiB are locked, and waited for in one piece."""
    text = read_text(root / "sys/kernel/mm/transparent_hugepage/enabled")
    with_huge = [pid for pid in pids if _gets_huge_pages(pid, root)]
    if text is None or "[always]" not in text or not with_huge:
        return Precondition("huge_pages", True, "no process of the data path gets transparent huge pages", "")
    return Precondition(
        "huge_pages",
        False,
        f"transparent_hugepage is always, and process {with_huge[0]} of the data path takes part",
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    )


def _gets_huge_pages(pid: int, root: Path) -> bool:
    try:
        return proc.status(pid, root).get("THP_enabled") == "1"
    except OSError:
        return False
