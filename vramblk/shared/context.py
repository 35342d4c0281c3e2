"""Everything that the supervisor makes before it forks, handed to each child as one object."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..config.exposure import shared_swap_sockets
from ..config.settings import Settings
from ..system import privileges
from .control import Control
from .doorbell import DoorbellPipe, make_doorbell_pipe
from .places import make_places
from .protection import hide, write_protect
from .window import Window, WindowLayout, make_windows
from .written import WrittenMap

_CANARY_SLAB = 1 << 16


@dataclass(frozen=True)
class Shared:
    """Shared memory and doorbells.

    Attributes:
        windows: one for each worker, then ``local`` if there is one, and as the last the observer's canary.
        doorbells: one for each window, rung by the engine when its owner may be asleep.
        engine_doorbell: rung by a process that submits while the engine may be asleep.
        written: one written-map for each export.
        places_fd: where workers take places at exports; see ``places``.
        log_fd: write end of the non-blocking pipe that the observer pumps to stdout.
        local: the window of the clients that the engine serves itself, if it does.
        observer_uid: what the observer runs as; each worker has one of those behind it. None: all have the
            supervisor's.
        socket_groups: as ``config.exposure.shared_swap_sockets``; the observer may not be able to look.
    """

    settings: Settings
    control: Control
    windows: Sequence[Window]
    doorbells: Sequence[DoorbellPipe]
    engine_doorbell: DoorbellPipe
    written: Sequence[WrittenMap]
    places_fd: int
    log_fd: int
    local: Window | None = None
    observer_uid: int | None = None
    socket_groups: Sequence[tuple[str, int]] = ()

    @property
    def client_windows(self) -> Sequence[Window]:
        """Windows that have clients: the workers', and ``local``."""
        return self.windows[:-1]

    @property
    def worker_windows(self) -> Sequence[Window]:
        return self.windows[:-1] if self.local is None else self.windows[:-2]

    @property
    def connection_limit(self) -> int:
        """Connections that are taken at once."""
        lanes = sum(window.layout.lanes for window in self.client_windows)
        return min(lanes, self.settings.max_connections)

    @property
    def canary(self) -> Window:
        return self.windows[-1]

    def worker_uid(self, index: int) -> int | None:
        """What the worker of a window runs as; None: as the supervisor."""
        return None if self.observer_uid is None else self.observer_uid + 1 + index

    def confine_worker(self, index: int) -> None:
        """Leave this process, which becomes a worker, only its own window, and the rest to read."""
        for window in self.windows:
            if window.index != index:
                hide(window.whole)
                os.close(self.doorbells[window.index].reader)
            os.close(self.doorbells[window.index].writer)
        self._own_doorbells(self.doorbells[index])
        privileges.own_file(self.places_fd)
        self._read_only()

    def confine_observer(self) -> None:
        """Leave this process, which becomes the observer, only the canary's window to write."""
        for window in self.client_windows:
            write_protect(window.whole)
            os.close(self.doorbells[window.index].reader)
            os.close(self.doorbells[window.index].writer)
        os.close(self.doorbells[self.canary.index].writer)
        self._own_doorbells(self.doorbells[self.canary.index])
        os.close(self.places_fd)
        self._read_only()

    def _read_only(self) -> None:
        """Make control page and written-maps read-only for this process, also before they are sealed."""
        self.control.write_protect()
        for written in self.written:
            written.write_protect()

    def _own_doorbells(self, pipe: DoorbellPipe) -> None:
        """Keep this process's reader and a writer of the engine's doorbell.

        Nobody shares them, who would block with them: neither others that ring the engine, nor a successor
        that waits here.
        """
        privileges.own_end(pipe.reader, os.O_RDONLY)
        privileges.own_end(self.engine_doorbell.writer, os.O_WRONLY)
        os.close(self.engine_doorbell.reader)


def make_shared(
    settings: Settings,
    workers: Sequence[WindowLayout],
    local: WindowLayout | None,
    log_fd: int,
    observer_uid: int | None = None,
) -> Shared:
    """Make windows, doorbells and written-maps; the sockets must be bound.

    Args:
        workers: layout of each worker's window.
        local: of the window of the clients that the engine serves itself, if it does.
        observer_uid: the first of the uids that children run as, see ``Shared``.
    """
    exports = len(settings.exports)
    own = [] if local is None else [local]
    windows = make_windows([*workers, *own, WindowLayout(_CANARY_SLAB, _CANARY_SLAB, exports)])
    return Shared(
        settings=settings,
        control=Control(),
        windows=windows,
        doorbells=[make_doorbell_pipe() for _ in windows],
        engine_doorbell=make_doorbell_pipe(),
        written=[WrittenMap() for _ in range(exports)],
        places_fd=make_places(),
        log_fd=log_fd,
        local=windows[-2] if local is not None else None,
        observer_uid=observer_uid,
        socket_groups=list(shared_swap_sockets(settings)),
    )
