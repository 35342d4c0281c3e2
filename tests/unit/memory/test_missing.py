"""Memory that is released and cannot be taken again: how much is missing, and that nothing stays allocated."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest

from vramblk.config.units import parse_size
from vramblk.memory import maptarget, opencl, systemram
from vramblk.memory.arenas import plan_arenas
from vramblk.memory.base import DeviceError, MissingMemory, Pattern
from vramblk.memory.devices import CPU, discover
from vramblk.memory.mapped import MappedMemory
from vramblk.memory.opencl import OpenCLMemory
from vramblk.memory.opendevice import OpenDevice
from vramblk.system import kernel

MIB = 1 << 20


class Scarce(OpenDevice):
    """A device that has so many bytes left."""

    left = 1 << 62

    def allocate(self, size_bytes: int) -> Any:
        if size_bytes > self.left:
            raise DeviceError(errno.ENOMEM, "injected")
        self.left -= size_bytes
        return super().allocate(size_bytes)

    def free(self, buffer: Any) -> None:
        self.left += buffer.size
        super().free(buffer)


@pytest.fixture(scope="module")
def device() -> Scarce:
    return Scarce(next(device for device in discover() if device.type == CPU), 4 * MIB)


@pytest.fixture(params=[False, True], ids=["plain", "checksums"])
def memory(request: pytest.FixtureRequest, device: Scarce) -> Iterator[OpenCLMemory]:
    device.left = 1 << 62
    memory = OpenCLMemory(device, plan_arenas(16 * MIB, 4 * MIB), verify_reads=request.param)
    for _ in memory.release():
        pass
    assert not memory._buffers
    yield memory
    device.left = 1 << 62
    memory.close()


@pytest.mark.parametrize(("left", "missing"), [(0, 16), (3, 13), (9, 7), (15, 1)])
def test_what_is_missing(memory: OpenCLMemory, device: Scarce, left: int, missing: int) -> None:
    device.left = left * MIB
    with pytest.raises(MissingMemory) as caught:
        for _ in memory.take():
            pass
    assert caught.value.missing_bytes == missing * MIB
    assert device.left == left * MIB, "nothing stays allocated"
    device.left = 1 << 62
    for _ in memory.take():
        pass
    assert memory.mismatches(0, memory.size_bytes, Pattern.ZERO) == []


@pytest.mark.parametrize("memory", [True], indirect=True, ids=["checksums"])
def test_no_room_for_the_checksums(memory: OpenCLMemory, device: Scarce) -> None:
    device.left = 16 * MIB
    with pytest.raises(MissingMemory) as caught:
        for _ in memory.take():
            pass
    assert caught.value.missing_bytes == 16 * MIB // 1024
    assert device.left == 16 * MIB


@pytest.mark.parametrize("left", [1 << 40, 7 * MIB], ids=["enough", "too little"])
def test_taking_that_is_given_up_frees_everything(memory: OpenCLMemory, device: Scarce, left: int) -> None:
    """At whatever step, also while it is found out how much is missing."""
    for steps in range(1, 5):
        device.left = left
        taking = memory.take()
        for _ in range(steps):
            next(taking)
        taking.close()
        assert device.left == left, steps


def test_arenas_are_touched_in_steps(memory: OpenCLMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """System RAM takes seconds for an arena of some GiB, in which others want to be served."""
    monkeypatch.setattr(opencl, "SHORT_STEP_BYTES", 3 * MIB)
    touched: list[tuple[int, int]] = []
    zero = memory._zero_piece
    memory._zero_piece = lambda _, *place: (touched.append(place), zero(_, *place))  # type: ignore[assignment]
    taking = memory.take()
    for number in range(1, 9):
        next(taking)
        assert touched[:number] == ([(0, 3 * MIB), (3 * MIB, MIB)] * 4)[:number]
        assert len(touched) == number
    taking.close()  # type: ignore[attr-defined]


def test_memory_that_fails_its_proof_is_freed(memory: OpenCLMemory, device: Scarce) -> None:
    before = device.left
    memory.mismatches = lambda *_: [(4096, 8192)]  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="does not hold what was written") as caught:
        for _ in memory.take():
            pass
    assert not isinstance(caught.value, MissingMemory)
    assert device.left == before


def test_memory_that_cannot_be_zeroed_is_freed(device: Scarce) -> None:
    device.left = 1 << 62
    memory = OpenCLMemory(device, plan_arenas(4 * MIB, 4 * MIB))

    def fail(*_: Any) -> None:
        raise DeviceError(5, "injected")

    memory.fill = fail  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="injected"):
        for _ in memory.release():
            pass
    assert device.left == 1 << 62
    memory.close()


def test_system_ram_is_asked_for_before_it_is_taken(
    memory: OpenCLMemory, device: Scarce, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would not refuse it, but kill the engine, and with it all other exports."""
    monkeypatch.setattr(systemram, "available_bytes", lambda *_: 12 * MIB)
    before = device.left
    with pytest.raises(MissingMemory) as caught:
        next(memory.take())
    assert (caught.value.missing_bytes, device.left) == (4 * MIB, before)


