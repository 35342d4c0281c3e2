"""The observer process: starts its parts and accepts connections until the supervisor has ended."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Mapping

from ..shared.context import Shared
from .canary import Canary, publish_for_watchdog
from .devices import device_of
from .gpu import GpuWatch
from .health import HealthCheck
from .http import Listener
from .logpump import LogPump
from .metrics import Metrics
from .pages import Pages
from .sampler import Sampler
from .socketfiles import SocketFiles
from .stall import StallWatch
from .status import StatusDocument
from .writtenbytes import Written

_TICK_S = 1.0


def run(
    shared: Shared,
    log_read_fd: int,
    listeners: list[socket.socket],
    supervisor: socket.socket,
    files: Mapping[str, tuple[int, int]],
    watchdog_s: float | None = None,
    drop_privileges: Callable[[], None] | None = None,
) -> int:
    """Serve every listener and pump the log until ``supervisor`` is at its end.

    Args:
        log_read_fd: read end of the pipe into which all processes write their log lines.
        listeners: listening sockets, Unix or TCP.
        files: the files of all Unix sockets, each with device and inode.
        watchdog_s: the interval of a service manager's watchdog, None without one.
        supervisor: its other end closes when the observer is to go, or when the supervisor has died.
        drop_privileges: called when all that takes rights is open, and before there is a thread.

    Returns:
        The exit status, 0.
    """
    canary = Canary(shared)
    stalls = StallWatch(shared)
    sampler = Sampler(shared, stalls)
    socket_files = SocketFiles(shared.control, files)
    health_check = HealthCheck(shared, canary, sampler, stalls, socket_files)
    gpus = GpuWatch()
    written = Written(shared)
    metrics = Metrics(shared, sampler, canary, health_check, gpus, written)
    document = StatusDocument(shared, sampler, health_check, gpus, written, socket_files)
    pages = Pages(shared.settings, metrics, document, health_check, sampler, written, gpus)
    if drop_privileges is not None:
        drop_privileges()
    pump = LogPump(log_read_fd)
    sampler.start()
    if watchdog_s is not None:
        publish_for_watchdog(canary, shared, watchdog_s)
    _accept_until_end([Listener(sock, pages) for sock in listeners], supervisor, shared, gpus, socket_files)
    sampler.close()
    pump.close()
    return 0


def _accept_until_end(
    listeners: list[Listener],
    supervisor: socket.socket,
    shared: Shared,
    gpus: GpuWatch,
    socket_files: SocketFiles,
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
        socket_files.look()
        if not watched and (export_table := shared.control.export_table()):
            devices = [device_of(export) for export in export_table["exports"]]
            gpus.watch({str(each["pci"]): each.get("device_memory_bytes") for each in devices if each["pci"]})
            watched = True


def _ended(supervisor: socket.socket) -> bool:
    try:
        return not supervisor.recv(4096)
    except BlockingIOError:
        return False
    except OSError:
        return True
