"""The proof of a window: the worker's bytes reach the device, and the device's reach the worker.

The engine may have wrapped the slab as pinned memory of the device. Whether a runtime then really
uses the very pages that a forked process writes is a matter of faith, so it is tried: patterns
that differ each round go up from the receive part and come down into the transmit part.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import RuntimeFailure
from ..shared.control import Control, ControlWord
from ..shared.descriptors import Op
from ..shared.doorbell import Doorbell
from ..shared.ring import SubmissionRing
from ..shared.window import Window, Word

ROUNDS = 32
_BYTES = 8192


def prove_window(
    window: Window, ring: SubmissionRing, doorbell: Doorbell, control: Control, *, timeout_s: float = 60.0
) -> None:
    """Send patterns through the device and compare; ``Word.PROVEN`` counts the rounds that held.

    An engine that is busy with others' requests is waited for, as long as it moves on each ``timeout_s``.

    Raises:
        RuntimeFailure: a pattern did not come back, or the engine stands still.
    """
    rx_bytes, tx_bytes = window.layout.rx_bytes, window.layout.tx_bytes
    for round_number in range(ROUNDS):
        at = round_number * (rx_bytes - _BYTES) // ROUNDS & ~63
        to = rx_bytes + (round_number * (tx_bytes - _BYTES) // ROUNDS & ~63)
        pattern = _pattern(window.index * ROUNDS + round_number)
        window.slab[at : at + _BYTES] = pattern
        window.slab[to : to + _BYTES] = ~pattern
        number = ring.tail
        ring.push(Op.ECHO, 0, 0, 1, at, at + _BYTES, to, _BYTES)
        ring.publish()
        progress = control.load(ControlWord.ENGINE_PROGRESS)
        while ring.done() <= number:
            if not doorbell.wait(lambda number=number: ring.done() > number, timeout_s):  # type: ignore[misc]
                before, progress = progress, control.load(ControlWord.ENGINE_PROGRESS)
                if progress != before:
                    continue
                raise RuntimeFailure(
                    f"window {window.index}: the engine did not answer within {timeout_s:.0f} s"
                )
        if (ring.failed() and ring.take_status(number)) or not np.array_equal(
            window.slab[to : to + _BYTES], pattern
        ):
            raise RuntimeFailure(
                f"window {window.index}: bytes did not survive the way through the device "
                f"(round {round_number})"
            )
        window.store(Word.PROVEN, round_number + 1)


def _pattern(number: int) -> npt.NDArray[np.uint8]:
    """Bytes that no other round has. Not from numpy.random, which would stay in memory with 3 MiB."""
    words = np.arange(1, _BYTES // 4 + 1, dtype=np.uint32) * np.uint32(0x9E3779B1)
    words ^= np.uint32((number + 1) * 0x85EBCA6B & 0xFFFFFFFF)
    return words.view(np.uint8)
