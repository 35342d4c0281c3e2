"""A corrupt worker: whatever stands in its columns, nothing outside export, staging buffer and slab changes.

On OpenCL each buffer lies between guards in a larger one; the mapped file goes on behind the export.
Needs the CPU OpenCL that the project's test extra brings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.memory.contract import RX, WINDOWS, Rig, make_rig, windows
from tests.unit.sharedmemory import make_shared
from vramblk.config.settings import load_settings
from vramblk.config.units import parse_size
from vramblk.engine.executor import Executor, engine_windows
from vramblk.memory.arenas import plan_arenas
from vramblk.memory.base import Batch, DeviceError, Pattern, Run
from vramblk.memory.devices import CPU, discover
from vramblk.memory.mapped import MappedMemory
from vramblk.memory.opencl import OpenCLMemory
from vramblk.memory.opendevice import OpenDevice
from vramblk.shared.descriptors import ENTRY, ENTRY_BYTES, Op
from vramblk.shared.window import Word

EINVAL = 22
GUARD = 65536
GUARD_BYTE = 0xA5
#: Fourteen arenas of 384 KiB, the last one of 132 KiB.
SIZE, ALLOCATION = 5124 << 10, 384 << 10
STAGING = windows()[-1].base + windows()[-1].slab.nbytes


def near(*borders: int) -> st.SearchStrategy[int]:
    """Numbers of 32 bits: around these, and any."""
    close = st.sampled_from(borders).flatmap(lambda border: st.integers(border - 40, border + 40))
    return st.one_of(close, st.integers(0, 2**32 - 1)).map(lambda number: number % 2**32)


LENGTHS = near(0, 256, 4096, 65535).map(lambda number: number % 65536)
SHAPES = st.one_of(
    st.builds(
        lambda length, arena: length | arena << 16,
        LENGTHS,
        st.integers(0, 15),
    ),
    st.integers(0, 2**32 - 1),
)
PLACES = near(0, ALLOCATION // 16, SIZE % ALLOCATION // 16, 2**32)
POSITIONS = near(0, STAGING // 4, RX // 4, 2 * RX // 4)


def bordering(length: int, arena: int, beyond16: int, beyond4: int) -> tuple[int, int, int]:
    """A column that ends so far beyond its arena or the export, and beyond the staging buffer."""
    room = min(ALLOCATION, SIZE - arena * ALLOCATION)
    place = room // 16 + beyond16 - length
    position = STAGING // 4 + beyond4 - length * 4
    return max(0, place), max(0, position), length | arena << 16


BORDERING = st.builds(
    bordering,
    st.sampled_from((1, 2, 16, 256, 300)),
    st.integers(0, 13),
    st.integers(-1, 1),
    st.sampled_from((-8, -4, -1, 0, 1, 4, 10)),
)
COLUMNS = st.lists(st.one_of(BORDERING, st.tuples(PLACES, POSITIONS, SHAPES)), min_size=1, max_size=12)


@dataclass
class Request:
    """What a column says, in bytes; ``start`` is a place in the staging buffer."""

    offset: int
    length: int
    start: int
    in_arena: bool

    @classmethod
    def of(cls, place: int, position: int, shape: int) -> Request:
        arena, length = shape >> 16, (shape & 0xFFFF) * 16
        offset = arena * ALLOCATION + place * 16
        in_arena = place * 16 + length <= ALLOCATION and offset + length <= SIZE and arena * ALLOCATION < SIZE
        return cls(offset, length, position * 4, in_arena)

    def is_inside(self) -> bool:
        return self.in_arena and self.start + self.length <= STAGING


@dataclass
class Guarded:
    """A rig on a device whose buffers lie between guards."""

    rig: Rig
    device: OpenDevice
    wholes: list[tuple[Any, int]] = field(default_factory=list)

    def assert_guards(self) -> None:
        import pyopencl as cl

        for whole, size_bytes in self.wholes:
            found = np.zeros(size_bytes + 2 * GUARD, np.uint8)
            cl.enqueue_copy(self.device.queue, found, whole)
            assert (found[:GUARD] == GUARD_BYTE).all(), f"before a buffer of {size_bytes} bytes"
            assert (found[GUARD + size_bytes :] == GUARD_BYTE).all(), f"behind a buffer of {size_bytes} bytes"


@pytest.fixture(scope="module", params=["plain", "checksums"])
def guarded(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    import pyopencl as cl

    device = OpenDevice(next(device for device in discover() if device.type == CPU), ALLOCATION)
    wholes: list[tuple[Any, int]] = []

    def allocate(size_bytes: int) -> Any:
        content = np.full(size_bytes + 2 * GUARD, GUARD_BYTE, np.uint8)
        flags = cl.mem_flags.READ_WRITE
        whole = cl.Buffer(device.context, flags | cl.mem_flags.COPY_HOST_PTR, hostbuf=content)
        wholes.append((whole, size_bytes))
        part = whole.get_sub_region(GUARD, size_bytes, flags)
        device._buffers.append(part)
        return part

    device.allocate = allocate  # type: ignore[method-assign]
    sizes = plan_arenas(SIZE, ALLOCATION)
    verify = request.param == "checksums"
    rig = make_rig(lambda _: OpenCLMemory(device, sizes, verify_reads=verify))
    assert len(wholes) == len(sizes) + 1 + 2 * verify
    assert device.staging_bytes == STAGING
    staging = np.full(STAGING, GUARD_BYTE, np.uint8)
    device.read_back(device.staging_handle, staging.view(np.uint32))
    assert not staging.any(), "what others have left on the device does not reach a slab"
    yield Guarded(rig, device, wholes)
    rig.memory.close()


def put(rig: Rig, columns: list[tuple[int, int, int]]) -> Run:
    for index, column in enumerate(columns):
        rig.windows[0].columns[:, index] = column
    return Run(0, 0, len(columns), 0, rig.windows[0].slab.nbytes)


@given(COLUMNS, st.integers(0, 2**32))
@settings(max_examples=120, deadline=None)
def test_opencl_writes(guarded: Guarded, columns: list[tuple[int, int, int]], seed: int) -> None:
    """Writes that lie within are done, all others change nothing; checksums stay right."""
    rig = guarded.rig
    rig.random = np.random.default_rng(seed)
    rig.memory.zero_all()
    rig.noise()
    for window in rig.windows:
        guarded.device.stage_in(window.index, 0, window.slab.nbytes)
    staging = np.concatenate([window.slab for window in rig.windows])
    expected, times = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    for request in (Request.of(*column) for column in columns):
        if request.is_inside():
            end = request.offset + request.length
            expected[request.offset : end] = staging[request.start : request.start + request.length]
            times[request.offset : end] += 1
    batch = Batch()
    batch.writes.append(put(rig, columns))
    rig.memory.execute(batch)
    assert not ((rig.content() != expected) & (times < 2)).any()
    guarded.assert_guards()


@given(COLUMNS, st.integers(0, 2**32))
@settings(max_examples=120, deadline=None)
def test_opencl_reads(guarded: Guarded, columns: list[tuple[int, int, int]], seed: int) -> None:
    """Reads that lie within are answered, all others change nothing."""
    rig = guarded.rig
    rig.random = np.random.default_rng(seed)
    rig.memory.fill(0, SIZE, Pattern.RANDOM, seed)
    before = rig.content()
    requests = [request for request in (Request.of(*column) for column in columns) if request.is_inside()]
    times = np.zeros(STAGING, np.uint8)
    for request in requests:
        times[request.start : request.start + request.length] += 1
    batch = Batch()
    batch.reads.append(put(rig, columns))
    rig.memory.execute(batch)
    slab = rig.windows[0].slab.copy()
    for request in requests:
        start, end = request.start, request.start + request.length
        if end <= len(slab) and (times[start:end] == 1).all():
            assert np.array_equal(slab[start:end], before[request.offset : request.offset + request.length])
    assert np.array_equal(rig.content(), before)
    guarded.assert_guards()


@given(COLUMNS, COLUMNS, st.integers(0, 2**32))
@settings(max_examples=120, deadline=None)
def test_opencl_reads_and_writes_together(
    guarded: Guarded, written: list[tuple[int, int, int]], read: list[tuple[int, int, int]], seed: int
) -> None:
    """Such columns of both kinds in one launch: nothing changes but what writes that lie within name."""
    rig = guarded.rig
    rig.random = np.random.default_rng(seed)
    rig.memory.fill(0, SIZE, Pattern.RANDOM, seed)
    rig.noise()
    before = rig.content()
    touched = np.zeros(SIZE, bool)
    for request in (Request.of(*column) for column in written):
        if request.is_inside():
            touched[request.offset : request.offset + request.length] = True
    run = put(rig, written + read)
    batch = Batch(apart=True)
    batch.writes.append(run._replace(count=len(written)))
    batch.reads.append(run._replace(first=len(written), count=len(read)))
    rig.memory.execute(batch)
    assert not ((rig.content() != before) & ~touched).any()
    guarded.assert_guards()


@pytest.mark.parametrize(("lo", "hi"), [(-4096, 0), (2 * RX - 16, 2 * RX + 16), (2**33, 2**33 + 4096)])
def test_opencl_ranges_outside_the_slab(guarded: Guarded, lo: int, hi: int) -> None:
    """The range of a request that is repeated alone comes from its column: outside the slab it is EINVAL."""
    put(guarded.rig, [(0, 0, 1)])
    for runs in ("reads", "writes"):
        batch = Batch()
        getattr(batch, runs).append(Run(0, 0, 1, lo, hi))
        with pytest.raises(DeviceError) as caught:
            guarded.rig.memory.execute(batch)
        assert (caught.value.errno, caught.value.lost) == (EINVAL, False)


@dataclass
class Mapped:
    rig: Rig
    path: Path


@pytest.fixture(scope="module", params=["plain", "checksums"])
def mapped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapped]:
    path = tmp_path_factory.mktemp("bounds") / "memory"
    path.write_bytes(bytes([GUARD_BYTE]) * (SIZE + GUARD))
    verify = request.param == "checksums"
    rig = make_rig(
        lambda _: MappedMemory(
            str(path),
            parse_size("5124K"),
            map_overwrite=True,
            verify_reads=verify,
            maximum_arena=ALLOCATION,
        )
    )
    yield Mapped(rig, path)
    rig.memory.close()


def tamed(place: int, position: int, shape: int) -> tuple[int, int, int]:
    """The same with both places well inside; the arena stays as wild as it is."""
    return place % 8000, position % 1000, shape & 0xFFFF01FF


MAPPED_COLUMNS = st.lists(
    st.tuples(
        st.one_of(BORDERING.map(lambda column: tamed(*column)), BORDERING, st.tuples(PLACES, POSITIONS, SHAPES)),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@given(MAPPED_COLUMNS, st.sampled_from(["reads", "writes"]), st.integers(0, WINDOWS))
@settings(max_examples=300, deadline=None)
def test_mapped(mapped: Mapped, drawn: list[Any], runs: str, window: int) -> None:
    """A run with a request that points outside is EINVAL and changes nothing; every other one is done."""
    rig = mapped.rig
    own = rig.windows[window].base // 4
    columns = [
        (place, (position + own) % 2**32 if shifted else position, shape)
        for (place, position, shape), shifted in drawn
    ]
    rig.memory.zero_all()
    rig.noise()
    base, slab = rig.windows[window].base, rig.windows[window].slab
    before = slab.copy()
    requests = [Request.of(*column) for column in columns]
    sane = all(
        request.in_arena
        and base <= request.start
        and request.start + request.length <= base + slab.nbytes
        for request in requests
    )
    for index, column in enumerate(columns):
        rig.windows[window].columns[:, index] = column
    batch = Batch()
    getattr(batch, runs).append(Run(window, 0, len(columns), 0, slab.nbytes))
    if sane:
        rig.memory.execute(batch)
    else:
        with pytest.raises(DeviceError) as caught:
            rig.memory.execute(batch)
        assert (caught.value.errno, caught.value.lost) == (EINVAL, False)
        assert np.array_equal(slab, before)
        assert not rig.content().any()
    with mapped.path.open("rb") as file:
        file.seek(SIZE)
        assert file.read() == bytes([GUARD_BYTE]) * GUARD


@given(COLUMNS, st.sampled_from([Op.GATHER, Op.SCATTER]))
@settings(max_examples=60, deadline=None)
def test_the_engine_goes_on(served: tuple[Any, Executor], columns: list[tuple[int, int, int]], op: Op) -> None:
    """The engine takes a run of such columns, says that it is done, and serves the next entry."""
    shared, engine = served
    window = shared.windows[0]
    for index, column in enumerate(columns):
        window.columns[:, index] = column
    for lo, hi, entry in ((0, len(window.slab), op), (0, 4096, Op.COPY_OUT)):
        tail = window.load(Word.TAIL)
        length = hi - lo if entry is Op.COPY_OUT else 0
        count = 0 if entry is Op.COPY_OUT else len(columns)
        ENTRY.pack_into(window.entries, tail % 1024 * ENTRY_BYTES, entry, 0, 0, count, lo, hi, 0, length, 0)
        window.store(Word.TAIL, tail + 1)
        failures = window.load(Word.FAILURES)
        assert engine.turn()
        assert window.load(Word.DONE) == tail + 1
    assert window.load(Word.FAILURES) == failures


@pytest.fixture(scope="module", params=["opencl", "mapped"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    shared = make_shared(load_settings(["--allow-cpu", "--size", "5124K"], {}), 1, RX, RX)
    memory: Any
    if request.param == "opencl":
        device = OpenDevice(next(device for device in discover() if device.type == CPU), ALLOCATION)
        memory = OpenCLMemory(device, plan_arenas(SIZE, ALLOCATION), verify_reads=True)
    else:
        path = tmp_path_factory.mktemp("engine") / "memory"
        path.write_bytes(bytes(SIZE))
        memory = MappedMemory(
            str(path), parse_size("max"), map_overwrite=True, verify_reads=True, maximum_arena=ALLOCATION
        )
    windows = engine_windows(shared.windows)
    memory.attach(windows)
    shared.written[0].resize(SIZE)
    yield shared, Executor(shared, [memory], windows)
    memory.close()
