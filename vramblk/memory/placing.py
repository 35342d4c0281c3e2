"""Puts exports on OpenCL devices: which device each gets, how many bytes, in which arenas."""

from __future__ import annotations

from collections.abc import Mapping

from ..config.settings import ExportSettings
from ..config.units import format_size, format_sizes
from ..errors import PreconditionError
from . import systemram
from .arenas import largest_export, plan_arenas
from .base import DeviceError, Memory, Progress
from .devicechecksums import checksum_bytes
from .devices import CPU, DeviceInfo, choose, discover
from .opencl import OpenCLMemory
from .opendevice import OpenDevice
from .probing import share, usable_bytes


def open_on_devices(
    exports: Mapping[int, ExportSettings],
    *,
    allow_cpu: bool,
    swap: bool = False,
    verify_reads: bool = False,
    beside_bytes: int = 0,
    progress: Progress | None = None,
) -> dict[int, Memory]:
    """The memories of exports by their numbers; see ``open_memories``.

    Args:
        swap: the server serves swap, for which system RAM would be absurd.
        beside_bytes: system RAM that the server itself will take; see ``systemram.server_bytes``.
    """
    devices = discover()
    placed: dict[tuple[int, int], list[int]] = {}
    infos: dict[tuple[int, int], DeviceInfo] = {}
    for number, export in exports.items():
        info = choose(devices, export.platform, export.device, allow_cpu=allow_cpu)
        if swap and info.type == CPU:
            raise PreconditionError(
                f"{info.label} is system RAM, and swap mode needs a GPU or a map: device; name one,"
                " or --mode scratch"
            )
        place = (info.platform_index, info.device_index)
        infos[place] = info
        placed.setdefault(place, []).append(number)
    opened: dict[int, Memory] = {}
    try:
        for place, numbers in placed.items():
            on_it = {number: exports[number] for number in numbers}
            _open_device(infos[place], on_it, opened, verify_reads, beside_bytes, progress)
    except BaseException:
        for memory in opened.values():
            memory.close()
        raise
    return opened


def _open_device(
    info: DeviceInfo,
    exports: Mapping[int, ExportSettings],
    opened: dict[int, Memory],
    verify_reads: bool,
    beside_bytes: int,
    progress: Progress | None,
) -> None:
    sizes = [export.size for export in exports.values()]
    try:
        granted = share(
            sizes,
            lambda: usable_bytes(info, progress, verify_reads=verify_reads, beside_bytes=beside_bytes),
        )
    except ValueError as error:
        raise _too_large(info, str(error)) from None
    if sum(granted) > info.memory_bytes:
        asked, most = format_sizes(sum(granted), info.memory_bytes)
        raise _too_large(info, f"{asked} is more than its {most}")
    if info.type == CPU:
        wanted = sum(granted) + (sum(map(checksum_bytes, granted)) if verify_reads else 0)
        systemram.require_room(wanted, beside_bytes)
    device = OpenDevice(info)
    for (number, _), size_bytes in zip(exports.items(), granted, strict=True):
        if size_bytes > largest_export(device.maximum_allocation):
            asked, most = format_sizes(size_bytes, largest_export(device.maximum_allocation))
            raise _too_large(info, f"{asked} is more than the {most} of 16 largest allocations")
        try:
            arena_sizes = plan_arenas(size_bytes, device.maximum_allocation)
            opened[number] = OpenCLMemory(device, arena_sizes, progress, verify_reads=verify_reads)
        except DeviceError as error:
            raise _too_large(
                info, f"{format_size(size_bytes)} cannot be allocated and written ({error})"
            ) from None


def _too_large(info: DeviceInfo, reason: str) -> PreconditionError:
    return PreconditionError(
        f"{info.label}: {reason}; free memory of the device, or give a smaller size (max takes what is free)"
    )
