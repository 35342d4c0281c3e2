"""The one table of options: flags, environment twins, YAML keys, help and documentation all come from it.

A settings library was considered (pydantic-settings): it neither checks a value that a stronger
source overrides nor says in its errors which source a value came from, and users need both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from . import units

ENVIRONMENT_PREFIX = "VRAMBLK_"
BOOLEAN_ALLOWED = "on, off, true, false, yes, no, 1 or 0"
MODES = ("scratch", "swap")
ALLOCATIONS = ("start", "attach")
TLS_MODES = ("off", "on", "require")

_BOOLEANS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
MAXIMUM_NAME_BYTES = 4096  # "Values": a string of the NBD protocol
MAXIMUM_EXPORTS = 64
ALL_DEVICES = "all"
_TOKEN = re.compile(r"[\x21-\x7e]{1,1024}", re.ASCII)


@dataclass(frozen=True)
class Option:
    """One setting.

    Attributes:
        name: the YAML key; flag and environment twin follow from it.
        parse: text to value, ValueError with a short reason.
        allowed: what an error message and the documentation name as allowed.
        default: text that ``parse`` takes, or None if ``default_note`` describes what happens.
        short: one-letter flag.
        boolean: a flag without a value, with a ``--no-`` twin.
        repeatable: the flag may be repeated, the variable is comma-separated, the key is a list.
        secret: the value is shown nowhere.
        path: the value is a path itself, so NAME_FILE is refused for it.
        protects: without it more is served than with it, so an empty variable is an error.
        per_export: an entry of ``exports`` may hold it too.
    """

    name: str
    group: str
    help: str
    parse: Callable[[str], object]
    allowed: str
    metavar: str = ""
    default: str | None = None
    default_note: str = ""
    short: str = ""
    boolean: bool = False
    repeatable: bool = False
    secret: bool = False
    path: bool = False
    protects: bool = False
    per_export: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def environment(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper()

    @property
    def file_variable(self) -> str:
        """Variable that names a file with the value; refused where the value is a path itself."""
        return self.environment + "_FILE"

    @property
    def entry_key(self) -> str:
        """Key in an entry of ``exports``."""
        return self.name.removeprefix("export_")

    @property
    def default_text(self) -> str:
        return self.default_note or self.default or "none"


def parse_boolean(text: str) -> bool:
    try:
        return _BOOLEANS[text.strip().lower()]
    except KeyError:
        raise ValueError("not a yes or no") from None


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text.strip(), re.ASCII):
            raise ValueError("not a whole number")
        if not low <= int(text) <= high:
            raise ValueError("out of range")
        return int(text)

    return parse


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError("unknown")
        return text

    return parse


def _parse_export_name(text: str) -> str:
    """The empty name asks for the first export, so none can be called so."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise ValueError("not UTF-8") from None
    if not encoded or len(encoded) > MAXIMUM_NAME_BYTES or "\0" in text:
        raise ValueError("empty" if not encoded else "holds a NUL" if "\0" in text else "too long")
    return text


def _parse_device(text: str) -> str:
    text = text.strip()
    if not text or "\0" in text:
        raise ValueError("not a device")
    if text.startswith("map:") and not text.startswith("map:/"):
        raise ValueError("not an absolute path")
    return text


def _parse_path(text: str) -> str:
    """The absolute path, since a child may change its directory."""
    if not text or "\0" in text:
        raise ValueError("not a path")
    return os.path.abspath(text)


def _parse_readable_file(text: str) -> str:
    path = _parse_path(text)
    if os.path.isdir(path):
        raise ValueError("is a directory")
    if not os.access(path, os.R_OK):
        raise ValueError("cannot be read" if os.path.exists(path) else "does not exist")
    return path


def _parse_metrics_addr(text: str) -> units.TcpAddress | None:
    return None if text == "off" else units.parse_tcp_address(text)


def _parse_status_socket(text: str) -> str | None:
    return None if text == "off" else units.parse_socket_path(_parse_path(text.removeprefix("unix:")))


