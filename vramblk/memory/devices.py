"""Which OpenCL devices there are, and which one an export gets.

The first GPU of any platform is the default: many hosts have a CPU platform at index 0, and a "GPU
disk" that is system RAM in truth is what users fear most. So a CPU is taken only where it is allowed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import PreconditionError
from . import caches
from .passthrough import unmet_requirement

GPU, CPU = "GPU", "CPU"
#: The platform of Mesa's runtime.
RUSTICL = "rusticl"

NOTHING_FOUND = (
    "no OpenCL platform found; install the GPU's OpenCL runtime (NVIDIA: the driver's libnvidia-opencl and"
    " /etc/OpenCL/vendors/nvidia.icd; AMD: rocm-opencl-icd; Intel: intel-opencl-icd; or mesa-opencl-icd with"
    " RUSTICL_ENABLE), or for tests on the CPU `pip install pocl-binary-distribution` and --allow-cpu"
)

_PCI = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", re.ASCII | re.IGNORECASE)
_SMALLEST_PARAMETERS = 512
_PCI_BUS_INFO_KHR = 0x410F


@dataclass(frozen=True)
class DeviceInfo:
    """One device, numbered as ``--platform`` and ``--device`` take it.

    Attributes:
        device_index: within its platform.
        type: GPU or CPU, see ``device_type``.
        problem: why it cannot be used, None if it can (a CPU only with --allow-cpu).
        handle: the ``pyopencl.Device``.
    """

    platform_index: int
    device_index: int
    platform: str
    name: str
    type: str
    vendor: str
    driver: str
    memory_bytes: int
    largest_allocation_bytes: int
    pci_address: str | None
    problem: str | None
    handle: Any = field(repr=False, compare=False, default=None)

    @property
    def label(self) -> str:
        where = f" at {self.pci_address}" if self.pci_address else ""
        return f"platform {self.platform_index} device {self.device_index}: {self.name} ({self.type}){where}"


def load_opencl() -> Any:
    """The module pyopencl, imported with caches where they can be written.

    Raises:
        PreconditionError: there is no OpenCL loader.
    """
    os.environ.setdefault("PYOPENCL_NO_CACHE", "1")
    # PoCL's device without threads of its own: handing a small batch to threads costs more than doing it.
    os.environ.setdefault("POCL_DEVICES", "basic")
    caches.choose()
    try:
        import pyopencl
    except ImportError as error:
        raise PreconditionError(
            f"pyopencl cannot be loaded ({error}); install a loader: apt-get install ocl-icd-libopencl1"
        ) from None
    return pyopencl


def discover() -> list[DeviceInfo]:
    """All devices of all platforms; empty if there is none.

    Raises:
        PreconditionError: there is no OpenCL loader.
    """
    cl = load_opencl()
    found = []
    try:
        platforms = cl.get_platforms()
    except cl.Error:
        platforms = []
    for platform_index, platform in enumerate(platforms):
        try:
            devices = platform.get_devices()
        except cl.Error:
            devices = []
        for device_index, device in enumerate(devices):
            found.append(_describe(cl, platform_index, device_index, platform, device))
    return found


def choose(
    devices: Sequence[DeviceInfo], platform: int | None, device: str | None, *, allow_cpu: bool
) -> DeviceInfo:
    """The device that ``--platform`` and ``--device`` name.

    Without either: the first GPU of any platform. An index alone counts within the first platform
    that has a GPU; a name fragment (any case) or a PCI address is looked for on every platform.
    With ``allow_cpu`` a CPU serves where no GPU matches.

    Raises:
        PreconditionError: it does not exist, is ambiguous or cannot be used; names what exists.
    """
    if not devices:
        raise PreconditionError((allow_cpu and caches.problem()) or unmet_requirement() or NOTHING_FOUND)
    pool = list(devices)
    if platform is not None:
        pool = [each for each in pool if each.platform_index == platform]
        if not pool:
            raise PreconditionError(
                f"platform {platform} does not exist or has no device; {_existing(devices)}"
            )
    if device is None:
        return _first(pool, devices, allow_cpu)
    matching = _matching(pool, device, platform)
    if not matching:
        on = "" if platform is None else f" on platform {platform}"
        raise PreconditionError(f"device {device!r} does not exist{on}; {_existing(devices)}")
    if len({each.name for each in matching if each.type == matching[0].type}) > 1:
        raise PreconditionError(
            f"device {device!r} is ambiguous; give more of the name or the PCI address; {_existing(matching)}"
        )
    return _usable(matching[0], allow_cpu)


def _first(pool: Sequence[DeviceInfo], devices: Sequence[DeviceInfo], allow_cpu: bool) -> DeviceInfo:
    for each in pool:
        if each.type == GPU and each.problem is None:
            return each
    if allow_cpu:
        for each in pool:
            if each.type == CPU and each.problem is None:
                return each
    broken = next((each for each in pool if each.problem and (allow_cpu or each.type != CPU)), None)
    if broken is not None:
        raise PreconditionError(f"{broken.label} cannot be used: {broken.problem}")
    raise PreconditionError(
        unmet_requirement(any_device=True)
        or f"no GPU found; {_existing(devices)}; install the GPU's OpenCL runtime, or give --allow-cpu to"
        " serve system RAM"
    )


def _matching(pool: list[DeviceInfo], device: str, platform: int | None) -> list[DeviceInfo]:
    if device.isascii() and device.isdigit():
        if platform is None:
            first = next((each for each in pool if each.type == GPU), pool[0]).platform_index
            pool = [each for each in pool if each.platform_index == first]
        return [each for each in pool if each.device_index == int(device)]
    if _PCI.fullmatch(device):
        return [each for each in pool if each.pci_address and normal_pci(device) == each.pci_address]
    named = [each for each in pool if device.lower() in each.name.lower()]
    return sorted(named, key=lambda each: each.type != GPU)


def _usable(device: DeviceInfo, allow_cpu: bool) -> DeviceInfo:
    if device.problem is not None:
        raise PreconditionError(f"{device.label} cannot be used: {device.problem}")
    if device.type == CPU and not allow_cpu:
        raise PreconditionError(f"{device.label} is system RAM; choose a GPU, or give --allow-cpu")
    return device


def _existing(devices: Sequence[DeviceInfo]) -> str:
    return "there is " + "; ".join(each.label for each in devices)


def normal_pci(address: str) -> str:
    """A PCI address with its domain, in lower case: 0000:01:00.0.

    Raises:
        ValueError: not a PCI address.
    """
    match = _PCI.fullmatch(address)
    if match is None:
        raise ValueError(f"{address!r} is not a PCI address")
    domain, bus, slot, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{bus.lower()}:{slot.lower()}.{function}"


def device_type(cl: Any, kind: int) -> str:
    """GPU or CPU, for OpenCL's bits of a device's type. What is not a GPU counts as a CPU.

    An accelerator can be an emulator that lives in system RAM, and so can a device that claims to be a
    CPU as well. A real one is served with --allow-cpu.
    """
    return GPU if kind & cl.device_type.GPU and not kind & cl.device_type.CPU else CPU


def _describe(cl: Any, platform_index: int, device_index: int, platform: Any, device: Any) -> DeviceInfo:
    def ask(name: str, default: Any) -> Any:
        try:
            return getattr(device, name)
        except (cl.Error, AttributeError):
            return default

    kind = ask("type", 0)
    known = cl.device_type.GPU | cl.device_type.CPU | cl.device_type.ACCELERATOR
    problem = None
    if not ask("available", True):
        problem = "the runtime reports that it is not available"
    elif not ask("compiler_available", True):
        problem = "it has no compiler for kernels"
    elif not ask("endian_little", True):
        problem = "it is big-endian"
    elif ask("max_parameter_size", 0) < _SMALLEST_PARAMETERS:
        problem = "its kernels take too few bytes of arguments"
    elif not kind & known:
        problem = "it is neither GPU, accelerator nor CPU"
    elif str(platform.name).strip() == caches.POCL:
        problem = caches.problem()
    return DeviceInfo(
        platform_index=platform_index,
        device_index=device_index,
        platform=str(platform.name).strip(),
        name=str(ask("name", "unknown")).strip(),
        type=device_type(cl, kind),
        vendor=str(ask("vendor", "unknown")).strip(),
        driver=str(ask("driver_version", "unknown")).strip(),
        memory_bytes=int(ask("global_mem_size", 0)),
        largest_allocation_bytes=int(ask("max_mem_alloc_size", 0)),
        pci_address=_pci_address(cl, device),
        problem=problem,
        handle=device,
    )


def _pci_address(cl: Any, device: Any) -> str | None:
    with contextlib.suppress(cl.Error, AttributeError, TypeError):
        bus, slot = device.pci_bus_id_nv, device.pci_slot_id_nv
        domain = 0
        with contextlib.suppress(cl.Error, AttributeError, TypeError):
            domain = device.pci_domain_id_nv
        return f"{domain:04x}:{bus:02x}:{slot:02x}.0"
    with contextlib.suppress(cl.Error, AttributeError, TypeError):
        topology = device.topology_amd
        return f"0000:{topology.bus & 0xFF:02x}:{topology.device:02x}.{topology.function}"
    return _pci_bus_info(device)


def _pci_bus_info(device: Any) -> str | None:
    """From the extension cl_khr_pci_bus_info, which pyopencl does not know."""
    from .hotcalls import device_words

    if "cl_khr_pci_bus_info" not in str(device.extensions):
        return None
    words = device_words(device.int_ptr, _PCI_BUS_INFO_KHR, 4)
    if words is None:
        return None
    domain, bus, slot, function = words
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function}"
