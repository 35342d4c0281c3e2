"""The server itself, but with faults that can be switched on, or with safeguards taken away. For tests only.

    altered_server.py FAULTS WITHOUT OPTIONS...

FAULTS is a file of two bytes that this makes: the first counts batches with writes, the second batches with reads, that
are still to fail as a device does. A copy that is made without a batch counts as one. A count, since a guest that cannot write to its swap cannot run a command that ends
the fault. WITHOUT names safeguards of ``tests/without.py`` to leave out, separated by commas, or "nothing".
"""

import mmap
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.without import leave_out
from vramblk import cli
from vramblk.memory import mapped
from vramblk.memory.base import Batch, DeviceError
from vramblk.memory.copies import MappedCopies

NBD_EIO = 5
#: Any status that is not 0.
FAILED = -5


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

    class FailingCopies(MappedCopies):
        def read(self, offset: int, length: int, address: int) -> int:
            if flags[1]:
                flags[1] -= 1
                return FAILED
            return super().read(offset, length, address)

        def write(self, offset: int, length: int, address: int) -> int:
            if flags[0]:
                flags[0] -= 1
                return FAILED
            return super().write(offset, length, address)

    mapped.MappedMemory.execute = failing  # type: ignore[method-assign]
    mapped.MappedCopies = FailingCopies  # type: ignore[misc]


inject(Path(sys.argv[1]))
leave_out(sys.argv[2].split(","))
sys.exit(cli.main(sys.argv[3:]))
