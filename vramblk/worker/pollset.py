"""The sockets that a worker waits for: what epoll is asked of each, and which are tried again by a timer."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

from ..serving.connection import Connection
from ..serving.negotiation import Negotiation
from ..shared.window import CONNECTIONS

#: A socket for which the kernel had no memory is tried again after this time, seconds.
STARVED_S = 0.002
#: The kernel has no memory for what epoll was asked, or the user watches too many files; that passes.
_NO_ROOM_IN_EPOLL = (errno.ENOMEM, errno.ENOSPC)
#: All that epoll can report: of what it is silent, nothing has happened.
_MOST_EVENTS = CONNECTIONS + 8

Client = Connection | Negotiation


class PollSet:
    """One epoll.

    Attributes:
        interest: what epoll is asked for, by descriptor of each client's socket; 0: nothing.
        starved: clients for which the kernel had no memory.
        try_again_s: monotonic time, seconds, before which the starved are not tried again.
    """

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.interest: dict[int, int] = {}
        self.starved: set[Client] = set()
        self.try_again_s = 0.0

    def watch(self, fd: int) -> None:
        """Report input of a descriptor that is no client's, from now on."""
        self.epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        self.epoll.unregister(fd)

    def poll(self, timeout_s: float | None) -> list[tuple[int, int]]:
        """(descriptor, events) of what happens within ``timeout_s`` (None: however long it takes)."""
        return self.epoll.poll(timeout_s, _MOST_EVENTS)

    def add(self, client: Client) -> None:
        """A client that is new; epoll is asked for nothing yet."""
        self.interest[client.fd] = 0

    def wait_for(self, client: Client, wanted: int) -> None:
        """Have epoll report what is wanted of a client; without room for that, try again a little later."""
        fd = client.fd
        before = self.interest[fd]
        if before == wanted:
            return
        try:
            if not wanted:  # else it would report the same hang-up all the time, and the worker not sleep
                self.epoll.unregister(fd)
            elif not before:
                self.epoll.register(fd, wanted)
            else:
                self.epoll.modify(fd, wanted)
        except OSError as error:
            if error.errno not in _NO_ROOM_IN_EPOLL:
                raise
            self.starved.add(client)
        else:
            self.interest[fd] = wanted

    def due_starved(self) -> Iterator[Client]:
        """The starved if their time has come, not more often than every ``STARVED_S``.

        Each is starved no more once it is given.
        """
        now_s = time.monotonic()
        if now_s < self.try_again_s:
            return
        self.try_again_s = now_s + STARVED_S
        for client in list(self.starved):
            self.starved.remove(client)
            yield client

    def close(self, fd: int, sock: socket.socket) -> None:
        """Close a client's socket, whatever epoll and the kernel make of it: its lane must become free."""
        if self.interest.pop(fd):
            with suppress(OSError):  # a TLS socket that could not be made has closed it already
                self.epoll.unregister(fd)
        with suppress(OSError):
            sock.close()
