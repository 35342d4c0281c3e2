"""Where an export's bytes lie: at most sixteen equal arenas, one after another."""

from __future__ import annotations

from collections.abc import Iterator

from .base import MAXIMUM_ARENA_BYTES, MAXIMUM_ARENAS

_UNIT = 4096
_ROUND = 65536


def largest_export(maximum_allocation: int) -> int:
    """Bytes that sixteen arenas of a device with this largest allocation can hold."""
    return _largest_arena(maximum_allocation) * MAXIMUM_ARENAS


def plan_arenas(size_bytes: int, maximum_allocation: int) -> list[int]:
    """Sizes of the arenas of an export; all equal but the last, which may be smaller.

    One arena if the device's largest allocation permits it, otherwise as few as possible, equal,
    in multiples of 64 KiB.

    Raises:
        ValueError: more than ``largest_export``, or not a positive multiple of 4096.
    """
    if size_bytes <= 0 or size_bytes % _UNIT:
        raise ValueError(f"{size_bytes} is not a positive multiple of {_UNIT}")
    if size_bytes <= min(maximum_allocation, MAXIMUM_ARENA_BYTES):
        return [size_bytes]
    largest = _largest_arena(maximum_allocation)
    if size_bytes > largest * MAXIMUM_ARENAS:
        raise ValueError(f"{size_bytes} bytes do not fit {MAXIMUM_ARENAS} allocations of {largest} bytes")
    count = -(-size_bytes // largest)
    unit = _round_to(largest)
    arena_bytes = -(-size_bytes // count // unit) * unit
    sizes = [arena_bytes] * (size_bytes // arena_bytes)
    if size_bytes % arena_bytes:
        sizes.append(size_bytes % arena_bytes)
    return sizes


def split(offset: int, length: int, arena_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(arena, offset within it, length) of each piece of an export's range."""
    while length > 0:
        arena, within = divmod(offset, arena_bytes)
        piece = min(length, arena_bytes - within)
        yield arena, within, piece
        offset += piece
        length -= piece


def _largest_arena(maximum_allocation: int) -> int:
    largest = min(maximum_allocation, MAXIMUM_ARENA_BYTES)
    return largest // _round_to(largest) * _round_to(largest)


def _round_to(arena_bytes: int) -> int:
    return _ROUND if arena_bytes >= _ROUND else _UNIT
