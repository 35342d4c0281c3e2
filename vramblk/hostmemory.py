"""What of this machine's memory management can bite swap mode although every safeguard is granted.

None of it can be refused: the host script changes some of it only after the server is ready, and some
of it is the host's own business. So it is said: by ``vramblk check``, in the log at ready, in the status
and in the metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from .swapsafety import Precondition

_KIB, _MIB = 1 << 10, 1 << 20
#: With less a machine of 160 to 224 MiB was seen to hang; see docs/swap.md.
LEAST_MIN_FREE_KIB = 16 << 10
MOST_MIN_FREE_KIB = 256 << 10

#: Names of what ``hazards`` gives.
HAZARDS = ("min_free", "swap_max", "memory_limit", "huge_pages")

_ROOT = Path("/")


def wanted_min_free_bytes(ram_bytes: int, locked_bytes: int) -> int:
    """What vm.min_free_kbytes should be, 1 % of RAM and 1/32 of what is locked, within limits; whole KiB.

    host/vramblk-swap has the same formula, and a test compares the two.
    """
    wanted_kib = (ram_bytes * 32 + locked_bytes * 100) // (3200 * _KIB)
    return min(max(wanted_kib, LEAST_MIN_FREE_KIB), MOST_MIN_FREE_KIB, ram_bytes // 8 // _KIB) * _KIB


def hazards(locked_bytes: int, pids: Iterable[int] = (), root: Path = _ROOT) -> list[Precondition]:
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


def min_free_bytes(root: Path = _ROOT) -> int | None:
    """vm.min_free_kbytes in bytes."""
    return _number(root / "proc/sys/vm/min_free_kbytes", _KIB)


def _min_free(locked_bytes: int, root: Path) -> Precondition:
    now, ram = min_free_bytes(root), _ram_bytes(root)
    if now is None or ram is None:
        return Precondition("min_free", False, "vm.min_free_kbytes cannot be read", "read it on the host")
    wanted = wanted_min_free_bytes(ram, locked_bytes)
    detail = f"vm.min_free_kbytes is {now // _KIB}"
    if now >= wanted:
        return Precondition("min_free", True, detail, "")
    why = (
        f"and {wanted // _KIB} is wanted (1 % of {ram // _MIB} MiB of RAM and 1/32 of "
        f"{locked_bytes // _MIB} MiB locked, within limits): the server's sends are made of this reserve "
        "while nothing can be reclaimed"
    )
    remedy = f"sysctl vm.min_free_kbytes={wanted // _KIB}; vramblk-swap up does it"
    return Precondition("min_free", False, f"{detail}, {why}", remedy)


def _swap_max(root: Path) -> Precondition:
    levels = [(directory, _text(directory / "memory.swap.max")) for directory in _cgroups(root)]
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
    for directory in _cgroups(root):
        for name in ("memory.max", "memory.high"):
            limit = _number(directory / name)
            if limit is not None:
                return Precondition(
                    "memory_limit",
                    False,
                    f"{directory / name} is {limit // _MIB} MiB: at this limit the server waits for "
                    "memory, or is killed, although the machine has some",
                    "lift it: no memory limit in Compose; MemoryMax=infinity, MemoryHigh=infinity in systemd",
                )
    return Precondition("memory_limit", True, "no limit of a cgroup can be seen from here", "")


def _huge_pages(pids: Iterable[int], root: Path) -> Precondition:
    """A page that is touched may become a huge one: 2 MiB are locked, and waited for in one piece."""
    text = _text(root / "sys/kernel/mm/transparent_hugepage/enabled")
    with_huge = [pid for pid in pids if "THP_enabled:\t1" in (_text(root / f"proc/{pid}/status") or "")]
    if text is None or "[always]" not in text or not with_huge:
        return Precondition("huge_pages", True, "no process of the data path gets transparent huge pages", "")
    return Precondition(
        "huge_pages",
        False,
        f"transparent_hugepage is always, and process {with_huge[0]} of the data path takes part",
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    )


def _cgroups(root: Path) -> Iterator[Path]:
    """The own cgroup (version 2) and those above it, as far as they are visible."""
    lines = (_text(root / "proc/self/cgroup") or "").splitlines()
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::/")), None)
    top = root / "sys/fs/cgroup"
    if path is None or ".." in path:
        return
    directory = top / path.strip("/")
    while True:
        yield directory
        if directory == top:
            return
        directory = directory.parent


def _ram_bytes(root: Path) -> int | None:
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * _KIB
    return None


def _number(path: Path, unit: int = 1) -> int | None:
    text = _text(path)
    return int(text) * unit if text is not None and text.isdigit() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
