"""A real kernel under memory pressure, without KVM: User-Mode Linux as an ordinary program of this machine.

The guest's root is this machine's own, read-only, through hostfs; ``guest/init`` runs one case of ``guest/cases``.
Its "VRAM" is /dev/mmapper, a file of this machine that is no part of the guest's RAM. A guest that is silent for
too long hangs, which is what a swap deadlock looks like: the watchdog ends it, and only processes that carry its name.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent

#: The kernel, 107 MiB of locked server and 16 of reserve leave 74 to swap; 192 ended in the OOM killer once in two runs.
RAM_MIB = 224
SWAP_MIB = 480
#: Two more exports are slabs of 4 MiB each that cannot be swapped, and the clients are locked too.
RAM_MIB_OF = {"hostile.sh": RAM_MIB + 2 * 28}
#: Each of two slices can take what the other holds and what the filler still writes. A second export is 4 MiB of windows.
SLICED_SWAP_MIB = 2 * SWAP_MIB
RAM_MIB_OF |= {"slices.sh": RAM_MIB + 12, "yield.sh": RAM_MIB + 12, "auto.sh": RAM_MIB + 12}
RAM_MIB_OF["release_time.sh"] = 1024  # room for all that is in swap
SWAP_MIB_OF = {"slices.sh": SLICED_SWAP_MIB, "yield.sh": SLICED_SWAP_MIB, "auto.sh": SLICED_SWAP_MIB}
SILENCE_S = 400  # a server stopped for 45 s, or a case that verifies in silence on a machine with other work

_STUCK = b"Possible stuck request"  # the nbd driver says so every 30 s for as long as it waits
_MARK = re.compile(r"@@ (PASS|FAIL|NOTE|DONE|EXIT) ?(.*)")
_PRELOAD = "xstate.so"
_NEEDED = ("linux.uml", "nbd-client", "mkswap", "modprobe", "curl", "gcc")


@dataclass
class Result:
    """What a guest did.

    Attributes:
        ended: "done", "stopped" (the case ended early), "panic", "silent" or "late".
        longest_silence_s: between two pieces of output, but for what the nbd driver says of requests that wait.
    """

    ended: str
    seconds: float
    output: str
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    longest_silence_s: float = 0.0

    @property
    def good(self) -> bool:
        return self.ended == "done" and not self.failed and bool(self.passed)

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.output.splitlines()[-lines:])


def missing(*more: str) -> str | None:
    """Why no guest can run here, or none that needs ``more`` programs; None if it can."""
    absent = [
        name
        for name in (*_NEEDED, *more)
        if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None
    ]
    if absent:
        return f"{', '.join(absent)} missing; type: sudo tests/setup.sh vm"
    if modules() is None:
        return "no kernel modules of user-mode-linux"
    return None


def modules() -> Path | None:
    """Directory of the guest kernel's modules."""
    found = sorted(Path("/usr/lib/uml/modules").glob("*/modules.dep"))
    return found[-1].parent if found else None


