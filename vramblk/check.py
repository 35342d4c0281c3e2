"""``vramblk check``: every setting with where it came from, and what this machine lacks to serve with them.

Nothing here is allocated or left changed: what can only be proven by doing is done and undone.
"""

from __future__ import annotations

import json as json_format
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from . import probes
from .errors import PreconditionError, StartupError
from .probes import MISSING, OK, WARNING, Requirement
from .settings import ExportSettings, Settings

if TYPE_CHECKING:
    from .memory.devices import DeviceInfo


def run(settings: Settings, json: bool) -> int:
    """Print settings and requirements; exit status 0, or 78 if one is missing."""
    requirements = list(examine(settings))
    missing = any(requirement.state == MISSING for requirement in requirements)
    print(as_json(settings, requirements) if json else as_text(settings, requirements))
    return PreconditionError.exit_code if missing else 0


def as_json(settings: Settings, requirements: list[Requirement]) -> str:
    return json_format.dumps(
        {
            "ok": all(requirement.state != MISSING for requirement in requirements),
            "mode": settings.mode,
            "settings": [
                {"name": value.name, "value": value.text, "source": value.source} for value in settings.values
            ],
            "requirements": [
                {"name": each.name, "state": each.state, "detail": each.detail, "remedy": each.remedy}
                for each in requirements
            ],
        },
        indent=2,
    )


def as_text(settings: Settings, requirements: list[Requirement]) -> str:
    rows = [(value.name, value.text, value.source) for value in settings.values]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = ["settings"]
    lines += [f"  {name:<{widths[0]}}  {text:<{widths[1]}}  {source}" for name, text, source in rows]
    lines += ["", f"requirements, mode {settings.mode}"]
    width = max(len(requirement.name) for requirement in requirements)
    for requirement in requirements:
        lines.append(f"  {requirement.state:<8} {requirement.name:<{width}}  {requirement.detail}".rstrip())
        if requirement.remedy:
            lines.append(f"  {'':<8} {'':<{width}}  -> {requirement.remedy}")
    return "\n".join(line.rstrip() for line in lines)


def examine(settings: Settings) -> Iterator[Requirement]:
    """Every requirement, those of OpenCL last: its drivers start threads that would inherit what is tried."""
    for name, near in settings.unknown_variables:
        yield Requirement("variable", WARNING, f"{name} is read by nothing", f"did you mean {near}?")
    yield _from_error("processor", _processor)
    yield from probes.safeguards(settings)
    yield from probes.hazards(settings)
    yield from _addresses(settings)
    if settings.tls != "off":
        yield _from_error("tls", lambda: _tls(settings))
    yield from _devices(settings)


def _from_error(name: str, attempt: Callable[[], str]) -> Requirement:
    """What ``attempt`` says, or why the server would refuse to start there."""
    try:
        return Requirement(name, OK, attempt())
    except StartupError as error:
        return Requirement(name, MISSING, str(error))


def _processor() -> str:
    from .shared.barrier import require_ordered_stores

    require_ordered_stores()
    return platform.machine()


def _tls(settings: Settings) -> str:
    from .tls import make_context

    make_context(settings)
    return f"{settings.tls}, with {settings.tls_psk or settings.tls_certificates}"


def _addresses(settings: Settings) -> Iterator[Requirement]:
    for tcp in settings.tcp_listeners:
        yield probes.port("port", "listen_addr", tcp)
    for unix in settings.unix_listeners:
        yield probes.socket_path("socket directory", unix.path, required=True)
    if settings.metrics_addr is not None:
        yield probes.port("metrics port", "metrics_addr", settings.metrics_addr)
    if settings.status_socket is not None:
        yield probes.socket_path(
            "status socket", settings.status_socket, required=settings.status_socket_given
        )


def _devices(settings: Settings) -> Iterator[Requirement]:
    mapped = [export for export in settings.exports if export.mapped_path is not None]
    for export in mapped:
        yield probes.mapped_device(export, settings.map_overwrite)
    opencl = [export for export in settings.exports if export.mapped_path is None]
    if not opencl:
        yield Requirement("loader", OK, "not needed: every export is a map: device")
        return
    from .memory import devices, passthrough

    try:
        loader = devices.load_opencl()
    except StartupError as error:
        yield Requirement("loader", MISSING, str(error), "install the package ocl-icd-libopencl1")
        return
    yield Requirement("loader", OK, f"pyopencl {loader.VERSION_TEXT}")
    found = devices.discover()
    if not found:
        known = passthrough.obstacle()
        remedy = "install the GPU's OpenCL runtime; without a GPU pip install pocl-binary-distribution"
        yield Requirement(
            "platforms", MISSING, known or "no OpenCL platform with a device", "" if known else remedy
        )
        return
    yield Requirement("platforms", OK, ", ".join(dict.fromkeys(device.platform for device in found)))
    for export in opencl:
        yield from _opencl_device(export, found, settings)


def _opencl_device(
    export: ExportSettings, found: Sequence[DeviceInfo], settings: Settings
) -> Iterator[Requirement]:
    from .memory.devices import GPU, choose
    from .memory.listing import readable

    try:
        device = choose(found, export.platform, export.device, allow_cpu=settings.allow_cpu)
    except StartupError as error:
        yield Requirement(
            "device", MISSING, f"export {export.name}: {error}", "vramblk devices shows what is there"
        )
        return
    label = f"export {export.name}: {device.label}"
    if device.type == GPU:
        yield Requirement("device", OK, label)
    elif export.mode == "swap" or settings.mode == "swap":
        yield Requirement("device", MISSING, f"{label} is no GPU", "swap mode takes a GPU or a map: device")
        return
    else:
        yield Requirement(
            "device", WARNING, f"{label} is no GPU: the export is system RAM", "fine for a trial only"
        )
    total = readable(device.memory_bytes)
    try:
        size_bytes = export.size.resolve(device.memory_bytes)
    except ValueError as error:
        yield Requirement(
            "memory", MISSING, f"export {export.name}: {error}", f"--size max, or less than {total}"
        )
        return
    wanted = readable(size_bytes)
    yield Requirement(
        "memory", OK, f"export {export.name}: {wanted} of {total}; proven by allocating it at start"
    )
