"""A connection that the engine serves itself: on the short path, or with the workers' code."""

from __future__ import annotations

import os
import select
from typing import Any

from ..memory.base import Copy
from ..nbd.constants import Command
from ..nbd.events import Begin
from ..nbd.replies import ReplyFormat
from ..nbd.transmission import HEADERS
from ..serving.connection import Connection
from ..serving.ringwriter import ExportView
from ..serving.submissions import Submission
from ..shared import moves
from ..shared.context import Shared
from ..shared.control import State
from ..shared.counters import READ, WRITE
from .direct import DirectPath
from .executor import Executor

#: Weight of the goes after which it is looked at who had better serve the client.
_LOOKED_AT = 256
#: Goes of 64 KiB and more on average are large: one keeps the engine busy for longer than a batch of workers.
_LARGE = 1.5


class LocalConnection(Connection):
    """See ``serving.connection.Connection``, whose arguments follow ``shared`` and ``executor``."""

    def __init__(self, shared: Shared, executor: Executor, *arguments: Any) -> None:
        super().__init__(*arguments)
        export: ExportView = self._export
        format: ReplyFormat = self._format
        copies = executor.copies(export.index)
        self._control = shared.control
        self._drains = shared.settings.mode != "swap"
        self._executor = executor
        self._copies = copies
        self._path: DirectPath | None = None
        self._workers = [window.index for window in shared.worker_windows]
        #: Entries of workers when counting began.
        self._entries = executor.taken(self._workers)
        #: What is at the front is not plain, and not whole either: the general code has to receive.
        self._incomplete = False
        if copies is not None:
            self._path = DirectPath(
                self.fd,
                self._window,
                self.lane,
                export.index,
                format,
                copies,
                export.written.blocks.data,
                self._tally,
                shared.control,
                executor.counts,
                read_only=export.read_only,
                drains=self._drains,
                piece_bytes=self._writer.piece_bytes,
            )
            if shared.worker_windows:
                self._path.looked_at = _LOOKED_AT

    @property
    def is_short(self) -> bool:
        """Whether the short path may be taken: nothing is in flight, unsent, or begun by the general code."""
        replies = self.replies
        return (
            self._path is not None
            and not self._incomplete
            and not replies.in_flight
            and not replies.waiting
            and not replies.broken
            and not self.ended
            and self._held is None
            and self.large.current is None
            and not self._executor.needs_batches(self._export.index)
        )

    def is_workers(self) -> bool:
        """Whether a worker would serve this client faster; it stays so until ``count_anew``.

        Workers take requests while the engine copies. So that is the case if most goes of late have been deep
        ones, or if workers are as busy: they have had as many entries in the same time, or a quarter as many
        while this client's goes were large ones.
        """
        path = self._path
        if path is None or path.weight < _LOOKED_AT:
            return False
        entries = self._executor.taken(self._workers) - self._entries
        if path.weight >= _LARGE * path.goes:
            entries *= 4
        if 2 * path.deep > path.goes or entries >= path.goes:
            return True
        self.count_anew()
        return False

    def count_anew(self) -> None:
        if self._path is not None:
            self._path.count_anew()
            self._entries = self._executor.taken(self._workers)

    def begin(self) -> Begin | None:
        """How another process goes on with this connection; None if it cannot right now."""
        received = self.received
        if not self.is_short or received.have - received.position > moves.MOST_LEFTOVER_BYTES:
            return None
        leftover = bytes(received.space[received.position : received.have])
        format = self._format
        return Begin(self._export.index, format.structured, format.extended, self._base_allocation, leftover)

    def pump(self) -> bool:
        path = self._path
        if path is None or not self.is_short:
            moved = super().pump()
            if moved:  # otherwise the same would be found again, at once and without end
                self._incomplete = False
            return moved
        try:
            self._lend(path)
            return self._take_back(path, path.go())
        except Exception:
            return self._fail_directly(path)

    def linger(self, epoll: select.epoll, spin_ns: int, *, alone: bool) -> None:
        """Serve this client as long as ``is_short`` holds and no other has an event; see ``DirectPath``."""
        path = self._path
        assert path is not None
        try:
            self._lend(path)
            self._take_back(path, path.linger(epoll, epoll.fileno(), -1, spin_ns, alone))
        except Exception:
            self._fail_directly(path)

    def _lend(self, path: DirectPath) -> None:
        received = self.received
        path.position, path.have = received.position, received.have
        path.since_ns = received.arrived_ns
        self.blocked = False

    def _take_back(self, path: DirectPath, requests: int) -> bool:
        """Go on from where the short path has stopped; True if anything moved."""
        received = self.received
        received.adopt(path.position, path.have, path.since_ns)
        self.again = path.again
        received.starved = path.starved
        if path.failed:
            assert self._copies is not None
            self._executor.note_failure(self._export.index, self._copies.failure(path.failed))
            self._repeat(path)
        if path.error:
            self.fail("connection_lost", str(OSError(path.error, os.strerror(path.error))))
            return True
        if path.unsent != path.end:
            self._queue_rest(path)
        self.ended = path.ended
        if path.left or path.failed:
            # It may have changed while this client was waited for.
            self._submissions.draining = self._drains and self._control.state >= State.DRAINING
            self._incomplete = not self._resume()
            return not self._incomplete or bool(requests)
        return bool(requests) or path.ended

    def _repeat(self, path: DirectPath) -> None:
        """A copy has failed: do all requests of the go again, each by itself, and answer them.

        At once, as the executor does with a batch: what has been written by the first try may have been seen,
        so nobody may write between it and the second one.
        """
        slab, format, export = self._window.slab_view, self._format, self._export.index
        header = HEADERS[format.extended]
        submission = self._occupy(path, path.laid)
        submission.repaired = replies = []
        at, to = self.lane.rx + path.position, self.lane.tx
        while at < self.lane.rx + path.taken:
            start, cookie, offset, length = header.unpack_from(slab, at)
            at += header.size
            reads = start & 0xFFFF == Command.READ
            data, behind = at, to + format.done_bytes
            if reads:
                data = to + format.read_header_bytes
                behind = data + length
            copy = Copy(self._window.index, data, data + length, offset)
            errno = self._executor.repeat_copy(export, copy, reads=reads)
            op = READ if reads else WRITE
            if errno:
                replies.append(memoryview(format.error_for(cookie, offset, errno)))
                self._dispatch.report(op, errno, offset, length, received_ns=path.first_ns)
            else:
                replies.append(slab[to:behind])
                submission.accounts.append((op, 1, length))
            at += 0 if reads else length
            to = behind
        self.received.adopt(path.taken, path.have, path.since_ns)
        self.replies.queue(submission)
        self.flush()

    def _occupy(self, path: DirectPath, end: int) -> Submission:
        """A submission whose replies lie in the transmit lane up to the slab position ``end``."""
        size = end - self.lane.tx + 3 & ~3
        at = self.replies.space.allocate(size)
        assert at == 0, "nothing else is in the transmit lane"
        submission = Submission(self, path.first_ns)
        submission.tx_end = size
        return submission

    def _queue_rest(self, path: DirectPath) -> None:
        """The socket has not taken all replies."""
        replies = self.replies
        rest = self._occupy(path, path.end)
        rest.reply_start, rest.reply_end = path.unsent, path.end
        sides = ((READ, path.reads, path.read_bytes), (WRITE, path.writes, path.write_bytes))
        rest.accounts = [side for side in sides if side[1]]
        replies.queue(rest)
        replies.starved = path.starved

    def _fail_directly(self, path: DirectPath) -> bool:
        path.abandon()
        return self._fail_internally()
