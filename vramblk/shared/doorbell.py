"""Wakes a process that may be asleep, and only then: ringing is a system call.

The waker publishes its work, then looks at the sleeper's word, and rings if that is set. The sleeper sets its
word, then looks for work once more, and sleeps if there is none. Both have a full barrier between their store
and their load, so that at least one of them sees the other. Compiled, with the types of ``doorbell.pxd``.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from .barrier import full_barrier
from .control import Control, ControlWord
from .window import Window, Word

_RING = b"\1"
_MOST_RINGS = mmap.PAGESIZE


class DoorbellPipe(NamedTuple):
    """The ends of a doorbell's pipe, both non-blocking.

    An attacker in a process can make its descriptors block for all who share them, and can take rings. An
    eventfd is shared by all. So a worker and the observer have the reader of their own doorbell and a
    writer of the engine's that nobody else has, and nothing else.

    Attributes:
        reader: readable from a ring on until it is cleared.
        writer: for the process that rings.
    """

    reader: int
    writer: int

    def ring(self) -> None:
        """Wake the sleeper, whether it sleeps or not."""
        with suppress(BlockingIOError):  # a doorbell that takes no more was rung already
            os.write(self.writer, _RING)


def make_doorbell_pipe() -> DoorbellPipe:
    """A doorbell whose only page the pipe has already: in swap mode a ring must not wait for memory."""
    pipe = DoorbellPipe(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
    fcntl.fcntl(pipe.writer, fcntl.F_SETPIPE_SZ, mmap.PAGESIZE)
    pipe.ring()
    os.read(pipe.reader, _MOST_RINGS)  # the pipe keeps the page
    return pipe


class Doorbell:
    """Of one sleeper.

    Args:
        words: header words of the window or of the control page.
        word: which of them is 1 while the sleeper may be asleep.
        pipe: the pipe whose reader the sleeper waits for.

    Attributes:
        fd: that reader.
    """

    def __init__(self, words: memoryview, word: int, pipe: DoorbellPipe) -> None:
        self._words = words
        self._at = word * 8
        self._writer = pipe.writer
        self.fd = pipe.reader

    # The waker's side

    def wake(self) -> bool:
        """After work was published: wake the sleeper if it may be asleep; True if it had to be."""
        full_barrier()
        return self.wake_unordered()

    def wake_unordered(self) -> bool:
        """As ``wake``, by a caller that has passed the barrier already: once for several sleepers."""
        if not self._words[self._at]:
            return False
        with suppress(BlockingIOError):  # a doorbell that takes no more was rung already
            os.write(self._writer, _RING)
        return True

    # The sleeper's side

    def begin_sleep(self) -> None:
        """From now on others ring. The caller must look for work once more before it sleeps."""
        self._words[self._at] = 1
        full_barrier()

    def end_sleep(self) -> None:
        """Awake: nobody need ring."""
        self._words[self._at] = 0

    def clear(self) -> None:
        """Forget that it was rung."""
        with suppress(BlockingIOError):
            os.read(self.fd, _MOST_RINGS)

    def wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Sleep once until rung, unless ``ready``, for at most so long; whether it was ready or rung."""
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        self.begin_sleep()
        found = ready() or bool(poller.poll(timeout_s * 1000))
        self.end_sleep()
        self.clear()
        return found


def worker_doorbell(window: Window, pipe: DoorbellPipe) -> Doorbell:
    """Of the worker that this window belongs to, or of the canary."""
    return Doorbell(window.words, Word.WORKER_SLEEPING, pipe)


def engine_doorbell(control: Control, pipe: DoorbellPipe) -> Doorbell:
    return Doorbell(control.words, ControlWord.ENGINE_SLEEPING, pipe)
