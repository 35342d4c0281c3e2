"""The settings of one run: flag over environment over YAML over default, every value checked."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import sources
from .errors import ConfigError
from .options import BY_ENTRY_KEY, MAXIMUM_EXPORTS, OPTIONS, Option
from .sources import ConfigFile, Given
from .units import Address, Size, TcpAddress, UnixAddress

DEFAULT_SOURCE = "default"


@dataclass(frozen=True)
class ExportSettings:
    """One export.

    Attributes:
        platform: index of the OpenCL platform, None for any.
        device: index, part of a name, PCI address or ``map:/path``; None for the first GPU.
        mode: "scratch" or "swap".
    """

    name: str
    size: Size
    platform: int | None
    device: str | None
    mode: str
    read_only: bool

    @property
    def mapped_path(self) -> str | None:
        """The path of a ``map:`` device."""
        if self.device is None or not self.device.startswith("map:"):
            return None
        return self.device.removeprefix("map:")


@dataclass(frozen=True)
class ShownValue:
    """One setting as people may see it, secrets hidden.

    Attributes:
        name: option name, or ``exports[0].size`` where the YAML file lists exports.
        source: as in errors, or "default".
    """

    name: str
    text: str
    source: str


@dataclass(frozen=True)
class Settings:
    """All settings. Times are seconds; paths are absolute.

    Attributes:
        exports: at least one; the empty export name means the first.
        workers: None lets the supervisor choose.
        metrics_addr: None is off.
        tls: "off", "on" or "require".
        status_socket: None is off.
        status_socket_given: a default that cannot be used is a warning, a given one an error.
        values: every setting with where it came from.
        unknown_variables: VRAMBLK_ variables that nothing reads, each with the nearest known name.
    """

    exports: tuple[ExportSettings, ...]
    listen_addr: tuple[Address, ...]
    workers: int | None
    max_connections: int
    drain_timeout_s: float
    allow_cpu: bool
    map_overwrite: bool
    verify_reads: bool
    tls: str
    tls_certificates: str | None
    tls_psk: str | None
    tls_verify_peer: bool
    metrics_addr: TcpAddress | None
    metrics_token: str | None = field(repr=False)
    status_socket: str | None
    status_socket_given: bool
    config: str | None
    verbose: bool
    values: tuple[ShownValue, ...] = field(repr=False, default=())
    unknown_variables: tuple[tuple[str, str], ...] = ()

    @property
    def mode(self) -> str:
        """One swap export makes the whole server a swap server."""
        return "swap" if any(export.mode == "swap" for export in self.exports) else "scratch"

    @property
    def unix_listeners(self) -> tuple[UnixAddress, ...]:
        return tuple(address for address in self.listen_addr if isinstance(address, UnixAddress))

    @property
    def tcp_listeners(self) -> tuple[TcpAddress, ...]:
        return tuple(address for address in self.listen_addr if isinstance(address, TcpAddress))

    def source_of(self, name: str) -> str:
        """Where a setting came from, as ``values`` says it."""
        return next(value.source for value in self.values if value.name == name)


def load_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Settings from flags (without the program's name and subcommand), environment and YAML file.

    Raises:
        ConfigError: one line that names setting, source, value and what is allowed.
    """
    parser = sources.OneLineParser(prog="vramblk", allow_abbrev=False)
    sources.add_flags(parser)
    return resolve(parser.parse_all(argv), environ)


