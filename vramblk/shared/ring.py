"""The submission ring of a window, seen from its producer, and the allocator of its columns.

The producer writes entries, then the tail; the engine writes statuses, then the count of
completed entries. Entries complete in the order of submission. A doorbell is a system call, so
each side says in a shared word when it may be asleep, and is rung only then.
"""

from __future__ import annotations

import os

from .barrier import full_barrier
from .control import Control, ControlWord
from .window import COLUMNS, ENTRIES, ENTRY_BYTES, Window, Word

_ENTRIES, _ENTRY_CELLS = ENTRIES, ENTRY_BYTES // 8
_TAIL = Word.TAIL * 8
_DONE = Word.DONE * 8
_FAILURES = Word.FAILURES * 8
_ENGINE_SLEEPING = ControlWord.ENGINE_SLEEPING * 8


class ContiguousFifo:
    """Space handed out in contiguous pieces and given back in the same order.

    It allocates around a circle but never across its seam. ``release(end)`` frees everything up
    to the end of an allocation.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._head = 0
        self._tail = 0
        self._live = 0

    def allocate(self, amount: int) -> int:
        """Start of ``amount`` units, or -1 while there is no such piece."""
        head, tail = self._head, self._tail
        if not self._live:
            if amount > self.size:
                return -1
            head = self._tail = 0
        elif head > tail:
            if self.size - head < amount:
                if amount > tail:
                    return -1
                head = 0
        elif tail - head < amount:
            return -1
        self._head = head + amount
        self._live += 1
        return head

    def largest(self) -> int:
        """The largest amount that ``allocate`` would now hand out."""
        head, tail = self._head, self._tail
        if not self._live:
            return self.size
        return max(self.size - head, tail) if head > tail else tail - head

    def release(self, end: int) -> None:
        """Give back the oldest allocation, which ended at ``end``."""
        self._tail = end
        self._live -= 1


class SubmissionRing:
    """The producer's side.

    Attributes:
        tail: entries pushed so far; an entry's number is the tail before it was pushed.
        columns: allocator of the window's columns.
    """

    def __init__(self, window: Window, engine_bell: int, control: Control) -> None:
        self._words = window.words
        self._entries = window.entries.cast("Q")
        self._status = window.entry_status
        self._control = control.words
        self._bell = engine_bell
        self.tail = self.taken = window.load(Word.TAIL)
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
        # As window.ENTRY packs it: the first four are 32 bits wide, little-endian.
        entries[at] = op | export << 32
        entries[at + 1] = first | count << 32
        entries[at + 2] = lo
        entries[at + 3] = hi
        entries[at + 4] = offset
        entries[at + 5] = length
        entries[at + 6] = flags
        self.tail += 1

    def publish(self) -> bool:
        """Show the engine what was pushed; True if it had to be woken."""
        self._words[_TAIL] = self.tail
        full_barrier()
        if self._control[_ENGINE_SLEEPING]:
            os.eventfd_write(self._bell, 1)
            return True
        return False

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
