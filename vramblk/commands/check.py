"""``vramblk check``: every setting with its source, and what this machine lacks to serve with them.

Nothing here is allocated or left changed: what can only be proven by doing is done and undone.
"""

from __future__ import annotations

import json as json_format
import platform
from collections.abc import Callable, Iterator, Sequence

from ..config import exposure
from ..config.settings import Settings
from ..errors import PreconditionError, StartupError
from . import deviceprobes, probes
from .probes import MISSING, OK, WARNING, Requirement


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
    lines += ["", verdict(requirements)]
    return "\n".join(line.rstrip() for line in lines)


def verdict(requirements: Sequence[Requirement]) -> str:
    """Whether the server would start, in one line."""
    # Of several exports each has its rows; a name is enough once.
    missing = dict.fromkeys(each.name for each in requirements if each.state == MISSING)
    warnings = dict.fromkeys(each.name for each in requirements if each.state == WARNING)
    if missing:
        return f"the server would not start; missing: {', '.join(missing)}"
    return "the server would start" + (f", with warnings: {', '.join(warnings)}" if warnings else "")


def examine(settings: Settings) -> Iterator[Requirement]:
    """Every requirement, those of OpenCL last: its drivers start threads that would inherit what is tried."""
    for name, near in settings.unknown_variables:
        yield Requirement(
            "variable", WARNING, f"{name} is read by nothing", f"did you mean {near}?" if near else ""
        )
    for each in settings.overrides:
        names = ", ".join(each.exports)
        detail = f"{each.name} = {each.value} ({each.source}) is used for {names} instead of its own"
        yield Requirement(
            "exports", WARNING, detail, f"leave it out, or out of the entries of {settings.config}"
        )
    for export in settings.exports:
        if asked := export.size.rounded_from:
            detail = f"export {export.name}: {asked} bytes are rounded up to {export.size}, whole 4 KiB"
            yield Requirement("size", OK, detail)
    yield _from_error("processor", _processor)
    yield from probes.of_the_kernel(settings)
    yield from probes.hazards(settings)
    yield from _addresses(settings)
    yield from _exposure(settings)
    if settings.tls != "off":
        yield _tls(settings)
    yield from deviceprobes.of_devices(settings)


def _from_error(name: str, attempt: Callable[[], str]) -> Requirement:
    """What ``attempt`` returns, or why the server would refuse to start there."""
    try:
        return Requirement(name, OK, attempt())
    except StartupError as error:
        return Requirement(name, MISSING, str(error))


def _processor() -> str:
    from ..shared.barrier import require_ordered_stores

    require_ordered_stores()
    return platform.machine()


def _tls(settings: Settings) -> Requirement:
    from ..system.certificate import as_date
    from ..system.tls import read_files

    try:
        files = read_files(settings)
    except StartupError as error:
        return Requirement("tls", MISSING, str(error))
    detail = f"{settings.tls}, with {settings.tls_psk or settings.tls_certificates}"
    validity = files.validity if files else None
    if validity is None:
        return Requirement("tls", OK, detail)
    if warning := validity.warning():
        remedy = "replace the file; a running server reads it again at SIGHUP"
        return Requirement("tls", WARNING, f"{detail}; {warning}", remedy)
    return Requirement("tls", OK, f"{detail}; {validity.file} expires on {as_date(validity.until_s)}")


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


def _exposure(settings: Settings) -> Iterator[Requirement]:
    for address, who in exposure.exposed_listeners(settings):
        detail = f"{address}: {who} can read and write the exports"
        yield Requirement("exposure", WARNING, detail, exposure.NBD_REMEDY)
    if (metrics := exposure.exposed_metrics(settings)) is not None:
        detail = f"anybody who reaches {metrics} can read metrics"
        yield Requirement("exposure", WARNING, detail, exposure.METRICS_REMEDY)
