"""Counts the system calls of a running process with ptrace(2), by number and main thread only.

The tests' process is an ancestor of the server's, so this needs no privilege, also where Yama restricts
ptrace to descendants.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections import Counter

_SEIZE, _INTERRUPT, _SYSCALL, _DETACH, _PEEKUSER = 0x4206, 0x4207, 24, 17, 3
_TRACE_SYSGOOD = 1
_ORIG_RAX = 15 * 8
_WALL = 0x40000000
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_EVENT_STOP = 128

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    ctypes.set_errno(0)
    found = int(_libc.ptrace(request, pid, address, data))
    if ctypes.get_errno():
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"ptrace {request} of {pid}")
    return found


class Tracer:
    """Traces one process from ``with`` on until the end of its life, or its first call behind the block.

    Attributes:
        calls: times that each system call was entered, by its number (x86-64).
    """

    def __init__(self, pid: int) -> None:
        self.calls: Counter[int] = Counter()
        self._pid = pid
        self._leave = False
        self._started = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Tracer:
        self._thread.start()
        self._started.wait(10)
        if self._error:
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self._leave = True

    def _run(self) -> None:
        """All requests must come from the thread that seized the process."""
        try:
            _ptrace(_SEIZE, self._pid, 0, _TRACE_SYSGOOD)
            _ptrace(_INTERRUPT, self._pid)  # it may be blocked, and only a stopped process can be told
            os.waitpid(self._pid, _WALL)
            _ptrace(_SYSCALL, self._pid)
        except OSError as error:
            self._error = error
            return
        finally:
            self._started.set()
        try:
            self._count()
        except (ProcessLookupError, ChildProcessError):
            pass  # it has ended

    def _count(self) -> None:
        inside = False
        while True:
            _, status = os.waitpid(self._pid, _WALL)
            if not os.WIFSTOPPED(status):
                return
            deliver = 0
            if os.WSTOPSIG(status) == _SYSCALL_STOP:
                inside = not inside
                if inside:
                    self.calls[_ptrace(_PEEKUSER, self._pid, _ORIG_RAX)] += 1
            elif status >> 16 != _EVENT_STOP:
                deliver = os.WSTOPSIG(status)
            if self._leave:
                _ptrace(_DETACH, self._pid, 0, deliver)
                return
            _ptrace(_SYSCALL, self._pid, 0, deliver)
