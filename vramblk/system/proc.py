"""The one reader of /proc.

A process that is gone or may not be read raises OSError, unless a function says otherwise.
Source: proc(5) and the pages of its files, such as proc_pid_stat(5).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")

#: PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE, which PR_SET_IO_FLUSHER sets (include/linux/sched.h).
_IO_FLUSHER = 0x180000
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PAGEMAP_ENTRY_BYTES = 8


class Stat(NamedTuple):
    """Of /proc/PID/stat, or of the same file of one thread.

    Attributes:
        state: a letter; Z and X are dead.
        flags: PF_ flags of the kernel.
        major_faults: since it began.
        policy: of scheduling, such as ``os.SCHED_FIFO``.
        arguments: first address of the command line, and the one behind its last.
    """

    name: str
    state: str
    flags: int
    major_faults: int
    resident_bytes: int
    policy: int
    arguments: tuple[int, int]

    @property
    def alive(self) -> bool:
        return self.state not in "ZX"

    @property
    def io_flusher(self) -> bool:
        """Whether PR_SET_IO_FLUSHER is in force."""
        return self.flags & _IO_FLUSHER == _IO_FLUSHER

    @property
    def realtime(self) -> bool:
        """Whether it runs under SCHED_FIFO."""
        return self.policy == os.SCHED_FIFO


@dataclass(frozen=True)
class Process:
    """A living process.

    Attributes:
        locked_bytes: VmLck or what is resident, whichever is less: with on-fault locking VmLck counts
            addresses, which are locked as they are touched. Shared memory counts in each process.
        oom_score_adj: None where it cannot be read.
        threads: each one's stat, by its id.
    """

    pid: int
    resident_bytes: int
    locked_bytes: int
    major_faults: int
    oom_score_adj: int | None
    threads: dict[int, Stat]

    @property
    def io_flusher(self) -> bool:
        """Whether PR_SET_IO_FLUSHER is in force in every thread."""
        return all(thread.io_flusher for thread in self.threads.values())

    @property
    def realtime(self) -> bool:
        """Whether every thread runs under SCHED_FIFO."""
        return all(thread.realtime for thread in self.threads.values())


class Mapping(NamedTuple):
    """A line of /proc/PID/maps: addresses [start, end), such as "rw-p", and 0 or the file's inode."""

    start: int
    end: int
    modes: str
    inode: int


def stat(pid: int | str, thread: int | None = None) -> Stat:
    """State, flags and use of memory of a process, or of one of its threads."""
    base = f"/proc/{pid}" if thread is None else f"/proc/{pid}/task/{thread}"
    with open(f"{base}/stat", errors="replace") as file:  # pathlib would cost as much again, for each thread
        text = file.read()
    # The name may itself hold spaces and brackets.
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()  # from field 3 on
    return Stat(
        name=name,
        state=fields[0],
        flags=int(fields[6]),
        major_faults=int(fields[9]),
        resident_bytes=int(fields[21]) * _PAGE_BYTES,
        policy=int(fields[38]),
        arguments=(int(fields[45]), int(fields[46])),
    )


def threads(pid: int) -> dict[int, Stat]:
    """The stat of each thread by its id; one that has ended meanwhile is left out."""
    found = {}
    for thread in map(int, os.listdir(f"/proc/{pid}/task")):
        try:
            found[thread] = stat(pid, thread)
        except OSError:
            continue
    return found


def status(pid: int | str = "self", root: Path = ROOT) -> dict[str, str]:
    """The values of /proc/PID/status by name."""
    lines = (root / f"proc/{pid}/status").read_text(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def process(pid: int) -> Process | None:
    """What there is to know of a process; None if it is dead or may not be read."""
    try:
        whole = stat(pid)
        if not whole.alive:
            return None
        locked_bytes = _kib(status(pid).get("VmLck", "0"))
        by_thread = threads(pid)
    except OSError:
        return None
    return Process(
        pid=pid,
        resident_bytes=whole.resident_bytes,
        locked_bytes=min(locked_bytes, whole.resident_bytes),
        major_faults=whole.major_faults,
        oom_score_adj=oom_score_adj(pid),
        threads=by_thread,
    )


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie; never raises."""
    try:
        return stat(pid).alive
    except (OSError, IndexError):
        return False


def inherited_files() -> dict[int, tuple[int, int]]:
    """Descriptors that this program inherited open, with device and inode; none without /proc.

    What Python opens is closed by exec, so these are the others, but for stdin, stdout and stderr.
    """
    found: dict[int, tuple[int, int]] = {}
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # that of the listing itself
                number = int(name)
                if number > 2 and os.get_inheritable(number):
                    status = os.fstat(number)
                    found[number] = status.st_dev, status.st_ino
    return found


def oom_score_adj(pid: int | str = "self") -> int | None:
    """None where it cannot be read."""
    try:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    except (OSError, ValueError):
        return None


def write_oom_score_adj(score: int) -> None:
    """Of this process; below 0 the out-of-memory killer takes it later, at -1000 never.

    Raises:
        OSError: lower than it was takes CAP_SYS_RESOURCE.
    """
    descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    try:
        os.write(descriptor, str(score).encode())
    finally:
        os.close(descriptor)


def locked_bytes(pid: int) -> int:
    """Locked and resident memory of a process; a page that several share counts in parts. Never raises.

    Source: Locked in /proc/PID/smaps_rollup. If that is refused: VmLck, which counts addresses, or VmRSS,
    whichever is less.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup") as rollup:
            return sum(_kib(line.split()[1]) for line in rollup if line.startswith("Locked:"))
    except OSError:
        try:
            values = status(pid)
            return min(_kib(values["VmLck"]), _kib(values["VmRSS"]))
        except (OSError, KeyError):
            return 0


def mappings() -> Iterator[Mapping]:
    """The memory that this process has mapped, as it is at the first step."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, modes, _, _, inode = line.split()[:5]
        start, end = span.split("-")
        yield Mapping(int(start, 16), int(end, 16), modes, int(inode))


def pagemap(first_page: int, pages: int) -> bytes:
    """Eight bytes for each page of this process, by the number of the page."""
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(first_page * _PAGEMAP_ENTRY_BYTES)
        return file.read(pages * _PAGEMAP_ENTRY_BYTES)


def command_line(pid: int, root: Path = ROOT) -> list[bytes]:
    return (root / f"proc/{pid}/cmdline").read_bytes().split(b"\0")


def file_system(device: int) -> str:
    """Type of the file system with this device number, as the kernel lists it."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == wanted:
            return rest.split()[0]
    return "an unknown file system"


def named(name: str) -> list[int]:
    """Ids of the processes of this name, of which the kernel keeps 15 bytes. Never raises."""
    found = []
    for file in Path("/proc").glob("[0-9]*/comm"):
        if read_text(file) == name[:15]:
            found.append(int(file.parent.name))
    return sorted(found)


def memory_bytes(name: str, root: Path = ROOT) -> int | None:
    """One value of /proc/meminfo, such as MemTotal; None if it cannot be read."""
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return _kib(value)
    return None


def read_text(path: Path) -> str | None:
    """A file's text without white space around it, None if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return None


def read_number(path: Path, unit: int = 1) -> int | None:
    """A file that holds one number; None for any other."""
    found = read_text(path)
    return int(found) * unit if found is not None and found.isdigit() else None


def read_fields(path: Path) -> dict[str, int]:
    """The numbers of a file with a name and a number in each line; none if it cannot be read."""
    pairs = (line.split() for line in (read_text(path) or "").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _kib(text: str) -> int:
    """Bytes of such as "123 kB"."""
    return int(text.split()[0]) << 10