def test_a_file_system_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pages are given back at release, and reserved before anything is written."""
    path = Path(f"/dev/shm/vramblk-unit-{os.getpid()}")
    path.write_bytes(b"x" * (4 * MIB))
    try:
        memory = MappedMemory(str(path), parse_size("max"))
        for _ in memory.release():
            pass
        assert path.stat().st_blocks == 0

        def full(*_: int) -> None:
            raise OSError(errno.ENOSPC, "no space")

        with monkeypatch.context() as patch:
            patch.setattr(systemram, "available_bytes", lambda *_: MIB)
            with pytest.raises(MissingMemory) as caught:
                next(memory.take())
            assert (caught.value.missing_bytes, path.stat().st_blocks) == (3 * MIB, 0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", full)
            patch.setattr(os, "fstatvfs", lambda _: type("Room", (), {"f_bavail": 256, "f_frsize": 4096}))
            with pytest.raises(MissingMemory) as caught:
                next(memory.take())
        assert caught.value.missing_bytes == 3 * MIB
        for _ in memory.take():
            pass
        assert path.stat().st_blocks * 512 == 4 * MIB
        memory.close()
    finally:
        path.unlink()


def test_a_file_that_is_taken_and_given_up_is_given_back() -> None:
    """At whatever step, and when it fails its proof: else nobody could take the memory, and itself no more."""
    path = Path(f"/dev/shm/vramblk-unit-{os.getpid()}")
    path.write_bytes(b"x" * (4 * MIB))
    try:
        memory = MappedMemory(str(path), parse_size("max"))
        for _ in memory.release():
            pass
        for steps in range(1, 6):
            taking = memory.take()
            for _ in range(steps):
                next(taking)
            assert path.stat().st_blocks
            taking.close()  # type: ignore[attr-defined]
            assert path.stat().st_blocks == 0, steps
        memory.mismatches = lambda *_: [(4096, 8192)]  # type: ignore[method-assign]
        with pytest.raises(DeviceError, match="does not hold what was written"):
            for _ in memory.take():
                pass
        assert path.stat().st_blocks == 0
        memory.close()
    finally:
        path.unlink()


def test_a_file_is_given_back_and_taken_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are served in between; a step ends at a multiple of its length, whatever the slice begins at."""
    monkeypatch.setattr(maptarget, "_STEP_BYTES", MIB)
    path = Path(f"/dev/shm/vramblk-unit-{os.getpid()}")
    path.write_bytes(b"x" * (4 * MIB))
    try:
        target = maptarget.open_target(str(path), parse_size("max"))
        steps = list(target.steps(4096, 3 * MIB))
        assert steps == [(4096, MIB - 4096), (MIB, MIB), (2 * MIB, MIB), (3 * MIB, 4096)]
        for step in steps:
            target.give_back(*step)
        assert path.stat().st_blocks * 512 == MIB
        taken = [path.stat().st_blocks * 512 for _ in target.reserve_again(4096, 3 * MIB)]
        assert taken == [2 * MIB - 4096, 3 * MIB - 4096, 4 * MIB - 4096, 4 * MIB]
        target.close()
    finally:
        path.unlink()


@pytest.mark.parametrize("kind", ["device", "ramfs"])
def test_memory_that_was_kept_is_not_proven_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is zero since its release. No client would wait until a slow PCI BAR is read back twice.

    A file system that gives no pages back needs no others.
    """

    def fail(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "injected")

    with NamedTemporaryFile(dir="/dev/shm") as file:
        file.truncate(MIB)
        memory = MappedMemory(file.name, parse_size("max"))
        if kind == "device":
            memory.target.is_file = False
        else:
            monkeypatch.setattr(kernel, "punch_hole", fail)
            monkeypatch.setattr(systemram, "available_bytes", lambda *_: 0)
        for _ in range(2):
            memory.fill(0, MIB, Pattern.RANDOM)
            for _ in memory.release():
                pass
            assert list(memory.take()) == []
            assert memory.mismatches(0, MIB, Pattern.ZERO) == []
        with monkeypatch.context() as patch, pytest.raises(OSError, match="injected"):
            patch.setattr(memory, "_zero", fail)
            next(memory.release())
        monkeypatch.undo()
        assert list(memory.take()), "nobody knows what it holds"
        memory.close()
