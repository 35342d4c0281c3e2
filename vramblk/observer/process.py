"""The observer process: puts its parts together and accepts until the supervisor has gone."""

from __future__ import annotations

import select
import socket

from ..shared.context import Shared
from .canary import Canary
from .devices import device_of
from .gpu import GpuWatch
from .health import Physician
from .http import Listener
from .logpump import LogPump
from .metrics import Metrics
from .pages import Pages
from .sampler import Sampler
from .status import StatusDocument
from .writtenbytes import Written

_TICK_S = 1.0


def run(shared: Shared, log_read_fd: int, listeners: list[socket.socket], supervisor: socket.socket) -> int:
    """Serve every listener and pump the log until ``supervisor`` is at its end.

    Args:
        log_read_fd: read end of the pipe into which all processes write their log lines.
        listeners: listening sockets, Unix or TCP.
        supervisor: its other end closes when the observer is to go, or when the supervisor has died.

    Returns:
        The exit status, 0.
    """
    pump = LogPump(log_read_fd)
    canary = Canary(shared)
    sampler = Sampler(shared)
    physician = Physician(shared, canary, sampler)
    gpus = GpuWatch()
    written = Written(shared)
    metrics = Metrics(shared, sampler, canary, physician, gpus, written)
    document = StatusDocument(shared, sampler, physician, gpus, written)
    pages = Pages(shared.settings, metrics, document, physician, sampler, written)
    sampler.start()
    _accept_until_end([Listener(sock, pages) for sock in listeners], supervisor, shared, gpus)
    pump.close()
    return 0


def _accept_until_end(
    listeners: list[Listener], supervisor: socket.socket, shared: Shared, gpus: GpuWatch
) -> None:
    by_fd = {listener.fileno(): listener for listener in listeners}
    poll = select.poll()
    for fd in (supervisor.fileno(), *by_fd):
        poll.register(fd, select.POLLIN)
    supervisor.setblocking(False)
    watched = False
    while True:
        for fd, event in poll.poll(_TICK_S * 1000):
            if fd in by_fd:
                by_fd[fd].accept()
                if event & (select.POLLERR | select.POLLNVAL):
                    poll.unregister(fd)
            elif _ended(supervisor):
                return
        if not watched and (geometry := shared.control.geometry()):
            devices = [device_of(export) for export in geometry["exports"]]
            gpus.watch(str(device["pci"]) for device in devices if device["pci"])
            watched = True


def _ended(supervisor: socket.socket) -> bool:
    try:
        return not supervisor.recv(4096)
    except BlockingIOError:
        return False
    except OSError:
        return True
