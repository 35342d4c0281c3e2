"""The settings of one run: flag over environment over YAML over default, every value checked."""

from __future__ import annotations

import argparse
import os
import secrets
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import ConfigError
from . import sources
from .options import ALL_DEVICES, BY_ENTRY_KEY, MAXIMUM_EXPORTS, MAXIMUM_NAME_BYTES, OPTIONS, Option
from .sources import ConfigFile, Given
from .units import Address, Size, TcpAddress, UnixAddress
from .variables import unknown_variables

DEFAULT_SOURCE = "default"
#: What options are given, by name; where a name stands in several sources, the first of the maps counts.
GivenByName = ChainMap[str, Given]
_LIFE_BYTES = 4
#: Index of a platform, index of a device on it, and GPU or CPU.
DevicePlace = tuple[int, int, str]


@dataclass(frozen=True)
class ExportSettings:
    """One export.

    Attributes:
        platform: index of the OpenCL platform, None for any.
        device: index, part of a name, PCI address, ``map:/path`` or ``all``; None for the first GPU.
        mode: "scratch" or "swap".
        max_connections: as given; ``places`` is what counts.
        allocate: "start" or "attach"; None leaves it to the mode. See ``attaches``.
        slices: how many exports of equal size were made of one, of which this is number ``slice``, from 0.
    """

    name: str
    size: Size
    platform: int | None
    device: str | None
    mode: str
    read_only: bool
    max_connections: int | None = None
    allocate: str | None = None
    slices: int = 1
    slice: int = 0

    @property
    def places(self) -> int | None:
        """Clients in transmission at once; None is no limit beside the server's.

        A swap export has one: a second client could read and change the memory of every process.
        """
        return 1 if self.mode == "swap" else self.max_connections

    @property
    def mapped_path(self) -> str | None:
        """The path of a ``map:`` device."""
        if self.device is None or not self.device.startswith("map:"):
            return None
        return self.device.removeprefix("map:")

    @property
    def attaches(self) -> bool:
        """Whether memory is held only while a client is attached."""
        return (self.allocate or ("attach" if self.mode == "swap" else "start")) == "attach"

    def sliced(self) -> tuple[ExportSettings, ...]:
        """The exports that ``slices`` makes of this one: NAME-0 and so on; a single one keeps its name.

        One on all devices stays whole until it is known which those are.
        """
        if self.slices == 1 or self.device == ALL_DEVICES:
            return (self,)
        size = self.size.divided(self.slices)
        return tuple(
            replace(self, name=f"{self.name}-{number}", size=size, slice=number)
            for number in range(self.slices)
        )


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
class Override:
    """A flag or variable that takes the place of what entries of the file say themselves.

    Attributes:
        name: of the option.
        exports: names of the exports whose own value is not used.
    """

    name: str
    value: str
    source: str
    exports: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """All settings. Times are seconds; paths are absolute.

    Attributes:
        exports: at least one; the empty export name means the first.
        workers: None lets the supervisor choose.
        metrics_addr: None is off.
        metrics_host: names that its clients may use without a token.
        unique_names: see ``named_anew``.
        tls: "off", "on" or "require".
        status_socket: None is off.
        status_socket_given: a default that cannot be used is a warning, a given one an error.
        values: every setting with where it came from.
        overrides: what a flag or variable changes in several exports at once, perhaps without being meant to.
        unknown_variables: VRAMBLK_ variables that nothing reads, each with the nearest known name or "".
    """

    exports: tuple[ExportSettings, ...]
    listen_addr: tuple[Address, ...]
    workers: int | None
    max_connections: int
    drain_timeout_s: float
    allow_cpu: bool
    map_overwrite: bool
    verify_reads: bool
    unique_names: bool
    tls: str
    tls_certificates: str | None
    tls_psk: str | None
    tls_verify_peer: bool
    metrics_addr: TcpAddress | None
    metrics_host: tuple[str, ...]
    metrics_token: str | None = field(repr=False)
    status_socket: str | None
    status_socket_given: bool
    config: str | None
    verbose: bool
    values: tuple[ShownValue, ...] = field(repr=False, default=())
    unknown_variables: tuple[tuple[str, str], ...] = ()
    overrides: tuple[Override, ...] = ()

    def named_anew(self) -> Settings:
        """With ``unique_names`` the same settings with names that no earlier start has had; else as they are.

        The memory is empty at each start, and a client that reconnects by itself would read zeros.
        """
        if not self.unique_names:
            return self
        life = secrets.token_hex(_LIFE_BYTES)
        return replace(
            self, exports=tuple(replace(each, name=f"{each.name}-{life}") for each in self.exports)
        )

    @property
    def on_all_devices(self) -> Sequence[int]:
        """Numbers of the exports that are to become one on each GPU."""
        return [number for number, each in enumerate(self.exports) if each.device == ALL_DEVICES]

    def placed(self, places: Mapping[int, Sequence[DevicePlace]]) -> Settings:
        """The same with one export on each of these devices, by number of ``on_all_devices``, then sliced.

        Their names are NAME-gpu0, NAME-gpu1 and so on.

        Raises:
            ConfigError: that makes too many exports, or two of one name, or a name too long.
        """
        exports: list[ExportSettings] = []
        for number, export in enumerate(self.exports):
            if number not in places:
                exports.append(export)
                continue
            for index, (platform, device, kind) in enumerate(places[number]):
                name = f"{export.name}-{kind.lower()}{index}"
                exports += replace(export, name=name, platform=platform, device=str(device)).sliced()
        if len(exports) > MAXIMUM_EXPORTS:
            raise ConfigError(
                f"device = {ALL_DEVICES}: {len(exports)} exports with all devices and slices; "
                f"allowed: at most {MAXIMUM_EXPORTS}"
            )
        names = [export.name for export in exports]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(
                f"export_name = {sources.quote(twice[0])}: another export has the same name, with device "
                f"{ALL_DEVICES}; allowed: a different name for each export"
            )
        _check_names(exports)
        return replace(self, exports=tuple(exports))

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
        """The source of a setting, as in ``values``."""
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
    strong = ChainMap(sources.from_flags(namespace), sources.from_environment(environ))
    file = sources.from_file(strong["config"].value) if "config" in strong else ConfigFile("", {}, None)
    given = ChainMap(*strong.maps, file.given)
    values = {
        option.name: given[option.name].value if option.name in given else _default(option, environ)
        for option in OPTIONS
    }
    exports, shown = _exports(file, strong, given, values)
    _check_names(exports)
    _check_unique_names(exports, given["unique_names"] if values["unique_names"] else None)
    _check_tls(values, given)

    own = [option for option in OPTIONS if file.exports is None or not option.per_export]
    shown = [_show(option, option.name, given.get(option.name), environ) for option in own] + shown
    names = {option.name for option in OPTIONS if not option.per_export} - {"drain_timeout"}
    return Settings(
        exports=exports,
        drain_timeout_s=values["drain_timeout"],
        status_socket_given="status_socket" in given,
        values=tuple(shown),
        unknown_variables=tuple(unknown_variables(environ)),
        overrides=tuple(_overrides(file, strong, exports)),
        **{name: values[name] for name in names},
    )


