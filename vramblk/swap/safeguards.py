"""What a server must hold so that swap on it cannot deadlock the machine: one table, and all that reads it.

A page that the server itself needs may never wait for swap, since swap waits for the server. So
memory is locked, the kernel does not start I/O for this server's allocations (IO_FLUSHER),
the out-of-memory killer passes it over, and as a real-time task it may dip into the reserve when
it sends. Any one of these alone was seen to hang; they are refused or granted together.

IO_FLUSHER, scheduling and the score are inherited by fork and by threads, so the supervisor sets
them once before it forks. Locked memory is not inherited: each process locks its own.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import NamedTuple

from ..config.settings import Settings
from ..errors import PreconditionError
from ..system import kernel, logs, proc
from . import memorylock
from .requirements import (
    Precondition,
    UnmetRequirement,
    require_device_memory,
    require_unix_listeners,
)

#: The lowest: enough to come before every ordinary task, below the kernel's own threads.
FIFO_PRIORITY = 1
OOM_SCORE_ADJ = -1000

_GRANT_SYS_RESOURCE = (
    "run as root on the host, or give the container SYS_RESOURCE outside a user namespace "
    "(compose.swap.yaml does)"
)
_CONTAINER = "compose.swap.yaml grants it to a container"


class InScratchMode(Enum):
    """What a scratch server makes of a safeguard that it cannot have."""

    NOT_ASKED = 0
    UNNEEDED = 1
    #: It serves, with a warning.
    WANTED = 2


class Running(NamedTuple):
    """A swap server that runs, as its safeguards are read back.

    Attributes:
        data_path: its processes that requests pass through, by role.
        in_system_ram: whether the memory of any export is that of a CPU device.
    """

    settings: Settings
    data_path: Mapping[str, proc.Process]
    in_system_ram: bool


class Safeguard(NamedTuple):
    """A row of the table.

    Attributes:
        name: in the status and in the metrics.
        needed: how the refusal at start names it.
        label: how ``vramblk check`` names it.
        take: for this process and what it forks; raises UnmetRequirement, which has the remedy at start.
        of_thread, of_process: read back whether one thread or process has it.
        of_server: read back what is wrong with the server, empty if nothing is. A row has at most one of
            these three; without any it is no part of the status and the metrics.
        in_force: what the status reports while it is in force.
        remedy: what to do if it is not in force in a server that runs.
        inherited: taken by the supervisor before it forks; otherwise by each process, when it is set up.
        attempt: what ``vramblk check`` tries in place of ``take``.
        give_back: for a process that has inherited it and leaves the data path.
    """

    name: str
    needed: str
    label: str
    take: Callable[[Settings], None]
    of_thread: Callable[[proc.Stat], bool] | None = None
    of_process: Callable[[proc.Process], bool] | None = None
    of_server: Callable[[Running], str] | None = None
    in_force: str = ""
    remedy: str = ""
    inherited: bool = True
    in_scratch_mode: InScratchMode = InScratchMode.UNNEEDED
    attempt: Callable[[Settings], None] | None = None
    give_back: Callable[[], None] | None = None


#: In the order in which they are taken, real-time scheduling last of what is inherited. All of this module
#: reads the table anew each time: a test that leaves a safeguard out puts another table in its place.
TABLE: tuple[Safeguard, ...] = (
    Safeguard(
        "unix_only",
        needed="Unix sockets",
        label="Unix sockets",
        take=require_unix_listeners,
        of_server=lambda running: "listens on TCP" if running.settings.tcp_listeners else "",
        in_force="only Unix sockets",
        remedy="listen on unix:/run/vramblk/nbd.sock only",
        in_scratch_mode=InScratchMode.NOT_ASKED,
    ),
    Safeguard(
        "device_memory",
        needed="device memory",
        label="device memory",
        take=require_device_memory,
        of_server=lambda running: "an export lies in system RAM" if running.in_system_ram else "",
        in_force="no export lies in system RAM",
        remedy="choose a GPU or a map: device",
        in_scratch_mode=InScratchMode.NOT_ASKED,
    ),
    Safeguard(
        "lock_limit",
        needed="an unlimited memory lock",
        label="mlock limit",
        take=lambda _: memorylock.require_unlimited(),
        in_scratch_mode=InScratchMode.WANTED,
    ),
    Safeguard(
        "io_flusher",
        needed="PR_SET_IO_FLUSHER",
        label="IO_FLUSHER",
        take=lambda _: _set_io_flusher(),
        of_thread=lambda thread: thread.io_flusher,
        in_force="set in every thread of the data path",
        remedy=f"grant CAP_SYS_RESOURCE as root and restart; {_CONTAINER}",
        give_back=lambda: kernel.prctl(kernel.PR_SET_IO_FLUSHER, 0),
    ),
    Safeguard(
        "oom_score",
        needed=f"oom_score_adj {OOM_SCORE_ADJ}",
        label="oom score",
        take=lambda _: _set_oom_score(),
        of_process=lambda process: process.oom_score_adj == OOM_SCORE_ADJ,
        in_force=f"{OOM_SCORE_ADJ} in every process of the data path",
        remedy=f"grant oom_score_adj {OOM_SCORE_ADJ} and restart; {_CONTAINER}",
        give_back=lambda: proc.write_oom_score_adj(0),
    ),
    Safeguard(
        "realtime",
        needed="SCHED_FIFO",
        label="SCHED_FIFO",
        take=lambda _: _set_realtime(),
        of_thread=lambda thread: thread.realtime,
        in_force="SCHED_FIFO in every thread of the data path",
        remedy="grant CAP_SYS_NICE, see that the cgroup's real-time budget is not 0, and restart; "
        f"{_CONTAINER}",
        give_back=lambda: os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0)),
    ),
    Safeguard(
        "memory_locked",
        needed="locked memory",
        label="locked memory",
        take=lambda settings: memorylock.lock(swap=settings.mode == "swap"),
        of_process=lambda process: process.locked_bytes > 0,
        in_force="every process of the data path is locked",
        remedy=f"grant CAP_IPC_LOCK and restart; {_CONTAINER}",
        inherited=False,
        in_scratch_mode=InScratchMode.WANTED,
        attempt=lambda _: memorylock.attempt(),
    ),
)


def prepare(settings: Settings) -> None:
    """Take every safeguard that is inherited; in scratch mode nothing happens.

    To be called by the supervisor before it forks.

    Raises:
        PreconditionError: names the first safeguard that is missing and how to grant it.
    """
    if settings.mode != "swap":
        return
    # A page that is touched must not turn into 2 MiB that are locked, or wait for a free piece of that size.
    kernel.try_prctl(kernel.PR_SET_THP_DISABLE, 1)
    for safeguard in TABLE:
        if safeguard.inherited:
            try:
                safeguard.take(settings)
            except UnmetRequirement as unmet:
                raise _refusal(safeguard, unmet) from unmet


def lock_memory(settings: Settings, *, warn: bool = False) -> bool:
    """Take what is not inherited, for this process, once it is initialised: its memory is locked.

    Args:
        warn: in scratch mode say so in a warning if it fails; otherwise only in verbose logs.

    Returns:
        Whether it is locked; in scratch mode it may not be.

    Raises:
        PreconditionError: memory could not be locked, in swap mode.
    """
    for safeguard in TABLE:
        if not safeguard.inherited:
            try:
                safeguard.take(settings)
            except UnmetRequirement as unmet:
                if settings.mode == "swap":
                    raise _refusal(safeguard, unmet) from unmet
                log = logs.get()
                (log.warning if warn else log.debug)(
                    "memory_not_locked", detail=unmet.detail, remedy=unmet.remedy
                )
                return False
    return True


def leave_data_path() -> None:
    """Give back what is inherited, for a process that may be slow, late or killed (the observer)."""
    for safeguard in reversed(TABLE):
        if safeguard.give_back is not None:
            safeguard.give_back()
    kernel.try_prctl(kernel.PR_SET_THP_DISABLE, 0)


def verify_threads(pids: Iterable[int]) -> list[str]:
    """Read back what each thread must have; gives one line for each that lacks something."""
    problems = []
    for pid in pids:
        try:
            threads = proc.threads(pid)
        except OSError:
            problems.append(f"process {pid} is gone")
            continue
        for thread, stat in threads.items():
            lacks = [each.label for each in TABLE if each.of_thread is not None and not each.of_thread(stat)]
            if lacks:
                problems.append(f"thread {thread} ({stat.name}) of process {pid} lacks {' and '.join(lacks)}")
    return problems


def read_back(running: Running) -> list[Precondition]:
    """Every safeguard as it holds now: read from the kernel, not what was asked for."""
    found = []
    for safeguard in TABLE:
        problem = _problem(safeguard, running)
        if problem is not None:
            found.append(
                Precondition(safeguard.name, not problem, problem or safeguard.in_force, safeguard.remedy)
            )
    return found


def _problem(safeguard: Safeguard, running: Running) -> str | None:
    """What is wrong with a safeguard, empty if it is in force; None for one that cannot be read back."""
    if safeguard.of_server is not None:
        return safeguard.of_server(running)
    of_thread, of_process = safeguard.of_thread, safeguard.of_process
    if of_thread is not None:
        lacking = [
            role
            for role, process in running.data_path.items()
            if not all(map(of_thread, process.threads.values()))
        ]
    elif of_process is not None:
        lacking = [role for role, process in running.data_path.items() if not of_process(process)]
    else:
        return None
    if not running.data_path:
        return "no process of the data path is alive"
    return f"not in {', '.join(lacking)}" if lacking else ""


def attempt(settings: Settings) -> list[tuple[Safeguard, Precondition]]:
    """Try every safeguard in a process of its own, whatever the mode, and tell how each went.

    Only for a process without threads, since it forks.
    """
    swap = settings.mode == "swap"
    tried = [each for each in TABLE if swap or each.in_scratch_mode is not InScratchMode.NOT_ASKED]
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writer, json.dumps([_attempt(each, settings) for each in tried]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        text = file.read()
    os.waitpid(pid, 0)
    if text:
        found = [Precondition(*each) for each in json.loads(text)]
    else:
        found = [
            Precondition(each.label, False, "could not be tried", "look at the kernel's log")
            for each in tried
        ]
    return list(zip(tried, found, strict=True))


def _attempt(safeguard: Safeguard, settings: Settings) -> Precondition:
    try:
        (safeguard.attempt or safeguard.take)(settings)
    except UnmetRequirement as unmet:
        return Precondition(safeguard.label, False, unmet.detail, unmet.remedy)
    except OSError as error:
        return Precondition(safeguard.label, False, str(error), "see the error")
    return Precondition(safeguard.label, True, "granted", "")


def _refusal(safeguard: Safeguard, unmet: UnmetRequirement) -> PreconditionError:
    return PreconditionError(f"swap mode needs {safeguard.needed}: {unmet.detail}; {unmet.remedy}")


def _set_io_flusher() -> None:
    try:
        kernel.prctl(kernel.PR_SET_IO_FLUSHER, 1)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise UnmetRequirement("the kernel does not support it", "use Linux 5.6 or later") from error
        raise UnmetRequirement(
            f"{error.strerror}, this requires CAP_SYS_RESOURCE", _GRANT_SYS_RESOURCE
        ) from error


def _set_oom_score() -> None:
    try:
        if proc.oom_score_adj() != OOM_SCORE_ADJ:
            proc.write_oom_score_adj(OOM_SCORE_ADJ)
    except OSError as error:
        raise UnmetRequirement(
            f"{error.strerror}, this requires CAP_SYS_RESOURCE",
            f"{_GRANT_SYS_RESOURCE}, or start it with that score "
            "(oom_score_adj of Compose, OOMScoreAdjust of systemd)",
        ) from error


def _set_realtime() -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
    except OSError as error:
        if kernel.held_capabilities() >> kernel.CAP_SYS_NICE & 1:
            raise UnmetRequirement(
                f"{error.strerror} although CAP_SYS_NICE is held, so this cgroup has a real-time budget of 0",
                "give it one (cpu.rt_runtime_us of the cgroup, --cpu-rt-runtime of Docker) "
                "or use a kernel without CONFIG_RT_GROUP_SCHED",
            ) from error
        raise UnmetRequirement(
            f"{error.strerror}, this requires CAP_SYS_NICE or a limit of real-time priority",
            "run as root on the host, or give the container SYS_NICE or ulimit rtprio "
            "(compose.swap.yaml does)",
        ) from error
