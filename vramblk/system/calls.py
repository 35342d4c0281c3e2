"""System calls and copies for the loops that are compiled: there they are C, here they are Python.

``ccalls.pxd`` has the same functions for the compiler; modules with C types take them from there. A socket's
bytes are named by a buffer and a position in it, copies by addresses. What fails is a negative errno, or a
status of the runtime: nothing here raises.
"""

from __future__ import annotations

import ctypes
import os
import select
import time
from collections.abc import Callable
from functools import cache

#: What ``wait`` has found: nothing, something for this descriptor alone, or for another one too.
NOTHING, THIS, OTHERS = 0, 1, 2
_MOST_EVENTS = 4


def receive(descriptor: int, buffer: memoryview, at: int, count: int) -> int:
    """Bytes received into buffer[at:at + count]; 0 at the end of the stream."""
    try:
        return os.readv(descriptor, [buffer[at : at + count]])
    except OSError as error:
        return -(error.errno or 1)


def send(descriptor: int, buffer: memoryview, at: int, count: int) -> int:
    """Bytes of buffer[at:at + count] that the socket has taken."""
    try:
        return os.write(descriptor, buffer[at : at + count])
    except OSError as error:
        return -(error.errno or 1)


def wait(epoll: select.epoll, epoll_descriptor: int, descriptor: int, timeout_ms: int) -> int:
    """Wait for an event: NOTHING, THIS or OTHERS; ``timeout_ms`` -1 is for ever."""
    events = epoll.poll(None if timeout_ms < 0 else timeout_ms / 1000, _MOST_EVENTS)
    if not events:
        return NOTHING
    return THIS if len(events) == 1 and events[0] == (descriptor, select.EPOLLIN) else OTHERS


def now_ns() -> int:
    """Monotonic time, nanoseconds."""
    return time.monotonic_ns()


def load32(buffer: memoryview, at: int) -> int:
    """A big-endian number of 32 bits."""
    return int.from_bytes(buffer[at : at + 4])


def load64(buffer: memoryview, at: int) -> int:
    """A big-endian number of 64 bits."""
    return int.from_bytes(buffer[at : at + 8])


def store32(buffer: memoryview, at: int, value: int) -> None:
    """A number as 32 bits, big-endian."""
    buffer[at : at + 4] = value.to_bytes(4)


def store64(buffer: memoryview, at: int, value: int) -> None:
    """A number as 64 bits, big-endian."""
    buffer[at : at + 8] = value.to_bytes(8)


def move(buffer: memoryview, to: int, start: int, count: int) -> None:
    """Bytes within a buffer; the places may overlap."""
    buffer[to : to + count] = bytes(buffer[start : start + count])


def mark(buffer: memoryview, first: int, last: int) -> None:
    """Bytes [first, last] become 1."""
    for index in range(first, last + 1):
        buffer[index] = 1


def copy(to: int, start: int, count: int) -> None:
    """Bytes from one address to another."""
    ctypes.memmove(to, start, count)


def transfer(function: int, queue: int, memory: int, offset: int, count: int, address: int) -> int:
    """Call ``clEnqueueReadBuffer`` or ``clEnqueueWriteBuffer``, which lies at ``function``; not blocking."""
    return _transfer(function)(queue, memory, 0, offset, count, address, 0, None, None)


def finish(function: int, queue: int) -> int:
    """Call ``clFinish``, which lies at ``function``."""
    return _finish(function)(queue)


@cache
def _transfer(address: int) -> Callable[..., int]:
    pointer, size, word = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32
    arguments = (pointer, pointer, word, size, size, pointer, word, pointer, pointer)
    return ctypes.CFUNCTYPE(ctypes.c_int32, *arguments)(address)


@cache
def _finish(address: int) -> Callable[..., int]:
    return ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(address)
