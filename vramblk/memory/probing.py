"""How much of a device's memory can really be allocated, and how much of it each export gets.

Runtimes report what a device has, not what is free, and buffers get their memory only when they are
touched. So it is tried: buffers are made and zeroed until the device refuses, and given back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from ..config.units import Size, SizeKind, format_size
from . import systemram
from .arenas import largest_export
from .base import DeviceError, Progress
from .devicechecksums import checksum_bytes
from .devices import CPU, DeviceInfo
from .opendevice import OpenDevice
from .patterns import BLOCK_BYTES

#: Kept free on a device: for what the runtime itself needs later, and for the screen.
HEADROOM_BYTES = 256 << 20
HEADROOM_SHARE = 0.03

_UNIT = 65536
_SMALLEST_PROBE_BYTES = 16 << 20
_PROBES = 64


def usable_bytes(
    info: DeviceInfo,
    progress: Progress | None = None,
    *,
    verify_reads: bool = False,
    beside_bytes: int = 0,
) -> int:
    """Bytes that exports on a device can have in all; on a GPU found by allocating and touching.

    Args:
        verify_reads: leave room for their checksums.
        beside_bytes: system RAM that the server itself will take.

    Raises:
        DeviceError: the device cannot be used at all.
    """
    if info.type == CPU:
        usable = systemram.usable_bytes(info.memory_bytes, beside_bytes)
    else:
        headroom = max(HEADROOM_BYTES, int(info.memory_bytes * HEADROOM_SHARE))
        usable = _touchable_bytes(info, info.memory_bytes, progress) - headroom
    if verify_reads:
        usable = usable * BLOCK_BYTES // (BLOCK_BYTES + checksum_bytes(BLOCK_BYTES))
    return max(0, min(usable, largest_export(info.largest_allocation_bytes))) // _UNIT * _UNIT


def _touchable_bytes(info: DeviceInfo, most: int, progress: Progress | None) -> int:
    """Bytes up to ``most`` that can be allocated and written at once, in a context of their own."""
    device = OpenDevice(info)
    kernel = device.kernel("zero")
    place = np.zeros(2, np.uint64)
    buffers = []
    touched = 0
    step = min(info.largest_allocation_bytes, max(most // _PROBES, _SMALLEST_PROBE_BYTES)) // _UNIT * _UNIT
    try:
        while touched < most and step >= _SMALLEST_PROBE_BYTES:
            size_bytes = min(step, most - touched)
            place[1] = size_bytes
            try:
                buffer = device.allocate(size_bytes)
                buffers.append(buffer)
                device.set_buffer(kernel, 0, int(buffer.int_ptr))
                device.set_value(kernel, 1, place.ctypes.data, 8)
                device.set_value(kernel, 2, place.ctypes.data + 8, 8)
                device.launch(kernel, device.block_sizes(size_bytes // 4096))
                device.finish()
            except DeviceError as error:
                if device.drained(error).lost:
                    break
                step //= 2
                continue
            touched += size_bytes
            if progress is not None:
                progress("probe", touched, most)
    finally:
        for buffer in buffers:
            device.free(buffer)
    return touched


def share(sizes: Sequence[Size], usable: Callable[[], int]) -> list[int]:
    """Bytes for each export of one device.

    Sizes in bytes are taken as they are, percentages are of ``usable()``, and those that say max
    share equally what the others leave. Slices have together what one export would have. ``usable``
    is asked only if a size needs it.

    Raises:
        ValueError: together more than the device can give, or one less than 4096 bytes.
    """
    if all(size.kind is SizeKind.BYTES for size in sizes):
        return [int(size.amount) for size in sizes]
    total = usable()
    granted = [0 if size.kind is SizeKind.MAX else size.resolve(total) for size in sizes]
    left = total - sum(granted)
    if left < 0:
        wanted = ", ".join(map(str, sizes))
        raise ValueError(f"sizes {wanted} are together more than the {format_size(total)} there are")
    greedy = sum(Fraction(1, size.parts) for size in sizes if size.kind is SizeKind.MAX)
    return [
        size.resolve(int(left / greedy), _UNIT) if size.kind is SizeKind.MAX else bytes_
        for size, bytes_ in zip(sizes, granted, strict=True)
    ]