def _parse_token(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError("not a token")
    return text


def _boolean(
    name: str, group: str, text: str, short: str = "", protects: bool = False, per_export: bool = False
) -> Option:
    return Option(
        name, group, text, parse_boolean, BOOLEAN_ALLOWED,
        default="off", short=short, boolean=True, protects=protects, per_export=per_export,
    )  # fmt: skip


OPTIONS: tuple[Option, ...] = (
    Option(
        "size", "Export",
        "Size of the export, rounded up to 4 KiB. % and max refer to memory that can be allocated.",
        units.parse_size, units.SIZE_ALLOWED, "SIZE", default="2048M", short="-s", per_export=True,
    ),
    Option(
        "export_name", "Export", "Name of the export. Clients that request the empty name get the first one.",
        _parse_export_name, "1 to 4096 bytes of UTF-8", "NAME", default="vram", short="-e", per_export=True,
    ),
    Option(
        "slices", "Export",
        "Serve N exports of equal size instead of one: NAME-0, NAME-1 and so on. Together they have --size.",
        _integer(1, MAXIMUM_EXPORTS), f"1 to {MAXIMUM_EXPORTS}", "N", default="1", per_export=True,
    ),
    _boolean(
        "unique_names", "Export",
        "Add a suffix to each name that changes at every start, so clients of an earlier start are refused.",
    ),
    Option(
        "mode", "Export",
        "scratch: a disk that may be lost. swap: for swap space; refuses to start if a safeguard is missing.",
        _choice(*MODES), "scratch or swap", "MODE", default="scratch", per_export=True,
    ),
    _boolean("read_only", "Export", "Refuse writes.", per_export=True),
    Option(
        "allocate", "Export",
        "When memory is held. start: from start to stop. attach: while a client is attached; the data is "
        "lost when the last client disconnects.",
        _choice(*ALLOCATIONS), "start or attach", "WHEN", default_note="start; attach in swap mode",
        per_export=True,
    ),
    Option(
        "device", "Device",
        "Index, part of the name, or PCI address of the device; all: the same export on each GPU, --size "
        "for each; map:/path: memory outside OpenCL.",
        _parse_device,
        "an index such as 0, part of a name, a PCI address such as 0000:01:00.0, all, or map:/path",
        "DEVICE", default_note="first GPU of any platform", short="-d", per_export=True,
    ),
    Option(
        "platform", "Device", "Index of the OpenCL platform.",
        _integer(0, 999), "a whole number from 0", "N", default_note="any", short="-p", per_export=True,
    ),
    _boolean("allow_cpu", "Device", "If there is no GPU, serve from a CPU device, which is system RAM."),
    _boolean("map_overwrite", "Device", "Let map:/path be a regular file, whose content is zeroed."),
    Option(
        "listen_addr", "Listeners", "Address of the NBD server. May be repeated.",
        units.parse_address, f"{units.TCP_ALLOWED}, or {units.UNIX_ALLOWED}", "ADDR",
        default="127.0.0.1:10809", short="-l", repeatable=True,
    ),
    Option(
        "max_connections", "Listeners",
        "Connections at once; a further one is closed. Some are reserved for Unix sockets and this machine.",
        _integer(1, 4096), "1 to 4096", "N", default="64",
    ),
    Option(
        "export_max_connections", "Listeners",
        "Connections to one export at once; a further one is refused in negotiation.",
        _integer(1, 4096), "1 to 4096", "N", default_note="no limit of its own", per_export=True,
    ),
    Option(
        "tls", "TLS",
        "off: plaintext only. on: TLS and plaintext. require: TLS only.",
        _choice(*TLS_MODES), "off, on or require", "MODE", default="off", protects=True,
    ),
    Option(
        "tls_certificates", "TLS", "Directory with ca-cert.pem, server-cert.pem and server-key.pem.",
        _parse_path, "a directory", "DIR", default_note="none", path=True, protects=True,
    ),
    Option(
        "tls_psk", "TLS",
        "File with NAME:HEXKEY lines from psktool, mode 0600. TLS 1.3 only. Requires Python 3.13.",
        _parse_path, "a file", "FILE", default_note="none", path=True, protects=True,
    ),
    _boolean(
        "tls_verify_peer", "TLS",
        "Require a client certificate signed by ca-cert.pem. Names and revocation lists are not checked.",
        protects=True,
    ),
    Option(
        "workers", "Processes",
        "Number of worker processes. 0: the engine serves all clients, on Unix sockets without TLS. 1 or "
        "more: workers serve all clients, in swap mode one client each. Not set: the engine serves the "
        "first client on a Unix socket, workers serve the others.",
        _integer(0, 64), "0 to 64", "N", default_note="chosen from the cores; 0 in swap mode",
    ),
    Option(
        "drain_timeout", "Processes", "How long a stop waits for attached clients, in scratch mode.",
        units.parse_duration, units.DURATION_ALLOWED, "TIME", default="5s",
    ),
    _boolean("verify_reads", "Processes", "Keep a checksum of each 4 KiB block and compare it at each read."),
    Option(
        "metrics_addr", "Observation", "Address for metrics, health and the status page.",
        _parse_metrics_addr, f"{units.TCP_ALLOWED}, or off", "HOST:PORT", default="off",
    ),
    Option(
        "metrics_host", "Observation",
        "Host name that clients of --metrics-addr may use without a token, besides localhost and IP "
        "addresses. May be repeated.",
        units.parse_host_name, units.HOST_NAME_ALLOWED, "NAME", default_note="none", repeatable=True,
    ),
    Option(
        "metrics_token", "Observation",
        "Bearer token for --metrics-addr. ps shows flags, so use VRAMBLK_METRICS_TOKEN_FILE instead.",
        _parse_token, "1 to 1024 printable ASCII characters without spaces", "TOKEN",
        default_note="none", secret=True, protects=True,
    ),
    Option(
        "status_socket", "Observation",
        "Unix socket for metrics, health and status. vramblk status, top and vramblk-swap use it.",
        _parse_status_socket, "a path of at most 107 bytes, or off", "PATH", path=True,
        default_note="/run/vramblk/status.sock as root, otherwise $XDG_RUNTIME_DIR/vramblk-status.sock",
    ),
    Option(
        "config", "Program", "YAML file with any of these options, or several exports.",
        _parse_readable_file, "a readable file", "FILE", default_note="none", path=True,
    ),
    _boolean("verbose", "Program", "Log more.", short="-v"),
)  # fmt: skip

BY_NAME = {option.name: option for option in OPTIONS}
BY_ENTRY_KEY = {option.entry_key: option for option in OPTIONS if option.per_export}
GROUPS = tuple(dict.fromkeys(option.group for option in OPTIONS))

EXPORTS_KEY = "exports"
EXPORTS_HELP = "several exports; an entry may hold " + ", ".join(BY_ENTRY_KEY)
