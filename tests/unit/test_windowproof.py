"""The proof of a window, behind an engine that is busy, stands still, or changes bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.unit.plain_memory import PlainMemory
from tests.unit.windows import BLOCK, Windows
from vramblk.errors import RuntimeFailure
from vramblk.memory.base import Batch, DeviceError
from vramblk.shared.control import ControlWord
from vramblk.shared.doorbell import worker_doorbell
from vramblk.shared.window import Word
from vramblk.worker.windowproof import ROUNDS, prove_window

TIMEOUT_S = 0.2


class Turning:
    """Windows whose engine turns in a thread until ``close``."""

    def __init__(self) -> None:
        self.before: Callable[[PlainMemory, Batch], None] = lambda memory, batch: None
        self.windows = Windows(2, before=lambda memory, batch: self.before(memory, batch), slab_part=1 << 18)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._turn)

    def start(self) -> None:
        self._thread.start()

    def _turn(self) -> None:
        while not self._ended.is_set():
            if not self.windows.engine.turn():
                time.sleep(0.0005)

    def prove(self) -> int:
        """How many rounds held; the window is that of the first worker."""
        shared = self.windows.shared
        window = self.windows.window(0)
        doorbell = worker_doorbell(window, shared.doorbells[0])
        prove_window(window, self.windows.rings[0], doorbell, shared.control, timeout_s=TIMEOUT_S)
        return window.load(Word.PROVEN)

    def close(self) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(10)


@pytest.fixture
def turning() -> Iterator[Turning]:
    made = Turning()
    yield made
    made.close()


def test_a_window_is_proven_in_all_rounds(turning: Turning) -> None:
    turning.start()
    assert turning.prove() == ROUNDS


def test_a_long_queue_of_others_is_waited_for(turning: Turning) -> None:
    """In all longer than the timeout, while the engine executes what others have queued."""
    slow = [0.03] * 30

    def sleep(memory: PlainMemory, batch: Batch) -> None:
        if slow:
            time.sleep(slow.pop())

    turning.before = sleep
    for _ in range(30):
        turning.windows.scatter(1, [(0, b"w" * 16), (BLOCK, b"w" * 16)])  # each a batch: it overlaps the last
    begun = time.monotonic()
    turning.start()
    assert turning.prove() == ROUNDS
    assert not slow and time.monotonic() - begun > TIMEOUT_S


def test_one_slow_batch_after_the_other_is_waited_for(turning: Turning) -> None:
    """Progress counts since the last look, not since the first."""

    def progress() -> None:
        control = turning.windows.shared.control
        for _ in range(20):
            time.sleep(TIMEOUT_S / 4)
            control.store(ControlWord.ENGINE_PROGRESS, control.load(ControlWord.ENGINE_PROGRESS) + 1)
        turning.start()

    helper = threading.Thread(target=progress)
    helper.start()
    begun = time.monotonic()
    assert turning.prove() == ROUNDS
    assert time.monotonic() - begun > 4 * TIMEOUT_S
    helper.join()


def test_an_engine_that_stands_still_fails_the_proof(turning: Turning) -> None:
    """After the timeout, with the window's number."""
    begun = time.monotonic()
    with pytest.raises(RuntimeFailure, match="window 0: the engine did not answer"):
        turning.prove()
    assert TIMEOUT_S <= time.monotonic() - begun < TIMEOUT_S + 2
    assert turning.windows.window(0).load(Word.PROVEN) == 0


def test_an_engine_that_stops_in_the_middle_fails_the_proof(turning: Turning) -> None:
    """What it has executed before counts for nothing then."""

    def stop(memory: PlainMemory, batch: Batch) -> None:
        if turning.windows.window(0).load(Word.PROVEN) == 5:
            turning._ended.set()
            time.sleep(3 * TIMEOUT_S)

    turning.before = stop
    turning.start()
    with pytest.raises(RuntimeFailure, match="did not answer"):
        turning.prove()
    assert turning.windows.window(0).load(Word.PROVEN) == 5


def test_a_byte_that_changes_on_the_way_fails_the_proof(turning: Turning) -> None:
    def flip(memory: PlainMemory, batch: Batch) -> None:
        if turning.windows.window(0).load(Word.PROVEN) == 7:
            for echo in batch.echoes:
                turning.windows.window(0).slab[echo.lo] ^= 1

    turning.before = flip
    turning.start()
    with pytest.raises(RuntimeFailure, match=r"did not survive .* \(round 7\)"):
        turning.prove()


def test_a_device_that_fails_fails_the_proof(turning: Turning) -> None:
    def fail(memory: PlainMemory, batch: Batch) -> None:
        raise DeviceError(5, "injected")

    turning.before = fail
    turning.start()
    with pytest.raises(RuntimeFailure, match="round 0"):
        turning.prove()
