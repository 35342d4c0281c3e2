"""The server with a worker that writes garbage where others read. Run like ``vramblk``.

On SIGUSR2 worker 1 fills its connection table, its counters and every word that says something of its connections
with garbage. ``VRAMBLK_TEST_GARBAGE`` says with which, ``ones``, ``states`` or ``exports``; with ``-dies`` behind it
the worker then dies by SIGKILL. The words by which the engine finds entries stay as they are. On SIGUSR2 the engine
says that worker 1's window is corrupt, as it does when it finds that.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
from typing import Any

from vramblk import cli
from vramblk.engine import process as engine
from vramblk.shared.window import CONNECTIONS, SLOT_BYTES, Window, Word
from vramblk.worker import process as worker

KIND, _, DIES = os.environ.pop("VRAMBLK_TEST_GARBAGE").partition("-")
_KEPT = {Word.TAIL, Word.DONE, Word.FAILURES, Word.WORKER_SLEEPING, Word.WORKER_PID, Word.READY}
_NO_PEER = b"\xff\x1b[2J\n\xc3unix:pid=\xc2\xb2,uid=0"
_ROW = struct.Struct("<QqiIQQQ112s")

run, run_engine = worker.run, engine.run


def garble(window: Window) -> None:
    for word in set(Word) - _KEPT:
        window.store(word, (1 << 64) - 1)
    table = window.whole[window.layout.slots_offset :][: CONNECTIONS * SLOT_BYTES]
    if KIND == "ones":
        table[:] = 0xFF
        window.counters.cells[:] = memoryview(b"\xff" * (8 * len(window.counters.cells))).cast("q")
        return
    state, export = {"states": (7, 0), "exports": (2, -(1 << 31))}[KIND]
    row = _ROW.pack((1 << 64) - 1, -(1 << 63), export, state, *[(1 << 64) - 1] * 3, _NO_PEER)
    table[:] = memoryview(row * CONNECTIONS)
    for index in range(len(window.counters.cells)):
        window.counters.cells[index] = (1 << 63) - 1


def run_garbling(shared: Any, index: int, handoff: Any, tls_files: Any) -> int:
    def garble_now(*_: object) -> None:
        garble(shared.windows[1])
        if DIES:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)  # what it does with such counters is not the question here

    if index == 1:
        signal.signal(signal.SIGUSR2, garble_now)
    return run(shared, index, handoff, tls_files)


def run_accusing(shared: Any, mail: Any, open_memories: Any, handoff: Any = None) -> int:
    signal.signal(signal.SIGUSR2, lambda *_: mail.send(b'{"event": "window_corrupt", "window": 1}'))
    return run_engine(shared, mail, open_memories, handoff)


if __name__ == "__main__":
    worker.run = run_garbling
    engine.run = run_accusing
    sys.exit(cli.main(sys.argv[1:]))
