"""What is read of /proc, compared with what this process and its children do."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vramblk.system import kernel, proc


@pytest.fixture
def child() -> Iterator[int]:
    """A process that waits, with a name that looks like the end of one."""
    code = "from vramblk.system import kernel; kernel.set_thread_name('a) R (b c'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as found:
        assert found.stdout is not None
        found.stdout.readline()
        yield found.pid
        found.kill()


def test_a_name_with_brackets_does_not_shift_the_fields(child: int) -> None:
    """A name may hold anything, and all other fields are counted from its end."""
    found = proc.stat(child)
    assert found.name == "a) R (b c" and found.alive and found.policy == os.SCHED_OTHER
    assert 1 << 20 < found.resident_bytes < 1 << 30
    assert not found.io_flusher and not found.realtime
    assert proc.named("a) R (b c") == [child]
    assert proc.command_line(child)[0] == sys.executable.encode()


def test_the_arguments_lie_where_the_kernel_says() -> None:
    start, end = proc.stat("self").arguments
    assert ctypes.string_at(start, end - start) == Path("/proc/self/cmdline").read_bytes()


def test_a_dead_process_is_not_alive(child: int) -> None:
    """A zombie has a stat, one that has been reaped none; neither is an error of these two."""
    assert proc.alive(child) and proc.process(child) is not None
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert proc.stat(child).state == "Z"
    assert not proc.alive(child) and proc.process(child) is None
    gone = 1 << 30
    assert not proc.alive(gone) and proc.process(gone) is None and proc.locked_bytes(gone) == 0
    with pytest.raises(OSError):
        proc.threads(gone)


def test_each_thread_counts() -> None:
    """Every thread has an entry of its own, with what was set for it alone."""
    begun, done = threading.Event(), threading.Event()

    def run() -> None:
        kernel.set_thread_name("one of them")
        begun.set()
        done.wait()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        begun.wait()
        found = proc.process(os.getpid())
        assert found is not None and thread.native_id is not None
        assert found.threads[thread.native_id].name == "one of them" and os.getpid() in found.threads
        assert not found.io_flusher and not found.realtime
        assert found.oom_score_adj == int(Path("/proc/self/oom_score_adj").read_text())
    finally:
        done.set()
        thread.join()


def test_flags_and_policy_of_a_thread() -> None:
    """IO_FLUSHER is two flags of the kernel, and one of them alone is something else."""
    plain = proc.Stat("t", "S", 0x80000, 0, 0, os.SCHED_RR, (0, 0))
    assert not plain.io_flusher and not plain.realtime
    both = plain._replace(flags=0x180040, policy=os.SCHED_FIFO)
    assert both.io_flusher and both.realtime


def test_mappings_and_their_pages() -> None:
    """A mapping is found with its modes; its pages are told apart by whether they are there."""
    pages = 64
    with mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        view = (ctypes.c_char * len(memory)).from_buffer(memory)
        address = ctypes.addressof(view)
        memory[3 * mmap.PAGESIZE] = 1
        (found,) = (each for each in proc.mappings() if each.start <= address < each.end)
        assert found.modes == "rw-p" and found.inode == 0
        first = proc.pagemap(address // mmap.PAGESIZE, 4)
        assert len(first) == 32
        assert [int.from_bytes(first[at : at + 8], "little") >> 63 for at in (0, 8, 16, 24)] == [0, 0, 0, 1]
        del view
    library = [each for each in proc.mappings() if each.inode]
    assert any(each.modes.startswith("r-x") for each in library)


def test_values_of_the_machine(tmp_path: Path) -> None:
    """Sizes are bytes; what is not there or not understood is None, or no entry."""
    assert (proc.memory_bytes("MemTotal") or 0) > 16 << 20
    assert proc.memory_bytes("MemNone") is None and proc.memory_bytes("MemTotal", tmp_path) is None
    file = tmp_path / "numbers"
    file.write_text("one 1\ntwo x\nthree 3 3\nfour 4\n")
    assert proc.read_fields(file) == {"one": 1, "four": 4}
    file.write_text(" 12 \n")
    assert (proc.read_number(file, 1024), proc.read_text(file)) == (12288, "12")
    file.write_text("max\n")
    assert proc.read_number(file) is None and proc.read_number(tmp_path / "none") is None
    assert proc.file_system(os.stat("/proc").st_dev) == "proc"
