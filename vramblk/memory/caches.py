"""Where OpenCL runtimes keep compiled kernels, and why that place cannot be used.

PoCL writes each kernel into its cache as a library and loads it from there. Without a directory that it
can make, it offers no device; on a file system that is mounted noexec, it ends the process.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

POCL = "Portable Computing Language"
_POCL_VARIABLE = "POCL_CACHE_DIR"


def choose(environ: MutableMapping[str, str] = os.environ) -> None:
    """Name a directory of this user's for every cache that has none yet."""
    for candidate in _candidates(environ):
        if _refusal(candidate) is None and not _is_foreign(candidate):
            environ.setdefault("XDG_CACHE_HOME", candidate)
            environ.setdefault(_POCL_VARIABLE, os.path.join(candidate, "pocl"))
            environ.setdefault("CUDA_CACHE_PATH", os.path.join(candidate, "cuda"))
            return


def problem(environ: MutableMapping[str, str] = os.environ) -> str | None:
    """Why PoCL cannot load kernels, with the directory and what to do; None if it can."""
    given = environ.get(_POCL_VARIABLE)
    directory = given or _candidates(environ)[0]
    reason = _refusal(directory)
    if reason is None:
        return None
    return (
        f"PoCL loads its kernels from its cache {directory}, which {reason}; set POCL_CACHE_DIR to a"
        " directory that allows both (docker run --tmpfs /var/cache/vramblk:exec)"
    )


def _refusal(directory: str) -> str | None:
    """Why libraries cannot be written to a directory and loaded from it; None if they can."""
    try:
        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.statvfs(directory).f_flag
    except OSError as error:
        return f"cannot be made: {error.strerror}"
    if flags & os.ST_NOEXEC:
        return "is mounted noexec"
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"user {os.geteuid()} cannot write to"
    return None


def _is_foreign(directory: str) -> bool:
    """Whether somebody else could put libraries there."""
    status = os.lstat(directory)
    return status.st_uid not in (os.geteuid(), 0) or bool(status.st_mode & 0o002)


def _candidates(environ: MutableMapping[str, str]) -> list[str]:
    found = [environ.get("XDG_CACHE_HOME"), os.path.expanduser("~/.cache")]
    with contextlib.suppress(FileNotFoundError):  # a read-only root without /tmp
        found.append(os.path.join(tempfile.gettempdir(), f"vramblk-cache-{os.geteuid()}"))
    return [candidate for candidate in found if candidate]
