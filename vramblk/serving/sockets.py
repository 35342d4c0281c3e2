"""What the kernel reports of a client's socket: whether the client is gone, and errors that pass."""

from __future__ import annotations

import errno
import select
import socket

#: The kernel had no memory for what a socket was asked to do; that passes.
SHORT_OF_MEMORY = (errno.ENOBUFS, errno.ENOMEM)


def hang_up(sock: socket.socket) -> int:
    """What epoll and poll report when the client is gone, beside errors.

    On TCP the end of its stream counts: it does not tell a client that only shuts its sending side from one
    that is dead.
    """
    return select.EPOLLHUP if sock.family == socket.AF_UNIX else select.EPOLLHUP | select.EPOLLRDHUP


def is_gone(sock: socket.socket) -> bool:
    """Ask the kernel whether the client is gone; see ``hang_up``."""
    poller = select.poll()
    poller.register(sock.fileno(), hang_up(sock))
    return bool(poller.poll(0))
