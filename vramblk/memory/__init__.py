"""The memories that an engine serves from: OpenCL devices and mapped files.

Nothing here loads OpenCL before an export needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..config.settings import ExportSettings
from . import maptarget, systemram
from .base import Memory, SlabWindow

__all__ = ["open_memories"]


def open_memories(
    exports: Sequence[ExportSettings],
    windows: Sequence[SlabWindow],
    *,
    allow_cpu: bool,
    map_overwrite: bool,
    verify_reads: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Memory]:
    """The memory of each export, in their order: allocated, touched, zeroed and attached, not yet proven.

    Exports on the same device share its context, queue, staging buffer and program.

    Args:
        verify_reads: keep a checksum of each 4 KiB and compare it at each read; see ``checksums``.
        progress: called with what is being done, bytes done and bytes in all.

    Raises:
        PreconditionError: no such device, or the size is beyond it or beyond the limit of a cgroup.
        DeviceError: the device failed.
    """
    opened: dict[int, Memory] = {}
    try:
        slabs = [window.slab.nbytes for window in windows]
        systemram.require_room(
            sum(
                maptarget.new_ram_bytes(export.mapped_path, export.size, export.slices)
                for export in exports
                if export.mapped_path is not None and not export.slice
            ),
            systemram.server_bytes(slabs, opencl=False),
        )
        target: maptarget.MapTarget | None = None
        for index, export in enumerate(exports):
            if export.mapped_path is not None:
                from .mapped import MappedMemory

                mapped = opened[index] = MappedMemory(
                    export.mapped_path,
                    export.size,
                    map_overwrite=map_overwrite,
                    verify_reads=verify_reads,
                    target=target if export.slice else None,  # slices stand one behind the other
                    slices=export.slices,
                    slice=export.slice,
                )
                target = mapped.target
        on_devices = {index: export for index, export in enumerate(exports) if export.mapped_path is None}
        if on_devices:
            from .placing import open_on_devices

            swap = any(export.mode == "swap" for export in exports)
            opened |= open_on_devices(
                on_devices,
                allow_cpu=allow_cpu,
                swap=swap,
                verify_reads=verify_reads,
                beside_bytes=systemram.server_bytes(slabs, opencl=True),
                progress=progress,
            )
        memories = [opened[index] for index in range(len(exports))]
        for memory in memories:
            memory.attach(windows)
    except BaseException:
        for memory in opened.values():
            memory.close()
        raise
    return memories
