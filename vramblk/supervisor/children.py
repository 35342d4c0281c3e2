"""Child processes: forked with their own name, session and signals, and with the descriptors they need.

A child of the supervisor is never exec'd, so it inherits the shared memory. What it prints on
stderr (and, except for the one that pumps the log, on stdout) comes through a pipe and becomes
log events, since a library's chatter must neither get lost nor break the log's format.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from ..errors import StartupError
from ..system import childsignals, kernel, logs, privileges
from ..system.cgroups import Kills

#: Exit status of a child that ends by an exception which nobody foresaw (EX_SOFTWARE).
UNCAUGHT = 70
#: Children that are reaped at a time.
MOST_REAPED = 256

_READ_BYTES = 65536
_LONGEST_LINE = 2000


@dataclass(frozen=True)
class Channel:
    """How a child logs: see ``logs.configure``."""

    descriptor: int
    json: bool
    verbose: bool
    on_drop: Callable[[], None]


@dataclass
class Child:
    """A running child.

    Attributes:
        role: "engine", "observer" or "worker".
        stderr: non-blocking read end of what it prints.
        status: as waitpid gave it, None while it lives.
    """

    pid: int
    role: str
    stderr: int
    status: int | None = None
    _partial: bytearray = field(default_factory=bytearray)
    _kills: Kills = field(default_factory=Kills)

    @property
    def alive(self) -> bool:
        return self.status is None

    def kill(self) -> None:
        """SIGKILL, if it lives; its process id cannot be another's before it is reaped."""
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)

    def read_lines(self) -> tuple[list[str], bool]:
        """Lines printed since the last call, and whether the pipe is at its end."""
        try:
            data = os.read(self.stderr, _READ_BYTES)
        except BlockingIOError:
            return [], False
        self._partial += data
        ended = not data
        *whole, rest = bytes(self._partial).split(b"\n")
        if rest and (ended or len(rest) > _LONGEST_LINE):
            whole, rest = [*whole, rest], b""
        self._partial[:] = rest
        lines = [line.decode(errors="backslashreplace")[:_LONGEST_LINE] for line in whole if line.strip()]
        return lines, ended

    def how_it_ended(self) -> Mapping[str, object]:
        """``signal`` or ``status`` as fields of a log event, and ``out_of_memory`` if that was the reason."""
        if self.status is None:
            return {}
        if os.WIFSIGNALED(self.status):
            number = os.WTERMSIG(self.status)
            reason = self._kills.since() if number == signal.SIGKILL else ""
            why = {"out_of_memory": reason} if reason else {}
            try:
                return {"signal": signal.Signals(number).name, **why}
            except ValueError:
                return {"signal": number}
        return {"status": os.waitstatus_to_exitcode(self.status)}


class Backoff:
    """How long to wait before a child that has died is started again: not at all after a good life."""

    def __init__(self, shortest_s: float = 0.05, longest_s: float = 5.0, good_life_s: float = 1.0) -> None:
        self._shortest_s = shortest_s
        self._longest_s = longest_s
        self._good_life_s = good_life_s
        self._next_s = 0.0

    def after(self, lived_s: float) -> float:
        if lived_s >= self._good_life_s:
            self._next_s = 0.0
        delay_s = self._next_s
        self._next_s = min(max(delay_s * 2, self._shortest_s), self._longest_s)
        return delay_s


def fork(
    role: str,
    body: Callable[[], int],
    channel: Channel,
    close: Iterable[int],
    *,
    dies_with_parent: bool,
    keeps_stdout: bool = False,
) -> Child:
    """Start a child that runs ``body`` and ends with its result.

    Args:
        close: the parent's descriptors that are none of the child's business.
        dies_with_parent: SIGKILL for it when the parent ends, however that comes.
        keeps_stdout: its stdout is the parent's, not the pipe.

    Raises:
        OSError: there is no room for another process.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    # A signal that came between the fork and the child's own dispositions would go to the parent's handler.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if not pid:
            _run_child(
                role, body, channel, (reader, *close), writer, parent if dies_with_parent else 0, keeps_stdout
            )
    except OSError:
        os.close(reader)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(writer)
    return Child(pid, role, reader)


def _run_child(
    role: str,
    body: Callable[[], int],
    channel: Channel,
    close: Iterable[int],
    stderr: int,
    parent: int,
    keeps_stdout: bool,
) -> NoReturn:
    status = UNCAUGHT
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        childsignals.ignore()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        set_process_name(f"vramblk-{role}")
        if parent:
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(0)
        _take_stdio(stderr, keeps_stdout)
        for descriptor in close:
            os.close(descriptor)
        logs.configure(channel.descriptor, channel.json, channel.on_drop, role, channel.verbose)
        status = _guarded(role, body, channel)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _guarded(role: str, body: Callable[[], int], channel: Channel) -> int:
    try:
        privileges.own_end(channel.descriptor, os.O_WRONLY)
        return body()
    except StartupError as error:
        logs.get().error("process_failed", role=role, detail=str(error))
        return error.exit_code
    except BaseException:
        logs.get().critical("uncaught_exception", role=role, exc_info=True)
        return UNCAUGHT


def _take_stdio(stderr: int, keeps_stdout: bool) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(stderr, 2)
    if keeps_stdout:
        privileges.only_write_terminal(1)
    else:
        os.dup2(stderr, 1)
    for descriptor in (nothing, stderr):
        if descriptor > 2:
            os.close(descriptor)


def set_process_name(name: str, *, command_line: bool = True) -> None:
    """The name in ps and top, and with ``command_line`` the whole line that ``ps -f`` shows."""
    kernel.set_thread_name(name)
    if command_line:
        kernel.overwrite_command_line(name)


def reap() -> list[tuple[int, int]]:
    """Process id and status of children that have ended, orphans too if this is process 1.

    These are not all if they are many: a child that was taken over can give its parent more children
    (CLONE_PARENT) faster than they are reaped. Then there is a SIGCHLD for the rest.

    One that has this process trace it is reported when it stops, as if it had ended. It is killed, and
    reported again once it has.
    """
    ended: list[tuple[int, int]] = []
    for _ in range(MOST_REAPED):
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not pid:
            return ended
        if os.WIFSTOPPED(status):
            os.kill(pid, signal.SIGKILL)
        else:
            ended.append((pid, status))
    os.kill(os.getpid(), signal.SIGCHLD)
    return ended
