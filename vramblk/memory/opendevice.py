"""A device in use: context, in-order queue, program, staging buffer and windows.

Shared by all exports on the device. The staging buffer is laid out like all slabs end to end, so
that a slab position says where in the staging buffer the same bytes are.
"""

from __future__ import annotations

import ctypes
import errno
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config.units import format_size
from ..shared.descriptors import COLUMN_ROWS
from .base import MAXIMUM_ARENAS, Copy, DeviceError, SlabWindow
from .devices import CPU, DeviceInfo, load_opencl
from .hotcalls import HotCalls, failed, sizes
from .requesttable import RequestTable

#: Requests in one launch's table where the device takes that many bytes of arguments: a whole run.
_MOST_TABLE_REQUESTS = 256
#: Sixteen arenas, five buffers or sizes, and room for padding.
_OTHER_ARGUMENTS_BYTES = 16 * 8 + 5 * 8 + 32
_GPU_LANES, _CPU_LANES = 256, 1
_GPU_GROUPS, _CPU_GROUPS = 8192, 64
#: Groups for each request of a run of long ones: one alone copies 128 KiB more slowly than PCIe does.
_WIDE_GROUPS = 4
_KERNELS = Path(__file__).with_name("kernels.cl")

#: Runtimes whose clFinish was seen to report a command that failed while it ran.
_STICKY_FAILURES = ("NVIDIA CUDA", "Portable Computing Language")

#: Addresses of slabs that a device of this process has wrapped. Seen on NVIDIA: a second context
#: may wrap the same pages and maps them where they are, but copies them as slowly as any other memory.
_WRAPPED: set[int] = set()


