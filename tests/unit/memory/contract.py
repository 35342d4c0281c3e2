"""What every memory promises, as tests that are run over each implementation and on each kind of device.

A test module subclasses ``MemoryContract`` and gives the fixture ``rig``. The model is the memory in a
numpy array; both get the same batches and windows of equal contents, and must end with equal bytes in
the export and in every slab.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tests.unit.plain_memory import PlainMemory
from vramblk.memory.base import Batch, Copy, Memory, Pattern, Run, Zero
from vramblk.shared.window import Window, WindowLayout, make_windows

RX = TX = 1 << 20
LAYOUT = WindowLayout(RX, TX, 1)
CANARY = WindowLayout(65536, 65536, 1)
WINDOWS = 2
#: Bytes before the data of each request of a run: none, or the header of a reply.
GAPS = (0, 16, 28, 40)
#: Offset in the export and length, bytes, of each request.
Places = list[tuple[int, int]]


def windows() -> list[Window]:
    return make_windows([LAYOUT] * WINDOWS + [CANARY])


@dataclass
class Rig:
    """A memory and its model, each with windows of its own."""

    memory: Memory
    model: PlainMemory
    windows: list[Window]
    model_windows: list[Window]
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def noise(self) -> None:
        """Fill both sides' slabs with the same random bytes."""
        for ours, theirs in zip(self.windows, self.model_windows, strict=True):
            ours.slab[:] = self.random.integers(0, 256, ours.slab.nbytes, np.uint8)
            theirs.slab[:] = ours.slab

    def execute(self, batch: Batch) -> None:
        for ours, theirs in zip(self.windows, self.model_windows, strict=True):
            theirs.columns[:] = ours.columns
        self.memory.execute(batch)
        self.model.execute(batch)
        self._forgive(batch)

    def _forgive(self, batch: Batch) -> None:
        """What lies between the data of a run of reads may be anything: give the model the same there."""
        for run in batch.reads:
            ours, theirs = self.windows[run.window], self.model_windows[run.window]
            between = np.zeros(ours.slab.nbytes, bool)
            between[run.lo : run.hi] = True
            for _, length, at in self.model.requests(run.window, run.first, run.count):
                between[at : at + length] = False
            theirs.slab[between] = ours.slab[between]

    def compare(self) -> None:
        for ours, theirs in zip(self.windows, self.model_windows, strict=True):
            differs = np.flatnonzero(ours.slab != theirs.slab)
            assert not len(differs), f"slab {ours.index} differs at {differs[:8]} and {len(differs)} in all"
        differs = np.flatnonzero(self.content() != self.model.bytes)
        assert not len(differs), f"export differs at {differs[:8]} and {len(differs)} in all"

    def content(self) -> np.ndarray:
        """The whole export, read by direct copies through the canary's neighbour."""
        window, parts = self.windows[0], []
        kept = window.slab[:RX].copy()
        for offset in range(0, self.memory.size_bytes, RX):
            batch, length = Batch(), min(RX, self.memory.size_bytes - offset)
            batch.copies_out.append(Copy(0, 0, length, offset))
            self.memory.execute(batch)
            parts.append(window.slab[:length].copy())
        window.slab[:RX] = kept
        return np.concatenate(parts)

    def column(self, window: int, index: int, offset: int, position: int, length: int) -> None:
        arena, within = divmod(offset, self.memory.arena_bytes)
        assert within + length <= self.memory.arena_bytes
        base = self.windows[window].base
        self.windows[window].columns[:, index] = within // 16, (base + position) // 4, length // 16 | arena << 16

    def places(self, count: int, most: int = 65536) -> Places:
        """Offsets and lengths in multiples of 16, apart from each other and within arenas."""
        size, arena = self.memory.size_bytes, self.memory.arena_bytes
        stride = size // count // 16 * 16
        found = []
        for index in range(count):
            length = min(int(self.random.integers(1, most // 16 + 1)) * 16, stride)
            offset = index * stride + int(self.random.integers(0, (stride - length) // 16 + 1)) * 16
            room = arena - offset % arena
            found.append((offset, min(length, room)))
        self.random.shuffle(found)
        return found

    def writes(
        self, batch: Batch, window: int, count: int, most: int, first: int = 0, places: Places | None = None
    ) -> None:
        """A run of writes, their payloads apart by 28 bytes of header as they come from a socket."""
        position = start = int(self.random.integers(0, 64)) * 4
        for index, (offset, length) in enumerate(places or self.places(count, most)):
            position += 28
            self.column(window, first + index, offset, position, length)
            position += length
        assert position <= RX
        batch.writes.append(Run(window, first, count, start + 28, position))

    def reads(
        self, batch: Batch, window: int, count: int, most: int, gap: int, at: int, first: int,
        places: Places | None = None,
    ) -> int:  # fmt: skip
        """A run of reads with neighbouring replies from ``at``; where they end."""
        position = at
        for index, (offset, length) in enumerate(places or self.places(count, most)):
            self.column(window, first + index, offset, position + gap, length)
            position += gap + length
        assert position <= RX + TX
        batch.reads.append(Run(window, first, count, at, position))
        return position


def make_rig(make: Callable[[list[Window]], Memory]) -> Rig:
    """``make`` opens a memory; it is attached, and its model made to match."""
    ours, theirs = windows(), windows()
    memory = make(ours)
    memory.attach(ours)
    return Rig(memory, PlainMemory(memory.size_bytes, theirs, memory.arena_bytes), ours, theirs)


class MemoryContract:
    """The promises; see the module."""

    @pytest.mark.parametrize("gap", GAPS)
    @pytest.mark.parametrize("count", [1, 3, 63, 65, 250, 257])
    def test_runs(self, rig: Rig, gap: int, count: int) -> None:
        """Runs of reads and writes of any count, with any gaps, move exactly the bytes of their requests."""
        rig.noise()
        most = min(65536, (RX - 65536) // count - 64)
        for _ in range(3):
            batch = Batch()
            rig.writes(batch, 0, count, most)
            at = RX + int(rig.random.integers(0, 64)) * 4
            rig.reads(batch, 0, count, most, gap, at, first=count)
            rig.execute(batch)
        rig.compare()

    @pytest.mark.parametrize("gap", GAPS)
    @pytest.mark.parametrize(
        ("writes", "reads"), [(1, 1), (1, 255), (255, 1), (255, 2), (256, 3), (3, 256), (300, 30), (60, 600)]
    )
    def test_runs_apart(self, rig: Rig, gap: int, writes: int, reads: int) -> None:
        """Writes and reads that do not overlap, of any counts, with copies and zeroing beside them."""
        rig.noise()
        most = min(65536, (RX - 65536) // max(writes, reads) - 64)
        for _ in range(3):
            batch = Batch(apart=True)
            copied, zeroed, *places = rig.places(2 + writes + reads, most)
            rig.writes(batch, 0, writes, most, 0, places[:writes])
            at = RX + int(rig.random.integers(0, 64)) * 4
            rig.reads(batch, 0, reads, most, gap, at, writes, places[writes:])
            batch.copies_in.append(Copy(1, 3, 3 + copied[1], copied[0]))
            batch.zeroes.append(Zero(zeroed[0] + 1, zeroed[1] - 2))
            batch.copies_out.append(Copy(1, RX + 1, RX + 1 + places[0][1], places[0][0]))
            rig.execute(batch)
        rig.compare()

    @pytest.mark.parametrize("most", [16, 4096, 32768])
    def test_many_windows_and_runs_apart(self, rig: Rig, most: int) -> None:
        """Short and long requests: two runs of writes and six of reads for each window."""
        rig.noise()
        batch = Batch(apart=True)
        places = rig.places(WINDOWS * 8 * 3, most)
        ends = [RX] * WINDOWS
        for number in range(WINDOWS * 8):
            window, first = number % WINDOWS, number * 3
            part = places[first : first + 3]
            if number < WINDOWS * 2:
                rig.writes(batch, window, 3, most, first, part)
            else:
                gap, at = GAPS[number // WINDOWS % len(GAPS)], ends[window] + number // WINDOWS % 2 * 52
                ends[window] = rig.reads(batch, window, 3, most, gap, at, first, part)
        rig.execute(batch)
        rig.compare()

    def test_many_windows_and_runs(self, rig: Rig) -> None:
        """One batch holds runs of several windows, neighbours and others, and keeps them apart."""
        rig.noise()
        batch = Batch()
        for window in range(WINDOWS):
            rig.writes(batch, window, 20, 4096)
            end = rig.reads(batch, window, 30, 4096, 16, RX, first=100)
            end = rig.reads(batch, window, 5, 4096, 28, end, first=200)
            rig.reads(batch, window, 5, 4096, 40, end + 52, first=300)
        # The windows' writes may overlap each other, whose order nobody promises: one at a time.
        for run in list(batch.writes):
            alone = Batch()
            alone.writes.append(run)
            rig.execute(alone)
        batch.writes.clear()
        rig.execute(batch)
        rig.compare()

    def test_copies(self, rig: Rig) -> None:
        """Copies of any alignment and length, also across arena borders, in both directions."""
        rig.noise()
        size, arena = rig.memory.size_bytes, rig.memory.arena_bytes
        for number in range(40):
            length = int(rig.random.integers(1, min(300_000, size)))
            border = min(number % 4 * arena, size - length)
            offset = max(0, border - int(rig.random.integers(0, length + 1)))
            lo = int(rig.random.integers(0, RX - length))
            batch = Batch()
            (batch.copies_in if number % 3 else batch.copies_out).append(Copy(1, lo, lo + length, offset))
            rig.execute(batch)
        rig.compare()

    def test_zeroes(self, rig: Rig) -> None:
        """Zeroing hits exactly its bytes: any start and length, short ones, arena borders, everything."""
        rig.noise()
        size, arena = rig.memory.size_bytes, rig.memory.arena_bytes
        load = Batch()
        for offset in range(0, size, RX):
            load.copies_in.append(Copy(0, 0, min(RX, size - offset), offset))
        rig.execute(load)
        batch = Batch()
        for start in range(18):
            for length in (1, 2, 15, 16, 17, 31, 33, 4096, 5000):
                batch.zeroes.append(Zero(int(rig.random.integers(0, size - 6000)) // 16 * 16 + start, length))
        if arena < size:
            batch.zeroes.append(Zero(arena - 5001, 9999))
        batch.zeroes.append(Zero(size - 3, 3))
        rig.execute(batch)
        rig.compare()
        batch = Batch()
        batch.zeroes.append(Zero(1, size - 2))
        rig.execute(batch)
        rig.compare()

    def test_order_within_a_batch(self, rig: Rig) -> None:
        """Runs of writes come before copies in, these before zeroes, and reads see all of them."""
        rig.noise()
        batch = Batch()
        rig.column(0, 0, 0, 28, 8192)
        batch.writes.append(Run(0, 0, 1, 28, 28 + 8192))
        batch.copies_in.append(Copy(0, 20001, 20001 + 4000, 4001))
        batch.zeroes.append(Zero(5001, 100))
        rig.column(0, 1, 0, RX + 16, 8192)
        batch.reads.append(Run(0, 1, 1, RX, RX + 16 + 8192))
        batch.copies_out.append(Copy(0, RX + 10001, RX + 18001, 101))
        rig.execute(batch)
        rig.compare()

    def test_random_batches(self, rig: Rig) -> None:
        """Mixed batches in a row leave export and slabs as the model's."""
        size = rig.memory.size_bytes
        for _ in range(25):
            rig.noise()
            batch = Batch()
            if rig.random.random() < 0.7:
                rig.writes(batch, int(rig.random.integers(WINDOWS)), int(rig.random.integers(1, 60)), 8192)
            if rig.random.random() < 0.5:
                length = int(rig.random.integers(1, 200_000))
                batch.copies_in.append(
                    Copy(0, 5, 5 + length, int(rig.random.integers(0, size - length)))
                )
            if rig.random.random() < 0.5:
                start = int(rig.random.integers(0, size - 1))
                batch.zeroes.append(Zero(start, int(rig.random.integers(1, min(size - start, 100_000) + 1))))
            end = RX
            if rig.random.random() < 0.7:
                gap = GAPS[int(rig.random.integers(4))]
                end = rig.reads(batch, 1, int(rig.random.integers(1, 60)), 8192, gap, RX, first=500)
            if rig.random.random() < 0.5:
                length = int(rig.random.integers(1, 200_000))
                batch.copies_out.append(
                    Copy(1, end + 3, end + 3 + length, int(rig.random.integers(0, size - length)))
                )
            rig.execute(batch)
        rig.compare()

    def test_neighbours_of_a_reply_stay(self, rig: Rig) -> None:
        """Bytes of the slab that lie between two replies belong to others and are not touched."""
        rig.noise()
        batch = Batch()
        for index, at in enumerate((RX, RX + 5000, RX + 9112)):
            rig.column(0, index, index * 4096, at + 16, 4096)
            batch.reads.append(Run(0, index, 1, at, at + 4112))
        rig.execute(batch)
        rig.compare()

    def test_echoes(self, rig: Rig) -> None:
        """An echo carries slab bytes to another place of the slab and leaves the export alone."""
        rig.noise()
        batch = Batch()
        batch.echoes.append(Copy(0, 64, 64 + 8192, RX + 128))
        batch.echoes.append(Copy(2, 64, 64 + 8192, 65536 + 128))
        rig.execute(batch)
        rig.compare()

    @pytest.mark.parametrize("pattern", list(Pattern))
    def test_patterns(self, rig: Rig, pattern: Pattern) -> None:
        """What fill writes, mismatches accepts; a changed bit is found in its block of 4096."""
        from vramblk.memory.patterns import expected_words

        size = rig.memory.size_bytes
        rig.memory.fill(0, size, pattern, seed=12345)
        expected = expected_words(pattern, 0, size, 12345)
        assert np.array_equal(rig.content().view(np.uint32), expected)
        assert rig.memory.mismatches(0, size, pattern, seed=12345) == []
        if pattern is not Pattern.ZERO:
            assert rig.memory.mismatches(0, size, pattern, seed=99) == [(0, size)]
        offsets = sorted({0, rig.memory.arena_bytes - 1, size - 4097, size - 1})
        content = rig.content()
        for offset in offsets:
            rig.windows[0].slab[0] = content[offset] ^ 0x10
            batch = Batch()
            batch.copies_in.append(Copy(0, 0, 1, offset))
            rig.memory.execute(batch)
        blocks = {offset // 4096 for offset in offsets}
        found = rig.memory.mismatches(0, size, pattern, seed=12345)
        assert {block for lo, hi in found for block in range(lo // 4096, hi // 4096)} == blocks
        assert all(0 <= lo < hi <= size for lo, hi in found)

    def test_proof_leaves_zeroes(self, rig: Rig) -> None:
        """Promises 14 and 15: a proven export is all zero, as is one after zero_all."""
        rig.memory.prove()
        assert not rig.content().any()
        rig.memory.fill(0, rig.memory.size_bytes, Pattern.ADDRESS)
        rig.memory.zero_all()
        assert not rig.content().any()

    def test_released_and_taken_again(self, rig: Rig) -> None:
        """It is zero then, holds what is written, and its window proofs go on meanwhile."""
        memory = rig.memory
        for _ in range(2):
            memory.fill(0, memory.size_bytes, Pattern.RANDOM, 3)
            for _ in memory.release():
                pass
            rig.noise()
            rig.model.bytes[:] = 0
            echo = Batch()
            echo.echoes.append(Copy(0, 0, 4096, RX + 4096))
            rig.memory.execute(echo)
            rig.model.execute(echo)
            for _ in memory.take():
                pass
            rig.compare()
            batch = Batch()
            batch.copies_in.append(Copy(0, 0, 8192, 4096))
            rig.execute(batch)
            rig.compare()
            self.test_random_batches(rig)
            memory.zero_all()

    def test_description_is_json(self, rig: Rig) -> None:
        """Status and metrics get plain values and one entry per window."""
        import json

        description: dict[str, Any] = rig.memory.description
        assert json.loads(json.dumps(description)) == description
        assert {"device", "device_type", "vendor", "driver", "pci_address", "pinned"} <= set(description)
        assert len(rig.memory.pinned) == len(rig.windows)

    def test_empty_batch(self, rig: Rig) -> None:
        """A batch with nothing in it is no error."""
        rig.execute(Batch())
