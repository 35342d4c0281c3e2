"""The few system calls that Python's own library does not offer."""

from __future__ import annotations

import ctypes
import os

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
PR_SET_THP_DISABLE = 41
PR_SET_IO_FLUSHER = 57

CAP_SETPCAP = 8
CAP_IPC_LOCK = 14
CAP_SYS_NICE = 23
CAP_SYS_RESOURCE = 24

MCL_CURRENT = 1
MCL_FUTURE = 2
MCL_ONFAULT = 4

MADV_POPULATE_WRITE = 23

# mallopt(3)
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8

_CAPABILITY_VERSION_3 = 0x20080522
_COMM_BYTES = 15

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityHalf(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def prctl(option: int, first: int = 0, second: int = 0) -> None:
    """prctl(2).

    Raises:
        OSError: the kernel refuses.
    """
    _check(_libc.prctl(option, first, second, 0, 0), f"prctl {option}")


def mlockall(flags: int) -> None:
    """mlockall(2).

    Raises:
        OSError: the kernel refuses.
    """
    _check(_libc.mlockall(flags), "mlockall")


def mlock(address: int, length: int) -> None:
    """mlock(2), which also makes the pages resident.

    Raises:
        OSError: the kernel refuses.
    """
    _check(_libc.mlock(address, length), "mlock")


def madvise(address: int, length: int, advice: int) -> None:
    """madvise(2).

    Raises:
        OSError: the kernel refuses, or does not know the advice.
    """
    _check(_libc.madvise(address, length, advice), f"madvise {advice}")


def mallopt(parameter: int, value: int) -> None:
    """mallopt(3), where the C library has it."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(parameter, value)


def malloc_trim() -> None:
    """malloc_trim(3), where the C library has it: give free memory back to the kernel."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def held_capabilities() -> int:
    """The effective capabilities of this thread as a bit set."""
    return int(status_field("CapEff"), 16)


def set_capabilities(effective: int, permitted: int) -> None:
    """capset(2) for this thread, with nothing inheritable.

    Raises:
        OSError: the kernel refuses.
    """
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    halves = (_CapabilityHalf * 2)(
        *(
            _CapabilityHalf(effective >> shift & 0xFFFFFFFF, permitted >> shift & 0xFFFFFFFF, 0)
            for shift in (0, 32)
        )
    )
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(halves)), "capset")


def status_field(name: str, pid: int | str = "self") -> str:
    """One value of /proc/PID/status.

    Raises:
        OSError: no such process.
        KeyError: no such field.
    """
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            key, _, value = line.partition(":")
            if key == name:
                return value.strip()
    raise KeyError(name)


def set_thread_name(name: str) -> None:
    """The name that ps and top show, of which the kernel keeps 15 bytes."""
    text = ctypes.create_string_buffer(name.encode()[:_COMM_BYTES])
    prctl(PR_SET_NAME, ctypes.addressof(text))


def overwrite_command_line(text: str) -> None:
    """Make /proc/self/cmdline say ``text`` as far as the space of the original arguments goes."""
    with open("/proc/self/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    start, end = int(fields[45]), int(fields[46])  # fields 48 and 49 of proc_pid_stat(5)
    if 0 < start < end:
        room = end - start - 1
        ctypes.memmove(start, text.encode()[:room].ljust(room + 1, b"\0"), room + 1)
