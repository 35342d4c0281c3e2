"""A Debian machine with its own kernel, systemd and Docker, in qemu without KVM, and the container in it.

Its disk is made by ``disk.sh`` once and kept below build/. A second disk is an archive of the project and the test, a
third the container image, built here. Its "VRAM" is the BAR of a PCI device (ivshmem): a file of this machine that is
no part of the guest's RAM. ``guest/main`` runs the cases one after another in one boot and says on the second serial
line how each went; the first one is the console.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..container import docker

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
CACHE = PROJECT / "build" / "qemu"
IMAGE = "vramblk:testqemu"

#: The kernel, systemd, dockerd and the locked server leave some 150 MiB: each page more is milliseconds at this speed.
RAM_MIB = 512
VRAM_MIB = 512
SILENCE_S = 900

_NEEDED = ("qemu-system-x86_64", "debootstrap", "mke2fs", "gcc")
_BASE_IMAGE = "debian:trixie-slim"
#: What the guest needs of the project: both sides of swap, and the cases.
_PAYLOAD = (
    "Makefile", "compose.yaml", "compose.swap.yaml", "deploy/up.sh", "deploy/lib", "host", "vramblk/__init__.py", "tests/qemu/guest",
    "share/man/man8", "tests/vm/guest/lib.sh",
)  # fmt: skip
_MARK = re.compile(r"^@@ (CASE|PASS|FAIL|NOTE|ENDED|DONE) ?(.*)$", re.MULTILINE)


@dataclass
class Case:
    """What one case said; ``status`` is None if it did not end."""

    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    status: int | None = None

    @property
    def good(self) -> bool:
        return self.status == 0 and not self.failed and bool(self.passed)


@dataclass
class Run:
    """What the guest did.

    Attributes:
        ended: "done", "ended" (switched off early), "panic", "silent" or "late".
        said: all of the second serial line.
    """

    ended: str
    seconds: float
    said: str
    console: str
    cases: dict[str, Case]


def missing() -> str | None:
    """Why no guest can run here, or None."""
    absent = [
        name for name in _NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None
    ]
    if absent:
        return f"{', '.join(absent)} missing; type: sudo tests/setup.sh qemu"
    if os.geteuid():
        return "debootstrap needs root"
    return docker.missing() or None


def disk() -> Path:
    """Directory with disk.raw, vmlinuz, initrd and versions.txt; made if ``disk.sh`` is another than last time."""
    recipe = HERE / "disk.sh"
    CACHE.mkdir(parents=True, exist_ok=True)
    made = CACHE / hashlib.sha256(recipe.read_bytes()).hexdigest()[:16]
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            for old in CACHE.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            fresh = CACHE / "unfinished"
            docker.run(recipe, fresh, timeout=1200)
            fresh.rename(made)
    return made


def image(archive: Path) -> None:
    """Build the container's image from the working tree and write it to an archive."""
    for obtain in (("image", "inspect"), ("pull", "-q")):
        if docker.run("docker", *obtain, _BASE_IMAGE, check=False, timeout=300).returncode == 0:
            break
    else:
        docker.run(PROJECT / "deploy/make-base.sh", _BASE_IMAGE, timeout=docker.BUILD_TIMEOUT_S)
    docker.run(
        "docker",
        "build",
        "-q",
        "--build-arg",
        "RUNTIMES=nvidia",
        "-t",
        IMAGE,
        ".",
        timeout=docker.BUILD_TIMEOUT_S,
    )
    docker.run("docker", "save", "-o", archive, IMAGE, timeout=300)


def payload(archive: Path, scratch: Path) -> None:
    """The second disk: the guest unpacks it to /project."""
    filler = scratch / "filler"
    source = PROJECT / "tests/vm/guest/filler.c"
    subprocess.run(["gcc", "-O2", "-static", "-Wall", "-Wextra", "-o", filler, source], check=True)
    with tarfile.open(archive, "w") as tar:
        for name in _PAYLOAD:
            tar.add(PROJECT / name, name)
        tar.add(filler, "build/filler")


def run(cases: list[str], *, limit_s: float, log: Path) -> Run:
    """Boot a guest and run the cases in it; its consoles are kept in directory ``log``."""
    made = disk()
    scratch = Path(tempfile.mkdtemp(prefix="vramblk-qemu-", dir="/var/tmp"))
    vram = Path(tempfile.mkdtemp(prefix="vramblk-qemu-", dir="/dev/shm"))
    console, said = log / "console", log / "said"
    try:
        payload(scratch / "payload.tar", scratch)
        image(scratch / "image.tar")
        words = (
            "root=/dev/vda rw console=ttyS0 mitigations=off tsc=reliable systemd.journald.forward_to_console=1 "
            f"guest.cases={','.join(cases)}"
        )
        command = [
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", str(RAM_MIB),
            "-nodefaults", "-display", "none", "-monitor", "none",
            "-kernel", made / "vmlinuz", "-initrd", made / "initrd", "-append", words,
            "-drive", f"file={made / 'disk.raw'},if=virtio,format=raw,snapshot=on",
            "-drive", f"file={scratch / 'payload.tar'},if=virtio,format=raw,readonly=on",
            "-drive", f"file={scratch / 'image.tar'},if=virtio,format=raw,readonly=on",
            "-object", f"memory-backend-file,id=vram,size={VRAM_MIB}M,mem-path={vram / 'memory'},share=on",
            "-device", "ivshmem-plain,memdev=vram,addr=10",
            "-serial", f"file:{console}", "-serial", f"file:{said}",
        ]  # fmt: skip
        started = time.monotonic()
        process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "TMPDIR": str(scratch)},
        )  # fmt: skip
        try:
            ended = _watch(process, started + limit_s, console, said)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        return _read(ended, time.monotonic() - started, _text(said), _text(console))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(vram, ignore_errors=True)


def _watch(process: subprocess.Popen[bytes], deadline: float, console: Path, said: Path) -> str:
    size, changed = 0, time.monotonic()
    while process.poll() is None:
        time.sleep(1)
        now = time.monotonic()
        seen = sum(path.stat().st_size for path in (console, said) if path.exists())
        if seen != size:
            size, changed = seen, now
            if "Kernel panic" in _text(console):
                return "panic"
        if now - changed > SILENCE_S:
            return "silent"
        if now > deadline:
            return "late"
    return "ended"


def _text(path: Path) -> str:
    return path.read_text(errors="replace").replace("\r", "") if path.exists() else ""


def _read(ended: str, seconds: float, said: str, console: str) -> Run:
    cases: dict[str, Case] = {}
    current = Case()
    for kind, text in _MARK.findall(said):
        match kind:
            case "CASE":
                current = cases.setdefault(text, Case())
            case "PASS":
                current.passed.append(text)
            case "FAIL":
                current.failed.append(text)
            case "NOTE":
                current.notes.append(text)
            case "ENDED":
                current.status = int(text.split()[1])
            case "DONE":
                ended = "done" if ended == "ended" else ended
    return Run(ended, seconds, said, console, cases)
