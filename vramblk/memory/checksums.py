"""Checksums of 4 KiB blocks (``--verify-reads``): what they are, and their table for mapped memory.

The checksum of a block of 32-bit words w is the sum over i of weight(i) (w[i] ^ w[i] >> 15), modulo
2^32, where weight(i) is odd: the top 14 bits of 0x9E3779B9 i (its low 32 bits), with the last bit
set. It is computed where the block lies, when it was written, and compared when it is read. A block
of zeroes has the checksum 0, so a table of zeroes is right for zeroed memory.

Caught for certain: any change within one word, so each single flipped bit (the xor loses nothing,
and odd weights neither); any two flipped bits (without the xor, two top bits would cancel each
other); zeroes that become ones or the reverse, in any aligned power of two of words or in every
second, fourth and so on (the weights 1, 3, 5 would miss a whole block of that: their sum is too round
a number). Of other changes one in 2^32 is missed, if they are random.

Not caught: what goes wrong before the block is signed or after it was compared, so on the way
between client and memory; blocks that changed places together with their checksums. A checksum that
was itself hit by an error makes a good block bad, never the other way round.

Who writes a part of a block must compare it first. Otherwise the new checksum would make good what
was bad.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

import numpy as np
import numpy.typing as npt

from .base import ChecksumError
from .patterns import BLOCK_BYTES

_WORDS = BLOCK_BYTES // 4
_SHIFT = np.uint32(15)
_WEIGHTS = np.arange(_WORDS, dtype=np.uint32) * np.uint32(0x9E3779B9) >> np.uint32(18) | np.uint32(1)
_AT_ONCE = 64

#: Ranges of an export: (offset, length), both in bytes.
Ranges = Iterable[tuple[int, int]]


def touched(offset: int, length: int) -> range:
    """Numbers of the blocks that have bytes in a range."""
    return range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES) if length else 0)


def edges(offset: int, length: int) -> list[int]:
    """Numbers of the blocks that a range covers in part, but not wholly: none, one or two."""
    end = offset + length
    blocks = touched(offset, length)
    found = [blocks[0]] if blocks and offset % BLOCK_BYTES else []
    if blocks and end % BLOCK_BYTES and found != [blocks[-1]]:
        found.append(blocks[-1])
    return found


class MappedChecksums:
    """The checksums of memory that this process can address, kept in an array.

    Args:
        memory: the export's bytes; a view of it is held until ``close``. All zero.
    """

    def __init__(self, memory: memoryview) -> None:
        self._blocks: npt.NDArray[np.uint32] = np.frombuffer(memory, np.uint32).reshape(-1, _WORDS)
        self._kept = np.zeros(len(self._blocks), np.uint32)
        # In swap mode nothing may be allocated later, and arrays of this size come from mmap.
        self._words = np.zeros((_AT_ONCE, _WORDS), np.uint32)
        self._shifted = np.zeros((_AT_ONCE, _WORDS), np.uint32)

    def sign(self, ranges: Ranges) -> None:
        """Keep the checksums of all blocks that the ranges touch."""
        for part in _parts(chain.from_iterable(touched(*each) for each in ranges)):
            self._kept[part] = self._sums(part)

    def check(self, ranges: Ranges) -> None:
        """Compare all blocks that the ranges touch.

        Raises:
            ChecksumError: some do not hold what was signed.
        """
        self._compare(chain.from_iterable(touched(*each) for each in ranges))

    def check_edges(self, ranges: Ranges) -> None:
        """Compare the blocks that the ranges, about to be written, cover only in part.

        Raises:
            ChecksumError: some do not hold what was signed.
        """
        self._compare(chain.from_iterable(edges(*each) for each in ranges))

    def close(self) -> None:
        self._blocks = np.zeros((0, _WORDS), np.uint32)

    def _compare(self, numbers: Iterable[int]) -> None:
        bad: set[int] = set()
        for part in _parts(numbers):
            bad.update(part[self._kept[part] != self._sums(part)].tolist())
        if bad:
            raise ChecksumError(len(bad), min(bad) * BLOCK_BYTES)

    def _sums(self, part: npt.NDArray[np.intp]) -> npt.NDArray[np.uint32]:
        words, shifted = self._words[: len(part)], self._shifted[: len(part)]
        # Without a mode, take would go through an array of its own.
        np.take(self._blocks, part, axis=0, out=words, mode="clip")
        np.right_shift(words, _SHIFT, out=shifted)
        np.bitwise_xor(words, shifted, out=words)
        np.multiply(words, _WEIGHTS, out=words)
        return np.asarray(words.sum(axis=1, dtype=np.uint32))


def _parts(numbers: Iterable[int]) -> Iterator[npt.NDArray[np.intp]]:
    left = iter(numbers)
    while len(part := np.fromiter(islice(left, _AT_ONCE), np.intp)):
        yield part
