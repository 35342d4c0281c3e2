"""An export in the memory of an OpenCL device.

Reads: a gather kernel brings the data of all requests into a staging buffer on the device, each to its
place, and one copy per stretch of neighbours brings them into the slab they are sent from, with whatever lies
between. Writes go the other way through a scatter kernel. An exchange kernel does both in one launch, if the
reads of a batch overlap nothing that it writes. Copies of their own go straight between slab and arena.

Everything is queued without waiting into one in-order queue; one clFinish ends the batch. The status
of each call is checked. On NVIDIA and PoCL a command that fails while it runs makes clFinish fail too
(or ends the process); on other runtimes, where that was not seen, each command's own event is asked
for its status as well.

With checksums each batch does more, and no exchange: blocks that it writes only in part are compared before
anything is written, what it wrote is signed, and what it reads is compared.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..shared import stages
from ..shared.descriptors import places
from . import systemram
from .arenas import split
from .base import (
    Batch,
    ChecksumError,
    Copy,
    DeviceError,
    MissingMemory,
    Pattern,
    Progress,
    Run,
    SlabWindow,
)
from .copies import Copies, QueuedCopies
from .devicechecksums import DeviceChecksums, checksum_bytes
from .devices import CPU
from .hotcalls import failed
from .opendevice import OpenDevice
from .patterns import BLOCK_BYTES, SHORT_STEP_BYTES, bad_ranges, proof, prove, zeroing

#: Copies of neighbours this close are one: a copy costs as much as this many bytes on their way.
_GAP = 16384
#: A run whose requests are longer than this on average gets several groups for each, bytes.
_LONG_BYTES = 16384
_VERIFY_BYTES = 1 << 30
#: What is missing is found out to this many bytes.
_SMALLEST_ROOM_BYTES = 1 << 20
_STAGING_ARGUMENT, _ARENA_BYTES_ARGUMENT, _SIZE_ARGUMENT, _STAGING4_ARGUMENT = 16, 17, 18, 19
#: Of gather, scatter and exchange, and of the kernels for checksums of runs.
_TABLE_ARGUMENT = 20


class OpenCLMemory:
    """See ``base.Memory``.

    Args:
        device: shared by all exports on it; ``attach`` may be called before or after.
        arena_sizes: bytes, from ``arenas.plan_arenas``.
        verify_reads: keep checksums; see ``checksums``.

    Raises:
        DeviceError: the arenas could not be allocated; nothing stays allocated.
    """

    def __init__(
        self,
        device: OpenDevice,
        arena_sizes: Sequence[int],
        progress: Progress | None = None,
        *,
        verify_reads: bool = False,
    ) -> None:
        self.size_bytes = sum(arena_sizes)
        self.arena_bytes = arena_sizes[0]
        self._device = device
        self._hot = device.hot
        self._queue = device.queue_handle
        self._arena_sizes = tuple(arena_sizes)
        self._buffers: list[Any] = []
        #: Of the buffers; the same list as long as this object lives.
        self._handles: list[int] = []
        self._closed = False
        device.opened()
        self._zero_kernel, self._fill, self._verify, self._gather, self._scatter = (
            device.kernel(name) for name in ("zero", "fill", "verify", "gather", "scatter")
        )
        self._writing: tuple[int, ...] = (self._scatter,)
        self._reading: tuple[int, ...] = (self._gather,)
        #: For writes and reads together; none with checksums, which have to be computed between the two.
        self._exchange: tuple[int, ...] = () if verify_reads else (device.kernel("exchange"),)
        self._zero_range = np.zeros(2, np.uint64)
        self._checksums: DeviceChecksums | None = None
        #: Ranges that a failed batch may have written under their old checksums.
        self._unsigned: list[tuple[int, int]] = []
        self._found_is_stale = False
        try:
            self._allocate(progress)
            if verify_reads:
                self._checksums = DeviceChecksums(device, self._handles, self.arena_bytes, self.size_bytes)
                self._writing = (self._scatter, self._checksums.sign_runs)
                self._reading = (self._checksums.check_runs, self._gather)
        except DeviceError as error:
            self.close()
            raise device.drained(error) from None

    def _allocate(self, progress: Progress | None) -> None:
        for done in self._allocating():
            if progress is not None:
                progress("allocate", done, self.size_bytes)

    def _allocating(self) -> Iterator[int]:
        """Make each arena and touch it, in steps; after each the bytes of the arenas that are done."""
        done = 0
        for size_bytes in self._arena_sizes:
            buffer = self._device.allocate(size_bytes)
            self._buffers.append(buffer)
            self._handles.append(int(buffer.int_ptr))
            for at in range(0, size_bytes, SHORT_STEP_BYTES):
                piece = min(SHORT_STEP_BYTES, size_bytes - at)
                self._zero_piece(self._handles[-1], at, piece)
                self._device.finish()
                if at + piece == size_bytes:
                    done += size_bytes
                yield done

    @property
    def pinned(self) -> Sequence[bool]:
        return self._device.pinned

    @property
    def description(self) -> dict[str, Any]:
        info = self._device.info
        where = f" at {info.pci_address}" if info.pci_address else ""
        return {
            "description": f"memory of {info.name}{where}",
            "memory": "opencl",
            "device": info.name,
            "device_type": info.type,
            "platform": info.platform,
            "vendor": info.vendor,
            "driver": info.driver,
            "pci_address": info.pci_address,
            "platform_index": info.platform_index,
            "device_index": info.device_index,
            "device_memory_bytes": info.memory_bytes,
            "arenas": len(self._arena_sizes),
            "pinned": all(self._device.pinned),
        }

    def attach(self, windows: Sequence[SlabWindow]) -> None:
        """Take the windows, and run every shape of every kernel once: PoCL compiles each at its first launch.

        Raises:
            DeviceError: the staging buffer could not be allocated, or a kernel failed.
        """
        self._device.attach(windows)
        self._prepare_runs()
        self._warm_up()

    def copies(self) -> Copies | None:
        device = self._device
        if self._checksums is not None or device.keeps_events or stages.active is not None:
            return None  # a status that only an event has, or a time that only a batch's stages tell
        return QueuedCopies(
            self.size_bytes, self.arena_bytes, self._handles,
            lambda status: device.drained(failed("a copy between slab and memory", status)),
            self._queue, self._hot.addresses,
        )  # fmt: skip

    def _prepare_runs(self) -> None:
        device = self._device
        for kernel in (self._gather, self._scatter, *self._exchange):
            device.set_arenas(kernel, self._handles)
            device.set_buffer(kernel, _STAGING_ARGUMENT, device.staging_handle)
            device.set_number(kernel, _ARENA_BYTES_ARGUMENT, ctypes.c_uint64(self.arena_bytes))
            device.set_number(kernel, _SIZE_ARGUMENT, ctypes.c_uint64(self.size_bytes))
            device.set_number(kernel, _STAGING4_ARGUMENT, ctypes.c_uint64(device.staging_bytes // 4))

    def _warm_up(self) -> None:
        """Runs of no bytes touch nothing, yet have the shapes of real ones."""
        if self._device.staging_bytes:  # it may hold what others have left on the device
            self._zero_piece(self._device.staging_handle, 0, self._device.staging_bytes)
        checksums = self._checksums
        edges = (checksums.check_run_edges,) if checksums is not None else ()
        self._device.table[:] = 0
        for kernels in (self._writing, self._reading, self._exchange, edges):
            for count in (1, self._device.table_requests):
                self._start(kernels, count, self._device.run_sizes)
                self._start(kernels, count, self._device.wide_run_sizes)
        self._zero_piece(self._handles[0], 0, BLOCK_BYTES)
        if checksums is not None:
            block = [(0, BLOCK_BYTES)]
            checksums.sign(block)
            checksums.check(block)
        self._device.finish()

    def execute(self, batch: Batch) -> None:
        checksums = self._checksums
        may_have_written = together = False
        try:
            if checksums is not None:
                self._clear_doubts(checksums)
                self._refuse_partial_writes(checksums, batch)
            may_have_written = True
            if batch.writes:
                self._upload(batch.writes)
                if batch.reads and batch.apart and self._exchange:
                    together = True
                    writes = sum(run.count for run in batch.writes)
                    self._launch(self._exchange, [*batch.writes, *batch.reads], writes)
                else:
                    self._launch(self._writing, batch.writes)
            if batch.copies_in:
                self._copy(self._hot.write, batch.copies_in)
            for offset, length in batch.zeroes:
                for arena, within, piece in split(offset, length, self.arena_bytes):
                    self._zero_piece(self._handles[arena], within, piece)
            if checksums is not None:
                checksums.sign(_overwritten(batch))
                checksums.check((offset, hi - lo) for _, lo, hi, offset in batch.copies_out)
            if batch.reads:
                if not together:
                    self._launch(self._reading, batch.reads)
                self._download(batch.reads)
            if batch.copies_out:
                self._copy(self._hot.read, batch.copies_out)
            if batch.echoes:
                self._device.echo(batch.echoes)
            if checksums is not None and (batch.reads or batch.copies_out):
                self._finish_checked(checksums)
            else:
                self._device.finish()
        except Exception as error:
            # A mismatch is found when all that was queued is done, so what was written is signed.
            if checksums is not None:
                self._found_is_stale = True
                if may_have_written and not isinstance(error, ChecksumError):
                    self._unsigned += [*self._run_ranges(batch.writes), *_overwritten(batch)]
            if isinstance(error, DeviceError):
                raise self._device.drained(error) from None
            self._device.drain(f"{type(error).__name__}: {error}")
            raise

    def _run_ranges(self, runs: Sequence[Run]) -> Iterator[tuple[int, int]]:
        """What the requests of runs cover: (offset, length) in the export, bytes."""
        for run in runs:
            columns = self._device.columns[run.window][:, run.first : run.first + run.count]
            yield from zip(*(each.tolist() for each in places(columns, self.arena_bytes)), strict=True)

    def _clear_doubts(self, checksums: DeviceChecksums) -> None:
        """After a batch that failed: sign what it may have written, and forget what it has found.

        Raises:
            DeviceError: it has to be tried again before anything else is done.
        """
        if not (self._unsigned or self._found_is_stale):
            return
        checksums.forget()
        checksums.sign(self._unsigned)
        self._device.finish()
        self._unsigned.clear()
        self._found_is_stale = False

    def _refuse_partial_writes(self, checksums: DeviceChecksums, batch: Batch) -> None:
        """Compare blocks that are about to be written in part, before anything of the batch is done."""
        runs = [run for run in batch.writes if checksums.partly(run)]
        if runs:
            self._launch((checksums.check_run_edges,), runs)
        if checksums.check_edges(_overwritten(batch)) or runs:
            self._finish_checked(checksums)

    def _finish_checked(self, checksums: DeviceChecksums) -> None:
        checksums.fetch()
        self._device.finish()
        checksums.verdict()

    def _upload(self, runs: Sequence[Run]) -> None:
        window, lo, hi = runs[0].window, runs[0].lo, runs[0].hi
        for run in runs:
            if run.window == window and lo <= run.lo <= hi + _GAP:
                if run.hi > hi:
                    hi = run.hi
            else:
                self._device.stage_in(window, lo, hi)
                window, lo, hi = run.window, run.lo, run.hi
        self._device.stage_in(window, lo, hi)

    def _download(self, runs: Sequence[Run]) -> None:
        """One copy for neighbours, and for those that say that what lies between may be overwritten."""
        window, lo, hi = runs[0].window, runs[0].lo, runs[0].lo
        for run in runs:
            gap = run.lo - hi
            if run.window == window and (gap == 0 or (run.joins and 0 < gap <= _GAP)):
                hi = run.hi
            else:
                self._device.stage_out(window, lo, hi)
                window, lo, hi = run.window, run.lo, run.hi
        self._device.stage_out(window, lo, hi)

    def _launch(self, kernels: tuple[int, ...], runs: Sequence[Run], writes: int | None = None) -> None:
        """Launch kernels over the requests of runs, as often as their tables fill.

        Args:
            writes: how many of the first requests are writes; of the exchange kernel alone.
        """
        device = self._device
        requests, room = device.requests, device.table_requests
        filled = count = 0
        length = 0
        for run in runs:
            count += run.count
            length += run.hi - run.lo
        # A second group would count a block that does not hold its checksum once more.
        wide = self._checksums is None and length > count * _LONG_BYTES
        shapes = device.wide_run_sizes if wide else device.run_sizes
        for window, first, count, _, _, _ in runs:
            while count:
                part = room - filled
                if part > count:
                    part = count
                requests.add(filled, window, first, part)
                filled += part
                first += part
                count -= part
                if filled == room:
                    if writes is not None:
                        device.table_writes[0] = writes
                        writes = max(0, writes - filled)
                    self._start(kernels, filled, shapes)
                    filled = 0
        if filled:
            if writes is not None:
                device.table_writes[0] = writes
            self._start(kernels, filled, shapes)

    def _start(self, kernels: tuple[int, ...], requests: int, shapes: Sequence[Any]) -> None:
        """Launch kernels one after another over the first requests of the table."""
        device = self._device
        for kernel in kernels:
            status = self._hot.set_arg(kernel, _TABLE_ARGUMENT, device.table_bytes, device.table_address)
            if status:
                raise failed("clSetKernelArg of the request table", status)
            device.launch(kernel, shapes[requests])

    def _copy(self, call: Any, copies: Sequence[Copy]) -> None:
        device, queue, handles, arena_bytes = self._device, self._queue, self._handles, self.arena_bytes
        for window, lo, hi, offset in copies:
            address = device.addresses[window] + lo
            for arena, within, piece in split(offset, hi - lo, arena_bytes):
                status = call(queue, handles[arena], 0, within, piece, address, 0, None, device.event())
                if status:
                    raise failed(f"copy of {piece} bytes at {offset:#x}", status)
                address += piece

    def _zero_piece(self, handle: int, within: int, length: int) -> None:
        device, kernel = self._device, self._zero_kernel
        values = self._zero_range
        values[0] = within
        values[1] = length
        device.set_buffer(kernel, 0, handle)
        device.set_value(kernel, 1, values.ctypes.data, 8)
        device.set_value(kernel, 2, values.ctypes.data + 8, 8)
        device.launch(kernel, device.block_sizes(length // BLOCK_BYTES + 1))

    def fill(self, offset: int, length: int, pattern: Pattern, seed: int = 0) -> None:
        try:
            for arena, within, piece in split(offset, length, self.arena_bytes):
                self._set_pattern(self._fill, arena, within, piece, pattern, seed)
                self._device.launch(self._fill, self._device.block_sizes(piece // BLOCK_BYTES))
            if self._checksums is not None:
                self._checksums.sign([(offset, length)])
            self._device.finish()
        except DeviceError as error:
            raise self._device.drained(error) from None

    def mismatches(self, offset: int, length: int, pattern: Pattern, seed: int = 0) -> list[tuple[int, int]]:
        try:
            bad = [np.zeros(0, bool)]
            for start in range(offset, offset + length, _VERIFY_BYTES):
                part = min(_VERIFY_BYTES, offset + length - start)
                for arena, within, piece in split(start, part, self.arena_bytes):
                    bad.append(self._bad_blocks(arena, within, piece, pattern, seed))
            return bad_ranges(np.concatenate(bad), offset)
        except DeviceError as error:
            raise self._device.drained(error) from None

    def _bad_blocks(
        self, arena: int, within: int, length: int, pattern: Pattern, seed: int
    ) -> npt.NDArray[np.bool_]:
        device = self._device
        blocks = length // BLOCK_BYTES
        found = device.findings(_VERIFY_BYTES // BLOCK_BYTES + 1)
        handle = int(found.int_ptr)
        self._zero_piece(handle, 0, (blocks + 1) * 4)
        self._set_pattern(self._verify, arena, within, length, pattern, seed)
        device.set_buffer(self._verify, 6, handle)
        device.launch(self._verify, device.block_sizes(blocks))
        any_found = np.zeros(1, np.uint32)
        device.read_back(handle, any_found)
        if not any_found[0]:
            return np.zeros(blocks, bool)
        flags = np.zeros(blocks + 1, np.uint32)
        device.read_back(handle, flags)
        return np.asarray(flags[1:] != 0)

    def _set_pattern(
        self, kernel: int, arena: int, within: int, length: int, pattern: Pattern, seed: int
    ) -> None:
        device = self._device
        places = np.array(
            [within // 16, length // BLOCK_BYTES, (arena * self.arena_bytes + within) // 4], np.uint64
        )
        words = np.array([int(pattern), seed & 0xFFFFFFFF], np.uint32)
        device.set_buffer(kernel, 0, self._handles[arena])
        for index in range(3):
            device.set_value(kernel, 1 + index, places.ctypes.data + 8 * index, 8)
        for index in range(2):
            device.set_value(kernel, 4 + index, words.ctypes.data + 4 * index, 4)

    def zero_all(self) -> None:
        self.fill(0, self.size_bytes, Pattern.ZERO)

    def prove(self, progress: Progress | None = None) -> None:
        prove(self, progress)

    def release(self) -> Iterator[None]:
        try:
            yield from zeroing(self)
        finally:
            self._free()

    def take(self) -> Iterator[None]:
        if self._device.info.type == CPU and (missing := systemram.missing_bytes(self.size_bytes)):
            raise MissingMemory(f"system RAM for {self.size_bytes} bytes", missing)
        taken = False
        try:
            yield from self._taking()
            taken = True
        finally:
            if not taken:
                self._free()

    def _taking(self) -> Iterator[None]:
        """As ``take``, but what is allocated stays on failure."""
        allocated = 0
        try:
            for done in self._allocating():
                allocated = done
                yield
            if self._checksums is not None:
                self._checksums.take()
            self._prepare_runs()
            for _ in proof(self, SHORT_STEP_BYTES):
                yield
        except DeviceError as error:
            failure = self._device.drained(error)
            if failure.errno != errno.ENOMEM or failure.lost:
                raise failure from None
            missing = self.size_bytes - allocated
            if missing:
                self._drop_behind(allocated)
                missing -= yield from self._room(missing)
            elif self._checksums is not None:
                missing = checksum_bytes(self.size_bytes)
            raise MissingMemory(failure.detail, max(missing, BLOCK_BYTES)) from None

    def _drop_behind(self, size_bytes: int) -> None:
        """Free the arena that lies behind so many bytes and could not be touched, if it was made."""
        if sum(self._arena_sizes[: len(self._buffers)]) > size_bytes:
            self._handles.pop()
            self._device.free(self._buffers.pop())

    def _room(self, most: int) -> Generator[None, None, int]:
        """Bytes up to ``most`` that can be allocated and touched beside what there is; freed again."""
        found, buffers = 0, []
        step = min(most, self.arena_bytes)
        try:
            while found < most and step >= _SMALLEST_ROOM_BYTES:
                size_bytes = min(step, most - found) // BLOCK_BYTES * BLOCK_BYTES
                if not size_bytes:
                    break
                try:
                    buffers.append(self._device.allocate(size_bytes))
                    self._zero_piece(int(buffers[-1].int_ptr), 0, size_bytes)
                    self._device.finish()
                    found += size_bytes
                except DeviceError as error:
                    if self._device.drained(error).lost:
                        break
                    step //= 2
                yield
        finally:
            for buffer in buffers:
                self._device.free(buffer)
        return found

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._free()
        self._device.closed()

    def _free(self) -> None:
        # Batches of echoes go on: they must not look after blocks and a table that are gone.
        self._unsigned.clear()
        self._found_is_stale = False
        if self._checksums is not None:
            self._checksums.close()
        for buffer in self._buffers:
            self._device.free(buffer)
        self._buffers.clear()
        self._handles.clear()


def _overwritten(batch: Batch) -> Iterator[tuple[int, int]]:
    """What copies and zeroing write, in their order."""
    for _, lo, hi, offset in batch.copies_in:
        yield offset, hi - lo
    yield from batch.zeroes
