"""The control page: the server's state and what the engine found out, for all processes to read."""

from __future__ import annotations

import json
import mmap
from enum import IntEnum
from typing import Any

from .counters import EngineCounters

_BYTES = 1 << 18
_COUNTERS_OFFSET = 4096
_GEOMETRY_OFFSET = 8192


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


class Control:
    """State, engine counters and geometry in one shared mapping.

    ``geometry`` is what the engine publishes once before ``ready``: for each export its name,
    size, arena size, device, whether windows are pinned. See ``engine.describe``.
    """

    def __init__(self) -> None:
        self._mapping = mmap.mmap(-1, _BYTES, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        whole = memoryview(self._mapping)
        self.words = whole[:_COUNTERS_OFFSET].cast("Q")
        self.engine_counters = EngineCounters(whole[_COUNTERS_OFFSET:_GEOMETRY_OFFSET])
        self._length = whole[_GEOMETRY_OFFSET : _GEOMETRY_OFFSET + 8].cast("Q")
        self._text = whole[_GEOMETRY_OFFSET + 8 :]

    def load(self, word: ControlWord) -> int:
        return self.words[word * 8]

    def store(self, word: ControlWord, value: int) -> None:
        self.words[word * 8] = value

    @property
    def state(self) -> State:
        return State(self.load(ControlWord.STATE))

    def publish_geometry(self, geometry: dict[str, Any]) -> None:
        """Write the geometry; the supervisor says ``ready`` only afterwards.

        Raises:
            ValueError: it does not fit its place.
        """
        text = json.dumps(geometry).encode()
        if len(text) > len(self._text):
            raise ValueError(f"geometry of {len(text)} bytes does not fit {len(self._text)}")
        self._text[: len(text)] = text
        self._length[0] = len(text)

    def geometry(self) -> dict[str, Any]:
        """What the engine published, or an empty dict before that."""
        length = self._length[0]
        return json.loads(bytes(self._text[:length])) if length else {}
