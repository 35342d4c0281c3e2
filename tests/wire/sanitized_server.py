"""The server with forbidden bytes around all that a client's requests may touch. Run like ``vramblk``.

For AddressSanitizer, which knows by itself only where what was allocated ends: not a lane, the slab, the
written-map, nor an export in a longer file.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from dataclasses import replace
from typing import Any

from vramblk import cli
from vramblk.engine.localclients import LocalClients
from vramblk.memory import mapped

PAGE = 4096
_poison = getattr(ctypes.CDLL(None), "__asan_poison_memory_region")
_poison.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
_open, _open_target = LocalClients.open, mapped.open_target


def address_of(mapping: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def open_and_forbid(self: Any) -> None:
    """The last page of each lane, and what lies behind the maps; the window is proven before."""
    _open(self)
    loop = self._loop
    slab, lanes = loop.window.slab_address, loop.admission.lanes
    lanes._free = [
        replace(lane, rx_bytes=lane.rx_bytes - PAGE, tx_bytes=lane.tx_bytes - PAGE) for lane in lanes._free
    ]
    for lane in lanes._free:
        _poison(slab + lane.rx + lane.rx_bytes, PAGE)
        _poison(slab + lane.tx + lane.tx_bytes, PAGE)
    for written in loop._shared.written:
        end = written.blocks.ctypes.data + written.blocks.nbytes
        _poison(end, -end % PAGE)


def open_target_and_forbid(*arguments: Any, **more: Any) -> Any:
    """What the file has behind the export."""
    target = _open_target(*arguments, **more)
    _poison(address_of(target.mapping) + target.size_bytes, len(target.mapping) - target.size_bytes)
    return target


if __name__ == "__main__":
    LocalClients.open = open_and_forbid  # type: ignore[method-assign]
    mapped.open_target = open_target_and_forbid
    sys.exit(cli.main(sys.argv[1:]))
