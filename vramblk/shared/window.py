"""A window: the memory that one worker shares with the engine.

One anonymous shared mapping holds, in this order: header words, the worker's counters, a table
of its connections, the submission ring, columns for the requests of runs, their statuses, and
the slab. The slab's first part receives from sockets, its second part is sent from.

A request travels as an entry in the ring; what entries and columns hold is in ``descriptors``.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .counters import WorkerCounters
from .descriptors import COLUMN_ROWS, COLUMNS, ENTRIES, ENTRY_BYTES

PAGE = 4096
CACHE_LINE = 64
CONNECTIONS = 64

#: id, since (monotonic ns), export, state, requests, received bytes, sent bytes, peer
_SLOT = struct.Struct("<QqiIQQQ112s")
SLOT_BYTES = 160


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
    FENCES_SEEN = 10  # worker: FENCES as it was when the worker looked last which clients are gone
    HANDOFFS = 11  # worker: handoff messages taken since this generation began
    FENCES = 12  # engine: fences that other windows have begun; see engine/fences.py
    FENCE_TAIL = 13  # engine: the entry from which on it holds this window until FENCES_SEEN is FENCES
    FENCE_ASKED = 14  # worker: fences that it has asked for
    FENCE_PASSED = 15  # engine: FENCE_ASKED as it was when the fence that has been passed was begun
    HOLDS_ASKED = 17  # worker: changes of its clients' choice of exports; see holds.py
    HOLDS_SEEN = 18  # engine: HOLDS_ASKED as it was when the engine has looked at the choice
    HOLDS_ANSWERED = 19  # engine: HOLDS_ASKED after which every chosen export is held, or cannot be
    CANARY_FAILED_NS = 16  # observer, in its own window: monotonic time since which the canary fails, or 0


class ConnectionState(IntEnum):
    FREE = 0
    NEGOTIATING = 1
    TRANSMISSION = 2


#: States of a row of the connection table that is in use.
_STATES = {state.value: state for state in ConnectionState if state is not ConnectionState.FREE}


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
    """Sizes of a window's parts, bytes; ``lanes`` is the number of connections that share the slab."""

    rx_bytes: int
    tx_bytes: int
    exports: int
    lanes: int = 1

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
        columns: shape (COLUMN_ROWS, COLUMNS), uint32.
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
        self.mapping.madvise(mmap.MADV_DONTDUMP)  # a core would hold what clients have written
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
        """The connections now open, in the order of their slots; a row whose state is none is left out.

        The worker writes the table, and a faulty one anything at all: this never raises, ``export`` may be no
        export, and ``peer`` any text.
        """
        table = bytes(self._slots[: CONNECTIONS * SLOT_BYTES])
        return [
            ConnectionInfo(
                number, since, export, _STATES[state], requests, received, sent,
                peer.rstrip(b"\0").decode("utf-8", "replace"),
            )
            for number, since, export, state, requests, received, sent, peer in _SLOT.iter_unpack(table)
            if state in _STATES
        ]  # fmt: skip


def _pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE) * PAGE


def make_windows(layouts: Sequence[WindowLayout]) -> list[Window]:
    """One window for each layout."""
    windows: list[Window] = []
    base = 0
    for index, layout in enumerate(layouts):
        windows.append(Window(index, base, layout))
        base += layout.slab_bytes
    return windows
