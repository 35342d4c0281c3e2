"""The observer: metrics, health, status document, page and the log's way to stdout.

It reads shared memory and /proc, and the data path never waits for it: it may be slow, stuck or
dead without any client noticing.
"""

from .process import run

__all__ = ["run"]
