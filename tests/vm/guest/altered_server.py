"""The server itself, but with faults that can be switched on, or with safeguards taken away. For tests only.

    altered_server.py FAULTS WITHOUT OPTIONS...

FAULTS is a file of two bytes that this makes: the first counts batches with writes, the second batches with reads, that
are still to fail as a device does. A count, since a guest that cannot write to its swap cannot run a command that ends
the fault. WITHOUT names safeguards to leave out, separated by commas: mlock,
io_flusher, oom, fifo; or "nothing".
"""

import mmap
import sys
from pathlib import Path
from typing import Any

from vramblk import cli, swapsafety
from vramblk.memory import mapped
from vramblk.memory.base import Batch, DeviceError

NBD_EIO = 5
SAFEGUARDS = {"io_flusher": "PR_SET_IO_FLUSHER", "oom": "oom_score_adj", "fifo": "SCHED_FIFO"}


def inject(path: Path) -> None:
    """Faults are asked for through shared memory, so that the engine makes no system call to look."""
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file:
        flags = mmap.mmap(file.fileno(), 4096)
    execute = mapped.MappedMemory.execute

    def failing(self: mapped.MappedMemory, batch: Batch) -> None:
        if flags[0] and (batch.writes or batch.copies_in):
            flags[0] -= 1
            raise DeviceError(NBD_EIO, "a write, as the test asked")
        if flags[1] and (batch.reads or batch.copies_out):
            flags[1] -= 1
            raise DeviceError(NBD_EIO, "a read, as the test asked")
        execute(self, batch)

    mapped.MappedMemory.execute = failing  # type: ignore[method-assign]


def leave_out(names: list[str]) -> None:
    every = swapsafety._safeguards

    def some(*arguments: Any) -> Any:
        left_out = tuple(SAFEGUARDS[name] for name in names if name in SAFEGUARDS)
        return [each for each in every(*arguments) if not each[0].startswith(left_out or ("\0",))]

    swapsafety._safeguards = some
    swapsafety.verify_threads = lambda pids: []  # type: ignore[assignment]
    if "mlock" in names:
        swapsafety.lock_memory = lambda settings, **_: 1  # type: ignore[assignment]


inject(Path(sys.argv[1]))
if sys.argv[2] != "nothing":
    leave_out(sys.argv[2].split(","))
sys.exit(cli.main(sys.argv[3:]))
