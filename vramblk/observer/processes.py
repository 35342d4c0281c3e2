"""The server's processes, and what of the host belongs to them: swap areas, the device behind a client."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..shared.context import Shared
from ..shared.control import ControlWord
from ..shared.window import Word
from ..system import proc

OBSERVER = "observer"
#: The hard link to a server's socket that host/vramblk-swap gives to nbd-client.
_ATTACHED_BY = b"/run/vramblk-swap/private/nbd.sock"


@dataclass(frozen=True)
class SwapDevice:
    """One line of /proc/swaps, sizes in bytes."""

    device: str
    size_bytes: int
    used_bytes: int


def pids(shared: Shared) -> list[tuple[str, int]]:
    """Role and process id of everything that has said its id."""
    control = shared.control
    found = [
        ("supervisor", control.load(ControlWord.SUPERVISOR_PID)),
        ("engine", control.load(ControlWord.ENGINE_PID)),
        *((f"worker-{window.index}", window.load(Word.WORKER_PID)) for window in shared.client_windows),
        (OBSERVER, os.getpid()),
    ]
    return [(role, pid) for role, pid in found if pid]


def processes(shared: Shared) -> dict[str, proc.Process]:
    """Every living process of the server by its role: "supervisor", "engine", "observer" or "worker-0"."""
    return {role: found for role, pid in pids(shared) if (found := proc.process(pid)) is not None}


def swap_devices() -> list[SwapDevice]:
    """The host's swap areas on NBD devices."""
    found = []
    for line in (proc.read_text(Path("/proc/swaps")) or "").splitlines()[1:]:
        words = line.split()
        if len(words) >= 4 and words[0].startswith("/dev/nbd"):
            found.append(SwapDevice(words[0], int(words[2]) * 1024, int(words[3]) * 1024))
    return found


def nbd_device_of(peer: str, sockets: Iterable[str], root: Path = proc.ROOT) -> str | None:
    """The /dev/nbdN behind the peer "unix:pid=P,...", where both see the same process ids.

    The kernel names the process that waits in the driver. Without -nofork that is a child of P, started
    when P had connected, and P is gone; so it is the next one whose command line names our socket. Of a
    connection that is lost it is gone too, but the kernel still shows its id.

    Args:
        sockets: paths on which this server listens.
    """
    pid = peer.partition("pid=")[2].partition(",")[0]
    if not (pid.isascii() and pid.isdigit()) or pid == "0":
        return None
    waiting: dict[int, str] = {}
    try:
        for file in (root / "sys/block").glob("nbd*/pid"):
            waiting[int(file.read_text())] = f"/dev/{file.parent.name}"
    except (OSError, ValueError):
        return None
    if int(pid) in waiting:
        return waiting[int(pid)]
    if (root / "proc" / pid).exists():
        return None
    ours = {_ATTACHED_BY, *(path.encode() for path in sockets)}
    later = (each for each in sorted(waiting) if each > int(pid) and _names(each, ours, root))
    return waiting.get(next(later, -1))


def _names(pid: int, arguments: set[bytes], root: Path) -> bool:
    """Whether the process has one of these arguments, or is gone."""
    try:
        return bool(arguments & set(proc.command_line(pid, root)))
    except OSError:
        return True