class OpenDevice:
    """See the module.

    Args:
        maximum_allocation: bytes; less than the device's own for tests of many arenas.

    Attributes:
        pinned: per window, by its place in ``attach``'s sequence.
        columns, addresses, bases, lengths: per window index: its columns, and its slab's address,
            place in the staging buffer, and length in bytes.
        keeps_events: clFinish is not known to report a command that failed while it ran.
        table: shape (COLUMN_ROWS, table_requests), uint32; what the next launch of a run takes by value, with
            ``table_writes[0]`` behind it; ``requests`` puts columns into it.

    Raises:
        DeviceError: the runtime refused the context, the queue or the kernels.
    """

    def __init__(self, info: DeviceInfo, maximum_allocation: int | None = None) -> None:
        self.info = info
        self.maximum_allocation = min(
            info.largest_allocation_bytes, maximum_allocation or info.largest_allocation_bytes
        )
        self._cl = cl = load_opencl()
        self.hot = HotCalls()
        device = info.handle
        wanted = _CPU_LANES if info.type == CPU else _GPU_LANES
        self._lanes = min(wanted, int(device.max_work_group_size))
        self._most_groups = _CPU_GROUPS if info.type == CPU else _GPU_GROUPS
        self.table_requests = table_requests(int(device.max_parameter_size))
        try:
            self.context = cl.Context([device])
            self.queue = cl.CommandQueue(self.context)
            options = [f"-DTABLE={self.table_requests}", f"-DLANES={self._lanes}"]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a compiler that said something, if only that it is there
                self.program = cl.Program(self.context, _KERNELS.read_text()).build(options, cache_dir=False)
        except cl.Error as error:
            raise self._translated("setting up the device", error) from None
        self.queue_handle = int(self.queue.int_ptr)
        words = np.zeros(COLUMN_ROWS * self.table_requests + 1, np.uint32)
        self.table: npt.NDArray[np.uint32] = words[:-1].reshape(COLUMN_ROWS, self.table_requests)
        self.table_writes = words[-1:].data
        self.requests = RequestTable(self.table.data, [])
        self.table_bytes = words.nbytes
        self.table_address = words.ctypes.data
        self._local = sizes(self._lanes, 1)
        self.run_sizes, self.wide_run_sizes = (
            [sizes(self._lanes * groups, count) for count in range(self.table_requests + 1)]
            for groups in (1, _WIDE_GROUPS if self._lanes > 1 else 1)
        )
        self._block_sizes: dict[int, ctypes.Array[ctypes.c_size_t]] = {}
        self.pinned: list[bool] = []
        self.columns: list[Any] = []
        self.addresses: list[int] = []
        self.bases: list[int] = []
        self.lengths: list[int] = []
        self.staging_handle = 0
        self.staging_bytes = 0
        self._staging: Any = None
        self._windows: list[tuple[SlabWindow, Any, Any]] = []
        self._findings: Any = None
        self._kernels: list[Any] = []
        self._buffers: list[Any] = []
        self._events: list[ctypes.c_void_p] = []
        self._memories = 0
        self._lost = False
        self.keeps_events = not info.platform.startswith(_STICKY_FAILURES)

    def _translated(self, what: str, error: Any) -> DeviceError:
        """A DeviceError for an exception of pyopencl's."""
        code = getattr(error, "code", None)
        if isinstance(code, int):
            found = failed(what, code)
            return DeviceError(found.errno, f"{what}: {error}", found.lost)
        return DeviceError(errno.EIO, f"{what}: {error}")

    def allocate(self, size_bytes: int) -> Any:
        """A buffer; its memory is certain only after it was touched.

        Raises:
            DeviceError: ENOMEM, usually.
        """
        try:
            buffer = self._cl.Buffer(self.context, self._cl.mem_flags.READ_WRITE, size_bytes)
        except self._cl.Error as error:
            raise self._translated(f"allocating {format_size(size_bytes)}", error) from None
        self._buffers.append(buffer)
        return buffer

    def kernel(self, name: str) -> int:
        """Handle of a kernel object of its own, whose arguments nobody else sets; lives with the device."""
        kernel = self._cl.Kernel(self.program, name)
        self._kernels.append(kernel)
        return int(kernel.int_ptr)

    def attach(self, windows: Sequence[SlabWindow]) -> None:
        """Make the staging buffer and wrap each slab; the second and later calls change nothing.

        Raises:
            DeviceError: no memory for the staging buffer.
        """
        if self._staging is not None or not windows:
            return
        count = max(window.index for window in windows) + 1
        self.columns, self.addresses, self.bases = [None] * count, [0] * count, [0] * count
        self.lengths = [0] * count
        self.staging_bytes = max(window.base + window.slab.nbytes for window in windows)
        self._staging = self.allocate(self.staging_bytes)
        self.staging_handle = int(self._staging.int_ptr)
        for window in windows:
            self.columns[window.index] = window.columns
            self.addresses[window.index] = window.slab_address
            self.bases[window.index] = window.base
            self.lengths[window.index] = window.slab.nbytes
            wrapped = self._wrap(window)
            self.pinned.append(wrapped is not None)
            self._windows.append((window, *(wrapped or (None, None))))
        self.requests = RequestTable(
            self.table.data, [None if each is None else each.data for each in self.columns]
        )

    def _wrap(self, window: SlabWindow) -> tuple[Any, Any] | None:
        """The slab as pinned memory: a buffer over its pages, kept mapped. None if that is refused."""
        cl = self._cl
        if window.slab_address in _WRAPPED:
            return None
        try:
            buffer = cl.Buffer(
                self.context, cl.mem_flags.READ_WRITE | cl.mem_flags.USE_HOST_PTR, hostbuf=window.slab
            )
            mapped, _ = cl.enqueue_map_buffer(
                self.queue, buffer, cl.map_flags.READ | cl.map_flags.WRITE, 0, window.slab.nbytes, np.uint8
            )
        except cl.Error:
            return None
        if mapped.ctypes.data != window.slab_address:
            return None
        _WRAPPED.add(window.slab_address)
        return buffer, mapped

    def event(self) -> Any:
        """Where the next command puts its event, None on runtimes where clFinish is enough."""
        if not self.keeps_events:
            return None
        event = ctypes.c_void_p()
        self._events.append(event)
        return ctypes.byref(event)

    def launch(self, kernel: int, shape: Any) -> None:
        """Queue a kernel with the given sizes; its arguments are those last set."""
        status = self.hot.launch(
            self.queue_handle, kernel, 2, None, shape, self._local, 0, None, self.event()
        )
        if status:
            raise failed("clEnqueueNDRangeKernel", status)

    def block_sizes(self, blocks: int) -> Any:
        """Sizes of a launch that takes ``blocks`` blocks of 4096 bytes; few different ones."""
        groups = 1
        while groups < blocks and groups < self._most_groups:
            groups *= 2
        shape = self._block_sizes.get(groups)
        if shape is None:
            shape = self._block_sizes[groups] = sizes(self._lanes, groups)
        return shape

    def set_buffer(self, kernel: int, index: int, handle: int) -> None:
        argument = ctypes.c_void_p(handle)
        self.set_value(kernel, index, ctypes.addressof(argument), 8)

    def set_arenas(self, kernel: int, handles: Sequence[int]) -> None:
        """The first arguments of the kernels that take all arenas of an export."""
        for index in range(MAXIMUM_ARENAS):
            self.set_buffer(kernel, index, handles[index if index < len(handles) else 0])

    def set_number(self, kernel: int, index: int, number: ctypes.c_uint32 | ctypes.c_uint64) -> None:
        self.set_value(kernel, index, ctypes.addressof(number), ctypes.sizeof(number))

    def set_value(self, kernel: int, index: int, address: int, size_bytes: int) -> None:
        status = self.hot.set_arg(kernel, index, size_bytes, address)
        if status:
            raise failed("clSetKernelArg", status)

    def stage_in(self, window: int, lo: int, hi: int) -> None:
        """Slab bytes [lo, hi) into the staging buffer."""
        self._stage(self.hot.write, window, lo, hi, lo)

    def stage_out(self, window: int, lo: int, hi: int) -> None:
        """The staging buffer's bytes [lo, hi) of a window into its slab."""
        self._stage(self.hot.read, window, lo, hi, lo)

    def echo(self, copies: Sequence[Copy]) -> None:
        """Slab bytes into the staging buffer, and from there to another place in the slab."""
        for window, lo, hi, to in copies:
            self._stage(self.hot.write, window, lo, hi, lo)
            self._stage(self.hot.read, window, lo, hi, to)

    def _stage(self, call: Any, window: int, lo: int, hi: int, slab: int) -> None:
        if lo < 0 or hi > self.lengths[window]:
            # The engine takes the range of a request that it repeats alone from the worker's columns.
            raise DeviceError(errno.EINVAL, f"bytes {lo} to {hi} do not lie in the slab of window {window}")
        status = call(
            self.queue_handle, self.staging_handle, 0, self.bases[window] + lo, hi - lo,
            self.addresses[window] + slab, 0, None, self.event(),
        )  # fmt: skip
        if status:
            raise failed(f"copy of {hi - lo} bytes between slab and staging buffer", status)

    def read_back(self, handle: int, into: npt.NDArray[np.uint32]) -> None:
        """A buffer's first bytes into an array, waiting for them and all that was queued before."""
        self.read_later(handle, into)
        self.finish()

    def read_later(self, handle: int, into: npt.NDArray[np.uint32]) -> None:
        """Queue a copy of a buffer's first bytes into an array, which must live until it is finished."""
        self._move("clEnqueueReadBuffer", self.hot.read, handle, into)

    def write_later(self, handle: int, source: npt.NDArray[np.uint32]) -> None:
        """Queue a copy of an array, which must live until it is finished, to a buffer's start."""
        self._move("clEnqueueWriteBuffer", self.hot.write, handle, source)

    def _move(self, name: str, call: Any, handle: int, words: npt.NDArray[np.uint32]) -> None:
        status = call(self.queue_handle, handle, 0, 0, words.nbytes, words.ctypes.data, 0, None, self.event())
        if status:
            raise failed(name, status)

    def finish(self) -> None:
        """Wait for everything queued, and check it.

        Raises:
            DeviceError: some of it failed.
        """
        status = self.hot.finish(self.queue_handle)
        if status:
            raise failed("clFinish", status)
        if self._events:
            status = self._take_events()
            if status:
                raise failed("a queued command", status)

    def _take_events(self) -> int:
        worst = 0
        for event in self._events:
            if event.value:
                worst = min(worst, self.hot.take_event_status(event.value))
        self._events.clear()
        return worst

    def drained(self, error: DeviceError) -> DeviceError:
        """After a failure: nothing is in flight any more. A queue that cannot be finished is lost."""
        status = self.hot.finish(self.queue_handle)
        self._take_events()
        if status or error.lost:
            self._abandon()
        if status:
            then = failed("clFinish", status).detail
            return DeviceError(errno.EIO, f"{error.detail}; then {then}", lost=True)
        return error

    def drain(self, why: str) -> None:
        """As ``drained``, after an exception that is none of the device's.

        Raises:
            DeviceError: the queue cannot be finished: the device is lost.
        """
        error = self.drained(DeviceError(errno.EIO, why))
        if error.lost:
            raise error

    def opened(self) -> None:
        """One more memory lies on the device."""
        self._memories += 1

    def closed(self) -> None:
        """One memory less; with the last the windows are given free, so that they can be pinned anew."""
        self._memories -= 1
        if self._memories or self._lost:
            return
        for window, buffer, mapped in self._windows:
            if buffer is not None:
                mapped.base.release(self.queue)
                buffer.release()
                _WRAPPED.discard(window.slab_address)
        self._windows.clear()
        self.pinned.clear()
        if self._staging is not None:
            self.free(self._staging)
            self._staging = None
        self.hot.finish(self.queue_handle)

    def free(self, buffer: Any) -> None:
        """Give a buffer's memory back, unless the device is lost and cannot take it."""
        if not self._lost:
            self._buffers.remove(buffer)
            buffer.release()

    def _abandon(self) -> None:
        """The device is lost: its objects must outlive the interpreter.

        The runtime refuses to release them, and pyopencl's destructors end the process with SIGABRT
        when it does.
        """
        if self._lost:
            return
        self._lost = True
        objects = [self.context, self.queue, self.program, self._staging, self._findings]
        for each in (
            *objects,
            *self._kernels,
            *self._buffers,
            *(part for row in self._windows for part in row),
        ):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))

    def findings(self, words: int) -> Any:
        """A buffer for what the verify kernel finds."""
        if self._findings is None:
            self._findings = self.allocate(words * 4)
        return self._findings


def table_requests(maximum_parameter_size: int) -> int:
    """Requests that fit a launch's table on a device that takes so many bytes of arguments."""
    room = (maximum_parameter_size - _OTHER_ARGUMENTS_BYTES) // (COLUMN_ROWS * struct.calcsize("I"))
    return max(1, min(_MOST_TABLE_REQUESTS, room // 8 * 8))
