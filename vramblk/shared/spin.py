"""How long the data path looks for work before it sleeps."""

from __future__ import annotations

import os

from ..config.settings import Settings

SPIN_NS = 60_000
ENOUGH_CORES = 4


def spin_ns(settings: Settings) -> int:
    """Nanoseconds to spin after the last work.

    0 in swap mode, where a real-time process must not spin, and where so few cores are that
    spinning takes the processor from the one that is waited for.
    """
    if settings.mode == "swap" or len(os.sched_getaffinity(0)) < ENOUGH_CORES:
        return 0
    return SPIN_NS
