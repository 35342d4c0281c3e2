"""Everything that the supervisor makes before it forks, handed to each child as one object."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..settings import Settings
from .control import Control
from .window import Window, WindowLayout, make_windows
from .written import WrittenMap

_CANARY_SLAB = 1 << 16


@dataclass(frozen=True)
class Shared:
    """Shared memory and doorbells.

    Attributes:
        windows: one for each worker, and as the last the observer's canary.
        bells: an eventfd for each window, rung by the engine when its owner may be asleep.
        engine_bell: eventfd rung by whoever submits when the engine may be asleep.
        written: one written-map for each export.
        log_fd: write end of the non-blocking pipe that the observer pumps to stdout.
    """

    settings: Settings
    control: Control
    windows: Sequence[Window]
    bells: Sequence[int]
    engine_bell: int
    written: Sequence[WrittenMap]
    log_fd: int

    @property
    def worker_windows(self) -> Sequence[Window]:
        return self.windows[:-1]

    @property
    def canary(self) -> Window:
        return self.windows[-1]


def make_shared(settings: Settings, workers: int, rx_bytes: int, tx_bytes: int, log_fd: int) -> Shared:
    """Make windows for ``workers`` workers, the canary's, doorbells and written-maps."""
    exports = len(settings.exports)
    windows = make_windows(
        workers, WindowLayout(rx_bytes, tx_bytes, exports), WindowLayout(_CANARY_SLAB, _CANARY_SLAB, exports)
    )
    return Shared(
        settings=settings,
        control=Control(),
        windows=windows,
        bells=[os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in windows],
        engine_bell=os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC),
        written=[WrittenMap() for _ in range(exports)],
        log_fd=log_fd,
    )
