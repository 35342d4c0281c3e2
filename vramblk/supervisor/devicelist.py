"""What ``--device all`` is on this machine, asked of a child: the supervisor never loads OpenCL."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import NoReturn

from ..config.settings import DevicePlace, Settings
from ..errors import RuntimeFailure, StartupError
from ..system import kernel
from .failures import parsed, reporting, startup_error

_MOST_BYTES = 65536


def with_all_devices(settings: Settings) -> Settings:
    """The settings with one export for each device where ``--device all`` was given.

    Raises:
        StartupError: there is no such device, or that makes too many exports.
    """
    return settings.placed(_ask(settings)) if settings.on_all_devices else settings


def _ask(settings: Settings) -> dict[int, list[DevicePlace]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if not child:
        ours.close()
        _answer(settings, theirs, parent)
    theirs.close()
    with ours:
        text = ours.recv(_MOST_BYTES)
    _, status = os.waitpid(child, 0)
    try:
        message = parsed(text)
    except ValueError:
        code = os.waitstatus_to_exitcode(status)
        how = f"signal {-code}" if code < 0 else f"status {code}"
        raise RuntimeFailure(f"the OpenCL runtime ended the search for devices ({how})") from None
    if message.get("event") == "failed":
        raise startup_error(message)
    return {
        number: [(int(platform), int(device), str(kind)) for platform, device, kind in found]
        for number, found in message["places"]
    }


def _answer(settings: Settings, line: socket.socket, parent: int) -> NoReturn:
    """The child: it writes nothing but its answer, and ends with its parent."""
    status = StartupError.exit_code
    try:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(status)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        status = reporting(line, lambda: _search(settings, line))
    finally:
        os._exit(status)


def _search(settings: Settings, line: socket.socket) -> int:
    from ..memory import alldevices, devices

    found = alldevices.places(settings, devices.discover())
    line.send(json.dumps({"places": list(found.items())}).encode())
    return 0
