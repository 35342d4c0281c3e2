"""A full memory barrier for pure Python on x86-64.

x86-64 keeps stores in order and loads in order, so a ring whose producer writes the data and
then the tail needs nothing. One pattern does: store a word, then load the other side's word
("I published" / "are you asleep?"). The processor may do the load first, and both sides would
then miss each other. An uncontended lock is taken with a locked instruction, which drains the
store buffer, and costs about 60 ns.
"""

from __future__ import annotations

import platform
import threading

from ..errors import PreconditionError

_lock = threading.Lock()
_acquire = _lock.acquire
_release = _lock.release


def full_barrier() -> None:
    """Make every earlier store visible before any later load of this thread."""
    _acquire()
    _release()


def require_ordered_stores() -> None:
    """Refuse a processor on which the rings are unproven.

    Raises:
        PreconditionError: the machine is not x86-64.
    """
    machine = platform.machine()
    if machine not in ("x86_64", "AMD64"):
        raise PreconditionError(
            f"processor {machine} is not supported: the shared rings rely on x86-64 memory ordering; "
            "run vramblk on an x86-64 host"
        )
