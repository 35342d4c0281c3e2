"""The memory that the engine serves: one interface for every kind of memory.

A batch is everything that the workers had queued for one export at one moment. Small requests come
as runs, whose columns are in the layout of the kernels' argument table; the rest comes as
copies and ranges to zero. The order within a batch is fixed (see ``Memory.execute``), so that what
was acknowledged before is seen by what was asked for afterwards.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .copies import Copies

#: Arenas that a kernel takes as arguments, and so the most that an export may have.
MAXIMUM_ARENAS = 16
#: Offsets within an arena are counted in 16 bytes and held in 32 bits.
MAXIMUM_ARENA_BYTES = 1 << 36


class DeviceError(Exception):
    """A batch failed, wholly or in part; nothing of it touches the slabs any more.

    Attributes:
        errno: EIO, ENOMEM, ENOSPC, or EINVAL of a run that points outside.
        detail: what failed, for the log.
        lost: the device will not come back; every later request fails too.
    """

    def __init__(self, errno: int, detail: str, lost: bool = False) -> None:
        super().__init__(detail)
        self.errno = errno
        self.detail = detail
        self.lost = lost


class ChecksumError(DeviceError):
    """Blocks do not hold what was written to them, and a request needed them; see ``checksums``.

    Attributes:
        blocks: how many were found.
        offset: bytes; where in the export one of them begins.
    """

    def __init__(self, blocks: int, offset: int) -> None:
        what = "1 block does" if blocks == 1 else f"{blocks} blocks do"
        super().__init__(errno.EIO, f"checksum mismatch: {what} not hold what was written, at {offset:#x}")
        self.blocks = blocks
        self.offset = offset


class MissingMemory(DeviceError):
    """There is not enough memory.

    Attributes:
        missing_bytes: how much more there would have to be.
    """

    def __init__(self, detail: str, missing_bytes: int) -> None:
        super().__init__(errno.ENOMEM, detail)
        self.missing_bytes = missing_bytes


class Run(NamedTuple):
    """Like requests in columns [first, first + count) of a window.

    [lo, hi) are the bytes of the window's slab that the run covers: the requests' data, and what lies
    between. Reads may overwrite all of it, with anything; ``joins``: also the bytes between the run of reads
    before it in the batch and this one.
    """

    window: int
    first: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs of a run
    lo: int
    hi: int
    joins: bool = False


class Copy(NamedTuple):
    """Slab bytes [lo, hi) <-> export bytes from ``offset``, of any alignment, across arena borders."""

    window: int
    lo: int
    hi: int
    offset: int


class Zero(NamedTuple):
    """Export bytes to zero, of any alignment; already checked against the export's size."""

    offset: int
    length: int


class Batch:
    """What is to be done at once for one export.

    Attributes:
        apart: no request of ``reads`` overlaps anything that the batch writes or zeroes.
        echoes: the proof of a window; ``Copy.offset`` is a position in the same slab, to which the
            bytes [lo, hi) come back after they were in the device's memory. The export is not touched.
    """

    __slots__ = ("apart", "copies_in", "copies_out", "echoes", "reads", "writes", "zeroes")

    def __init__(self, *, apart: bool = False) -> None:
        self.apart = apart
        self.writes: list[Run] = []
        self.copies_in: list[Copy] = []
        self.zeroes: list[Zero] = []
        self.reads: list[Run] = []
        self.copies_out: list[Copy] = []
        self.echoes: list[Copy] = []


class SlabWindow(Protocol):
    """The part of a ``shared.window.Window`` that a memory uses."""

    index: int
    base: int
    columns: npt.NDArray[np.uint32]
    slab: npt.NDArray[np.uint8]
    slab_address: int


class Pattern(IntEnum):
    """Contents that depend on the address, for tests of the memory itself; see ``patterns``."""

    ZERO = 0
    ADDRESS = 1
    RANDOM = 2
    WALKING_ONE = 3
    WALKING_ZERO = 4


class Memory(Protocol):
    """The memory of one export.

    The columns of a run are those of ``shared.descriptors``; its requests start and end at multiples of
    16 bytes in the export, are at most 128 KiB and never cross an arena border. They came from a worker: a
    request that points outside its arena, the export or the slabs touches nothing, and is skipped or fails
    its batch.

    Attributes:
        size_bytes: a multiple of 4096.
        arena_bytes: size of each arena but the last, which may be smaller; a multiple of 4096.
    """

    size_bytes: int
    arena_bytes: int

    @property
    def description(self) -> dict[str, Any]:
        """What status and metrics say of it; plain JSON values."""
        ...

    @property
    def pinned(self) -> Sequence[bool]:
        """Per window: whether the device copies from and to the slab's own pages."""
        ...

    def attach(self, windows: Sequence[SlabWindow]) -> None:
        """Take the windows whose numbers batches will name; done by ``open_memories``."""
        ...

    def execute(self, batch: Batch) -> None:
        """Do the writes, copies_in, zeroes, reads, copies_out and echoes, in this order.

        If the batch is ``apart`` the reads may be done earlier.

        Returns when every byte has arrived and every status was checked.

        Raises:
            DeviceError: any of it failed; nothing that was queued is still in flight.
        """
        ...

    def copies(self) -> Copies | None:
        """Copies without a batch, or None if every request needs one."""
        ...

    def fill(self, offset: int, length: int, pattern: Pattern, seed: int = 0) -> None:
        """Write a pattern; offset and length are multiples of 4096.

        Raises:
            DeviceError: as in ``execute``.
        """
        ...

    def mismatches(self, offset: int, length: int, pattern: Pattern, seed: int = 0) -> list[tuple[int, int]]:
        """Ranges [lo, hi) of export offsets, in whole blocks of 4096, that do not hold the pattern.

        Raises:
            DeviceError: as in ``execute``.
        """
        ...

    def zero_all(self) -> None:
        """Zero the whole export.

        Raises:
            DeviceError: as in ``execute``.
        """
        ...

    def prove(self, progress: Progress | None = None) -> None:
        """Write a pattern over the whole export, read it back, leave it zeroed and read that back.

        Raises:
            DeviceError: the memory did not hold what was written.
        """
        ...

    def release(self) -> Iterator[None]:
        """Zero the memory and free it, in steps between which others can be served; ``take`` undoes it.

        Meanwhile only batches of echoes may be executed, and copies that were asked for before are void.

        Raises:
            DeviceError: zeroing failed; the memory is freed anyway.
        """
        ...

    def take(self) -> Iterator[None]:
        """Allocate and prove again what was released, in such steps; it is zero then.

        Raises:
            MissingMemory: there is not enough; nothing stays allocated.
            DeviceError: as in ``prove``; nothing stays allocated.
        """
        ...

    def close(self) -> None:
        """Free the memory. The windows' mappings stay."""
        ...


Progress = Callable[[str, int, int], None]
"""Called with what is being done, bytes done and bytes in all."""
