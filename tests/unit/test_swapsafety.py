"""The safeguards of swap mode and what a worker keeps, each tried in a process of its own."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vramblk import kernel, swapsafety
from vramblk.errors import PreconditionError
from vramblk.settings import Settings, load_settings


def settings(*arguments: str) -> Settings:
    return load_settings(["--size", "64M", *arguments], {})


def in_child(code: str) -> str:
    """What a fresh interpreter prints; its exit status must be 0."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not kernel.held_capabilities() >> kernel.CAP_IPC_LOCK & 1, reason="requires CAP_IPC_LOCK")
def test_a_locked_worker_can_still_allocate_after_the_drop() -> None:
    """With all memory locked and every capability but CAP_IPC_LOCK gone, 16 MiB more can be had and touched."""
    output = in_child(
        """
        from vramblk import kernel, swapsafety
        from vramblk.settings import load_settings
        swapsafety.drop_privileges()
        locked = swapsafety.lock_memory(load_settings(["--size", "64M"], {}))
        more = bytearray(16 << 20)
        more[::4096] = b"x" * len(more[::4096])
        print(locked is not None, kernel.held_capabilities() == 1 << kernel.CAP_IPC_LOCK,
              swapsafety.locked_bytes(__import__("os").getpid()) > 16 << 20,
              open("/proc/self/status").read().count("NoNewPrivs:\\t1"))
        """
    )
    assert output.split() == ["True", "True", "True", "1"]


def test_scratch_mode_takes_no_safeguard() -> None:
    """Nothing of the process changes where no swap is served."""
    before = (os.sched_getscheduler(0), Path("/proc/self/oom_score_adj").read_text())
    swapsafety.prepare(settings("--allow-cpu"))
    assert (os.sched_getscheduler(0), Path("/proc/self/oom_score_adj").read_text()) == before


def test_a_tcp_listener_is_refused_by_name() -> None:
    """The first thing missing is named with its remedy, before anything is taken."""
    with pytest.raises(
        PreconditionError, match=r"swap mode needs Unix sockets: .*unix:/run/vramblk/nbd\.sock"
    ):
        swapsafety.prepare(settings("--mode", "swap"))


def test_a_file_is_no_device_for_swap(tmp_path: Path) -> None:
    """A mapped regular file is system memory or a disk, and refused by name."""
    file = tmp_path / "memory"
    file.write_bytes(bytes(mmap.PAGESIZE))
    with pytest.raises(
        PreconditionError, match=r"swap mode needs device memory: .*neither a character device"
    ):
        swapsafety.prepare(
            settings("--mode", "swap", "--listen-addr", f"unix:{tmp_path}/s", "--device", f"map:{file}")
        )


def test_dev_zero_is_no_device_for_swap(tmp_path: Path) -> None:
    """A character device, but what it maps is shared memory of the kernel, which is swapped like any other."""
    arguments = ("--mode", "swap", "--listen-addr", f"unix:{tmp_path}/s", "--device", "map:/dev/zero")
    with pytest.raises(PreconditionError, match=r"swap mode needs device memory: map:/dev/zero gives system memory"):
        swapsafety.prepare(settings(*arguments))


def test_swap_mode_gets_no_huge_pages() -> None:
    """Taken before the first safeguard that can be refused, and inherited; the observer gives it back."""
    output = in_child(
        """
        import os
        from vramblk import kernel, swapsafety
        from vramblk.settings import load_settings
        swapsafety._safeguards = lambda settings: []
        arguments = ["--size", "1M", "--mode", "swap", "--listen-addr", "unix:/tmp/x"]
        swapsafety.prepare(load_settings(arguments, {}))
        if not os.fork():
            print(kernel.status_field("THP_enabled"), flush=True)
            os._exit(0)
        os.wait()
        print(kernel.status_field("THP_enabled"))
        """
    )
    assert output.split() == ["0", "0"]


def test_preconditions_change_nothing_here() -> None:
    """Each safeguard is tried in a process of its own and told with a remedy where it is missing."""
    before = os.sched_getscheduler(0)
    found = swapsafety.preconditions(settings("--allow-cpu"))
    assert os.sched_getscheduler(0) == before
    assert [item.name for item in found] == [
        "an unlimited memory lock", "PR_SET_IO_FLUSHER", "oom_score_adj -1000", "SCHED_FIFO", "locked memory",
    ]  # fmt: skip
    assert all(item.ok != bool(item.remedy) for item in found)


def test_threads_without_safeguards_are_named() -> None:
    """Reading back says which thread of which process lacks what, and that a process is gone."""
    (problem,) = swapsafety.verify_threads([os.getpid()])[:1]
    assert "lacks IO_FLUSHER and SCHED_FIFO" in problem and str(os.getpid()) in problem
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    assert swapsafety.verify_threads([child]) == [f"process {child} is gone"]
