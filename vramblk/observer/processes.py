"""What /proc says of the server's processes and of the host, as far as it may be read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..shared.context import Shared
from ..shared.control import ControlWord
from ..shared.window import Word

_PROC = Path("/proc")
_SYS_BLOCK = Path("/sys/block")
#: PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE, which PR_SET_IO_FLUSHER sets (include/linux/sched.h).
_IO_FLUSHER = 0x180000
_PAGE = os.sysconf("SC_PAGE_SIZE")
# proc(5), counted from the field behind the command's name, which is field 3
_STATE, _FLAGS, _MAJOR_FAULTS, _RSS, _POLICY = 0, 6, 9, 21, 38


@dataclass(frozen=True)
class Process:
    """One process of the server.

    Attributes:
        role: "supervisor", "engine", "observer" or "worker-0".
        locked_bytes: VmLck or what is resident, whichever is less: with on-fault locking VmLck counts
            addresses, which are locked as they are touched. Shared memory counts in each process.
        major_faults: since it began.
        oom_score_adj: None where it cannot be read.
        io_flusher: PR_SET_IO_FLUSHER is in force in every thread.
        realtime: every thread runs under SCHED_FIFO.
    """

    role: str
    pid: int
    resident_bytes: int
    locked_bytes: int
    major_faults: int
    threads: int
    oom_score_adj: int | None
    io_flusher: bool
    realtime: bool

    @property
    def in_data_path(self) -> bool:
        return self.role != "observer"


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
        *((f"worker-{window.index}", window.load(Word.WORKER_PID)) for window in shared.worker_windows),
        ("observer", os.getpid()),
    ]
    return [(role, pid) for role, pid in found if pid]


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return _stat(_PROC / str(pid))[_STATE] not in "ZX"
    except (OSError, IndexError):
        return False


def processes(shared: Shared) -> list[Process]:
    """Every living process of the server."""
    return [found for role, pid in pids(shared) if (found := _read(role, pid)) is not None]


def _read(role: str, pid: int) -> Process | None:
    base = _PROC / str(pid)
    try:
        fields = _stat(base)
        if fields[_STATE] in "ZX":
            return None
        status = dict(_status(base))
        tasks = list(_tasks(base))
    except OSError:
        return None
    try:
        oom: int | None = int((base / "oom_score_adj").read_text())
    except (OSError, ValueError):
        oom = None
    resident_bytes = int(fields[_RSS]) * _PAGE
    return Process(
        role=role,
        pid=pid,
        resident_bytes=resident_bytes,
        locked_bytes=min(_kilobytes(status.get("VmLck", "0")), resident_bytes),
        major_faults=int(fields[_MAJOR_FAULTS]),
        threads=len(tasks),
        oom_score_adj=oom,
        io_flusher=all(int(task[_FLAGS]) & _IO_FLUSHER == _IO_FLUSHER for task in tasks),
        realtime=all(int(task[_POLICY]) == os.SCHED_FIFO for task in tasks),
    )


def _stat(base: Path) -> list[str]:
    """Fields behind the name, which may itself hold spaces and brackets."""
    return (base / "stat").read_text().rpartition(")")[2].split()


def _tasks(base: Path) -> Iterator[list[str]]:
    for task in (base / "task").iterdir():
        try:
            yield _stat(task)
        except OSError:
            continue  # the thread has ended


def _status(base: Path) -> Iterator[tuple[str, str]]:
    for line in (base / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        yield name, value.strip()


def _kilobytes(text: str) -> int:
    return int(text.split()[0]) * 1024


def swap_devices() -> list[SwapDevice]:
    """The host's swap areas on NBD devices."""
    try:
        lines = (_PROC / "swaps").read_text().splitlines()[1:]
    except OSError:
        return []
    found = []
    for line in lines:
        words = line.split()
        if len(words) >= 4 and words[0].startswith("/dev/nbd"):
            found.append(SwapDevice(words[0], int(words[2]) * 1024, int(words[3]) * 1024))
    return found


def nbd_device_of(peer: str, sockets: Iterable[str]) -> str | None:
    """The /dev/nbdN behind the peer "unix:pid=P,...", where both see the same process ids.

    The kernel names the process that waits in the driver. Without -nofork that is a child of P, started
    when P had connected, and P is gone; so it is the next one whose command line names our socket. Of a
    connection that is lost it is gone too, but the kernel still shows its id.

    Args:
        sockets: paths on which this server listens.
    """
    pid = peer.partition("pid=")[2].partition(",")[0]
    if not pid.isdigit() or pid == "0":
        return None
    waiting: dict[int, str] = {}
    try:
        for file in _SYS_BLOCK.glob("nbd*/pid"):
            waiting[int(file.read_text())] = f"/dev/{file.parent.name}"
    except (OSError, ValueError):
        return None
    if int(pid) in waiting:
        return waiting[int(pid)]
    if (_PROC / pid).exists():
        return None
    ours = {path.encode() for path in sockets}
    later = (each for each in sorted(waiting) if each > int(pid) and _names(each, ours))
    return waiting.get(next(later, -1))


def _names(pid: int, arguments: set[bytes]) -> bool:
    """Whether the process has one of these arguments, or is gone."""
    try:
        return bool(arguments & set((_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")))
    except OSError:
        return True
