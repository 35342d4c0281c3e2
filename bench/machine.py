"""The machine of a measurement: hardware, driver, kernel, versions and the source itself."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from . import fio

ROOT = Path(__file__).resolve().parent.parent

_GPU_FIELDS = (
    "name", "driver_version", "memory.total", "pcie.link.gen.max", "pcie.link.width.max", "power.limit",
)  # fmt: skip
# What must be equal for rows of two runs to stand in one table.
IDENTITY = ("cpu", "cores", "kernel", "gpus", "opencl", "source")


def describe() -> dict[str, Any]:
    """JSON-ready; holds nothing that names the host or its owner."""
    return {
        "cpu": _line_value("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "system": _line_value("/etc/os-release", "PRETTY_NAME", "=").strip('"'),
        "gpus": _output(
            "nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader"
        ).splitlines(),
        "opencl": _output("clinfo", "-l").splitlines(),
        "python": platform.python_version(),
        "fio": fio.version(),
        "nbdkit": _output(*_nbdkit(), "--version"),
        "commit": _commit(),
        "source": _source_digest(),
        "load": round(os.getloadavg()[0], 2),
    }


def hardware_name(machine: dict[str, Any]) -> str:
    """Short, for a file name: the GPU, or how many cores of which CPU."""
    text = (
        machine["gpus"][0].split(",")[0] if machine["gpus"] else f"{machine['cores']}-cores-{machine['cpu']}"
    )
    words = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
    name = "-".join(word for word in words if word not in ("nvidia", "r", "tm", "processor", "cpu"))
    return name[:40].strip("-")


def lines(machine: dict[str, Any]) -> list[str]:
    """For people, one fact each."""
    shown = [
        f"CPU: {machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB memory",
        f"System: {machine['system']}, kernel {machine['kernel']}, load {machine['load']} at the start",
        f"Versions: Python {machine['python']}, {machine['fio']}, {machine['nbdkit'] or 'no nbdkit'}",
        f"Source: commit {machine['commit']}, digest {machine['source']}",
    ]
    if machine["gpus"]:
        shown.insert(0, f"GPU: {'; '.join(machine['gpus'])} ({', '.join(_GPU_FIELDS)})")
    elif machine["opencl"]:
        shown.insert(0, f"OpenCL: {'; '.join(line.strip() for line in machine['opencl'])}")
    return shown


def _nbdkit() -> list[str]:
    from .peers import nbdkit_program

    return nbdkit_program()


def _commit() -> str:
    """With ``+changes`` where the working tree differs; "unknown" outside a clone."""
    head = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{head}+changes" if changed else head


def _source_digest() -> str:
    """Of the program's own files, so that changed code is told apart with and without git."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "vramblk").rglob("*")):
        if path.suffix in (".py", ".cl"):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _line_value(path: str, key: str, separator: str = ":") -> str:
    try:
        text = Path(path).read_text()
    except OSError:
        return ""
    found = (line.partition(separator) for line in text.splitlines())
    return next((value.strip() for name, _, value in found if name.strip() == key), "")


def _output(*command: str) -> str:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout.strip() if ended.returncode == 0 else ""
