"""Threads of the observer: daemons with small stacks. No exit waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable

#: Enough for json, numpy and the metrics library; the default is 8 MiB of address space for each thread.
STACK_BYTES = 512 << 10


def start(target: Callable[..., object], name: str, *arguments: object) -> threading.Thread:
    """Start a daemon thread."""
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=target, name=name, args=arguments, daemon=True)
    thread.start()
    return thread