def build(directory: Path) -> None:
    """Compile the guest's programs into a directory that it will see, and what the kernel is preloaded with."""
    preload = ["gcc", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-o", directory / _PRELOAD, HERE / "xstate.c"]
    subprocess.run(preload, check=True)
    for source in sorted((HERE / "guest").glob("*.c")):
        target = directory / source.stem
        subprocess.run(["gcc", "-O2", "-static", "-Wall", "-Wextra", "-o", target, source], check=True)


def run(
    case: str,
    build_directory: Path,
    *,
    ram_mib: int = RAM_MIB,
    swap_mib: int = SWAP_MIB,
    disks_mib: tuple[int, ...] = (),
    limit_s: float = 1500,
    silence_s: float = SILENCE_S,
    environment: dict[str, str] | None = None,
    log: Path | None = None,
) -> Result:
    """Boot a guest, run one case and give what it said; never longer than ``limit_s``.

    ``disks_mib`` are the sizes of its empty disks, /dev/ubda and so on.
    """
    name = f"vramblk-{uuid.uuid4().hex[:12]}"
    scratch = Path(tempfile.mkdtemp(prefix=f"{name}-", dir="/dev/shm"))
    memory = scratch / "memory"
    disks = [scratch / f"disk{number}" for number in range(len(disks_mib))]
    for path, size_mib in zip([memory, *disks], [swap_mib, *disks_mib], strict=True):
        with path.open("wb") as file:
            file.truncate(size_mib << 20)
    settings = {
        "VM_CASE": case,
        "VM_ROOT": str(PROJECT),
        "VM_BUILD": str(build_directory),
        "VM_MIB": str(ram_mib),
        "VM_SWAP_MIB": str(swap_mib),
        "VM_MODULES": str(modules()),
        **(environment or {}),
    }
    command = [
        "linux.uml", f"mem={ram_mib}M", f"umid={name}", f"uml_dir={scratch}/",
        "rootfstype=hostfs", "rootflags=/", "ro", f"init={HERE / 'guest' / 'init'}",
        f"iomem=mmapper,{memory}", *(f"ubd{number}={disk}" for number, disk in enumerate(disks)),
        "con=null", "con0=null,fd:1", "ssl=null",
        *(f"{key}={value}" for key, value in settings.items()),
    ]  # fmt: skip
    # Its memory is a file here: where /tmp is a disk, a guest that thrashes would wait for that disk.
    host_environment = {**os.environ, "TMPDIR": str(scratch), "LD_PRELOAD": str(build_directory / _PRELOAD)}
    cpu = _cpu_of_this_guest()
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, env=host_environment, preexec_fn=lambda: os.sched_setaffinity(0, {cpu}),
    )  # fmt: skip
    try:
        ended, output, longest_silence_s = _watch(process, started + limit_s, silence_s, log)
    finally:
        _end(process, name)
        shutil.rmtree(scratch, ignore_errors=True)
    result = _read(ended, output, time.monotonic() - started)
    result.longest_silence_s = longest_silence_s
    return result


def _cpu_of_this_guest() -> int:
    """The CPU for a guest and all that it starts: each worker of pytest-xdist has its own, otherwise the idlest.

    The guest's kernel traces its programs, and they take turns, never two at once: on a virtual machine a turn that
    wakes another CPU costs more than the work between two turns.
    """
    if number := re.fullmatch(r"gw(\d+)", os.environ.get("PYTEST_XDIST_WORKER", "")):
        allowed = sorted(os.sched_getaffinity(0))
        return allowed[int(number[1]) % len(allowed)]
    return _idlest_cpu()


def _idlest_cpu() -> int:
    before = _idle_ticks()
    time.sleep(0.5)
    idle = {cpu: ticks - before[cpu] for cpu, ticks in _idle_ticks().items()}
    return max(idle, key=idle.__getitem__)


def _idle_ticks() -> dict[int, int]:
    """Of each CPU that this process may use."""
    allowed = os.sched_getaffinity(0)
    return {
        int(cpu): int(fields.split()[3])
        for cpu, fields in re.findall(r"^cpu(\d+) (.*)$", Path("/proc/stat").read_text(), re.MULTILINE)
        if int(cpu) in allowed
    }


def _watch(
    process: subprocess.Popen[bytes], deadline: float, silence_s: float, log: Path | None
) -> tuple[str, str, float]:
    """How it ended, its output, and the longest silence in seconds."""
    assert process.stdout is not None
    pieces: list[bytes] = []
    last = time.monotonic()
    longest = 0.0
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            now = time.monotonic()
            if now > deadline:
                return "late", _text(pieces), longest
            if now - last > silence_s:
                return "silent", _text(pieces), now - last
            if not selector.select(1.0):
                continue
            piece = os.read(process.stdout.fileno(), 65536)
            if not piece:
                return "ended", _text(pieces), longest
            pieces.append(piece)
            if any(line.strip() and _STUCK not in line for line in piece.splitlines()):
                longest = max(longest, now - last)
                last = now
            if log is not None:
                with log.open("ab") as file:
                    file.write(piece)


def _text(pieces: list[bytes]) -> str:
    return b"".join(pieces).decode(errors="replace").replace("\r", "")


def _end(process: subprocess.Popen[bytes], name: str) -> None:
    """Kill the guest: its process group, and whatever else carries its unique name."""
    for pid in [-process.pid, *_carrying(name)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _carrying(name: str) -> list[int]:
    mark = f"umid={name}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _read(ended: str, output: str, seconds: float) -> Result:
    result = Result(ended, seconds, output)
    done = False
    for kind, text in _MARK.findall(output):
        match kind:
            case "PASS":
                result.passed.append(text)
            case "FAIL":
                result.failed.append(text)
            case "NOTE":
                result.notes.append(text)
            case "DONE":
                done = True
    if ended == "ended":
        result.ended = "panic" if "Kernel panic" in output else "done" if done else "stopped"
    return result
