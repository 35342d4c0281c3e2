"""The answer to a block status: the written-map of a range, or of its beginning."""

from __future__ import annotations

from itertools import islice

from ..nbd.constants import CommandFlag
from ..nbd.replies import ReplyFormat
from ..nbd.transmission import Request
from ..shared.written import WrittenMap

#: An answer describes no more than this, bytes; the map of a larger range takes milliseconds to read.
_MOST_BYTES = 1 << 30
_MOST_EXTENTS = 1024
_STATE_HOLE_ZERO = 3
_REQ_ONE = int(CommandFlag.REQ_ONE)

#: Bytes of the longest answer: chunk header, context, count, and 16 for each extent.
LONGEST_BYTES = 64 + 16 * _MOST_EXTENTS


def answer(request: Request, written: WrittenMap, format: ReplyFormat, context: int) -> bytes:
    """The whole reply; it may tell of less than was asked about, and the client asks on from there."""
    most = 1 if request.flags & _REQ_ONE else _MOST_EXTENTS
    extents = written.extents(request.offset, min(request.length, _MOST_BYTES))
    states = [(length, 0 if holds else _STATE_HOLE_ZERO) for length, holds in islice(extents, most)]
    return format.block_status(request, context, states)
