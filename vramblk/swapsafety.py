"""What a server must hold so that swap on it cannot deadlock the machine, in one place.

A page that the server itself needs may never wait for swap, since swap waits for the server. So
memory is locked, the kernel is told not to start I/O for this server's allocations (IO_FLUSHER),
the out-of-memory killer passes it over, and as a real-time task it may dip into the reserve when
it sends. Any one of these alone was seen to hang; they are refused or granted together.

IO_FLUSHER, scheduling and the score are inherited by fork and by threads, so the supervisor sets
them once before it forks. Locked memory is not inherited: each process locks its own.
"""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable, Iterable
from typing import NamedTuple

from . import kernel, logs
from .errors import PreconditionError
from .settings import Settings
from .swapsettings import Missing, require_device_memory, require_unix_listeners

#: The lowest: enough to come before every ordinary task, below the kernel's own threads.
FIFO_PRIORITY = 1
OOM_SCORE_ADJ = -1000

_OOM_FILE = "/proc/self/oom_score_adj"
#: PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE, which PR_SET_IO_FLUSHER sets in the flags of a task.
_IO_FLUSHER_FLAGS = 0x180000
#: Files mapped in larger pieces are libraries of which little is ever used (OpenBLAS, LLVM, drivers).
_LARGEST_RESIDENT_BYTES = 8 << 20
_GRANT_SYS_RESOURCE = (
    "run as root on the host, or give the container SYS_RESOURCE outside a user namespace "
    "(compose.swap.yaml does)"
)


class Precondition(NamedTuple):
    """One safeguard of swap mode on this machine.

    Attributes:
        detail: what was found.
        remedy: what to do about it, empty if it is ok.
    """

    name: str
    ok: bool
    detail: str
    remedy: str


def prepare(settings: Settings) -> None:
    """Take every safeguard that is inherited; in scratch mode nothing happens.

    To be called by the supervisor before it forks.

    Raises:
        PreconditionError: names the first safeguard that is missing and how to grant it.
    """
    if settings.mode != "swap":
        return
    # A page that is touched must not turn into 2 MiB that are locked, or wait for a free piece of that size.
    _ignore_refusal(kernel.PR_SET_THP_DISABLE, 1)
    for name, apply in _safeguards(settings):
        try:
            apply()
        except Missing as missing:
            raise PreconditionError(
                f"swap mode needs {name}: {missing.detail}; {missing.remedy}"
            ) from missing


def leave_data_path() -> None:
    """Give the safeguards back, for a process that may be slow, late or killed (the observer)."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    write_oom_score(0)
    kernel.prctl(kernel.PR_SET_IO_FLUSHER, 0)
    _ignore_refusal(kernel.PR_SET_THP_DISABLE, 0)


def lock_memory(settings: Settings, *, warn: bool = False) -> int | None:
    """Lock this process's memory, once it is initialised; gives the bytes that are locked.

    Pages are locked as they are touched (MCL_ONFAULT): locking all that a GPU driver maps would
    take more than a gigabyte. In swap mode the code of all but the largest libraries is made
    resident too, so that a rare path does not have to be read from a disk.

    Args:
        warn: in scratch mode say so in a warning if it fails; otherwise only in verbose logs.

    Returns:
        Bytes, or None if memory could not be locked, in scratch mode.

    Raises:
        PreconditionError: memory could not be locked, in swap mode.
    """
    swap = settings.mode == "swap"
    try:
        if swap:
            _require_lock_limit()
        _lock(future=_unlimited())
        if swap:
            _populate_code()
    except (Missing, OSError) as error:
        missing = error if isinstance(error, Missing) else _lock_refused(error)
        if swap:
            raise PreconditionError(
                f"swap mode needs locked memory: {missing.detail}; {missing.remedy}"
            ) from error
        log = logs.get()
        (log.warning if warn else log.debug)(
            "memory_not_locked", detail=missing.detail, remedy=missing.remedy
        )
        return None
    return locked_bytes(os.getpid())


def locked_bytes(pid: int) -> int:
    """Locked and resident memory of a process; a page that several share counts in parts.

    Source: Locked in /proc/PID/smaps_rollup, or VmLck, which counts addresses, if that is refused.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup") as rollup:
            return sum(int(line.split()[1]) << 10 for line in rollup if line.startswith("Locked:"))
    except OSError:
        try:
            return int(kernel.status_field("VmLck", pid).split()[0]) << 10
        except (OSError, KeyError):
            return 0


