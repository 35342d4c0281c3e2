"""The submission ring of a window: its producer's side, and its consumer's.

The producer writes entries, then the tail; the engine writes statuses, then the count of completed entries.
Entries complete in the order of submission. Compiled, with the types of ``ring.pxd``.
"""

from __future__ import annotations

from .contiguousfifo import ContiguousFifo
from .control import Control
from .descriptors import COLUMNS, ENTRIES, ENTRY_BYTES, Op
from .doorbell import DoorbellPipe
from .doorbell import engine_doorbell as make_engine_doorbell
from .window import Window, Word

_ENTRIES, _ENTRY_CELLS, _COLUMNS = ENTRIES, ENTRY_BYTES // 8, COLUMNS
_TAIL = Word.TAIL * 8
_DONE = Word.DONE * 8
_FAILURES = Word.FAILURES * 8
_NOTHING = int(Op.NOTHING)
_MASK, _MASK32 = (1 << 64) - 1, (1 << 32) - 1


class SubmissionRing:
    """The producer's side.

    Attributes:
        tail: entries pushed so far; an entry's number is the tail before it was pushed.
        published: of them, those that the engine may see.
        columns: allocator of the window's columns.
    """

    def __init__(self, window: Window, engine_doorbell: DoorbellPipe, control: Control) -> None:
        self._words = window.words
        self._entries = window.entries.cast("Q")
        self._status = window.entry_status
        self._engine = make_engine_doorbell(control, engine_doorbell)
        self.tail = self.published = self.taken = window.load(Word.TAIL)
        self._failures_taken = window.load(Word.FAILURES)
        self.columns = ContiguousFifo(COLUMNS)

    def room(self) -> int:
        """Entries that can be pushed now."""
        return _ENTRIES - (self.tail - self.taken)

    def push(
        self,
        op: int,
        export: int,
        first: int,
        count: int,
        lo: int,
        hi: int,
        offset: int,
        length: int,
        flags: int = 0,
    ) -> None:
        """Write one entry; the engine sees it after ``publish``. The caller has looked at ``room``."""
        entries = self._entries
        at = self.tail % _ENTRIES * _ENTRY_CELLS
        # As descriptors.ENTRY packs it: the first four are 32 bits wide, little-endian.
        entries[at] = op | export << 32
        entries[at + 1] = first | count << 32
        entries[at + 2] = lo
        entries[at + 3] = hi
        entries[at + 4] = offset
        entries[at + 5] = length
        entries[at + 6] = flags
        self.tail += 1

    def cancel(self, number: int) -> None:
        """Make nothing of a published entry, which the engine must be known not to have taken yet."""
        self._entries[number % _ENTRIES * _ENTRY_CELLS] = _NOTHING

    def rewind(self, tail: int) -> None:
        """Take back what was pushed since the tail was ``tail``, but nothing that was published."""
        self.tail = max(tail, self.published)

    def publish(self) -> bool:
        """Show the engine what was pushed; True if it had to be woken."""
        self._words[_TAIL] = self.published = self.tail
        return self.wake()

    def wake(self) -> bool:
        """Wake the engine if it may be asleep; True if it had to be."""
        return self._engine.wake()

    def done(self) -> int:
        """Entries completed so far."""
        return self._words[_DONE]

    def failed(self) -> bool:
        """Whether an entry has failed whose status was not taken yet."""
        return self._words[_FAILURES] != self._failures_taken

    def take_status(self, number: int) -> int:
        """NBD errno of a completed entry, 0 for success; ask once for each entry while ``failed``."""
        status = self._status[number % _ENTRIES]
        if status:
            self._status[number % _ENTRIES] = 0
            self._failures_taken += 1
        return status


class CompletionRing:
    """The consumer's side. What the producer wrote is read once, and may be anything at all.

    The failures are counted here, and the producer's memory only shows them.
    """

    def __init__(self, window: Window) -> None:
        self._words = window.words
        self._entries = window.entries.cast("Q")
        self._status = window.entry_status
        self._column_status = window.statuses.data
        self._failures = window.load(Word.FAILURES)

    def tail(self) -> int:
        """Entries published, as the producer says."""
        return self._words[_TAIL]

    def entry(self, number: int) -> tuple[int, ...]:
        """The fields of ``descriptors.ENTRY``."""
        cells = self._entries
        at = number % _ENTRIES * _ENTRY_CELLS
        what, where = cells[at], cells[at + 1]  # once each: the producer may write them meanwhile
        return (
            what & _MASK32, what >> 32, where & _MASK32, where >> 32,
            cells[at + 2], cells[at + 3], cells[at + 4], cells[at + 5], cells[at + 6],
        )  # fmt: skip

    def complete(self, done: int) -> None:
        """So many entries are done. The producer must be woken afterwards."""
        self._words[_DONE] = done

    def fail(self, number: int, errno: int) -> None:
        """An entry, not yet shown as complete, has failed."""
        self._status[number % _ENTRIES] = errno
        self._failures = self._failures + 1 & _MASK
        self._words[_FAILURES] = self._failures

    def set_column_status(self, first: int, count: int, errno: int) -> None:
        """Requests of a run have failed, or with 0 have not; columns that do not exist are passed over."""
        for column in range(first, min(first + count, _COLUMNS)):
            self._column_status[column] = errno

    def forget(self) -> None:
        """The producer is dead and everything done: a clean window counts from 0."""
        for word in (_TAIL, _DONE, _FAILURES):
            self._words[word] = 0
        self._failures = 0
