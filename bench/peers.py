"""The servers under test: how each is started, when it is ready, how it is ended.

Each listens on a socket of its own in the scratch directory and stays up for the whole run, so that
their samples can be taken in turn.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from . import procstat

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "vramblk"
DIRECT = "vramblk --workers 0"
MEMORY = "nbdkit memory"
VRAM = "nbdkit vram"
ORIGINAL = "original"
SKETCH = "sketch"

_START_TIMEOUT_S = 180
_STOP_TIMEOUT_S = 20
_GREETING = b"NBDMAGIC"


class PeerError(Exception):
    """A server that cannot be started, or has ended."""


@dataclass
class Peer:
    """One server; a context manager where ``command`` is not empty.

    Attributes:
        command: argument list, or empty for a server that somebody else runs.
        uri: as fio takes it.
        ready_text: a regular expression that its output must match before it counts as ready.
        environment: variables beside those of this process.
        version_command: prints the version.
        stop_timeout_s: after that it is killed.
        startup_s: from the start of the command to the first greeting, or None.
        pid: the first process of a server that runs on this machine and can be seen.
    """

    name: str
    uri: str
    command: list[str] = field(default_factory=list)
    ready_text: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    stop_signal: int = signal.SIGTERM
    stop_timeout_s: float = _STOP_TIMEOUT_S
    log: Path | None = None
    version_command: list[str] = field(default_factory=list)
    pid: int | None = None
    startup_s: float | None = None
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Raises PeerError with the last lines of its output."""
        if not self.command:
            _wait_greeting(self.uri, time.monotonic() + 5, lambda: None)
            self.pid = _listener(self.uri)
            return
        assert self.log is not None
        began = time.monotonic()
        with self.log.open("wb") as output:
            try:
                self._process = subprocess.Popen(
                    self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    env=os.environ | self.environment, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise PeerError(f"{self.name}: {self.command[0]}: {error.strerror}") from None
        self.pid = self._process.pid
        try:
            self._wait_ready(began + _START_TIMEOUT_S)
        except BaseException:
            self.stop()
            raise
        self.startup_s = time.monotonic() - began

    def check(self) -> None:
        """Raises PeerError if it has ended."""
        if self._process is not None and (status := self._process.poll()) is not None:
            raise PeerError(f"{self.name} ended with status {status}: {self._last_lines()}")

    @property
    def version(self) -> str:
        """What tells this server from another of its kind, without any path: it goes into results."""
        if not self.version_command:
            return ""
        try:
            ended = subprocess.run(
                self.version_command,
                capture_output=True,
                text=True,
                timeout=60,
                env=os.environ | self.environment,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return next(iter(ended.stdout.splitlines()), "")

    def stop(self) -> None:
        """The polite signal, then the end of whatever is left of it."""
        if self._process is None:
            return
        processes = procstat.tree(self._process.pid)
        with suppress(ProcessLookupError):
            self._process.send_signal(self.stop_signal)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(self.stop_timeout_s)
        for left in filter(procstat.alive, processes):
            with suppress(ProcessLookupError):
                os.kill(left.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def __enter__(self) -> Peer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_ready(self, deadline: float) -> None:
        assert self.log is not None
        while self.ready_text and not re.search(self.ready_text, self.log.read_text(errors="replace")):
            self.check()
            if time.monotonic() > deadline:
                raise PeerError(f"{self.name} is not ready after {_START_TIMEOUT_S} s: {self._last_lines()}")
            time.sleep(0.005)
        _wait_greeting(self.uri, deadline, self.check)

    def _last_lines(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log else []
        return " / ".join(line.strip() for line in lines[-3:] if line.strip())[:400] or "it said nothing"


def project(
    size_bytes: int, scratch: Path, server: str = "", extra: tuple[str, ...] = (), name: str = PROJECT
) -> Peer:
    """This project; ``server`` is a command, otherwise the one in .venv, otherwise ``python -m vramblk``."""
    installed = ROOT / ".venv" / "bin" / "vramblk"
    command = shlex.split(server) if server else [str(installed)]
    environment = {}
    if not server and not installed.exists():
        command = [sys.executable, "-m", "vramblk"]
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, (str(ROOT), os.environ.get("PYTHONPATH", "")))
        )
    path = scratch / f"{name.replace(' ', '')}.sock"
    flags = [
        "--allow-cpu",
        "--size",
        str(size_bytes),
        "--listen-addr",
        f"unix:{path}",
        "--status-socket",
        "off",
    ]
    return Peer(
        name,
        unix_uri(path),
        [*command, *flags, *extra],
        r"\bready\b",
        environment,
        log=path.with_suffix(".log"),
        version_command=[*command, "--version"],
    )


def direct(
    size_bytes: int, scratch: Path, device: str, server: str = "", workers: int = 0, name: str = DIRECT
) -> Peer:
    """This project on ``device``, memory that needs no OpenCL; see ``session.plain_memory``."""
    extra = ("--workers", str(workers), "--device", device, "--map-overwrite")
    return project(size_bytes, scratch, server, extra, name)


def memory(size_bytes: int, scratch: Path) -> Peer:
    """nbdkit's memory plugin: what the socket alone allows."""
    return _nbdkit_peer(MEMORY, "memory", size_bytes, scratch)


def vram(size_bytes: int, scratch: Path) -> Peer:
    """nbdkit's vram plugin, which nbdkit 1.46 and later have."""
    return _nbdkit_peer(VRAM, "vram", size_bytes, scratch)


def has_plugin(name: str) -> bool:
    """Whether nbdkit has this plugin and, for vram, a device for it."""
    try:
        ended = subprocess.run(
            [*nbdkit_program(), _plugin(name), "--dump-plugin"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ended.returncode == 0 and "vram_num_devices=0" not in ended.stdout


def original(binary: str, size_bytes: int, scratch: Path) -> Peer:
    """The Rust program vramblk 0.1.0, which has TCP only and takes the platform's index."""
    try:
        listing = subprocess.run([binary, "--list-devices"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{ORIGINAL}: {binary}: {error}") from None
    platform, device = first_gpu(listing.stdout + listing.stderr)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mebibytes = -(-size_bytes // (1 << 20))
    command = [binary, "--platform", str(platform), "--device", str(device), "--size", f"{mebibytes}M",
               "--listen-addr", f"127.0.0.1:{port}"]  # fmt: skip
    return Peer(
        ORIGINAL,
        f"nbd://127.0.0.1:{port}/vram",
        command,
        log=scratch / "original.log",
        version_command=[binary, "--version"],
    )


def first_gpu(listing: str) -> tuple[int, int]:
    """Platform and device index of the first platform that is no CPU's and lists a device.

    Raises:
        PeerError: there is none.
    """
    platform = None
    for line in listing.splitlines():
        if match := re.match(r"\s*Platform\s+#?(\d+)\b(.*)", line, re.IGNORECASE):
            cpu = re.search(r"portable computing|pocl|\bcpu\b", match[2], re.IGNORECASE)
            platform = None if cpu else int(match[1])
        elif platform is not None and (match := re.match(r"\s*Device\s+#?(\d+)\b", line, re.IGNORECASE)):
            return platform, int(match[1])
    raise PeerError(f"{ORIGINAL}: --list-devices names no GPU: {' '.join(listing.split())[:200]}")


def sketch(script: str, size_bytes: int, scratch: Path) -> Peer:
    """A Python script that takes its size from SZ and the path of its socket as its argument."""
    path = scratch / "sketch.sock"
    environment = {"SZ": str(size_bytes), "W": os.environ.get("W", "6"), "SPIN": os.environ.get("SPIN", "60")}
    return Peer(
        SKETCH, unix_uri(path), [sys.executable, script, str(path)], r"\bready\b", environment,
        stop_signal=signal.SIGINT, log=scratch / "sketch.log",
    )  # fmt: skip


def given(text: str) -> Peer:
    """From ``URI`` or ``NAME=URI``."""
    match = re.match(r"([\w .-]+)=(nbd.*)", text)
    name, uri = match.groups() if match else ("", text)
    if urlsplit(uri).scheme not in ("nbd", "nbd+unix", "nbds", "nbds+unix"):
        raise PeerError(f"{text!r} is no NBD URI such as nbd+unix:///?socket=/run/vramblk/nbd.sock")
    _, address = _endpoint(uri)
    return Peer(
        name or (Path(address).name if isinstance(address, str) else f"{address[0]}:{address[1]}"), uri
    )


def unix_uri(path: Path) -> str:
    return f"nbd+unix:///?socket={path}"


def nbdkit_program() -> list[str]:
    """The environment's NBDKIT as a command; NBDKIT_PLUGINS names a directory of plugins beside it."""
    return shlex.split(os.environ.get("NBDKIT", "nbdkit"))


def _plugin(name: str) -> str:
    directory = os.environ.get("NBDKIT_PLUGINS")
    return f"{directory}/nbdkit-{name}-plugin.so" if directory else name


def _nbdkit_peer(name: str, plugin: str, size_bytes: int, scratch: Path) -> Peer:
    path = scratch / f"nbdkit-{plugin}.sock"
    command = [*nbdkit_program(), "-f", "-U", str(path), _plugin(plugin), f"size={size_bytes}"]
    return Peer(name, unix_uri(path), command, log=scratch / f"nbdkit-{plugin}.log",
                version_command=[*nbdkit_program(), "--version"])  # fmt: skip


def _endpoint(uri: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    parts = urlsplit(uri)
    if parts.scheme.endswith("+unix"):
        return socket.AF_UNIX, parse_qs(parts.query).get("socket", [""])[0]
    return socket.AF_INET6 if ":" in (parts.hostname or "") else socket.AF_INET, (
        parts.hostname or "localhost", parts.port or 10809,
    )  # fmt: skip


def _listener(uri: str) -> int | None:
    """Process that listens on a Unix socket; None for TCP and for a process of another name space."""
    family, address = _endpoint(uri)
    if family != socket.AF_UNIX:
        return None
    with socket.socket(family) as connection:
        connection.settimeout(5)
        with suppress(OSError):
            connection.connect(address)
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid: int = struct.unpack("3i", raw)[0]
            return pid or None
    return None


def _wait_greeting(uri: str, deadline: float, check: Callable[[], None]) -> None:
    family, address = _endpoint(uri)
    while True:
        with socket.socket(family) as connection:
            connection.settimeout(5)
            with suppress(OSError):
                connection.connect(address)
                if connection.recv(len(_GREETING)) == _GREETING:
                    return
        check()
        if time.monotonic() > deadline:
            raise PeerError(f"nothing greets at {uri}")
        time.sleep(0.01)
