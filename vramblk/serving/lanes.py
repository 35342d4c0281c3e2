"""Lanes: the parts of a worker's slab that its connections receive into and send from.

A worker may serve one connection or a dozen. Cutting the slab into equal parts would starve the
usual case, one busy connection, so lanes are unequal: each is half as large as the one before,
down to a smallest size, and a new connection takes the largest that is free. None is larger than
one busy connection can use.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..nbd.runs import PLAIN_BYTES

#: Smallest part of a lane, bytes: two plain requests of the largest size and their headers.
SMALLEST = 320 << 10
#: Largest part of a lane, bytes.
LARGEST = 16 << 20
_UNIT = 4096
#: A receive part with room for many of the largest plain requests, bytes.
ROOMY = 32 * PLAIN_BYTES


@dataclass(frozen=True)
class Lane:
    """Byte ranges of the slab: receive part [rx, rx + rx_bytes), transmit part [tx, tx + tx_bytes)."""

    slot: int
    rx: int
    rx_bytes: int
    tx: int
    tx_bytes: int

    @property
    def waited_bytes(self) -> int:
        """A write up to this long is not begun before its whole payload is there.

        So it can be part of a run. A small lane has no room for the largest: one would begin behind
        another, with too little space before it to move to, and never become whole.
        """
        return PLAIN_BYTES if self.rx_bytes >= ROOMY else PLAIN_BYTES // 2


def lane_sizes(slab_bytes: int, lanes: int) -> list[int]:
    """Sizes in falling order whose sum is at most ``slab_bytes``.

    Raises:
        ValueError: the slab cannot hold that many lanes of the smallest size.
    """
    if lanes * SMALLEST > slab_bytes:
        raise ValueError(f"{lanes} lanes need at least {lanes * SMALLEST} bytes, the slab has {slab_bytes}")
    sizes = []
    left = slab_bytes
    for behind in range(lanes - 1, -1, -1):
        size = left if not behind else max(SMALLEST, min(left // 2, left - behind * SMALLEST))
        size = min(size, LARGEST)
        size -= size % _UNIT
        sizes.append(size)
        left -= size
    return sorted(sizes, reverse=True)


def smallest_slab(lanes: int) -> int:
    """The least slab part that holds ``lanes`` lanes, bytes."""
    return lanes * SMALLEST


class Lanes:
    """Hands out the lanes of one window."""

    def __init__(self, rx_bytes: int, tx_bytes: int, lanes: int) -> None:
        self._free: list[Lane] = []
        rx, tx = 0, rx_bytes
        for slot, (rx_size, tx_size) in enumerate(
            zip(lane_sizes(rx_bytes, lanes), lane_sizes(tx_bytes, lanes), strict=True)
        ):
            self._free.append(Lane(slot, rx, rx_size, tx, tx_size))
            rx += rx_size
            tx += tx_size

    def take(self) -> Lane | None:
        """The largest free lane, or None."""
        return self._free.pop(0) if self._free else None

    def give_back(self, lane: Lane) -> None:
        self._free.append(lane)
        self._free.sort(key=lambda free: free.slot)
