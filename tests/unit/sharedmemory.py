"""Memory that processes share, for tests: its descriptors are closed when nothing uses it any longer."""

from __future__ import annotations

import os
import weakref
from contextlib import suppress

from vramblk.config.settings import Settings, load_settings
from vramblk.shared import context
from vramblk.shared.context import Shared
from vramblk.shared.control import Control
from vramblk.shared.doorbell import DoorbellPipe
from vramblk.shared.window import WindowLayout
from vramblk.shared.written import WrittenMap
from vramblk.supervisor.sizing import lanes_per_worker


def make_shared(settings: Settings, workers: int, rx_bytes: int, tx_bytes: int, log_fd: int = 2) -> Shared:
    """What the supervisor makes, which keeps its descriptors to its end."""
    lanes = lanes_per_worker(settings.max_connections, workers or 1, swap=settings.mode == "swap")
    layout = WindowLayout(rx_bytes, tx_bytes, len(settings.exports), lanes)
    return share([layout] * workers, None if workers else layout, settings, log_fd)


def share(
    workers: list[WindowLayout],
    local: WindowLayout | None,
    settings: Settings | None = None,
    log_fd: int = 2,
) -> Shared:
    """The same with these windows."""
    shared = context.make_shared(settings or load_settings(["--size", "4M"], {}), workers, local, log_fd)
    for written in shared.written:
        weakref.finalize(written, os.close, written._fd)
    # A ring keeps its doorbell's number, and of all this only the control page.
    for descriptor in (
        *(end for pipe in (*shared.doorbells, shared.engine_doorbell) for end in pipe),
        shared.places_fd, shared.control._fd,
    ):
        weakref.finalize(shared.control.words.obj, os.close, descriptor)
    return shared


def fill(pipe: DoorbellPipe) -> None:
    """Ring until no more rings go in."""
    with suppress(BlockingIOError):
        while True:
            os.write(pipe.writer, b"\1")


def rings(pipe: DoorbellPipe) -> bool:
    """Whether it was rung; it is silent then."""
    with suppress(BlockingIOError):
        return bool(os.read(pipe.reader, 1 << 16))
    return False


def make_control() -> Control:
    control = Control()
    weakref.finalize(control, os.close, control._fd)
    return control


def make_written() -> WrittenMap:
    written = WrittenMap()
    weakref.finalize(written, os.close, written._fd)
    return written
