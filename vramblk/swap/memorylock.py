"""Locking this process's memory, so that no page of it ever waits for swap.

Pages are locked as they are touched (MCL_ONFAULT): locking all that a GPU driver maps would take more
than a gigabyte. A lock is not inherited, so each process of the data path takes its own.
"""

from __future__ import annotations

import errno
import resource

from ..system import kernel, proc
from .requirements import UnmetRequirement

#: Files mapped in larger pieces are libraries of which little is ever used (OpenBLAS, LLVM, drivers).
_LARGEST_RESIDENT_BYTES = 8 << 20


def lock(*, swap: bool) -> None:
    """Lock all that is mapped now, and what is mapped later unless a finite limit forbids it.

    Args:
        swap: only without a limit, and with the code of all but the largest libraries made resident, so
            that a rare path does not have to be read from a disk.

    Raises:
        UnmetRequirement: the kernel refuses, or with ``swap`` there is a limit.
    """
    if swap:
        require_unlimited()
    try:
        _lock(future=unlimited())
        if swap:
            _populate_code()
    except OSError as error:
        raise _refused(error) from error


def attempt() -> None:
    """Lock what is mapped now, and nothing else, to see whether the kernel lets this process.

    Raises:
        UnmetRequirement: it does not.
    """
    try:
        _lock(future=False)
    except OSError as error:
        raise _refused(error) from error


def unlimited() -> bool:
    """Whether this process may lock whatever it allocates later."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return limit == resource.RLIM_INFINITY or bool(kernel.held_capabilities() >> kernel.CAP_IPC_LOCK & 1)


def require_unlimited() -> None:
    """
    Raises:
        UnmetRequirement: names the limit, and how to lift it.
    """
    if not unlimited():
        limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        raise UnmetRequirement(
            f"CAP_IPC_LOCK is not held and the limit of locked memory is {limit >> 10} KiB",
            "run as root, give the container IPC_LOCK, or raise the limit (ulimit -l unlimited)",
        )


def _lock(*, future: bool) -> None:
    """With a finite limit later allocations are left out, since each would fail at the limit."""
    kernel.mlockall(kernel.MCL_CURRENT | kernel.MCL_ONFAULT | (kernel.MCL_FUTURE if future else 0))


def _refused(error: OSError) -> UnmetRequirement:
    try:
        require_unlimited()
    except UnmetRequirement as unmet:
        return unmet
    return UnmetRequirement(
        f"mlockall: {error.strerror}", "free memory, or look at the limits of the container"
    )


def _populate_code() -> None:
    for mapping in proc.mappings():
        length = mapping.end - mapping.start
        if (
            mapping.inode
            and mapping.modes.startswith("r")
            and mapping.modes[3] == "p"
            and length <= _LARGEST_RESIDENT_BYTES
        ):
            try:
                kernel.mlock(mapping.start, length)
            except OSError as error:
                # ENOMEM is also what a piece beyond the end of its file gives, which nothing can touch.
                if error.errno != errno.ENOMEM:
                    raise
