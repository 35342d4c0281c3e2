"""A window: the memory that one worker shares with the engine.

One anonymous shared mapping holds, in this order: header words, the worker's counters, a table
of its connections, the submission ring, columns for runs of like requests, their statuses, and
the slab. The slab's first part receives from sockets, its second part is sent from.

A request travels as an entry in the ring. A run of like requests is one entry whose requests
lie in the columns, laid out as the kernels' argument table wants them, so that the engine's work
per run is one slice copy.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .counters import WorkerCounters

PAGE = 4096
CACHE_LINE = 64
ENTRIES = 1024
COLUMNS = 8192
#: Rows of the columns: offset/16 in the arena, slab position/4, shape, and the cookie's two words.
COLUMN_ROWS = 5
CONNECTIONS = 64

#: op, export, first column, count, slab range [lo, hi), export offset, length, flags
ENTRY = struct.Struct("<IIIIQQQQQ")
ENTRY_BYTES = 64

#: id, since (monotonic ns), export, state, requests, received bytes, sent bytes, peer
_SLOT = struct.Struct("<QqiIQQQ112s")
SLOT_BYTES = 160


class Op(IntEnum):
    """What a ring entry asks of the engine."""

    GATHER = 0
    SCATTER = 1
    COPY_OUT = 2
    COPY_IN = 3
    ZERO = 4
    ECHO = 5


#: Flag of a GATHER entry: what lies between the replies of the one before it and its own may be overwritten.
GATHER_JOINS = 1
#: Flag of a ZERO entry: whole blocks become unwritten (a hole).
ZERO_HOLE = 1


class Word(IntEnum):
    """Header words; each stands on a cache line of its own and has one writer."""

    TAIL = 0  # worker: entries submitted
    DONE = 1  # engine: entries completed
    FAILURES = 2  # engine: entries completed with a status other than 0
    WORKER_SLEEPING = 3  # worker: 1 while it may be blocked in epoll
    GENERATION = 4  # supervisor: raised when the window gets another worker
    WORKER_PID = 5  # worker
    CONNECTIONS = 6  # worker: connections now open
    CLOSED = 7  # worker: connections closed since this generation began
    PROVEN = 8  # worker: rounds of the window's proof that held
    READY = 9  # worker: 1 when it takes connections


class ConnectionState(IntEnum):
    FREE = 0
    NEGOTIATING = 1
    TRANSMISSION = 2


class ConnectionInfo(NamedTuple):
    """One row of the connection table."""

    id: int
    since_ns: int
    export: int
    state: ConnectionState
    requests: int
    received_bytes: int
    sent_bytes: int
    peer: str


@dataclass(frozen=True)
class WindowLayout:
    """Sizes of a window's parts, bytes."""

    rx_bytes: int
    tx_bytes: int
    exports: int

    @property
    def counters_offset(self) -> int:
        return PAGE

    @property
    def slots_offset(self) -> int:
        return self.counters_offset + _pages(WorkerCounters.count(self.exports) * 8)

    @property
    def entries_offset(self) -> int:
        return self.slots_offset + _pages(CONNECTIONS * SLOT_BYTES)

    @property
    def entry_status_offset(self) -> int:
        return self.entries_offset + _pages(ENTRIES * ENTRY_BYTES)

    @property
    def columns_offset(self) -> int:
        return self.entry_status_offset + _pages(ENTRIES * 4)

    @property
    def statuses_offset(self) -> int:
        return self.columns_offset + _pages(COLUMN_ROWS * COLUMNS * 4)

    @property
    def slab_offset(self) -> int:
        return self.statuses_offset + _pages(COLUMNS * 2)

    @property
    def slab_bytes(self) -> int:
        return self.rx_bytes + self.tx_bytes

    @property
    def total_bytes(self) -> int:
        return self.slab_offset + self.slab_bytes


