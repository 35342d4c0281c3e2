"""A worker: takes connections from the supervisor, negotiates, and serves their requests.

It never loads OpenCL. Its window is the only memory through which it reaches the engine.
"""

from __future__ import annotations

import gc
import os
import socket
import ssl
import time

from ..errors import RuntimeFailure
from ..serving.stagetimes import WorkerTiming
from ..shared import stages
from ..shared.context import Shared
from ..shared.window import Word
from ..swap import prefault, safeguards
from ..system import kernel, logs, privileges, tls
from .loop import ClientLoop
from .windowproof import prove_window

_AFTER_FAULT_S = 0.001


class Worker:
    """Runs the loop of one worker process until it is done.

    Args:
        timing: times the stages of each batch; without it nothing is wrapped.
    """

    def __init__(
        self,
        shared: Shared,
        index: int,
        handoff: socket.socket,
        lanes: int,
        timing: WorkerTiming | None = None,
    ) -> None:
        self.loop = ClientLoop(shared, index, handoff, lanes, timing)
        self._timing = timing
        self._shared = shared
        self._swap = shared.settings.mode == "swap"
        self._log = logs.get()
        self._moved_ns = 0

    def prepare(self, tls_context: ssl.SSLContext | None) -> None:
        """Learn the exports from the control page and prove the window; the engine is ready."""
        loop = self.loop
        loop.handoffs.tls_context = tls_context
        for written in self._shared.written:
            written.open()
        loop.learn_exports()
        prove_window(loop.window, loop.submissions.ring, loop.doorbell, self._shared.control)
        if self._timing is not None:
            self._timing.watch_submissions(loop.submissions)

    def serve(self) -> None:
        """Run until the supervisor will hand over no further connection (and none is left)."""
        self.loop.window.store(Word.READY, 1)
        while True:
            try:
                if self._turn():
                    return
            except RuntimeFailure as error:
                self._log.error("process_failed", role="worker", detail=str(error))
                raise
            except Exception:
                self.loop.submissions.recover(self._log)
                time.sleep(_AFTER_FAULT_S)

    def _turn(self) -> bool:
        """One turn of the loop, and a sleep when nothing moves; True when the worker is done."""
        loop = self.loop
        if loop.turn():
            self._moved_ns = time.monotonic_ns() if loop.spin_ns else 0
            return False
        connections = loop.connections.by_fd
        if loop.handoffs.ended and (not self._swap or not connections):
            return True
        if loop.spin_ns and connections and time.monotonic_ns() - self._moved_ns < loop.spin_ns:
            loop.submissions.watch()
            return False
        loop.sleep()
        self._moved_ns = time.monotonic_ns()
        return False


def run(shared: Shared, index: int, handoff: socket.socket, tls_files: tls.TlsFiles | None = None) -> int:
    """The worker process."""
    settings = shared.settings
    window = shared.windows[index]
    window.store(Word.WORKER_PID, os.getpid())
    shared.confine_worker(index)
    timing = WorkerTiming(stages.active, index) if stages.active is not None else None
    worker = Worker(shared, index, handoff, window.layout.lanes, timing)
    worker.prepare(tls_files.context() if tls_files else None)
    # Before the change of uid, which takes the right to read this process's own page map.
    safeguards.lock_memory(settings)
    prefault.prefault(settings, [window.whole])
    # Under MCL_FUTURE every later allocation needs CAP_IPC_LOCK.
    privileges.drop(shared.worker_uid(index), keep=1 << kernel.CAP_IPC_LOCK)
    privileges.start_no_process()
    # An attacker could send a connection whose close waits (SO_LINGER); the supervisor would close it.
    handoff.shutdown(socket.SHUT_WR)
    gc.disable()
    worker.serve()
    return 0
