"""Temperature, clocks and memory of the GPUs that serve: NVIDIA through NVML, AMD through sysfs, Intel
through /proc.

What cannot be had is absent, never zero. A driver may hang while its GPU is being lost, so all
of this happens in a thread of its own, and old readings are not shown.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..system import proc
from . import drmclients, threads

INTERVAL_S = 2.0
STALE_S = 20.0

_NVIDIA = Path("/dev/nvidiactl")
_SYSFS = Path("/sys/bus/pci/devices")
_PCI = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", re.IGNORECASE | re.ASCII)
_CLOCKS = {"graphics": "NVML_CLOCK_GRAPHICS", "sm": "NVML_CLOCK_SM", "memory": "NVML_CLOCK_MEM"}


@dataclass(frozen=True)
class Reading:
    """One GPU; None and absent clocks are what it does not tell.

    Attributes:
        pci: address such as 0000:01:00.0.
        memory_used_bytes, memory_free_bytes: of all that use the GPU, together. They need not add up to the
            total: a driver keeps some memory for itself.
        utilization: share of time that kernels ran, 0 to 1.
        clocks: hertz by name.
    """

    pci: str
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    utilization: float | None = None
    clocks: dict[str, int] = field(default_factory=dict)


class GpuWatch:
    """Reads every few seconds once ``watch`` has named the addresses."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        if _NVIDIA.exists():
            with suppress(ImportError):  # while this process may read it wherever it is
                import pynvml  # noqa: F401
        self._interval_s = interval_s
        self._started = threading.Event()
        self._readings: list[Reading] = []
        self._at = 0.0

    def watch(self, totals: Mapping[str, int | None]) -> None:
        """Begin, if there is a PCI address at all; later calls change nothing.

        Args:
            totals: by PCI address: bytes of memory, as OpenCL reports it.
        """
        wanted = {address: total for each, total in totals.items() if (address := canonical(each))}
        if wanted and not self._started.is_set():
            self._started.set()
            threads.start(self._run, "gpu", wanted)

    def readings(self) -> list[Reading]:
        """The latest readings, none if they are old."""
        return self._readings if time.monotonic() - self._at < STALE_S else []

    def _run(self, wanted: Mapping[str, int | None]) -> None:
        nvml = Nvml.open()
        while True:
            found = []
            for address, total in sorted(wanted.items()):
                reading = _amd(address) or (nvml and nvml.read(address)) or _intel(address, total)
                if reading is not None:
                    found.append(reading)
            self._readings, self._at = found, time.monotonic()
            time.sleep(self._interval_s)


def canonical(address: str) -> str | None:
    """A PCI address in the form that sysfs uses, or None if it is none."""
    match = _PCI.fullmatch(address.strip())
    if match is None:
        return None
    domain, bus, device, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{bus}:{device}.{function}".lower()


class Nvml:
    """The calls of NVIDIA's management library that are needed here, through nvidia-ml-py."""

    def __init__(self, library: Any) -> None:
        self._library = library

    @classmethod
    def open(cls) -> Nvml | None:
        """NVML, or None where there is none. The module takes 2 MiB, so it is imported only here."""
        try:
            import pynvml
        except (ImportError, OSError):  # this process's uid may not read where the packages are
            return None
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return None
        return cls(pynvml)

    def read(self, address: str) -> Reading | None:
        """A reading of the GPU at a PCI address, None if NVML does not know it."""
        library = self._library
        handle = self._ask(library.nvmlDeviceGetHandleByPciBusId, address)
        if handle is None:
            return None
        memory = self._ask(library.nvmlDeviceGetMemoryInfo, handle)
        utilization = self._ask(library.nvmlDeviceGetUtilizationRates, handle)
        power = self._ask(library.nvmlDeviceGetPowerUsage, handle)
        clocks = {
            name: self._ask(library.nvmlDeviceGetClockInfo, handle, getattr(library, kind))
            for name, kind in _CLOCKS.items()
        }
        return Reading(
            pci=address,
            memory_total_bytes=None if memory is None else memory.total,
            memory_used_bytes=None if memory is None else memory.used,
            memory_free_bytes=None if memory is None else memory.free,
            temperature_celsius=self._ask(
                library.nvmlDeviceGetTemperature, handle, library.NVML_TEMPERATURE_GPU
            ),
            power_watts=None if power is None else power / 1000,
            utilization=None if utilization is None else utilization.gpu / 100,
            clocks={name: value * 1_000_000 for name, value in clocks.items() if value is not None},
        )

    def _ask(self, function: Callable[..., Any], *arguments: object) -> Any:
        """What a function tells, or None if this GPU or this driver does not."""
        try:
            return function(*arguments)
        except self._library.NVMLError:
            return None


def _amd(address: str, root: Path = _SYSFS) -> Reading | None:
    """A reading from amdgpu's files (Documentation/gpu/amdgpu), None for a GPU of another driver."""
    base = root / address

    def number(path: Path) -> int | None:
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            return None

    total, used = number(base / "mem_info_vram_total"), number(base / "mem_info_vram_used")
    if total is None:
        return None
    monitor = next(iter(sorted(base.glob("hwmon/hwmon*"))), base / "hwmon")
    busy = number(base / "gpu_busy_percent")
    temperature = number(monitor / "temp1_input")
    power = number(monitor / "power1_average")
    if power is None:
        power = number(monitor / "power1_input")
    clocks = {"graphics": number(monitor / "freq1_input"), "memory": number(monitor / "freq2_input")}
    return Reading(
        pci=address,
        memory_total_bytes=total,
        memory_used_bytes=used,
        memory_free_bytes=None if used is None else max(0, total - used),
        temperature_celsius=None if temperature is None else temperature / 1000,
        power_watts=None if power is None else power / 1e6,
        utilization=None if busy is None else busy / 100,
        clocks={name: value for name, value in clocks.items() if value is not None},
    )


def _intel(
    address: str, total_bytes: int | None, root: Path = _SYSFS, processes: Path = proc.ROOT
) -> Reading | None:
    """A reading from what xe or i915 report of the GPU's clients, None for a GPU of another driver.

    Args:
        total_bytes: as OpenCL reports it, since neither driver has a file that tells.
    """
    try:
        driver = (root / address / "driver").readlink().name
    except OSError:
        return None
    if driver not in drmclients.DRIVERS:
        return None
    used = drmclients.used_bytes(address, processes)
    if used is None:
        return None
    return Reading(
        pci=address,
        memory_total_bytes=total_bytes,
        memory_used_bytes=used,
        memory_free_bytes=None if total_bytes is None else max(0, total_bytes - used),
    )
