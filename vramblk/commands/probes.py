"""What this machine allows a process to do. Each is tried, and undone at once."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ..config.settings import Settings
from ..config.units import TcpAddress
from ..errors import StartupError
from ..supervisor import listeners
from ..swap import hostmemory, safeguards
from ..swap.safeguards import InScratchMode

OK, UNNEEDED, WARNING, MISSING = "ok", "unneeded", "warning", "missing"


@dataclass(frozen=True)
class Requirement:
    """One line of ``vramblk check``.

    Attributes:
        state: "ok", "unneeded" (missing, but not for this mode), "warning" (the server starts, with less) or
            "missing" (it refuses to start).
        remedy: what to do about it, empty if there is nothing to do.
    """

    name: str
    state: str
    detail: str
    remedy: str = ""


def of_the_kernel(settings: Settings) -> Iterator[Requirement]:
    """What swap mode needs of the kernel; a scratch server only says that memory cannot be locked.

    Forks, so it comes before anything that starts threads.
    """
    swap = settings.mode == "swap"
    for safeguard, found in safeguards.attempt(settings):
        if found.ok:
            yield Requirement(found.name, OK, found.detail)
        elif swap:
            yield Requirement(found.name, MISSING, found.detail, found.remedy)
        elif safeguard.in_scratch_mode is InScratchMode.WANTED:
            yield Requirement(found.name, WARNING, found.detail, found.remedy)
        else:
            detail = f"not granted, and only swap mode needs it: {found.detail}"
            yield Requirement(found.name, UNNEEDED, detail)


def hazards(settings: Settings) -> Iterator[Requirement]:
    """What can bite a swap server and is not refused, as far as it is known before it has locked anything."""
    for found in hostmemory.hazards(0) if settings.mode == "swap" else ():
        yield Requirement(
            found.name.replace("_", " "), OK if found.ok else WARNING, found.detail, found.remedy
        )


def port(name: str, setting: str, address: TcpAddress) -> Requirement:
    """Whether the server could listen on a TCP address now."""
    try:
        for listener in listeners.bind(address, setting):
            listener.sock.close()
    except StartupError as error:
        return refusal(name, error)
    return Requirement(name, OK, f"{address} is free")


def socket_path(name: str, path: str, *, required: bool) -> Requirement:
    """Whether a Unix socket can be made at ``path``; a stale one there will be replaced."""
    bad = MISSING if required else WARNING
    folder = os.path.dirname(path)
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        return Requirement(name, bad, f"{path}: {error.strerror}", "choose another path")
    if mode is not None and not stat.S_ISSOCK(mode):
        return Requirement(
            name, bad, f"{path} is there and is no socket", "move it away or choose another path"
        )
    if mode is not None and _answers(path):
        return Requirement(name, bad, f"a server answers on {path}", "stop it or choose another path")
    if not os.path.exists(folder):
        if listeners.makes_directory(path):
            return Requirement(name, OK, f"{path} and its directory can be made")
        return Requirement(name, bad, f"{folder} does not exist", listeners.command_for_directory(folder))
    if not os.path.isdir(folder):
        return Requirement(name, bad, f"{folder} is no directory", "choose another path")
    if not os.access(folder, os.W_OK | os.X_OK):
        sudo = "sudo " if os.geteuid() else ""
        return Requirement(
            name,
            bad,
            f"{folder} is not writable by uid {os.geteuid()}",
            f"{sudo}chown {os.geteuid()} {folder}",
        )
    return Requirement(
        name, OK, f"{path} can be made" if mode is None else f"{path} is stale and will be replaced"
    )


def refusal(name: str, error: StartupError) -> Requirement:
    """The server's own words: what is wrong, then what to do."""
    detail, _, remedy = str(error).partition("; ")
    return Requirement(name, MISSING, detail, remedy)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True
