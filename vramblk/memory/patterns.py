"""Contents that depend on the address, computed on the host as the kernels compute them.

A 32-bit word of a pattern is a function of its index in the export and of a seed, so that a word
that landed at a wrong address is found as surely as a bit that changed.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .base import DeviceError, Memory, Pattern, Progress

BLOCK_BYTES = 4096
_WORD = 0xFFFFFFFF
_PROOF_SEED = 0x9E3779B9
#: A step of a proof takes a GPU about a millisecond and a slow mapping about a second.
_STEP_BYTES = 128 << 20
#: A step while others are served.
SHORT_STEP_BYTES = 32 << 20
#: Written, read back, zeroed, read back.
_PASSES = 4


def expected_words(pattern: Pattern, offset: int, length: int, seed: int = 0) -> npt.NDArray[np.uint32]:
    """The words of the bytes [offset, offset + length), shape (length // 4,); both multiples of 4."""
    count = length // 4
    if pattern is Pattern.ZERO:
        return np.zeros(count, np.uint32)
    first = offset // 4
    if first >> 32 != (first + count - 1) >> 32:
        border = (first + count - 1) >> 32 << 34
        parts = ((offset, border - offset), (border, offset + length - border))
        return np.concatenate([expected_words(pattern, start, part, seed) for start, part in parts])
    low = np.arange(first & _WORD, (first & _WORD) + count, dtype=np.uint64).astype(np.uint32)
    high = np.uint32(first >> 32)
    key = np.uint32(seed & _WORD)
    if pattern is Pattern.ADDRESS:
        return np.asarray(low ^ np.uint32((int(high) << 16 ^ int(key)) & _WORD), np.uint32)
    if pattern is Pattern.RANDOM:
        start = np.array([(int(high) + int(key)) & _WORD], np.uint32)
        return _mixed(low ^ _mixed(start))
    one = np.uint32(1) << ((low + key) & np.uint32(31))
    return np.asarray(one if pattern is Pattern.WALKING_ONE else ~one, np.uint32)


def _mixed(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Three rounds of shift and multiply: each input bit reaches every output bit."""
    words = (words ^ (words >> np.uint32(17))) * np.uint32(0xED5AD4BB)
    words = (words ^ (words >> np.uint32(11))) * np.uint32(0xAC4C1B51)
    words = (words ^ (words >> np.uint32(15))) * np.uint32(0x31848BAB)
    return np.asarray(words ^ (words >> np.uint32(14)), np.uint32)


def bad_ranges(bad_blocks: npt.NDArray[np.bool_], offset: int) -> list[tuple[int, int]]:
    """Ranges [lo, hi) of the blocks marked bad, neighbours joined; the first block lies at ``offset``."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], bad_blocks, [False])).astype(np.int8)))
    return [
        (offset + int(first) * BLOCK_BYTES, offset + int(last) * BLOCK_BYTES)
        for first, last in edges.reshape(-1, 2)
    ]


def prove(memory: Memory, progress: Progress | None = None) -> None:
    """Write, read back, zero, read back; see ``Memory.prove``."""
    for done in proof(memory):
        if progress is not None:
            progress("prove", done // _PASSES, memory.size_bytes)


def proof(memory: Memory, step_bytes: int = _STEP_BYTES) -> Iterator[int]:
    """The steps of a proof: before each, how many bytes the steps before it have passed over.

    Raises:
        DeviceError: the memory did not hold what was written.
    """
    size = memory.size_bytes
    steps = [(at, min(step_bytes, size - at)) for at in range(0, size, step_bytes)]
    done = 0
    for pattern in (Pattern.ADDRESS, Pattern.ZERO):
        for offset, length in steps:
            yield done
            memory.fill(offset, length, pattern, _PROOF_SEED)
            done += length
        found = []
        for offset, length in steps:
            yield done
            found += memory.mismatches(offset, length, pattern, _PROOF_SEED)
            done += length
        if found:
            lo, hi = found[0]
            raise DeviceError(
                errno.EIO,
                f"the memory does not hold what was written: {len(found)} bad ranges, the first from"
                f" {lo:#x} to {hi:#x}; run vramblk selftest",
            )


def zeroing(memory: Memory, step_bytes: int = SHORT_STEP_BYTES) -> Iterator[None]:
    """The steps of zeroing a whole export.

    Raises:
        DeviceError: the device failed.
    """
    for at in range(0, memory.size_bytes, step_bytes):
        memory.fill(at, min(step_bytes, memory.size_bytes - at), Pattern.ZERO)
        yield
