"""What a write puts into each 16 bytes of an export, and which write has left what is found there."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UNIT = 16
_FACTORS = np.array([1, 0, 2654435761, 2246822519], np.uint32)

Numbers = npt.NDArray[np.int32]
Truths = npt.NDArray[np.bool_]


class Stamps:
    """The stamps of an export: four words in each unit, which depend on the write and on the unit.

    The second word depends on the unit only. So a stamp is never all zeroes, and none is right elsewhere.
    """

    def __init__(self, units: int) -> None:
        numbers = np.arange(1, units + 1, dtype=np.uint32)
        self._template = np.zeros((units, 4), np.uint32)
        self._template[:, 1] = numbers
        self._template[:, 2] = numbers * np.uint32(3266489917)
        self._template[:, 3] = numbers * np.uint32(668265263) ^ np.uint32(0x5BD1E995)

    def content(self, number: int, lo: int, hi: int) -> bytes:
        """The bytes [lo, hi) of the export as the write of that number leaves them."""
        first = lo // UNIT
        rows = self._template[first : -(-hi // UNIT)] ^ (np.uint32(number) * _FACTORS)
        return rows.tobytes()[lo - first * UNIT : hi - first * UNIT]

    def attribute(
        self, first: int, last: int, data: memoryview, below: int
    ) -> tuple[Numbers, Truths, Truths]:
        """For each of the units [first, last): the number of its write, whether it has one, whether it is zeroes.

        A number is 0 where there is none; numbers from ``below`` on were not given yet.
        """
        rows = np.frombuffer(data, np.uint32).reshape(-1, 4)
        stamps = rows ^ self._template[first:last]
        numbers = stamps[:, 0]
        whole = (
            (numbers < below)
            & (numbers > 0)
            & (stamps[:, 1] == 0)
            & (stamps[:, 2] == numbers * _FACTORS[2])
            & (stamps[:, 3] == numbers * _FACTORS[3])
        )
        zero = ~whole
        if zero.any():
            zero &= ~rows.any(axis=1)
        return np.where(whole, numbers, 0).astype(np.int32), whole, zero