def _default(option: Option, environ: Mapping[str, str]) -> Any:
    if option.name == "status_socket":
        return default_status_socket(environ)
    if option.default is None:
        return () if option.repeatable else None
    return Given.parsed(option, DEFAULT_SOURCE, (option.default,)).value


def default_status_socket(environ: Mapping[str, str]) -> str:
    """Path of the status socket where none is given."""
    if os.geteuid() == 0:
        return "/run/vramblk/status.sock"
    return os.path.join(environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}", "vramblk-status.sock")


def _exports(
    file: ConfigFile,
    strong: GivenByName,
    given: GivenByName,
    values: Mapping[str, Any],
) -> tuple[tuple[ExportSettings, ...], list[ShownValue]]:
    """The exports, and the rows that ``check`` shows for those of the file.

    Flag and environment override an entry, as they override the file's other keys; an option at the
    file's top level is the default of the entries.
    """
    fields = {option.name for option in BY_ENTRY_KEY.values()}
    if file.exports is None:
        return _export({name: values[name] for name in fields}).sliced(), []
    if len(file.exports) > MAXIMUM_EXPORTS:
        count = f"{len(file.exports)} exports"
        raise ConfigError(f"exports ({file.path} key exports): {count}; allowed: at most {MAXIMUM_EXPORTS}")
    name_for_all = strong.get("export_name")
    if name_for_all and len(file.exports) > 1:
        raise name_for_all.refuse(f"one name for the {len(file.exports)} exports of {file.path}")
    exports: list[ExportSettings] = []
    shown = []
    first_use: dict[str, int] = {}
    for index, entry in enumerate(file.exports):
        in_entry = ChainMap(*strong.maps, entry, *given.maps)
        mixed = {}
        for key, option in BY_ENTRY_KEY.items():
            found = in_entry.get(option.name)
            mixed[option.name] = found.value if found else values[option.name]
            shown.append(_show(option, f"exports[{index}].{key}", found, {}))
        for export in _export(mixed).sliced():
            if export.name in first_use:
                raise ConfigError(
                    f"export_name = {sources.quote(export.name)} ({file.path} key exports[{index}].name): "
                    f"exports[{first_use[export.name]}] has the same name; "
                    "allowed: a different name for each export"
                )
            first_use[export.name] = index
            exports.append(export)
    if len(exports) > MAXIMUM_EXPORTS:
        count = f"{len(exports)} exports with all slices"
        raise ConfigError(f"exports ({file.path} key exports): {count}; allowed: at most {MAXIMUM_EXPORTS}")
    return tuple(exports), shown


