"""The control page: the server's state and what the engine found out, for all processes to read."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
from enum import IntEnum
from typing import Any

import numpy as np

from ..system import kernel
from .counters import EngineCounters
from .protection import make_file, map_read_only, map_shared, read_only, seal

_BYTES = 1 << 18
#: Two cells for each export, in the first page behind all words; see holds.py.
_HELD_OFFSET = 2048
_COUNTERS_OFFSET = 4096
_EXPORT_TABLE_OFFSET = 8192


class State(IntEnum):
    STARTING = 0
    READY = 1
    DRAINING = 2
    STOPPED = 3


class ControlWord(IntEnum):
    """Words of the control page; each stands on a cache line of its own and has one writer."""

    STATE = 0  # supervisor
    ENGINE_SLEEPING = 1  # engine: 1 while it may be blocked in epoll
    ENGINE_MAIL = 2  # supervisor: messages sent to the engine
    ENGINE_PID = 3  # supervisor
    READY_NS = 4  # supervisor: monotonic time of ready
    DRAIN_DEADLINE_NS = 5  # supervisor: monotonic time at which scratch mode leaves
    SUPERVISOR_PID = 6  # supervisor
    DROPPED_LOG_LINES = 7  # supervisor: lines the supervisor itself dropped
    CONNECTIONS_REFUSED = 8  # supervisor: closed before negotiation, above --max-connections
    WORKER_RESTARTS = 9  # supervisor
    WORKERS_LOST = 10  # supervisor: dead and not replaced (swap mode)
    LOCKED_BYTES = 11  # supervisor: locked by all processes, as read at ready
    ENGINE_PROGRESS = 12  # engine: batches and pieces of batches that a memory has executed, failed ones too
    ENGINE_EXPORT = 13  # engine: 1 + the export whose memory is executing a batch now, 0 for none
    ENGINE_SINCE_NS = 14  # engine: monotonic time at which that execution began
    CERTIFICATE_UNTIL_S = 15  # supervisor: Unix time at which the first TLS certificate ends, 0 without any


class Control:
    """State, engine counters and the export table in one shared mapping.

    ``export_table`` is what the engine publishes once before ``ready``: for each export its name,
    size, arena size, device, whether windows are pinned. See ``engine.describe``.
    """

    def __init__(self) -> None:
        self._fd = make_file("vramblk-control")
        os.ftruncate(self._fd, _BYTES)
        mapping = mmap.mmap(-1, _BYTES)
        self._whole = np.frombuffer(mapping, np.uint8)
        map_shared(self._whole, self._fd)
        seal(self._fd, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | kernel.F_SEAL_FUTURE_WRITE)
        whole = memoryview(mapping)
        self.words = whole[:_COUNTERS_OFFSET].cast("Q")
        half = (_COUNTERS_OFFSET - _HELD_OFFSET) // 2
        self.held = whole[_HELD_OFFSET : _HELD_OFFSET + half].cast("Q")
        self.missing = whole[_HELD_OFFSET + half : _COUNTERS_OFFSET].cast("Q")
        self.engine_counters = EngineCounters(whole[_COUNTERS_OFFSET:_EXPORT_TABLE_OFFSET])
        self._length = whole[_EXPORT_TABLE_OFFSET : _EXPORT_TABLE_OFFSET + 8].cast("Q")
        self._text = whole[_EXPORT_TABLE_OFFSET + 8 :]

    def write_protect(self) -> None:
        """From here on this process can only read it."""
        read_only(self._fd)
        map_read_only(self._whole, self._fd)

    def load(self, word: ControlWord) -> int:
        return self.words[word * 8]

    def store(self, word: ControlWord, value: int) -> None:
        self.words[word * 8] = value

    @property
    def state(self) -> State:
        return State(self.load(ControlWord.STATE))

    def publish_export_table(self, export_table: dict[str, Any]) -> None:
        """Write the export table; the supervisor reports ``ready`` only afterwards.

        Raises:
            ValueError: it does not fit its place.
        """
        text = json.dumps(export_table).encode()
        if len(text) > len(self._text):
            raise ValueError(f"export table of {len(text)} bytes does not fit {len(self._text)}")
        self._text[: len(text)] = text
        self._length[0] = len(text)

    def export_table(self) -> dict[str, Any]:
        """What the engine published, or an empty dict before that."""
        length = self._length[0]
        return json.loads(bytes(self._text[:length])) if length else {}
