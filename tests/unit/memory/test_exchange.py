"""Engine and OpenCL kernels together: what one request after the other leaves, whether a batch is one launch or two.

Needs the CPU OpenCL that the project's test extra brings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.memory.test_contract import LANES
from tests.unit.windows import BLOCK, Windows
from vramblk.engine.executor import EngineWindow
from vramblk.memory import opendevice
from vramblk.memory.arenas import plan_arenas
from vramblk.memory.base import Memory
from vramblk.memory.devices import CPU, discover
from vramblk.memory.opencl import OpenCLMemory
from vramblk.memory.opendevice import OpenDevice
from vramblk.shared.descriptors import Op

ARENA = 16 * BLOCK
#: Three arenas, the last one of half the size.
AREA = 40 * BLOCK

#: Op, and (offset, length) of each request, bytes.
Part = tuple[Op, Sequence[tuple[int, int]]]


def places(unit: int, most: int, arena_bytes: int) -> st.SearchStrategy[tuple[int, int]]:
    """Multiples of ``unit`` that cross no border of such arenas."""

    def cut(pair: tuple[int, int]) -> tuple[int, int]:
        offset = pair[0] * unit
        return offset, min(pair[1] * unit, AREA - offset, arena_bytes - offset % arena_bytes)

    return st.tuples(st.integers(0, AREA // unit - 1), st.integers(1, most // unit)).map(cut)


def apart(requests: list[tuple[int, int]]) -> list[tuple[int, int]]:
    kept: list[tuple[int, int]] = []
    for offset, length in requests:
        if all(offset + length <= at or at + size <= offset for at, size in kept):
            kept.append((offset, length))
    return kept


RUNS = st.lists(st.one_of(places(16, 600, ARENA), places(BLOCK, 2 * BLOCK, ARENA)), min_size=1, max_size=6)
PARTS = st.one_of(
    st.tuples(st.just(Op.GATHER), RUNS),
    st.tuples(st.just(Op.SCATTER), RUNS.map(apart)),
    st.tuples(st.sampled_from([Op.COPY_IN, Op.COPY_OUT, Op.ZERO]), places(1, 5000, AREA).map(lambda one: [one])),
)
TURNS = st.lists(st.lists(PARTS, min_size=1, max_size=5), min_size=1, max_size=5)


@pytest.fixture(scope="module", params=LANES)
def launched(request: pytest.FixtureRequest) -> Iterator[tuple[Windows, Counter[int]]]:
    """Windows before OpenCL memory, and how often each kernel was launched, by its handle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opendevice, "_CPU_LANES", request.param)
        device = OpenDevice(next(each for each in discover() if each.type == CPU), ARENA)
    kernels: Counter[int] = Counter()

    def open_memory(windows: Sequence[EngineWindow]) -> Memory:
        memory = OpenCLMemory(device, plan_arenas(AREA, ARENA))
        memory.attach(windows)
        return memory

    windows = Windows(1, open_memory=open_memory)
    launch: Callable[..., Any] = device.hot.launch

    def counted(queue: int, kernel: int, *others: Any) -> Any:
        kernels[kernel] += 1
        return launch(queue, kernel, *others)

    device.hot.launch = counted
    yield windows, kernels
    windows.memory.close()


def fresh(windows: Windows) -> None:
    windows.memory.zero_all()
    windows.written.blocks[:] = 0


@given(TURNS, st.integers(0, 255))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_requests_against_a_model(
    launched: tuple[Windows, Counter[int]], turns: list[list[Part]], value: int
) -> None:
    """Reads find, and the export ends with, what the same requests one by one give on a bytearray."""
    windows, _ = launched
    fresh(windows)
    model = bytearray(AREA)
    for parts in turns:
        expected: list[tuple[int, int, bytes]] = []
        for op, requests in parts:
            offset, length = requests[0]
            if op is Op.GATHER or op is Op.COPY_OUT:
                number, place = windows.gather(0, requests) if op is Op.GATHER else windows.read(0, offset, length)
                expected.append((number, place, b"".join(model[at : at + size] for at, size in requests)))
                continue
            payloads = []
            for at, size in requests:
                value = value + 1 & 255
                data = bytes(value + each & 255 for each in range(size)) if op is not Op.ZERO else bytes(size)
                payloads.append((at, data))
                model[at : at + size] = data
            if op is Op.SCATTER:
                windows.scatter(0, payloads)
            elif op is Op.COPY_IN:
                windows.write(0, *payloads[0])
            else:
                windows.zero(0, offset, length)
        windows.run()
        for number, place, data in expected:
            assert windows.slab(0, place, len(data)) == data, f"entry {number}"
        assert not windows.rings[0].failed()
        windows.rings[0].taken = windows.done(0)
    _, place = windows.read(0, 0, AREA)
    windows.run()
    assert windows.slab(0, place, AREA) == model
    windows.rings[0].taken = windows.done(0)


@pytest.mark.parametrize(("read", "launches"), [(0, 2), (4, 1)])
def test_reads_and_writes_are_one_launch_unless_they_overlap(
    launched: tuple[Windows, Counter[int]], read: int, launches: int
) -> None:
    """Both in one turn, the write first."""
    windows, kernels = launched
    fresh(windows)
    windows.scatter(0, [(block * BLOCK, b"w" * BLOCK) for block in (0, 1)])
    _, place = windows.gather(0, [(block * BLOCK, BLOCK) for block in (read, read + 1)])
    kernels.clear()
    assert windows.run() == 1
    assert kernels.total() == launches
    assert windows.slab(0, place, 2 * BLOCK) == (b"w" if launches == 2 else b"\0") * 2 * BLOCK
    windows.rings[0].taken = windows.done(0)


def test_a_table_that_does_not_hold_all_is_launched_again(launched: tuple[Windows, Counter[int]]) -> None:
    """Writes first, then reads; those of one launch may be of both kinds."""
    windows, kernels = launched
    fresh(windows)
    room = windows.memory._device.table_requests
    windows.scatter(0, [(number * 16, bytes([1 + number % 255]) * 16) for number in range(room + 3)])
    first = AREA // 2
    _, place = windows.gather(0, [(first + number * 16, 16) for number in range(room)])
    kernels.clear()
    assert windows.run() == 1
    assert list(kernels.values()) == [3]
    assert not any(windows.slab(0, place, room * 16))
    windows.rings[0].taken = windows.done(0)
    _, place = windows.read(0, 0, (room + 4) * 16)
    windows.run()
    data = b"".join(bytes([1 + number % 255]) * 16 for number in range(room + 3)) + bytes(16)
    assert windows.slab(0, place, len(data)) == data
    windows.rings[0].taken = windows.done(0)