class Window:
    """Views of one window; made once by the supervisor, inherited by fork.

    Attributes:
        index: number of the window, 0 for the first worker.
        base: bytes; where this slab begins when all slabs are laid end to end.
        words: header words as 64-bit cells, ``words[Word.TAIL * 8]`` and so on.
        columns: shape (5, COLUMNS), uint32.
        statuses: shape (COLUMNS,), uint16; NBD errno per column of a run that failed.
        entry_status: shape (ENTRIES,), 32-bit cells; NBD errno per entry, valid when FAILURES rose.
        slab: shape (slab_bytes,), uint8; ``slab_view`` is the same as a memoryview, ``slab_words`` as words.
        whole: shape (total_bytes,), uint8; all of the mapping.
    """

    def __init__(self, index: int, base: int, layout: WindowLayout) -> None:
        self.index = index
        self.base = base
        self.layout = layout
        self.mapping = mmap.mmap(-1, layout.total_bytes, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        whole = memoryview(self.mapping)
        self.words = whole[:PAGE].cast("Q")
        self.counters = WorkerCounters(whole[layout.counters_offset : layout.slots_offset], layout.exports)
        self._slots = whole[layout.slots_offset : layout.entries_offset]
        self.entries = whole[layout.entries_offset : layout.entry_status_offset]
        self.entry_status = whole[layout.entry_status_offset :][: ENTRIES * 4].cast("I")
        self.columns: npt.NDArray[np.uint32] = np.frombuffer(
            self.mapping, np.uint32, COLUMN_ROWS * COLUMNS, layout.columns_offset
        ).reshape(COLUMN_ROWS, COLUMNS)
        self.statuses: npt.NDArray[np.uint16] = np.frombuffer(
            self.mapping, np.uint16, COLUMNS, layout.statuses_offset
        )
        self.slab: npt.NDArray[np.uint8] = np.frombuffer(
            self.mapping, np.uint8, layout.slab_bytes, layout.slab_offset
        )
        self.slab_view = whole[layout.slab_offset :]
        self.slab_words = self.slab_view.cast("I")
        self.whole: npt.NDArray[np.uint8] = np.frombuffer(self.mapping, np.uint8)
        self.slab_address: int = self.slab.ctypes.data

    def load(self, word: Word) -> int:
        return self.words[word * 8]

    def store(self, word: Word, value: int) -> None:
        self.words[word * 8] = value

    def reset(self) -> None:
        """Make the window clean for another worker; its counters go on, its generation rises.

        Only for a window whose worker is dead and from which the engine has finished everything.
        """
        generation = self.load(Word.GENERATION) + 1
        self.words[:] = memoryview(bytes(PAGE)).cast("Q")
        self.store(Word.GENERATION, generation)
        self._slots[:] = bytes(len(self._slots))
        self.entry_status[:] = memoryview(bytes(ENTRIES * 4)).cast("I")
        self.slab[:] = 0

    def set_connection(
        self, slot: int, connection_id: int, since_ns: int, export: int, state: ConnectionState, peer: str
    ) -> None:
        _SLOT.pack_into(
            self._slots, slot * SLOT_BYTES, connection_id, since_ns, export, state, 0, 0, 0,
            peer.encode("utf-8", "replace")[:112],
        )  # fmt: skip

    def traffic(self, slot: int) -> memoryview:
        """Three 64-bit cells of a connection: requests, received bytes, sent bytes."""
        start = slot * SLOT_BYTES + 24
        return self._slots[start : start + 24].cast("Q")

    def free_connection(self, slot: int) -> None:
        self._slots[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES] = bytes(SLOT_BYTES)

    def connections(self) -> list[ConnectionInfo]:
        """The connections now open, in the order of their slots."""
        found = []
        for slot in range(CONNECTIONS):
            number, since, export, state, requests, received, sent, peer = _SLOT.unpack_from(
                self._slots, slot * SLOT_BYTES
            )
            if state != ConnectionState.FREE:
                name = peer.rstrip(b"\0").decode("utf-8", "replace")
                found.append(
                    ConnectionInfo(
                        number, since, export, ConnectionState(state), requests, received, sent, name
                    )
                )
        return found


def _pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE) * PAGE


def make_windows(count: int, layout: WindowLayout, canary: WindowLayout) -> list[Window]:
    """``count`` windows for workers, and behind them a small one for the observer's canary."""
    windows = [Window(index, index * layout.slab_bytes, layout) for index in range(count)]
    windows.append(Window(count, count * layout.slab_bytes, canary))
    return windows
