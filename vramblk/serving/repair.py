"""Replies after a failure: only requests whose data arrived are answered with it.

The engine reports which requests of a run failed. A failed read of any kind becomes an error reply;
the bytes that lie in its place were perhaps never read and do not leave the slab.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..nbd.constants import Error
from ..nbd.replies import ReplyFormat
from ..nbd.transmission import Request
from ..shared.counters import READ, WRITE
from ..shared.window import Window
from .columns import RunColumns
from .submissions import RunUnit, Submission

Report = Callable[[int, int, int, int], None]


def repair(
    submission: Submission,
    statuses: Sequence[int],
    format: ReplyFormat,
    window: Window,
    columns: RunColumns,
    report: Report,
) -> str | None:
    """Set ``submission.repaired`` and correct its accounts.

    Args:
        statuses: NBD errno of each unit's entry, 0 for success.
        columns: of its runs; all that stands before their data is laid.
        report: called with (op, errno, offset, length) for each failed request that is answered.

    Returns:
        Why the connection must be closed, or None.
    """
    slab = window.slab_view
    replies: list[memoryview] = []
    accounts: list[tuple[int, int, int]] = []
    for unit, status in zip(submission.units, statuses, strict=True):
        if not isinstance(unit, RunUnit):
            return _repair_request(submission, unit.request, status, format, slab, report)
        op, behind = unit.op, unit.first + unit.requests
        errors = None
        if status:  # one request alone is no run to the engine: its status is the entry's
            errors = window.statuses[unit.first : behind].tolist() if unit.requests > 1 else [status]
        good = good_bytes = 0
        at = unit.start
        for index, column in enumerate(range(unit.first, behind)):
            cookie, offset, length = columns.request(column)
            size = format.done_bytes if op == WRITE else format.read_header_bytes + length
            error = errors[index] if errors else 0
            if error:
                reply = format.error_for(cookie, offset, Error(error))
                replies.append(memoryview(reply))
                report(op, error, offset, length)
            else:
                replies.append(slab[at : at + size])
                good += 1
                good_bytes += length
            at += size
        if good:
            accounts.append((op, good, good_bytes))
    submission.repaired = replies
    submission.accounts = accounts
    return None


def _repair_request(
    submission: Submission,
    request: Request,
    status: int,
    format: ReplyFormat,
    slab: memoryview,
    report: Report,
) -> str | None:
    read, write = submission.large_read, submission.large_write
    op = submission.accounts[0][0] if submission.accounts else (READ if read is not None else WRITE)
    reply = slab[submission.reply_start : submission.reply_end]
    submission.repaired = [reply] if reply else []
    if write is not None:
        write.error = write.error or status
        status = write.error if reply else 0
    elif read is not None:
        if read.failed:
            submission.repaired, submission.accounts = [], []
            return None
        if status:
            read.failed = True
            if read.single_header and read.header_sent:
                submission.repaired, submission.accounts = [], []
                return "a piece of a read failed after its header had left"
        else:
            read.header_sent = True
    if status:
        submission.repaired = [memoryview(format.error(request, Error(status)))]
        submission.accounts = []
        report(op, status, request.offset, request.length)
    return None
