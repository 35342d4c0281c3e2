"""Messages to a service manager such as systemd, and the watchdog that it may ask for.

Source: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from ..errors import ConfigError


class ServiceManager:
    """The manager that has started this process; without one nothing happens.

    Attributes:
        watchdog_s: how long it waits for a sign of life before it kills the server; None if it does not.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.watchdog_s: float | None = None
        self._sock: socket.socket | None = None
        address = environ.get("NOTIFY_SOCKET", "")
        if address[:1] not in ("/", "@"):
            return
        self._address = "\0" + address[1:] if address[0] == "@" else address
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        interval, owner = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        if interval.isdigit() and int(interval) and owner in ("", str(os.getpid())):
            self.watchdog_s = int(interval) / 1e6

    def descriptors(self) -> list[int]:
        return [self._sock.fileno()] if self._sock is not None else []

    def ready(self, status: str) -> None:
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """To be followed by ``ready``."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        self._tell("STOPPING=1", f"STATUS={status}")

    def alive(self) -> None:
        self._tell("WATCHDOG=1")

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _tell(self, *lines: str) -> None:
        if self._sock is None:
            return
        text = "\n".join(" ".join(line.splitlines()) for line in lines)
        try:
            self._sock.sendto(text.encode(errors="replace"), self._address)
        except OSError:
            pass  # it is gone, or does not read: nothing that a server should stop for


def refuse_activation(environ: Mapping[str, str]) -> None:
    """Refuse sockets that a manager has opened: their modes and their files are this server's to decide.

    Raises:
        ConfigError: there are some for this process.
    """
    count = environ.get("LISTEN_FDS", "")
    if count not in ("", "0") and environ.get("LISTEN_PID") == str(os.getpid()):
        raise ConfigError(
            f"LISTEN_FDS={count}: socket activation is not supported; disable the .socket unit and name the "
            "addresses with --listen-addr or VRAMBLK_LISTEN_ADDR"
        )
