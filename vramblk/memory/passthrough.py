"""Why a container that should have a GPU has none, found from device files and libraries.

Asked only after discovery found none, in the process that has loaded OpenCL: OpenCL itself says no
more than "no platform", be it a forgotten ``--gpus``, a driver without its OpenCL library or a
device file of a group that this process is not in.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

_NVIDIA_LIBRARY = "libnvidia-opencl.so.1"
_RUSTICL = "rusticl.icd"
_SILENT_RUSTICL = (
    "Mesa's OpenCL (rusticl) is installed, but offers no device while RUSTICL_ENABLE is unset; set"
    " RUSTICL_ENABLE=iris for Intel, or RUSTICL_ENABLE=radeonsi for AMD"
)
_VENDOR_FILES = {
    "nvidia.icd": "compose.nvidia.yaml (or docker run --gpus all)",
    "amdocl64.icd": "compose.rocm.yaml (or docker run --device /dev/kfd --device /dev/dri)",
    _RUSTICL: "compose.intel.yaml (or docker run --device /dev/dri)",
}


def unmet_requirement(
    root: Path = Path("/"),
    environ: Mapping[str, str] = os.environ,
    loadable: Callable[[str], bool] | None = None,
    *,
    any_device: bool = False,
) -> str | None:
    """One line with the remedy, or None if nothing is known that is better than "no GPU".

    Args:
        root: where /dev and /etc are looked for.
        loadable: whether the dynamic linker finds a library.
        any_device: OpenCL has found a device, if only a CPU.
    """
    for reason in _reasons(root, environ, loadable or _loads, any_device):
        return reason
    return None


def _reasons(
    root: Path, environ: Mapping[str, str], loadable: Callable[[str], bool], any_device: bool
) -> Iterator[str]:
    dev = root / "dev"
    wanted = Path(environ.get("OCL_ICD_VENDORS", "")).name
    if (dev / "nvidiactl").exists() and not loadable(_NVIDIA_LIBRARY):
        yield (
            f"an NVIDIA GPU is there, but not the driver's {_NVIDIA_LIBRARY}; in a container set"
            " NVIDIA_DRIVER_CAPABILITIES=compute,utility, on a host install the driver's OpenCL library"
        )
    nodes = [dev / "kfd", *sorted((dev / "dri").glob("renderD*"))]
    for node in nodes:
        if node.exists() and not os.access(node, os.R_OK | os.W_OK):
            group = node.stat().st_gid
            yield (
                f"/{node.relative_to(root)} cannot be opened; it belongs to group {group}: in a container set"
                f" VRAMBLK_RENDER_GID={group} (docker run --group-add {group}), on a host join that group"
            )
    nvidia, gpu = (dev / "nvidiactl").exists(), any(node.exists() for node in nodes)
    vendors = root / "etc/OpenCL/vendors"
    in_image = "NVIDIA_DRIVER_CAPABILITIES" in environ
    if in_image and (nvidia or gpu) and wanted in _VENDOR_FILES and not (vendors / wanted).exists():
        yield (
            f"this image was built without the runtime of {wanted}; build it with"
            f" {_VENDOR_FILES[wanted].partition(' ')[0]} (docker compose up -d --build), or type: make up"
        )
    if nvidia:
        return
    silent_rusticl = (
        "RUSTICL_ENABLE" not in environ
        and wanted in ("", "vendors", _RUSTICL)
        and (vendors / _RUSTICL).exists()
    )
    if silent_rusticl and (gpu or not (in_image or any_device)):
        yield _SILENT_RUSTICL
    if gpu:
        return
    if wanted in _VENDOR_FILES:
        yield f"this container was given no GPU; start it with {_VENDOR_FILES[wanted]}"
    elif in_image:
        yield (
            "this container was given no GPU; start it with compose.nvidia.yaml, compose.rocm.yaml or"
            " compose.intel.yaml (docker run --gpus all, or --device /dev/dri), or to serve system RAM with"
            " VRAMBLK_ALLOW_CPU=on"
        )


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