def drop_privileges() -> None:
    """Give up all that a worker does not need: new privileges, and capabilities except CAP_IPC_LOCK.

    CAP_IPC_LOCK stays because under MCL_FUTURE every later allocation needs it.
    """
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    _ignore_refusal(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(64):
        if capability != kernel.CAP_IPC_LOCK and not _ignore_refusal(kernel.PR_CAPBSET_DROP, capability):
            break
    keep = 1 << kernel.CAP_IPC_LOCK
    permitted = int(kernel.status_field("CapPrm"), 16)
    kernel.set_capabilities(kernel.held_capabilities() & keep, permitted & keep)


def verify_threads(pids: Iterable[int]) -> list[str]:
    """Read back IO_FLUSHER and SCHED_FIFO of every thread; gives one line for each that lacks one."""
    problems = []
    for pid in pids:
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:
            problems.append(f"process {pid} is gone")
            continue
        for thread in threads:
            try:
                with open(f"/proc/{pid}/task/{thread}/stat") as file:
                    name, _, rest = file.read().partition("(")[2].rpartition(")")
            except OSError:
                continue  # it has ended
            fields = rest.split()  # from field 3 of proc_pid_stat(5): flags are 9, policy is 41
            lacks = []
            if int(fields[6]) & _IO_FLUSHER_FLAGS != _IO_FLUSHER_FLAGS:
                lacks.append("IO_FLUSHER")
            if int(fields[38]) != os.SCHED_FIFO:
                lacks.append("SCHED_FIFO")
            if lacks:
                problems.append(f"thread {thread} ({name}) of process {pid} lacks {' and '.join(lacks)}")
    return problems


def preconditions(settings: Settings) -> list[Precondition]:
    """Try every safeguard in a process of its own, whatever the mode, and tell how each went.

    Only for a process without threads, since it forks.
    """
    names = [name for name, _ in _safeguards(settings)] + ["locked memory"]
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writer, json.dumps(_try_all(settings)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        text = file.read()
    os.waitpid(pid, 0)
    if not text:
        return [Precondition(name, False, "could not be tried", "look at the kernel's log") for name in names]
    return [Precondition(*found) for found in json.loads(text)]


def _try_all(settings: Settings) -> list[Precondition]:
    found = []
    for name, apply in (*_safeguards(settings), ("locked memory", _try_locking)):
        try:
            apply()
        except Missing as missing:
            found.append(Precondition(name, False, missing.detail, missing.remedy))
        except OSError as error:
            found.append(Precondition(name, False, str(error), "see the error"))
        else:
            found.append(Precondition(name, True, "granted", ""))
    return found


def _safeguards(settings: Settings) -> list[tuple[str, Callable[[], None]]]:
    """In the order in which they are taken; real-time scheduling last."""
    checks: list[tuple[str, Callable[[], None]]] = []
    if settings.mode == "swap":
        checks = [
            ("Unix sockets", lambda: require_unix_listeners(settings)),
            ("device memory", lambda: require_device_memory(settings)),
        ]
    return [
        *checks,
        ("an unlimited memory lock", _require_lock_limit),
        ("PR_SET_IO_FLUSHER", _set_io_flusher),
        (f"oom_score_adj {OOM_SCORE_ADJ}", _set_oom_score),
        ("SCHED_FIFO", _set_realtime),
    ]


def _set_io_flusher() -> None:
    try:
        kernel.prctl(kernel.PR_SET_IO_FLUSHER, 1)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise Missing("the kernel does not know it", "use Linux 5.6 or later") from error
        raise Missing(f"{error.strerror}, it takes CAP_SYS_RESOURCE", _GRANT_SYS_RESOURCE) from error


def _set_oom_score() -> None:
    try:
        with open(_OOM_FILE) as file:
            current = int(file.read())
        if current != OOM_SCORE_ADJ:
            write_oom_score(OOM_SCORE_ADJ)
    except OSError as error:
        raise Missing(
            f"{error.strerror}, it takes CAP_SYS_RESOURCE",
            f"{_GRANT_SYS_RESOURCE}, or start it with that score "
            "(oom_score_adj of Compose, OOMScoreAdjust of systemd)",
        ) from error


def write_oom_score(score: int) -> None:
    """Of this process; below 0 the out-of-memory killer takes it later, at -1000 never.

    Raises:
        OSError: lower than it was takes CAP_SYS_RESOURCE.
    """
    descriptor = os.open(_OOM_FILE, os.O_WRONLY)
    try:
        os.write(descriptor, str(score).encode())
    finally:
        os.close(descriptor)


def _set_realtime() -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
    except OSError as error:
        if kernel.held_capabilities() >> kernel.CAP_SYS_NICE & 1:
            raise Missing(
                f"{error.strerror} although CAP_SYS_NICE is held, so this cgroup has a real-time budget of 0",
                "give it one (cpu.rt_runtime_us of the cgroup, --cpu-rt-runtime of Docker) "
                "or use a kernel without CONFIG_RT_GROUP_SCHED",
            ) from error
        raise Missing(
            f"{error.strerror}, it takes CAP_SYS_NICE or a limit of real-time priority",
            "run as root on the host, or give the container SYS_NICE or ulimit rtprio "
            "(compose.swap.yaml does)",
        ) from error


def _unlimited() -> bool:
    """Whether this process may lock whatever it allocates later."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return limit == resource.RLIM_INFINITY or bool(kernel.held_capabilities() >> kernel.CAP_IPC_LOCK & 1)


def _require_lock_limit() -> None:
    if not _unlimited():
        raise _limit_too_low()


def _limit_too_low() -> Missing:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return Missing(
        f"CAP_IPC_LOCK is not held and the limit of locked memory is {limit >> 10} KiB",
        "run as root, give the container IPC_LOCK, or raise the limit (ulimit -l unlimited)",
    )


def _lock(*, future: bool) -> None:
    """With a finite limit later allocations are left out, since each would fail at the limit."""
    kernel.mlockall(kernel.MCL_CURRENT | kernel.MCL_ONFAULT | (kernel.MCL_FUTURE if future else 0))


def _try_locking() -> None:
    try:
        _lock(future=False)
    except OSError as error:
        raise _lock_refused(error) from error


def _lock_refused(error: OSError) -> Missing:
    if not _unlimited():
        return _limit_too_low()
    return Missing(f"mlockall: {error.strerror}", "free memory, or look at the limits of the container")


def _populate_code() -> None:
    with open("/proc/self/maps") as maps:
        lines = maps.read().splitlines()
    for line in lines:
        span, modes, _, _, inode = line.split()[:5]
        start, end = (int(part, 16) for part in span.split("-"))
        if (
            inode != "0"
            and modes.startswith("r")
            and modes[3] == "p"
            and end - start <= _LARGEST_RESIDENT_BYTES
        ):
            try:
                kernel.mlock(start, end - start)
            except OSError as error:
                # ENOMEM is also what a piece beyond the end of its file gives, which nothing can touch.
                if error.errno != errno.ENOMEM:
                    raise


def _ignore_refusal(option: int, argument: int) -> bool:
    """prctl where the kernel may say no: too little privilege, or unknown to it."""
    try:
        kernel.prctl(option, argument)
    except OSError:
        return False
    return True
