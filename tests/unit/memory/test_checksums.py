"""Promise 13: what checksums catch, that they follow every write, and that a bad block never looks good again.

Bits are flipped behind the memory's back, in the OpenCL buffer or through another mapping of the file.
Needs the CPU OpenCL that the project's test extra brings.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.memory.checksumcontract import ChecksumContract, Flippable, on_opencl
from tests.unit.memory.contract import MemoryContract, Rig, make_rig
from vramblk.config.units import parse_size
from vramblk.memory import opendevice, probing, systemram
from vramblk.memory.base import Pattern
from vramblk.memory.checksums import MappedChecksums, edges, touched
from vramblk.memory.devicechecksums import checksum_bytes
from vramblk.memory.devices import CPU, discover
from vramblk.memory.mapped import MappedMemory
from vramblk.memory.opencl import OpenCLMemory
from vramblk.memory.opendevice import OpenDevice

BLOCK = 4096
SMALL_ALLOCATION = 384 << 10
#: Bytes, largest allocation, and work-items per block; the last two are what GPUs have.
KINDS: dict[str, tuple[int, int | None, int]] = {
    "one": (6 << 20, None, 1),
    "many": (5124 << 10, SMALL_ALLOCATION, 1),
    "lanes": (6 << 20, None, 256),
    "many lanes": (5124 << 10, SMALL_ALLOCATION, 256),
    "odd lanes": (5124 << 10, SMALL_ALLOCATION, 24),
}


def on_cpu(kind: str) -> Iterator[Flippable]:
    info = next(device for device in discover() if device.type == CPU)
    size_bytes, allocation, lanes = KINDS[kind]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opendevice, "_CPU_LANES", lanes)
        made = on_opencl(info, size_bytes, allocation)
    yield made
    made.rig.memory.close()


def on_a_file(kind: str) -> Iterator[Flippable]:
    size_bytes, allocation, _ = KINDS[kind]
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(size_bytes)
        rig = make_rig(
            lambda windows: MappedMemory(
                file.name,
                parse_size("max"),
                map_overwrite=True,
                verify_reads=True,
                maximum_arena=allocation or 1 << 36,
            )
        )
        with mmap.mmap(file.fileno(), size_bytes) as other:

            def change(offset: int, mask: int) -> None:
                other[offset] ^= mask

            yield Flippable(rig, change)
        rig.memory.close()


MAKERS = {**{f"opencl {kind}": on_cpu for kind in KINDS}, "mapped one": on_a_file, "mapped many": on_a_file}


@pytest.fixture(scope="module", params=MAKERS)
def shared(request: pytest.FixtureRequest) -> Iterator[Flippable]:
    yield from MAKERS[request.param](request.param.split(" ", 1)[1])


class TestChecksums(ChecksumContract):
    """With one arena and with many, on PoCL as a CPU and with as many work-items as on a GPU."""


class TestOpenCL(MemoryContract):
    """Checksums change nothing of what a memory promises."""

    @pytest.fixture(params=KINDS)
    def rig(self, request: pytest.FixtureRequest) -> Iterator[Rig]:
        for each in on_cpu(request.param):
            yield each.rig


class TestMapped(MemoryContract):
    """The same on a file."""

    @pytest.fixture(params=["one", "many"])
    def rig(self, request: pytest.FixtureRequest) -> Iterator[Rig]:
        for each in on_a_file(request.param):
            yield each.rig


def weight(index: int) -> int:
    return (index * 0x9E3779B9 % 2**32 >> 18) | 1


def plain_sum(block: np.ndarray) -> int:
    return sum(weight(index) * (word ^ word >> 15) for index, word in enumerate(block.tolist())) % 2**32


@pytest.mark.parametrize("content", ["zero", "ones", "random", "ramp"])
def test_the_sum_is_what_the_page_says(content: str) -> None:
    """The table holds, for each block, the sum that ``checksums`` describes; of zeroes it is 0."""
    blocks = {
        "zero": np.zeros((70, 1024), np.uint32),
        "ones": np.full((70, 1024), 0xFFFFFFFF, np.uint32),
        "random": np.random.default_rng(1).integers(0, 2**32, (70, 1024), np.uint32),
        "ramp": np.arange(70 * 1024, dtype=np.uint32).reshape(70, 1024),
    }[content]
    table = MappedChecksums(memoryview(blocks).cast("B"))
    table.sign([(0, blocks.nbytes)])
    assert table._kept.tolist() == [plain_sum(block) for block in blocks]
    assert table._kept.any() == (content != "zero")
    table.check([(0, blocks.nbytes)])


@pytest.mark.parametrize("kind", KINDS)
def test_the_device_computes_the_same_sum(kind: str) -> None:
    """Whatever the number of work-items and arenas, the device's table is the host's."""
    for each in on_cpu(kind):
        size_bytes = each.rig.memory.size_bytes
        each.rig.memory.fill(0, size_bytes, Pattern.RANDOM, 5)
        table = MappedChecksums(memoryview(each.rig.content()))
        table.sign([(0, size_bytes)])
        assert np.array_equal(each.kept(), table._kept)


def test_any_two_flipped_bits_change_the_sum() -> None:
    """Flips in two words never cancel: no change that a flip makes to the sum is another's negative.

    In one word they cannot, since the sum tells any two words at one place apart.
    """
    bits = 1 << np.arange(32, dtype=np.int64)
    below = bits >> 15  # the bit that the xor changes as well
    changes = np.concatenate([s * bits + t * below for s in (1, -1) for t in (1, -1)])
    weights = np.array([weight(index) for index in range(1024)], np.int64)
    by_word = (weights[:, None] * changes[None, :]) % 2**32
    values = np.concatenate([by_word, -by_word % 2**32], axis=1)
    assert values.all()
    owners = np.repeat(np.arange(1024), values.shape[1])
    order = np.argsort(values.ravel(), kind="stable")
    same = values.ravel()[order][1:] == values.ravel()[order][:-1]
    assert not (same & (owners[order][1:] != owners[order][:-1])).any()


@pytest.mark.parametrize("words", [1 << power for power in range(11)])
def test_pieces_of_ones_differ_from_zeroes(words: int) -> None:
    """A piece of a zero block that reads as ones is caught, wherever it lies, and so is a comb of words."""
    pieces = np.zeros((1024 // words, 1024), np.uint32)
    for index in range(len(pieces)):
        pieces[index, index * words : (index + 1) * words] = 0xFFFFFFFF
    combs = np.zeros((words, 1024), np.uint32)
    for index in range(words):
        combs[index, index::words] = 0xFFFFFFFF
    for blocks in (pieces, combs, ~pieces, ~combs):
        table = MappedChecksums(memoryview(blocks).cast("B"))
        table.sign([(0, blocks.nbytes)])
        for one in (0, 0xFFFFFFFF):
            uniform = plain_sum(np.full(1024, one, np.uint32))
            whole = (blocks == one).all(axis=1)
            assert ((table._kept == uniform) == whole).all()


@given(st.integers(0, 5 * BLOCK), st.integers(0, 5 * BLOCK))
def test_edges_are_the_blocks_covered_in_part(offset: int, length: int) -> None:
    covered = np.zeros(11 * BLOCK, bool)
    covered[offset : offset + length] = True
    counts = covered.reshape(-1, BLOCK).sum(axis=1)
    assert list(touched(offset, length)) == np.flatnonzero(counts).tolist()
    assert edges(offset, length) == np.flatnonzero((counts > 0) & (counts < BLOCK)).tolist()


def test_without_checksums_nothing_is_kept() -> None:
    """Off: no memory but the arenas and the staging buffer, and a flipped bit is read as it is."""
    device = OpenDevice(next(device for device in discover() if device.type == CPU))
    asked: list[int] = []
    allocate = device.allocate
    device.allocate = lambda size_bytes: asked.append(size_bytes) or allocate(size_bytes)  # type: ignore
    rig = make_rig(lambda windows: OpenCLMemory(device, [1 << 20]))
    assert asked == [1 << 20, device.staging_bytes]
    rig.memory.close()


def test_usable_leaves_room_for_checksums() -> None:
    """Where the size is found by probing, the export and its checksums together fit."""
    info = next(device for device in discover() if device.type == CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(systemram, "available_bytes", lambda *_: 4 << 30)
        plain = probing.usable_bytes(info)
        usable = probing.usable_bytes(info, verify_reads=True)
    assert plain - (4 << 20) < usable + checksum_bytes(usable) <= plain
