"""Headers of replies, laid as words where they are sent from; ``replies.ReplyFormat`` makes them as bytes.

Compiled, with the types of ``replyheaders.pxd``; see ``runs`` for why, and for the words.
"""

from __future__ import annotations

from .constants import (
    EXTENDED_REPLY_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    ReplyFlag,
    ReplyType,
)


def byte_swapped(word: int) -> int:
    """A 32-bit word with its bytes in the other order."""
    return (word & 0xFF) << 24 | (word & 0xFF00) << 8 | (word >> 8 & 0xFF00) | word >> 24


_SIMPLE_MAGIC = byte_swapped(SIMPLE_REPLY_MAGIC)
_EXTENDED_MAGIC = byte_swapped(EXTENDED_REPLY_MAGIC)
_STRUCTURED_MAGIC = byte_swapped(STRUCTURED_REPLY_MAGIC)
_DONE_NONE = byte_swapped(ReplyFlag.DONE << 16 | ReplyType.NONE)
_DONE_DATA = byte_swapped(ReplyFlag.DONE << 16 | ReplyType.OFFSET_DATA)


def fill_done(words: memoryview, at: int, low: int, high: int, offset: int, extended: bool) -> None:
    """Lay a reply of success without data from word ``at`` on, as ``ReplyFormat.done`` makes it.

    ``low`` and ``high`` are the cookie's two words as they came.
    """
    words[at + 2] = low
    words[at + 3] = high
    if not extended:
        words[at] = _SIMPLE_MAGIC
        words[at + 1] = 0
        return
    words[at] = _EXTENDED_MAGIC
    words[at + 1] = _DONE_NONE
    words[at + 4] = byte_swapped(offset >> 32)
    words[at + 5] = byte_swapped(offset & 0xFFFFFFFF)
    words[at + 6] = 0
    words[at + 7] = 0


def fill_read_header(
    words: memoryview, at: int, low: int, high: int, offset: int, length: int, header_bytes: int
) -> None:
    """Lay what stands before the data of a read from word ``at`` on, as ``ReplyFormat.read_header``.

    ``low`` and ``high`` are the cookie's two words as they came.
    ``header_bytes`` is 16 for a simple, 28 for a structured, 40 for an extended reply.
    """
    words[at + 2] = low
    words[at + 3] = high
    if header_bytes == 16:
        words[at] = _SIMPLE_MAGIC
        words[at + 1] = 0
        return
    chunk = byte_swapped(length + 8)
    offset_high, offset_low = byte_swapped(offset >> 32), byte_swapped(offset & 0xFFFFFFFF)
    words[at + 1] = _DONE_DATA
    if header_bytes == 28:
        words[at] = _STRUCTURED_MAGIC
        words[at + 4] = chunk
        words[at + 5] = offset_high
        words[at + 6] = offset_low
        return
    words[at] = _EXTENDED_MAGIC
    words[at + 4] = offset_high
    words[at + 5] = offset_low
    words[at + 6] = 0
    words[at + 7] = chunk
    words[at + 8] = offset_high
    words[at + 9] = offset_low
