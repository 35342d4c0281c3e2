"""The few system calls that Python's own library does not offer."""

from __future__ import annotations

import ctypes
import os

from . import proc

PR_SET_PDEATHSIG = 1
PR_GET_PDEATHSIG = 2
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
PR_SET_THP_DISABLE = 41
PR_SET_IO_FLUSHER = 57

CAP_KILL = 5
CAP_SETGID = 6
CAP_SETUID = 7
CAP_SETPCAP = 8
CAP_IPC_LOCK = 14
CAP_SYS_NICE = 23
CAP_SYS_RESOURCE = 24

MCL_CURRENT = 1
MCL_FUTURE = 2
MCL_ONFAULT = 4

MADV_POPULATE_WRITE = 23

PROT_NONE = 0
PROT_READ = 1
PROT_WRITE = 2
MAP_SHARED = 0x01
MAP_PRIVATE = 0x02
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_NORESERVE = 0x4000

#: fcntl(2): no new writable mapping and no write; mappings that exist stay as they are. Linux 5.1.
F_SEAL_FUTURE_WRITE = 0x10

# mallopt(3)
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02

#: keyctl(2), which the C library does not have, on x86_64, the only machine that is served.
_SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING = 250, 1

_CAPABILITY_VERSION_3 = 0x20080522
_COMM_BYTES = 15

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mmap.restype = ctypes.c_void_p
_libc.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


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


def try_prctl(option: int, argument: int) -> bool:
    """prctl(2) where the kernel may say no: too little privilege, or unknown to it."""
    try:
        prctl(option, argument)
    except OSError:
        return False
    return True


def leave_session_keyring() -> None:
    """Take a session keyring of one's own, with nothing in it, where the kernel has such and lets us."""
    _libc.syscall(_SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None)


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


def mprotect(address: int, length: int, protection: int) -> None:
    """mprotect(2).

    Raises:
        OSError: the kernel refuses.
    """
    _check(_libc.mprotect(address, length, protection), "mprotect")


def map_fixed(address: int, length: int, protection: int, flags: int, descriptor: int = -1) -> None:
    """mmap(2) in the place of what is mapped at ``address`` now, from the descriptor's offset 0.

    Raises:
        OSError: the kernel refuses; the old mapping may be gone.
    """
    found = _libc.mmap(address, length, protection, flags | MAP_FIXED, descriptor, 0)
    _check(found != address, "mmap")


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """fallocate(2): free the pages of a range of a file, which reads as zero then.

    Raises:
        OSError: the file system cannot.
    """
    mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    _check(_libc.fallocate64(descriptor, mode, offset, length), "fallocate")


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
    return int(proc.status()["CapEff"], 16)


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


def set_thread_name(name: str) -> None:
    """The name that ps and top show, of which the kernel keeps 15 bytes."""
    text = ctypes.create_string_buffer(name.encode()[:_COMM_BYTES])
    prctl(PR_SET_NAME, ctypes.addressof(text))


def overwrite_command_line(text: str) -> None:
    """Make /proc/self/cmdline say ``text`` as far as the space of the original arguments goes."""
    start, end = proc.stat("self").arguments
    if 0 < start < end:
        room = end - start - 1
        ctypes.memmove(start, text.encode()[:room].ljust(room + 1, b"\0"), room + 1)
