"""What the exports' devices lack, mapped ones and OpenCL's, without allocating anything on them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..config.settings import ExportSettings, Settings
from ..config.units import SizeKind, format_size
from ..errors import StartupError
from ..memory import maptarget
from .probes import MISSING, OK, WARNING, Requirement, refusal

if TYPE_CHECKING:
    from ..memory.devices import DeviceInfo


def of_devices(settings: Settings) -> Iterator[Requirement]:
    """What the devices of the exports lack. Loads OpenCL if any export needs it."""
    mapped = [export for export in settings.exports if export.mapped_path is not None]
    for export in mapped:
        yield _mapped_device(export, settings.map_overwrite)
    if mapped:
        yield from _memory_limit(settings, sum(map(_new_ram_bytes, mapped)), opencl=False)
    opencl = [export for export in settings.exports if export.mapped_path is None]
    if not opencl:
        yield Requirement("loader", OK, "not needed: every export is a map: device")
        return
    from ..memory import alldevices, caches, devices, passthrough

    try:
        loader = devices.load_opencl()
    except StartupError as error:
        yield Requirement("loader", MISSING, str(error), "install the package ocl-icd-libopencl1")
        return
    yield Requirement("loader", OK, f"pyopencl {loader.VERSION_TEXT}")
    found = devices.discover()
    if not found:
        known = (settings.allow_cpu and caches.problem()) or passthrough.unmet_requirement()
        remedy = "install the GPU's OpenCL runtime; without a GPU pip install pocl-binary-distribution"
        yield Requirement(
            "platforms", MISSING, known or "no OpenCL platform with a device", "" if known else remedy
        )
        return
    yield Requirement("platforms", OK, ", ".join(dict.fromkeys(device.platform for device in found)))
    if settings.on_all_devices:
        try:
            settings = settings.placed(alldevices.places(settings, found))
        except StartupError as error:
            yield refusal("device", error)
            return
        opencl = [export for export in settings.exports if export.mapped_path is None]
    in_ram: list[int] = []
    for export in opencl:
        yield from _opencl_device(export, found, settings, in_ram)
    yield from _memory_limit(settings, sum(in_ram), opencl=True)


def _mapped_device(export: ExportSettings, map_overwrite: bool) -> Requirement:
    """Whether a ``map:`` device may be used and is large enough."""
    path = export.mapped_path or ""
    try:
        kind = maptarget.check_target(path, map_overwrite=map_overwrite)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            length = maptarget.known_length(path, descriptor)
        finally:
            os.close(descriptor)
        size_bytes = maptarget.export_size(path, length, export.size, export.slices)
    except StartupError as error:
        return refusal("device", error)
    except OSError as error:
        return Requirement("device", MISSING, f"map:{path}: {error.strerror}", f"see ls -l {path}")
    of = f" of {format_size(length)}" if length else ""
    return Requirement("device", OK, f"export {export.name}: {kind} {path}, {format_size(size_bytes)}{of}")


def _new_ram_bytes(export: ExportSettings) -> int:
    """System RAM that a ``map:`` device will take; 0 if it takes none or will be refused anyway.

    The first of several slices counts for all.
    """
    if export.slice:
        return 0
    try:
        return maptarget.new_ram_bytes(export.mapped_path or "", export.size, export.slices)
    except StartupError:
        return 0


def _opencl_device(
    export: ExportSettings, found: Sequence[DeviceInfo], settings: Settings, in_ram: list[int]
) -> Iterator[Requirement]:
    """Appends to ``in_ram`` the size of an export in system RAM."""
    from ..memory.devices import GPU, RUSTICL, choose

    try:
        device = choose(found, export.platform, export.device, allow_cpu=settings.allow_cpu)
    except StartupError as error:
        yield Requirement(
            "device", MISSING, f"export {export.name}: {error}", "vramblk devices shows what is there"
        )
        return
    label = f"export {export.name}: {device.label}"
    swap = export.mode == "swap" or settings.mode == "swap"
    if device.type == GPU:
        yield Requirement("device", OK, label)
        if swap and device.platform == RUSTICL:
            yield Requirement(
                "runtime",
                WARNING,
                f"export {export.name}: swap on Mesa's rusticl is unproven: it was seen to open files at each"
                " launch (with llvmpipe), which can wait for swap",
                "use the vendor's runtime (AMD: rocm-opencl-icd, Intel: intel-opencl-icd), or scratch mode",
            )
    elif swap:
        yield Requirement("device", MISSING, f"{label} is no GPU", "swap mode takes a GPU or a map: device")
        return
    else:
        yield Requirement(
            "device", WARNING, f"{label} is no GPU: the export is system RAM", "fine for a trial only"
        )
    total = format_size(device.memory_bytes)
    try:
        size_bytes = export.size.resolve(device.memory_bytes)
    except ValueError as error:
        yield Requirement(
            "memory", MISSING, f"export {export.name}: {error}", f"--size max, or less than {total}"
        )
        return
    if device.type != GPU and export.size.kind is SizeKind.BYTES:  # others are cut to what fits
        in_ram.append(size_bytes)
    wanted = format_size(size_bytes)
    yield Requirement(
        "memory", OK, f"export {export.name}: {wanted} of {total}; proven by allocating it at start"
    )


def _memory_limit(settings: Settings, in_ram_bytes: int, *, opencl: bool) -> Iterator[Requirement]:
    """Whether a limit of a cgroup leaves room for exports in system RAM and the server beside them."""
    from ..memory import systemram
    from ..supervisor.sizing import window_layouts

    if not in_ram_bytes:
        return
    try:
        workers, local = window_layouts(settings)
    except StartupError as error:
        yield Requirement("workers", MISSING, str(error))
        return
    slabs = [layout.slab_bytes for layout in (*workers, local) if layout is not None]
    beside = systemram.STARTED_BYTES + systemram.server_bytes(slabs, opencl=opencl)
    try:
        systemram.require_room(in_ram_bytes, beside)
    except StartupError as error:
        yield refusal("memory limit", error)
