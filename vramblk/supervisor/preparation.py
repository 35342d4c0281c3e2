"""What exists before the first process is forked: passed checks, sockets, log pipe and shared memory."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from ..config.settings import Settings
from ..shared.barrier import require_ordered_stores
from ..shared.context import Shared, make_shared
from ..shared.control import ControlWord
from ..shared.window import WindowLayout
from ..swap import safeguards
from ..system import logs, privileges, proc
from ..system.tls import TlsFiles, read_files
from . import children, listeners
from .eventloop import EventLoop
from .logpipe import LogPipe
from .serversockets import ServerSockets
from .servicemanager import ServiceManager, refuse_activation
from .signalpipe import SignalPipe
from .sizing import window_layouts

_NOTICED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM)
_IGNORED = (signal.SIGUSR1,)


@dataclass(frozen=True)
class Prepared:
    """All that the supervisor makes processes with.

    Attributes:
        tls_files: as they were read at start; None with TLS off.
        sockets: bound; clients wait in their backlog.
        inherited: see ``proc.inherited_files``.
    """

    tls_files: TlsFiles | None
    loop: EventLoop
    signals: SignalPipe
    manager: ServiceManager
    sockets: ServerSockets
    pipe: LogPipe
    shared: Shared
    inherited: Mapping[int, tuple[int, int]]


@contextmanager
def prepared(settings: Settings, startup_warnings: Sequence[str] = ()) -> Iterator[Prepared]:
    """Check and make all that, and undo it at the end. In swap mode children inherit the safeguards.

    Raises:
        StartupError: it cannot be served.
    """
    inherited = proc.inherited_files()
    require_ordered_stores()
    refuse_activation(os.environ)
    group = listeners.socket_group(os.environ)
    tls_files = read_files(settings)
    workers, local = window_layouts(settings)
    safeguards.prepare(settings)
    privileges.forbid_cores()
    observer_uid = _allocate_uids(1 + len(workers))
    children.set_process_name("vramblk-supervisor", command_line=False)
    with (
        closing(EventLoop()) as loop,
        closing(SignalPipe(_NOTICED, _IGNORED)) as signals,
        closing(ServiceManager(os.environ)) as manager,
        closing(ServerSockets(settings)) as sockets,
    ):
        for warning in startup_warnings:
            logs.get().warning("startup_warning", detail=warning)
        sockets.bind(group)
        with _log_pipe(settings) as pipe:
            shared = _make_shared(settings, workers, local, pipe, observer_uid)
            yield Prepared(tls_files, loop, signals, manager, sockets, pipe, shared, inherited)


@contextmanager
def _log_pipe(settings: Settings) -> Iterator[LogPipe]:
    """The pipe that all processes log through; at the end what is left in it goes to stdout."""
    pipe = LogPipe(verbose=settings.verbose)
    try:
        yield pipe
    finally:
        logs.configure_direct("supervisor", settings.verbose)
        pipe.flush()


def _allocate_uids(count: int) -> int | None:
    """The first of the uids that children run as; None, with a log event, if they keep this process's."""
    try:
        return privileges.allocate(count)
    except OSError as error:
        root, log = not os.geteuid(), logs.get()
        (log.warning if root else log.info)(
            "uid_not_changed",
            detail=str(error),
            effect="workers and the observer run under the uid of the engine",
            remedy=f"grant {privileges.NEEDED}; the compose files and the systemd unit do"
            if root
            else "start the server as root",
        )
        return None


def _make_shared(
    settings: Settings,
    workers: Sequence[WindowLayout],
    local: WindowLayout | None,
    pipe: LogPipe,
    observer_uid: int | None,
) -> Shared:
    """The shared memory; this process logs through the pipe from here on."""
    shared = make_shared(settings, workers, local, pipe.writer, observer_uid)
    control = shared.control
    control.store(ControlWord.SUPERVISOR_PID, os.getpid())

    def count_dropped() -> None:
        control.store(ControlWord.DROPPED_LOG_LINES, control.load(ControlWord.DROPPED_LOG_LINES) + 1)

    channel = pipe.channel(count_dropped)
    logs.configure(channel.descriptor, channel.json, channel.on_drop, "supervisor", channel.verbose)
    return shared