def resolve(namespace: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """As ``load_settings``, from flags parsed with ``sources.add_flags``."""
    strong = [sources.from_flags(namespace), sources.from_environment(environ)]
    checked = _Checked()
    for given in strong:
        checked.check(given.values())
    path = checked.strongest("config", *strong)
    file = sources.from_file(checked.value(path)) if path else ConfigFile("", {}, None)
    checked.check(file.given.values())
    for entry in file.exports or ():
        checked.check(entry.values())

    chosen = {option.name: checked.strongest(option.name, *strong, file.given) for option in OPTIONS}
    values = {name: checked.value(given) for name, given in chosen.items() if given}
    for option in OPTIONS:
        values.setdefault(option.name, _default(option, environ))
    exports, shown = _exports(checked, file, strong, chosen, values)
    _check_tls(values, chosen)

    own = [option for option in OPTIONS if file.exports is None or not option.per_export]
    shown = [_show(option, option.name, chosen[option.name], environ) for option in own] + shown
    names = {option.name for option in OPTIONS if not option.per_export} - {"drain_timeout"}
    return Settings(
        exports=exports,
        drain_timeout_s=values["drain_timeout"],
        status_socket_given=chosen["status_socket"] is not None,
        values=tuple(shown),
        unknown_variables=tuple(sources.unknown_variables(environ)),
        **{name: values[name] for name in names},
    )


class _Checked:
    """Parsed values of everything given, by identity, since each is parsed exactly once."""

    def __init__(self) -> None:
        self._values: dict[int, Any] = {}

    def check(self, given: Any) -> None:
        for item in given:
            self._values[id(item)] = item.parse()

    def value(self, given: Given) -> Any:
        return self._values[id(given)]

    def strongest(self, name: str, *layers: Mapping[str, Given]) -> Given | None:
        return next((layer[name] for layer in layers if name in layer), None)


def _default(option: Option, environ: Mapping[str, str]) -> Any:
    if option.name == "status_socket":
        return default_status_socket(environ)
    if option.default is None:
        return None
    return Given(option, DEFAULT_SOURCE, (option.default,)).parse()


def default_status_socket(environ: Mapping[str, str]) -> str:
    """Path of the status socket where none is given."""
    if os.geteuid() == 0:
        return "/run/vramblk/status.sock"
    return os.path.join(environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}", "vramblk-status.sock")


def _exports(
    checked: _Checked,
    file: ConfigFile,
    strong: Sequence[Mapping[str, Given]],
    chosen: Mapping[str, Given | None],
    values: Mapping[str, Any],
) -> tuple[tuple[ExportSettings, ...], list[ShownValue]]:
    """The exports, and the rows that ``check`` shows for those of the file.

    Flag and environment override an entry, as they override the file's other keys; an option at the
    file's top level is the default of the entries.
    """
    fields = {option.name for option in BY_ENTRY_KEY.values()}
    if file.exports is None:
        return (_export({name: values[name] for name in fields}),), []
    if len(file.exports) > MAXIMUM_EXPORTS:
        count = f"{len(file.exports)} exports"
        raise ConfigError(f"exports ({file.path} key exports): {count}; allowed: at most {MAXIMUM_EXPORTS}")
    name_for_all = checked.strongest("export_name", *strong)
    if name_for_all and len(file.exports) > 1:
        raise name_for_all.refuse(f"one name for the {len(file.exports)} exports of {file.path}")
    exports, shown = [], []
    first_use: dict[str, int] = {}
    for index, entry in enumerate(file.exports):
        mixed = {}
        for key, option in BY_ENTRY_KEY.items():
            given = checked.strongest(option.name, *strong, entry, file.given)
            mixed[option.name] = checked.value(given) if given else values[option.name]
            shown.append(_show(option, f"exports[{index}].{key}", given, {}))
        export = _export(mixed)
        if export.name in first_use:
            raise ConfigError(
                f"export_name = {sources.quote(export.name)} ({file.path} key exports[{index}].name): "
                f"exports[{first_use[export.name]}] has it too; allowed: a different name for each export"
            )
        first_use[export.name] = index
        exports.append(export)
    return tuple(exports), shown


def _export(values: Mapping[str, Any]) -> ExportSettings:
    renamed = {"name" if name == "export_name" else name: value for name, value in values.items()}
    return ExportSettings(**renamed)


def _check_tls(values: Mapping[str, Any], chosen: Mapping[str, Given | None]) -> None:
    """What is wrong with TLS settings together; the files themselves are opened by ``tls``."""
    given = chosen["tls"]
    certificates, psk, verify = chosen["tls_certificates"], chosen["tls_psk"], chosen["tls_verify_peer"]
    if given is None and (unused := certificates or psk):
        raise unused.refuse("TLS is off", allowed="with --tls on or require; with --tls off it is unused")
    if values["tls"] == "off" or given is None:
        return
    if not certificates and not psk:
        raise given.refuse(
            "without certificates or keys",
            allowed="with --tls-certificates DIR or --tls-psk FILE",
        )
    if certificates and psk:
        raise psk.refuse(f"tls_certificates is given too ({certificates.source})", allowed="one of the two")
    if verify and values["tls_verify_peer"] and not certificates:
        raise verify.refuse(
            "a pre-shared key already proves the client", allowed="with --tls-certificates DIR"
        )


def _show(option: Option, name: str, given: Given | None, environ: Mapping[str, str]) -> ShownValue:
    if given:
        return ShownValue(name, given.shown, given.source)
    text = default_status_socket(environ) if option.name == "status_socket" else option.default_text
    return ShownValue(name, text, DEFAULT_SOURCE)
