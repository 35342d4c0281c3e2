"""Several connections of one worker, each in a lane of its own, and the engine behind them, in one process."""

from __future__ import annotations

import socket
from collections.abc import Callable

from tests.unit.plain_memory import PlainMemory
from tests.unit.rig import Rig, connect
from tests.unit.windows import SIZE, Windows
from vramblk.engine.stagetimes import EngineTiming
from vramblk.memory.base import Batch
from vramblk.serving.connection import complete
from vramblk.serving.lanes import SMALLEST, Lanes
from vramblk.serving.ringwriter import ExportView
from vramblk.serving.stagetimes import WorkerTiming
from vramblk.serving.submissions import Submissions
from vramblk.shared.counters import WorkerCounters
from vramblk.shared.stages import StageTimes


class Pool:
    """``rigs`` are the connections; each has its client's socket."""

    def __init__(
        self,
        connections: int = 2,
        before: Callable[[PlainMemory, Batch], None] = lambda memory, batch: None,
        lane_bytes: int = 4 * SMALLEST,
        times: StageTimes | None = None,
    ) -> None:
        self.windows = windows = Windows(
            1, before=before, slab_part=connections * lane_bytes,
            timing=EngineTiming(times) if times is not None else None,
        )  # fmt: skip
        self.timing = WorkerTiming(times, 0) if times is not None else None
        self.window = window = windows.window(0)
        self.submissions = Submissions(windows.rings[0], window.counters)
        if self.timing is not None:
            self.timing.watch_submissions(self.submissions)
        self.export = ExportView(0, "vram", SIZE, windows.memory.arena_bytes, False, windows.written)
        self.lanes = Lanes(window.layout.rx_bytes, window.layout.tx_bytes, connections)
        self.rigs = [self.connect() for _ in range(connections)]

    @property
    def counters(self) -> WorkerCounters:
        return self.window.counters

    def connect(self) -> Rig:
        lane = self.lanes.take()
        assert lane is not None
        client, server = socket.socketpair()
        for each in (client, server):
            each.setblocking(False)
        windows = self.windows
        return Rig(
            client, connect(server, lane, self.window, self.submissions, self.export, self.timing), self.submissions,
            windows.engine, windows.memory, windows.written, self.export,
        )  # fmt: skip

    def work(self, rounds: int = 200) -> None:
        """Let connections and engine run until nothing moves."""
        for _ in range(rounds):
            if not self.step():
                return

    def step(self) -> bool:
        """One turn of each; True if anything moved."""
        moved = False
        for rig in self.rigs:
            moved |= rig.connection.pump()
        moved |= self.windows.engine.turn()
        touched = complete(self.submissions)
        for connection in touched:
            connection.resume()
        for rig in self.rigs:
            rig.connection.flush()
        return moved or bool(touched)

    def close(self) -> None:
        for rig in self.rigs:
            rig.client.close()
            rig.connection.sock.close()
