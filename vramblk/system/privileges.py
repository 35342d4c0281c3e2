"""What the server's processes may do: the uids that its children run as, and the rights that each gives up.

Workers parse what clients send, the observer parses HTTP. An attacker who takes one over must not be root:
each runs under a uid of its own, without any account, so it can neither read the memory of another process
nor signal it.
"""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from . import kernel, proc

#: No other program takes uids or gids from here: they are between those of people and containers, and those
#: that systemd gives to its dynamic users. Source: "Users, Groups, UIDs and GIDs on systemd Systems".
UIDS = range(60706, 61184)

#: More than the threads with which the observer serves all its listeners at once.
_FEW = 512

NEEDED = "CAP_SETUID, CAP_SETGID and CAP_KILL"


def allocate(count: int) -> int:
    """The first of ``count`` free uids in a row; no account, group or process has them as uid or gid.

    Only for a process without threads: it forks to see whether a child can become one and still be killed.

    Raises:
        OSError: this process cannot have children of another uid; the text says why.
    """
    if os.geteuid():
        raise PermissionError("this is not root")
    taken = {*_accounts(), *_in_use()}
    free = [first for first in UIDS[: len(UIDS) - count + 1] if taken.isdisjoint(range(first, first + count))]
    if not free:
        raise OSError(f"no {count} uids in a row are free from {UIDS[0]} to {UIDS[-1]}")
    # A server that starts at the same time looks at the same uids.
    first = random.choice(free)
    _try(first)
    return first


def forbid_cores() -> None:
    """Have neither this process nor its children leave a core, which would hold what clients have written."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def gain_none() -> None:
    """From here on no program that this process runs has more rights than it, setuid or not."""
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)


def stay_this_uid() -> None:
    """Give up what only the supervisor needs: to become another uid, and to signal processes of other uids.

    Only for a process without threads.
    """
    given_up = 1 << kernel.CAP_SETUID | 1 << kernel.CAP_SETGID | 1 << kernel.CAP_KILL
    effective, permitted = kernel.held_capabilities(), int(proc.status()["CapPrm"], 16)
    kernel.set_capabilities(effective & ~given_up, permitted & ~given_up)


def start_no_process() -> None:
    """From here on this process can start neither a process nor a thread, unless it is root."""
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def start_few_processes() -> None:
    """From here on all processes and threads of this uid, unless it is root's, are so many at most.

    Otherwise an attacker in this process could use up those of the container or the unit.
    """
    resource.setrlimit(resource.RLIMIT_NPROC, (_FEW, _FEW))


def drop(uid: int | None, *, keep: int = 0) -> None:
    """Give up every right for good, except some capabilities.

    Its working directory becomes the root: from there, what others may read could be read although a
    directory above is closed to them. Only for a process without threads.

    Args:
        uid: what to become, with the gid of the same number and no other group; None to stay what it is.
        keep: bit set of the capabilities that stay, as far as they are held.

    Raises:
        OSError: the kernel refuses.
    """
    parent, death_signal = os.getppid(), ctypes.c_int()
    kernel.prctl(kernel.PR_GET_PDEATHSIG, ctypes.addressof(death_signal))
    gain_none()
    os.chdir("/")
    kernel.try_prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(64):
        if not keep >> capability & 1 and not kernel.try_prctl(kernel.PR_CAPBSET_DROP, capability):
            break
    effective, permitted = kernel.held_capabilities(), int(proc.status()["CapPrm"], 16)
    if uid is not None:
        kernel.prctl(kernel.PR_SET_KEEPCAPS, 1)
        _become(uid)
        kernel.leave_session_keyring()  # a process that has it reads root's keys in it, whatever the uid
        # It belongs to root already; fs.suid_dumpable could still let root's core handler have it.
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.set_capabilities(effective & keep, permitted & keep)
    if death_signal.value:  # a change of uid or capabilities has cleared it
        kernel.prctl(kernel.PR_SET_PDEATHSIG, death_signal.value)
        if os.getppid() != parent:
            os._exit(0)


def own_end(pipe: int, access: int) -> None:
    """Open a non-blocking end of a pipe anew under its number: others who have it do not share its flags.

    An attacker in this process can make its descriptors block, also for a successor that inherits the same.
    This process must still have the uid that made the pipe.

    Args:
        access: O_RDONLY for the reader, O_WRONLY for the writer.

    Raises:
        OSError: /proc is not there.
    """
    _open_anew(pipe, access | os.O_NONBLOCK)


def own_file(descriptor: int, access: int = os.O_RDWR) -> None:
    """The same of a memory file: locks of an open file (F_OFD_SETLK) stay as long as anybody has it open.

    Raises:
        OSError: /proc is not there.
    """
    _open_anew(descriptor, access)


def only_write_terminal(descriptor: int) -> None:
    """If this is a terminal, open it anew under its number only to write.

    An attacker who takes this process over can then neither read what is typed there, nor take the terminal
    and type there.

    Raises:
        OSError: /proc is not there.
    """
    if os.isatty(descriptor):
        _open_anew(descriptor, os.O_WRONLY | os.O_NOCTTY, inheritable=True)


def _open_anew(descriptor: int, flags: int, *, inheritable: bool = False) -> None:
    own = os.open(f"/proc/self/fd/{descriptor}", flags | os.O_CLOEXEC)
    os.dup2(own, descriptor, inheritable=inheritable)
    os.close(own)


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _accounts() -> Iterator[int]:
    """Uids and gids of the local accounts and groups."""
    for path in ("/etc/passwd", "/etc/group"):
        for line in (proc.read_text(Path(path)) or "").splitlines():
            number = line.split(":")[2:3]
            if number and number[0].isdigit():
                yield int(number[0])


def _in_use() -> Iterator[int]:
    """Uids and gids of all processes that can be seen."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, KeyError):  # it has ended
                values = proc.status(int(name))
                yield from map(int, f"{values['Uid']} {values['Gid']}".split())


def _try(uid: int) -> None:
    """Have a child become ``uid``, and kill it.

    Raises:
        OSError: either fails.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        try:
            ours.close()
            theirs.send(_outcome(uid))
            theirs.recv(1)  # until it is killed, or cannot be
        finally:
            os._exit(0)
    theirs.close()
    try:
        with ours:
            problem = ours.recv(4096).decode()
            if not problem.startswith("became"):
                raise PermissionError(problem or "a child that changes its uid dies")
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError as error:
                raise PermissionError(f"a child of another uid cannot be killed: {error.strerror}") from error
    finally:
        os.waitpid(pid, 0)


def _outcome(uid: int) -> bytes:
    try:
        _become(uid)
    except OSError as error:
        return f"a child cannot change its uid: {error.strerror}".encode()
    if not proc.alive(os.getppid()):  # the observer would take the engine for dead
        return b"another uid does not see this process; /proc must be mounted with hidepid=0"
    return b"became"