def _overrides(
    file: ConfigFile, strong: GivenByName, exports: Sequence[ExportSettings]
) -> Iterator[Override]:
    for key, option in BY_ENTRY_KEY.items():
        given = strong.get(option.name)
        if given is None or option.name == "export_name":  # one name for several is refused
            continue
        lost = [
            export.name
            for entry, export in zip(file.exports or (), exports, strict=False)
            if option.name in entry and entry[option.name].value != given.value
        ]
        if lost:
            yield Override(key, given.shown, given.source, tuple(lost))


def _export(values: Mapping[str, Any]) -> ExportSettings:
    renamed = {name.removeprefix("export_"): value for name, value in values.items()}
    return ExportSettings(**renamed)


def _check_names(exports: Sequence[ExportSettings]) -> None:
    """Whether the names are short enough with the numbers of their slices."""
    for export in exports:
        if len(export.name.encode()) > MAXIMUM_NAME_BYTES:
            name = sources.quote(export.name)
            raise ConfigError(
                f"export_name = {name}: too long with the number of its slice; "
                f"allowed: {MAXIMUM_NAME_BYTES} bytes with the number"
            )


def _check_unique_names(exports: Sequence[ExportSettings], unique: Given | None) -> None:
    """Whether the names can have a suffix, if one was asked for."""
    if unique is None:
        return
    if any(export.mode == "swap" for export in exports):
        raise unique.refuse(
            "vramblk-swap attaches by the name, and nothing reconnects in swap mode",
            allowed="off in swap mode",
        )
    most = MAXIMUM_NAME_BYTES - 2 * _LIFE_BYTES - 1
    if any(len(export.name.encode()) > most for export in exports):
        raise unique.refuse("a name is too long for the suffix", allowed=f"names of at most {most} bytes")


def _check_tls(values: Mapping[str, Any], given: GivenByName) -> None:
    """What is wrong with TLS settings together; the files themselves are opened by ``tls``."""
    mode, certificates, psk, verify = map(
        given.get, ("tls", "tls_certificates", "tls_psk", "tls_verify_peer")
    )
    asked_to_verify = verify if values["tls_verify_peer"] else None
    if mode is None and (unused := certificates or psk or asked_to_verify):
        raise unused.refuse("TLS is off", allowed="with --tls on or require; with --tls off it is unused")
    if values["tls"] == "off" or mode is None:
        return
    if not certificates and not psk:
        raise mode.refuse(
            "without certificates or keys",
            allowed="with --tls-certificates DIR or --tls-psk FILE",
        )
    if certificates and psk:
        raise psk.refuse(f"tls_certificates is given too ({certificates.source})", allowed="one of the two")
    if asked_to_verify and not certificates:
        raise asked_to_verify.refuse(
            "a pre-shared key already proves the client", allowed="with --tls-certificates DIR"
        )


def _show(option: Option, name: str, given: Given | None, environ: Mapping[str, str]) -> ShownValue:
    if given:
        return ShownValue(name, given.shown, given.source)
    text = default_status_socket(environ) if option.name == "status_socket" else option.default_text
    return ShownValue(name, text, DEFAULT_SOURCE)
