"""What every memory with checksums promises, as tests that are run over each implementation and device.

A test module subclasses ``ChecksumContract`` and gives the fixture ``shared``. Bytes are changed behind
the memory's back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.memory.contract import RX, Rig, make_rig
from vramblk.memory.arenas import plan_arenas
from vramblk.memory.base import Batch, ChecksumError, Copy, DeviceError, Pattern, Run, Zero
from vramblk.memory.checksums import edges, touched
from vramblk.memory.devices import DeviceInfo
from vramblk.memory.opencl import OpenCLMemory
from vramblk.memory.opendevice import OpenDevice

EIO = 5
BLOCK = 4096

SPAN = 12 * BLOCK
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(("read", "read run", "write", "write run", "zero", "flip")),
        st.integers(0, SPAN - 1),
        st.one_of(st.integers(1, 3 * BLOCK), st.integers(1, 4).map(lambda blocks: blocks * BLOCK)),
        st.booleans(),
        st.integers(1, 255),
    ),
    max_size=25,
)


@dataclass
class Flippable:
    """A rig whose bytes can be changed behind the memory's back; ``change`` xors one byte."""

    rig: Rig
    change: Callable[[int, int], None]
    bad: set[int] = field(default_factory=set)

    def flip(self, offset: int, mask: int = 1) -> None:
        self.change(offset, mask)
        self.rig.model.bytes[offset] ^= mask
        self.bad ^= {offset // BLOCK}

    def read(self, offset: int, length: int, *, run: bool = False) -> bytes:
        batch = Batch()
        if run:
            self.rig.column(0, 0, offset, RX + 16, length)
            batch.reads.append(Run(0, 0, 1, RX, RX + 16 + length))
        else:
            batch.copies_out.append(Copy(0, RX + 16, RX + 16 + length, offset))
        self.rig.memory.execute(batch)
        return self.rig.windows[0].slab[RX + 16 : RX + 16 + length].tobytes()

    def write(self, offset: int, data: bytes, *, run: bool = False) -> None:
        self.rig.windows[0].slab[28 : 28 + len(data)] = np.frombuffer(data, np.uint8)
        batch = Batch()
        if run:
            self.rig.column(0, 0, offset, 28, len(data))
            batch.writes.append(Run(0, 0, 1, 28, 28 + len(data)))
        else:
            batch.copies_in.append(Copy(0, 28, 28 + len(data), offset))
        self.rig.memory.execute(batch)

    def zero(self, offset: int, length: int) -> None:
        batch = Batch()
        batch.zeroes.append(Zero(offset, length))
        self.rig.memory.execute(batch)

    def kept(self) -> np.ndarray:
        """The table of an OpenCL memory."""
        memory: Any = self.rig.memory
        found = np.zeros(memory.size_bytes // BLOCK, np.uint32)
        memory._device.read_back(memory._checksums._sums, found)
        return found

    def compare(self) -> None:
        """Every block is good, and holds what the model holds."""
        differs = np.flatnonzero(self.rig.content() != self.rig.model.bytes)
        assert not len(differs), f"export differs at {differs[:8]} and {len(differs)} in all"


def on_opencl(info: DeviceInfo, size_bytes: int, allocation: int | None) -> Flippable:
    import pyopencl as cl

    device = OpenDevice(info, allocation)
    sizes = plan_arenas(size_bytes, device.maximum_allocation)
    rig = make_rig(lambda windows: OpenCLMemory(device, sizes, verify_reads=True))

    def change(offset: int, mask: int) -> None:
        arena, within = divmod(offset, rig.memory.arena_bytes)
        byte = np.zeros(1, np.uint8)
        buffer = rig.memory._buffers[arena]  # type: ignore[attr-defined]
        cl.enqueue_copy(device.queue, byte, buffer, src_offset=within)
        byte ^= np.uint8(mask)
        cl.enqueue_copy(device.queue, buffer, byte, dst_offset=within)

    return Flippable(rig, change)


class ChecksumContract:
    """The promises; see the module."""

    @pytest.fixture
    def memory(self, shared: Flippable) -> Flippable:
        """Known contents in every block, all of them good."""
        rig = shared.rig
        rig.noise()
        batch = Batch()
        for offset in range(0, rig.memory.size_bytes, RX):
            batch.copies_in.append(Copy(1, 0, min(RX, rig.memory.size_bytes - offset), offset))
        rig.execute(batch)
        shared.bad.clear()
        return shared

    @pytest.mark.parametrize("run", [True, False])
    @pytest.mark.parametrize("mask", [1, 0x80])
    def test_a_flipped_bit_fails_its_block_alone(self, memory: Flippable, mask: int, run: bool) -> None:
        """Reads of any part of the block say EIO and where; its neighbours read well; nothing is lost."""
        arena = memory.rig.memory.arena_bytes
        last = memory.rig.memory.size_bytes - BLOCK
        for block in (0, 7 * BLOCK, arena - BLOCK, last):
            memory.flip(block + 2049, mask)
            for offset, length in ((block, BLOCK), (block + 16, 16), (block + 4080, 16)):
                with pytest.raises(ChecksumError) as caught:
                    memory.read(offset, length, run=run)
                assert (caught.value.errno, caught.value.lost) == (EIO, False)
                assert (caught.value.offset, caught.value.blocks) == (block, 1)
            for neighbour in {max(0, block - BLOCK), min(last, block + BLOCK)} - {block}:
                assert memory.read(neighbour, BLOCK, run=run) == memory.rig.model.bytes[neighbour:][:BLOCK].tobytes()
            memory.flip(block + 2049, mask)
        memory.compare()

    def test_unaligned_reads_across_a_bad_block(self, memory: Flippable) -> None:
        """A long read fails if any of its blocks is bad, and counts them."""
        for block in (40, 41, 60):
            memory.flip(block * BLOCK + 5)
        for offset, length, blocks in ((40 * BLOCK - 1, 2, 1), (39 * BLOCK + 1, 90_001, 3), (41 * BLOCK + 4095, 1, 1)):
            with pytest.raises(ChecksumError) as caught:
                memory.read(offset, length)
            assert caught.value.blocks == blocks
            assert caught.value.offset // BLOCK in memory.bad
        memory.read(42 * BLOCK, 18 * BLOCK)

    @pytest.mark.parametrize("how", ["run", "copy", "zero"])
    def test_whole_writes_heal(self, memory: Flippable, how: str) -> None:
        """A block that is written or zeroed as a whole is good again, whatever it held."""
        for number, length in ((3, BLOCK), (20, 3 * BLOCK)):
            at = number * BLOCK
            memory.flip(at + 100)
            memory.flip(at + length - 1, 0xFF)
            data = bytes(length) if how == "zero" else np.random.default_rng(3).bytes(length)
            if how == "zero":
                memory.zero(at, length)
            else:
                memory.write(at, data, run=how == "run")
            assert memory.read(at, length) == data
            assert memory.read(at - 5, length + 10)[5:-5] == data

    @pytest.mark.parametrize("how", ["run", "copy", "zero"])
    def test_partial_writes_never_sign_a_bad_block(self, memory: Flippable, how: str) -> None:
        """A write to a part of a bad block fails and changes nothing, also if it covers the flipped byte."""

        def act(offset: int, length: int) -> None:
            if how == "zero":
                memory.zero(offset, length)
            else:
                memory.write(offset, b"\x5a" * length, run=how == "run")

        block = 50 * BLOCK
        memory.flip(block + 1024)
        for offset, length in ((block, 16), (block + 1024, 16), (block - 2048, 4096), (block + 4080, 3 * BLOCK)):
            with pytest.raises(ChecksumError):
                act(offset, length)
            with pytest.raises(ChecksumError):
                memory.read(block, BLOCK)
        memory.flip(block + 1024)  # back, so that all can be read
        memory.compare()
        act(block + 1024, 16)
        memory.rig.model.bytes[block + 1024 : block + 1040] = 0 if how == "zero" else 0x5A
        memory.compare()

    @pytest.mark.parametrize("how", ["run", "copy", "zero"])
    def test_only_edges_must_have_been_good(self, memory: Flippable, how: str) -> None:
        """A write whose middle covers a bad block wholly is done, and heals it."""
        middle = 31 * BLOCK
        for before, after in ((2048, 2048), (2048, 0), (0, 16)):
            memory.flip(middle + 9)
            start, length = middle - before, before + BLOCK + after
            if how == "zero":
                memory.zero(start, length)
                memory.rig.model.bytes[start : start + length] = 0
            else:
                memory.write(start, b"\x77" * length, run=how == "run")
                memory.rig.model.bytes[start : start + length] = 0x77
            memory.compare()

    def test_requests_that_share_a_block(self, memory: Flippable) -> None:
        """Two writes of one batch into one block leave one good checksum, in a run and beside it."""
        rig, batch = memory.rig, Batch()
        rig.noise()
        for index in range(8):
            rig.column(0, index, 512 * index, 28 + 540 * index, 512)
        batch.writes.append(Run(0, 0, 8, 28, 28 + 540 * 8))
        batch.copies_in.append(Copy(1, 7, 1007, 100))
        batch.zeroes.append(Zero(4000, 200))
        rig.execute(batch)
        rig.compare()

    def test_a_failed_batch_is_repeated_one_by_one(self, memory: Flippable) -> None:
        """A batch that meets a bad block fails; alone, only the requests that need that block do."""
        rig = memory.rig
        memory.flip(5 * BLOCK)
        batch = Batch()
        for index in range(10):
            rig.column(0, index, index * BLOCK, RX + 16 + index * 4112, BLOCK)
        batch.reads.append(Run(0, 0, 10, RX, RX + 41120))
        with pytest.raises(ChecksumError):
            rig.memory.execute(batch)
        for index in range(10):
            alone = Batch()
            alone.reads.append(Run(0, index, 1, RX + index * 4112, RX + (index + 1) * 4112))
            if index == 5:
                with pytest.raises(ChecksumError):
                    rig.memory.execute(alone)
            else:
                rig.memory.execute(alone)
                data = rig.windows[0].slab[RX + index * 4112 + 16 :][:BLOCK]
                assert np.array_equal(data, rig.model.bytes[index * BLOCK : (index + 1) * BLOCK])

    def test_another_failure_leaves_no_finding_behind(self, memory: Flippable) -> None:
        """If a batch fails for another reason, a bad block that it met does not fail the next one."""
        rig = memory.rig
        memory.flip(5 * BLOCK)
        rig.column(0, 0, 5 * BLOCK, RX + 16, BLOCK)
        end = rig.windows[0].slab.nbytes
        batch = Batch()
        batch.reads.append(Run(0, 0, 1, end - 4112, end + 4096))
        with pytest.raises(DeviceError):
            rig.memory.execute(batch)
        assert memory.read(6 * BLOCK, BLOCK) == rig.model.bytes[6 * BLOCK : 7 * BLOCK].tobytes()

    @pytest.mark.parametrize("unsigned", [False, True])
    def test_echoes_after_a_mismatch_and_a_release(self, memory: Flippable, unsigned: bool) -> None:
        """A client leaves because it got EIO; then the canary looks after the device of an export without memory."""
        rig, echo = memory.rig, Batch()
        memory.flip(5 * BLOCK)
        with pytest.raises(ChecksumError):
            memory.read(5 * BLOCK, BLOCK)
        if unsigned:  # as of a batch of writes that has failed
            rig.memory._unsigned.append((5 * BLOCK, BLOCK))  # type: ignore[attr-defined]
        for _ in rig.memory.release():
            pass
        echo.echoes.append(Copy(0, 0, BLOCK, RX + BLOCK))
        rig.memory.execute(echo)
        assert np.array_equal(rig.windows[0].slab[RX + BLOCK :][:BLOCK], rig.windows[0].slab[:BLOCK])
        for _ in rig.memory.take():
            rig.memory.execute(echo)
        assert not rig.content().any()

    def test_fill_zero_and_proof_sign(self, memory: Flippable) -> None:
        """What the memory writes by itself is good, over whatever was there."""
        size = memory.rig.memory.size_bytes
        for act in (
            lambda: memory.rig.memory.fill(0, size, Pattern.ADDRESS),
            memory.rig.memory.zero_all,
            memory.rig.memory.prove,
        ):
            memory.flip(11 * BLOCK)
            memory.flip(size - 1)
            act()
            memory.rig.content()
        assert not memory.rig.content().any()

    @given(OPERATIONS)
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_any_program_against_a_model(self, shared: Flippable, program: list[Any]) -> None:
        """Reads and writes of any alignment, zeroing and flipped bytes, on both sides of an arena border.

        The model knows which blocks are bad: whatever needs their old contents fails and changes nothing;
        everything else is as in a bytearray.
        """
        border = min(shared.rig.memory.arena_bytes, shared.rig.memory.size_bytes // 2)
        run_program(shared, program, border // BLOCK * BLOCK - SPAN // 2)


def run_program(shared: Flippable, program: list[Any], base: int) -> None:
    shared.zero(base, SPAN)
    model, signed = bytearray(SPAN), bytearray(SPAN)
    for number, (what, at, length, aligned, value) in enumerate(program):
        if aligned:
            at = at // BLOCK * BLOCK
        length = min(length, SPAN - at)
        if what.endswith("run"):
            at, length = at // 16 * 16, max(16, length // 16 * 16)
            room = shared.rig.memory.arena_bytes - (base + at) % shared.rig.memory.arena_bytes
            length = min(length, room, SPAN - at)
        bad = {block for block in range(SPAN // BLOCK) if model[block * BLOCK :][:BLOCK] != signed[block * BLOCK :][:BLOCK]}
        if what == "flip":
            shared.change(base + at, value)
            model[at] ^= value
            continue
        reads = what.startswith("read")
        fails = bool(bad & set(touched(at, length) if reads else edges(at, length)))
        data = bytes(length) if what == "zero" else np.random.default_rng(number * 256 + value).bytes(length)
        try:
            if reads:
                assert shared.read(base + at, length, run=what.endswith("run")) == model[at : at + length]
            elif what == "zero":
                shared.zero(base + at, length)
            else:
                shared.write(base + at, data, run=what.endswith("run"))
        except ChecksumError:
            assert fails, (number, what, at, length)
            continue
        assert not fails, (number, what, at, length)
        if not reads:
            model[at : at + length] = data
            for block in touched(at, length):
                signed[block * BLOCK : (block + 1) * BLOCK] = model[block * BLOCK : (block + 1) * BLOCK]
