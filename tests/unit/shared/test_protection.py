"""What a process can do to shared memory once it has its role, as the kernel sees it."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.unit.child import in_child
from tests.unit.sharedmemory import make_shared
from vramblk.config.settings import load_settings
from vramblk.shared.context import Shared
from vramblk.shared.protection import hide, map_read_only, seal, write_protect
from vramblk.shared.window import Word
from vramblk.system import kernel

PAGE = 4096
Memory = npt.NDArray[Any]


def can_read(memory: Memory) -> bool:
    """Whether the kernel can read it on this process's behalf: a fault is an error then, not a signal."""
    return not _faults(lambda reader, writer: os.write(writer, memory.data.cast("B")[:8]))


def can_write(memory: Memory) -> bool:
    """The same for writing; writes back the eight bytes that are there."""

    def store(reader: int, writer: int) -> None:
        os.write(writer, memory.data.cast("B")[:8])
        os.readv(reader, [memory.data.cast("B")[:8]])

    return can_read(memory) and not _faults(store)


def _faults(act: Callable[[int, int], object]) -> bool:
    reader, writer = os.pipe()
    try:
        act(reader, writer)
    except OSError as error:
        assert error.errno == errno.EFAULT
        return True
    finally:
        os.close(reader)
        os.close(writer)
    return False


def shared_file() -> tuple[int, Memory]:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, PAGE)
    return fd, np.frombuffer(mmap.mmap(fd, PAGE), np.uint8)


@pytest.fixture
def shared() -> Shared:
    return make_shared(load_settings(["--allow-cpu", "--size", "4M"], {}), 2, 1 << 16, 1 << 16)


def test_hidden_memory_is_gone_for_this_process_alone() -> None:
    """It can be neither read nor written here; whoever else has it mapped keeps it."""
    memory = np.frombuffer(mmap.mmap(-1, PAGE), np.uint8)
    memory[:3] = [1, 2, 3]

    def hidden() -> bool:
        hide(memory)
        return not can_read(memory) and not can_write(memory)

    assert in_child(hidden)
    assert can_write(memory) and memory[:3].tolist() == [1, 2, 3]


def test_write_protected_memory_can_be_read() -> None:
    memory = np.frombuffer(mmap.mmap(-1, PAGE), np.uint8)
    memory[:3] = [1, 2, 3]
    write_protect(memory)
    assert can_read(memory) and not can_write(memory)
    assert memory[:3].tolist() == [1, 2, 3]


def test_a_sealed_file_that_is_mapped_read_only_stays_read_only() -> None:
    """Unlike after mprotect, nothing in the process can make it writable again; others' stores show."""
    fd, theirs = shared_file()
    ours = np.frombuffer(mmap.mmap(fd, PAGE), np.uint8)
    seal(fd, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | kernel.F_SEAL_FUTURE_WRITE)
    map_read_only(ours, fd)
    theirs[0] = 9
    assert can_read(ours) and not can_write(ours) and ours[0] == 9
    with pytest.raises(OSError):
        kernel.mprotect(ours.ctypes.data, PAGE, mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, PAGE)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    assert can_write(theirs)
    os.close(fd)


def test_a_seal_that_the_kernel_does_not_know_is_left_out() -> None:
    fd, memory = shared_file()
    seal(fd, 1 << 30)
    assert can_write(memory)
    os.close(fd)


def test_a_worker_can_write_its_own_window_and_nothing_else(shared: Shared) -> None:
    """Other windows are hidden from it, the control page it can only read."""

    def confined() -> bool:
        shared.confine_worker(0)
        return (
            can_write(shared.windows[0].whole)
            and not any(can_read(window.whole) for window in shared.windows[1:])
            and can_read(shared.control._whole)
            and not can_write(shared.control._whole)
        )

    assert in_child(confined)
    assert all(can_write(window.whole) for window in shared.windows)


@pytest.mark.parametrize("who", ["worker", "observer"])
def test_a_confined_process_makes_no_doorbell_block_for_others(shared: Shared, who: str) -> None:
    """It rings the engine through a writer of its own, and has none of its own doorbell."""
    own = shared.windows[0] if who == "worker" else shared.canary

    def confined() -> bool:
        shared.confine_worker(0) if who == "worker" else shared.confine_observer()
        for pipe in (*shared.doorbells, shared.engine_doorbell):
            for end in pipe:
                with suppress(OSError):
                    os.set_blocking(end, True)
        shared.engine_doorbell.ring()
        return os.get_blocking(shared.doorbells[own.index].reader)

    assert in_child(confined)
    pipes = [*shared.doorbells, shared.engine_doorbell]
    assert not any(os.get_blocking(pipe.writer) for pipe in pipes)
    assert not os.get_blocking(shared.engine_doorbell.reader)
    assert os.read(shared.engine_doorbell.reader, 2) == b"\1"


def test_a_confined_worker_and_the_engine_still_see_each_other(shared: Shared) -> None:
    """What one stores into the worker's window or the control page the other reads."""

    def confined() -> bool:
        shared.confine_worker(1)
        shared.windows[1].store(Word.TAIL, 77)
        return shared.windows[1].load(Word.DONE) == 66

    shared.windows[1].store(Word.DONE, 66)
    assert in_child(confined)
    assert shared.windows[1].load(Word.TAIL) == 77


def test_the_observer_reads_all_and_writes_only_the_canary(shared: Shared) -> None:
    def confined() -> bool:
        shared.confine_observer()
        return (
            can_write(shared.canary.whole)
            and all(can_read(window.whole) and not can_write(window.whole) for window in shared.client_windows)
            and not can_write(shared.control._whole)
        )

    assert in_child(confined)


@pytest.mark.parametrize("who", ["worker", "observer"])
def test_a_confined_process_changes_no_file_that_is_not_sealed_yet(shared: Shared, who: str) -> None:
    """The observer runs before the engine sizes and seals the written-maps, which end it if they are cut."""
    written = shared.written[0]
    written.resize(1 << 20)

    def confined() -> bool:
        shared.confine_worker(0) if who == "worker" else shared.confine_observer()
        for act in (
            lambda: os.ftruncate(written._fd, 0),
            lambda: mmap.mmap(written._fd, 0),
            lambda: fcntl.fcntl(written._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL),
        ):
            with pytest.raises(OSError):
                act()
        written.open()
        return can_read(written.blocks)

    assert in_child(confined)
    assert can_write(written.blocks)


def test_a_worker_cannot_make_a_written_map_writable(shared: Shared) -> None:
    """The engine seals the map once it has its size; a worker's mapping is for reading."""
    written = shared.written[0]
    written.resize(1 << 20)
    written.seal()

    def confined() -> bool:
        written.open()
        with pytest.raises(PermissionError):
            mmap.mmap(written._fd, 0)
        with pytest.raises(OSError):
            kernel.mprotect(written.blocks.ctypes.data, PAGE, mmap.PROT_READ | mmap.PROT_WRITE)
        return can_read(written.blocks) and not written.blocks.flags.writeable

    assert in_child(confined)
    assert can_write(written.blocks)
