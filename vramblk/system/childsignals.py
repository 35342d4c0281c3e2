"""Signals that only the supervisor obeys."""

from __future__ import annotations

import signal

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


def ignore() -> None:
    """Ignore what the supervisor obeys.

    To be said again once a library that compiles is loaded: LLVM, which PoCL and Mesa bring, takes
    these signals over, whether they were ignored or not.
    """
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
