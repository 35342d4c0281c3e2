"""A check in a forked process, for what cannot be undone in this one, or might not end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable


def in_child(check: Callable[[], bool], limit_s: int = 60) -> bool:
    """What ``check`` returns there; False too if it raises, dies, or takes longer than ``limit_s``."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(limit_s)
            status = 0 if check() else 1
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0
