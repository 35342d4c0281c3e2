"""Replies after a failure: only requests whose data arrived are answered with it.

The engine says which requests of a run failed. A failed read of any kind becomes an error reply;
the bytes that lie in its place were perhaps never read and do not leave the slab.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from ..nbd.constants import Error
from ..nbd.replies import ReplyFormat
from ..nbd.transmission import Request
from ..shared.counters import READ, WRITE
from ..shared.window import Window
from .pending import Pending, Unit

_COOKIE = struct.Struct("<II")

Report = Callable[[int, int, int, int], None]


def repair(
    pending: Pending,
    statuses: Sequence[int],
    format: ReplyFormat,
    window: Window,
    arena_bytes: int,
    report: Report,
) -> str | None:
    """Set ``pending.repaired`` and correct its accounts.

    Args:
        statuses: NBD errno of each unit's entry, 0 for success.
        arena_bytes: of the export.
        report: called with (op, errno, offset, length) for each failed request that is answered.

    Returns:
        Why the connection must be closed, or None.
    """
    slab = window.slab_view
    replies: list[memoryview] = []
    accounts: list[tuple[int, int, int]] = []
    for unit, status in zip(pending.units, statuses, strict=True):
        if isinstance(unit, Unit):
            return _repair_request(pending, unit.request, status, format, slab, report)
        op, columns = unit.op, slice(unit.first, unit.first + unit.requests)
        errors = None
        if status:  # one request alone is no run to the engine: its status is the entry's
            errors = window.statuses[columns].tolist() if unit.requests > 1 else [status]
        good = good_bytes = 0
        at = unit.start
        for index, (place, _, shape, *cookie) in enumerate(window.columns[:, columns].T.tolist()):
            offset, length = (shape >> 24) * arena_bytes + place * 16, (shape & 0xFFFF) * 16
            size = format.done_bytes if op == WRITE else format.read_header_bytes + length
            error = errors[index] if errors else 0
            if error:
                reply = format.error_for(_COOKIE.pack(*cookie), offset, Error(error))
                replies.append(memoryview(reply))
                report(op, error, offset, length)
            else:
                replies.append(slab[at : at + size])
                good += 1
                good_bytes += length
            at += size
        if good:
            accounts.append((op, good, good_bytes))
    pending.repaired = replies
    pending.accounts = accounts
    return None


def _repair_request(
    pending: Pending, request: Request, status: int, format: ReplyFormat, slab: memoryview, report: Report
) -> str | None:
    read, write = pending.large_read, pending.large_write
    op = pending.accounts[0][0] if pending.accounts else (READ if read is not None else WRITE)
    reply = slab[pending.reply_start : pending.reply_end]
    pending.repaired = [reply] if reply else []
    if write is not None:
        write.error = write.error or status
        status = write.error if reply else 0
    elif read is not None:
        if read.failed:
            pending.repaired, pending.accounts = [], []
            return None
        if status:
            read.failed = True
            if read.single_header and read.header_sent:
                pending.repaired, pending.accounts = [], []
                return "a piece of a read failed after its header had left"
        else:
            read.header_sent = True
    if status:
        pending.repaired = [memoryview(format.error(request, Error(status)))]
        pending.accounts = []
        report(op, status, request.offset, request.length)
    return None
