"""Exports in system RAM: whether they and the server itself fit the limits of cgroups.

At such a limit the kernel kills the engine, and with it goes all data: so it is compared before anything
is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..config.units import format_size
from ..errors import PreconditionError
from ..system import cgroups, proc

#: Of the memory that the host has available, this may become exports on CPU devices.
CPU_SHARE = 0.5
#: Engine, observer and supervisor before an export is opened: 60 MiB with PoCL 3.0 on x86-64.
STARTED_BYTES = 64 << 20

_MIB = 1 << 20
#: What is added until `ready`: 33 MiB with PoCL's compiler in it, and 14 MiB for each worker.
_ENGINE_BYTES = 32 << 20
_PROCESS_BYTES = 16 << 20


def server_bytes(windows: Sequence[int], *, opencl: bool) -> int:
    """What the server takes beside its exports once they are opened, with every client it can have.

    Args:
        windows: bytes of each window's slab.
        opencl: the device has a staging buffer that is as large as all slabs, and it is system RAM too.
    """
    slabs = sum(windows) * (2 if opencl else 1)
    return _ENGINE_BYTES + _PROCESS_BYTES * len(windows) + slabs


def require_room(wanted_bytes: int, beside_bytes: int, root: Path = proc.ROOT) -> None:
    """Refuse exports of ``wanted_bytes`` in system RAM that no limit of a cgroup leaves room for.

    Args:
        beside_bytes: what the server itself will take; see ``server_bytes``.

    Raises:
        PreconditionError: names the limit and what to change.
    """
    limit = cgroups.tightest(root)
    if not wanted_bytes or limit is None or wanted_bytes + beside_bytes <= limit.left_bytes:
        return
    least = -(-(limit.used_bytes + wanted_bytes + beside_bytes) // _MIB)
    fits = (limit.left_bytes - beside_bytes) // _MIB
    smaller = f", or give --size {fits}M or less" if fits > 0 else ""
    wanted, beside = format_size(wanted_bytes), format_size(beside_bytes)
    most, used = format_size(limit.limit_bytes), format_size(limit.used_bytes)
    raise PreconditionError(
        f"{wanted} of system RAM for exports and {beside} for the server do not fit: {limit.file} is {most}, "
        f"of which {used} are used; raise the limit to {least}M (docker run --memory, MemoryMax= of systemd)"
        f"{smaller}"
    )


def missing_bytes(wanted_bytes: int, root: Path = proc.ROOT) -> int:
    """How much system RAM there is too little for an export that is to be taken while others are served.

    It has to be asked: the kernel promises more than it has, and kills the engine when that shows.
    """
    return max(0, wanted_bytes - available_bytes(root))


def usable_bytes(device_bytes: int, beside_bytes: int, root: Path = proc.ROOT) -> int:
    """What exports on a CPU device can have in all: a share of what is available, within every limit."""
    usable = int(min(device_bytes, available_bytes(root)) * CPU_SHARE)
    limit = cgroups.tightest(root)
    return usable if limit is None else max(0, min(usable, limit.left_bytes - beside_bytes))


def available_bytes(root: Path = proc.ROOT) -> int:
    """MemAvailable of /proc/meminfo, or what the cgroups' limits leave if that is less."""
    available = proc.memory_bytes("MemAvailable", root) or 0
    limit = cgroups.tightest(root)
    return available if limit is None else min(available, limit.left_bytes)
