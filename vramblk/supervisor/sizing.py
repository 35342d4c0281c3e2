"""How many workers a server has, who else serves clients, and how large the slab of each is."""

from __future__ import annotations

import os

from ..config.settings import Settings
from ..errors import ConfigError
from ..serving.lanes import smallest_slab
from ..shared.window import CONNECTIONS, WindowLayout

#: Receive part and transmit part of a slab, bytes. In swap mode all of it is resident and locked, and one
#: connection has that much or half of it: 128 requests of 4 KiB take a quarter, longer ones travel in pieces.
SLAB_BYTES = 16 << 20
SWAP_SLAB_BYTES = 2 << 20
#: Without workers there is one slab for all clients: as much as four workers would have.
LOCAL_SLAB_BYTES = 4 * SLAB_BYTES
#: Connections in swap mode beside one for the device of each export: to look.
_SWAP_WORKERS_SPARE, _SWAP_LANES_SPARE = 1, 2


def window_layouts(settings: Settings) -> tuple[list[WindowLayout], WindowLayout | None]:
    """The layout of each worker's window, and of the engine's own clients if it has such.

    Without a wish there are as many workers as half the cores, 2 to 8, and the engine serves the first local
    client; in swap mode it serves all of them. A number of workers that is given has them serve everybody.

    Raises:
        ConfigError: too few workers for --max-connections, or none where a listener needs one.
    """
    exports = len(settings.exports)
    swap = settings.mode == "swap"
    plain_unix = bool(settings.unix_listeners) and settings.tls == "off"
    if settings.workers == 0:
        _require_local_clients(settings)
    if settings.workers == 0 or (swap and settings.workers is None and plain_unix):
        if swap:
            lanes = exports + _SWAP_LANES_SPARE
            return [], _layout((exports + 1) * SWAP_SLAB_BYTES, exports, lanes)
        return [], _layout(LOCAL_SLAB_BYTES, exports, settings.max_connections)
    workers = _choose_workers(settings)
    lanes = lanes_per_worker(settings.max_connections, workers, swap=swap)
    slab_bytes = SWAP_SLAB_BYTES if swap else max(SLAB_BYTES, smallest_slab(lanes))
    local = None
    if settings.workers is None and plain_unix:
        local = _layout(SLAB_BYTES, exports, 1)
    return [_layout(slab_bytes, exports, lanes)] * workers, local


def lanes_per_worker(max_connections: int, workers: int, *, swap: bool) -> int:
    """Connections that one worker may have at once, given that each goes to the least loaded."""
    return 1 if swap else (max_connections - 1) // workers + 1


def _layout(part_bytes: int, exports: int, lanes: int) -> WindowLayout:
    return WindowLayout(part_bytes, part_bytes, exports, lanes)


def _choose_workers(settings: Settings) -> int:
    """One or more."""
    if settings.mode == "swap":
        return settings.workers or len(settings.exports) + _SWAP_WORKERS_SPARE
    needed = -(-settings.max_connections // CONNECTIONS)
    if settings.workers is None:
        return max(2, needed, min(8, len(os.sched_getaffinity(0)) // 2))
    if settings.workers < needed:
        raise ConfigError(
            f"max_connections = {settings.max_connections} ({settings.source_of('max_connections')}): "
            f"a worker takes {CONNECTIONS}; allowed: up to {settings.workers * CONNECTIONS} with --workers "
            f"{settings.workers}, or --workers {needed}"
        )
    return settings.workers


def _require_local_clients(settings: Settings) -> None:
    """Without workers the engine parses what clients send, so nothing may come from the network.

    Raises:
        ConfigError: a setting that needs a worker.
    """
    given = f"workers = 0 ({settings.source_of('workers')}): the engine serves all clients itself, and"
    if settings.tcp_listeners:
        raise ConfigError(
            f"{given} only on Unix sockets; listen_addr has {settings.tcp_listeners[0]} "
            f"({settings.source_of('listen_addr')}); allowed: --listen-addr unix:/path, "
            "or --workers 1 or more"
        )
    if settings.tls != "off":
        raise ConfigError(
            f"{given} only without TLS; tls = {settings.tls} ({settings.source_of('tls')}); "
            "allowed: --tls off, or --workers 1 or more"
        )
    if settings.max_connections > CONNECTIONS:
        raise ConfigError(
            f"{given} at most {CONNECTIONS}; max_connections = {settings.max_connections} "
            f"({settings.source_of('max_connections')}); allowed: --max-connections {CONNECTIONS}, "
            "or --workers 1 or more"
        )
