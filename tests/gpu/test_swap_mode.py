"""The data path of swap mode on a GPU: what it locks, and what it asks of the kernel under full load.

The machine need not grant what swap mode requires: the server prefaults and locks as in swap mode, and only the rights
are left out (``tests/wire/prefaulted_server.py``). Needs root or an unlimited memory lock, a GPU with 4 GiB free, and
fio with its nbd engine (its command may stand in FIO). VRAMBLK_TEST_TRACE_S is how long the trace lasts, 60 s by
default.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from bench import fio, rows
from tests.wire.harness import Server
from tests.wire.syscalls import Tracer
from vramblk.memory.devices import DeviceInfo

SECONDS = float(os.environ.get("VRAMBLK_TEST_TRACE_S", "60"))
MB = 1_000_000
GIB = 1 << 30
#: On one connection, which is what a swap export serves.
MIX = replace(next(row for row in rows.choose("table") if row.name == "4k 70/30 mix qd32 x4"), connections=1, depth=128)
PROGRAM = Path(__file__).parents[1] / "wire" / "prefaulted_server.py"
NAMES = {
    0: "read", 1: "write", 7: "poll", 9: "mmap", 10: "mprotect", 11: "munmap", 12: "brk", 16: "ioctl", 24: "sched_yield",
    28: "madvise", 35: "nanosleep", 45: "recvfrom", 56: "clone", 202: "futex", 219: "restart_syscall", 228: "clock_gettime", 230: "clock_nanosleep",
    232: "epoll_wait", 435: "clone3",
}  # fmt: skip
#: What an engine may ask: its doorbells and its mail, and what the driver's submission needs. A call that the tracer
#: interrupts is restarted by one of its own.
ALLOWED = {
    "restart_syscall",
    "epoll_wait",
    "read",
    "write",
    "recvfrom",
    "futex",
    "sched_yield",
    "ioctl",
    "poll",
}


@pytest.fixture
def start(gpu: DeviceInfo, tmp_path: Path) -> Iterator[object]:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if os.geteuid() and limit != resource.RLIM_INFINITY:
        pytest.skip("needs root or an unlimited memory lock")
    with ExitStack() as stack:

        # The OpenCL loader opens every runtime, and a processor's brings 60 MB of LLVM.
        vendors = tmp_path / "vendors"
        vendors.mkdir()
        for icd in Path("/etc/OpenCL/vendors").glob("*.icd"):
            if "NVIDIA" not in gpu.platform or "nvidia" in icd.name:
                shutil.copy(icd, vendors)

        def start_swap(workers: int) -> Server:
            program = (sys.executable, str(PROGRAM), str(tmp_path / "report"), "prefaulted")
            return stack.enter_context(
                Server(
                    tmp_path / "server", "--mode", "swap", "--workers", str(workers), program=program, size="2G",
                    environment={"PYTHONPATH": os.pathsep.join(sys.path), "OCL_ICD_VENDORS": f"{vendors}/"},
                )
            )  # fmt: skip

        yield start_swap


def locked(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Locked:"))


@pytest.mark.parametrize(("workers", "most_mb"), [(0, 180), (2, 400)])
def test_locked_memory(start, workers: int, most_mb: int) -> None:
    """Goals: under 180 MB for all processes without workers, and under 40 MB for each worker."""
    server = start(workers)
    roles = {role: [locked(pid) for pid in server.named(role)] for role in ("supervisor", "worker", "engine")}
    roles["supervisor"] = [locked(server.pid)]
    told = json.loads(server.get("/status.json")[1])["locked_bytes"]
    print("locked, MB:", {role: [round(each / MB) for each in sizes] for role, sizes in roles.items()},
          "told", round(told / MB))  # fmt: skip
    assert told < most_mb * MB
    assert all(size < 40 * MB for size in roles["worker"])


@pytest.fixture
def requires_fio() -> None:
    try:
        fio.version()
    except fio.FioError as error:
        pytest.skip(f"requires fio with its nbd engine ({error})")


def test_system_calls_of_the_engine_under_full_load(requires_fio: None, start, tmp_path: Path) -> None:
    """Every thread of the engine: no memory is mapped, no thread is started, no file is opened."""
    server = start(4)
    engine = server.named("engine")[0]
    uri = f"nbd+unix:///vram?socket={server.unix_path}"
    load = threading.Thread(target=fio.run, args=(MIX, uri, SECONDS + 3, GIB))
    load.start()
    load.join(2)
    report = tmp_path / "report"  # what was opened while it became ready is in it
    told = report.stat().st_size
    before = Path(f"/proc/{engine}/maps").read_text(), sorted(os.listdir(f"/proc/{engine}/task"))
    calls: Counter[int] = Counter()
    with ExitStack() as stack:
        tracers = [stack.enter_context(Tracer(int(thread))) for thread in os.listdir(f"/proc/{engine}/task")]
        load.join(SECONDS)
    # While the client is still there: without one its export's memory is given back.
    after = Path(f"/proc/{engine}/maps").read_text(), sorted(os.listdir(f"/proc/{engine}/task"))
    for tracer in tracers:
        calls.update(tracer.calls)
    load.join()
    named = Counter({NAMES.get(number, f"call {number}"): times for number, times in calls.items()})
    print(f"{SECONDS:g} s:", dict(named.most_common()))
    assert sum(named.values()) > 100, "the tracer has seen next to nothing"
    assert before == after, "memory maps or threads have changed"
    assert set(named) <= ALLOWED, named
    assert report.read_text()[told:] == ""
