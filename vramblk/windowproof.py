"""The proof of a window: the worker's bytes reach the device, and the device's reach the worker.

The engine may have wrapped the slab as pinned memory of the device. Whether a runtime then really
uses the very pages that a forked process writes is a matter of faith, so it is tried: patterns
that differ each round go up from the receive part and come down into the transmit part.
"""

from __future__ import annotations

import os
import select

import numpy as np
import numpy.typing as npt

from .errors import RuntimeFailure
from .shared.ring import SubmissionRing
from .shared.window import Op, Window, Word

ROUNDS = 32
_BYTES = 8192
_TIMEOUT_S = 60.0


def prove_window(window: Window, ring: SubmissionRing, bell: int) -> None:
    """Send patterns through the device and compare; ``Word.PROVEN`` counts the rounds that held.

    Raises:
        RuntimeFailure: a pattern did not come back, or the engine did not answer.
    """
    rx_bytes, tx_bytes = window.layout.rx_bytes, window.layout.tx_bytes
    poller = select.poll()
    poller.register(bell, select.POLLIN)
    for round_number in range(ROUNDS):
        at = round_number * (rx_bytes - _BYTES) // ROUNDS & ~63
        to = rx_bytes + (round_number * (tx_bytes - _BYTES) // ROUNDS & ~63)
        pattern = _pattern(window.index * ROUNDS + round_number)
        window.slab[at : at + _BYTES] = pattern
        window.slab[to : to + _BYTES] = ~pattern
        number = ring.tail
        ring.push(Op.ECHO, 0, 0, 1, at, at + _BYTES, to, _BYTES)
        window.store(Word.WORKER_SLEEPING, 1)
        ring.publish()
        while ring.done() <= number:
            if not poller.poll(_TIMEOUT_S * 1000):
                raise RuntimeFailure(
                    f"window {window.index}: the engine did not answer within {_TIMEOUT_S:.0f} s"
                )
            try:
                os.eventfd_read(bell)
            except BlockingIOError:
                pass
        window.store(Word.WORKER_SLEEPING, 0)
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
