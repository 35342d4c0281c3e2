"""What swap mode requires: how it is reported, and what of it the settings alone decide."""

from __future__ import annotations

import os
import re
import stat
from typing import NamedTuple

from ..config.settings import Settings

#: /dev/zero and its kin.
_MEMORY_MAJOR = 1
_PCI_BAR = re.compile(r"/sys/devices/(?:.*/)?[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]/resource\d(?:_wc)?")


class Precondition(NamedTuple):
    """One thing that swap mode requires, as it was found.

    Attributes:
        detail: what was found.
        remedy: what to do about it where it is not ok.
    """

    name: str
    ok: bool
    detail: str
    remedy: str


class UnmetRequirement(Exception):
    """Something that swap mode requires is not there.

    Attributes:
        detail: what was found.
        remedy: what to do about it.
    """

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy


def require_unix_listeners(settings: Settings) -> None:
    """Packets of TCP are dropped when memory is short.

    Raises:
        UnmetRequirement: an address that is not a Unix socket.
    """
    if settings.tcp_listeners:
        raise UnmetRequirement(
            f"listen_addr has {settings.tcp_listeners[0]}, "
            "and packets of TCP are dropped when memory is short",
            "use only --listen-addr unix:/run/vramblk/nbd.sock",
        )


def require_device_memory(settings: Settings) -> None:
    """A mapped device must be one whose pages are not the kernel's; OpenCL devices are judged when opened.

    Raises:
        UnmetRequirement: it does not exist, or is memory of the system.
    """
    for export in settings.exports:
        path = export.mapped_path
        if path is None:
            continue
        try:
            status = os.stat(path)
        except OSError as error:
            raise UnmetRequirement(f"map:{path}: {error.strerror}", "name a device that exists") from error
        character = stat.S_ISCHR(status.st_mode)
        if character and os.major(status.st_rdev) == _MEMORY_MAJOR:
            raise UnmetRequirement(
                f"map:{path} gives system memory, which may itself be swapped", "use a GPU, /dev/dax or a BAR"
            )
        if not character and not _PCI_BAR.fullmatch(os.path.realpath(path)):
            raise UnmetRequirement(
                f"map:{path} is neither a character device nor the resource file of a PCI BAR, "
                "so its pages are system memory that may itself be swapped",
                "use a GPU, /dev/dax or a BAR, or --mode scratch",
            )
