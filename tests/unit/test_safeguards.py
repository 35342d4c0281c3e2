"""The safeguards of swap mode and what a worker keeps, each tried in a process of its own."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from vramblk.config.settings import Settings, load_settings
from vramblk.errors import PreconditionError
from vramblk.memory.devices import CPU, discover
from vramblk.swap import safeguards
from vramblk.system import kernel, proc

#: What a machine that can serve swap grants, apart from the safeguards that are inherited.
GRANTED = """
import errno, os, sys
from vramblk import cli
from vramblk.swap import memorylock, safeguards
from vramblk.system import kernel, proc

def refuse(number, process=""):
    if proc.status()["Name"].startswith(process):
        raise OSError(number, os.strerror(number))

kernel.mlockall = kernel.mlock = lambda *_: None
memorylock.unlimited = lambda: True
"""
#: Of the table, what remains to be taken.
TAKEN = ("unix_only", "lock_limit", "memory_locked")


def settings(*arguments: str) -> Settings:
    return load_settings(["--size", "64M", *arguments], {})


def in_child(code: str) -> str:
    """What a fresh interpreter prints; its exit status must be 0."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(lacks: str, *arguments: str, taken: str = "") -> str:
    """The one line of a server in swap mode that leaves with exit status 78.

    Args:
        lacks: code that makes it lack something.
        taken: the safeguard that it really takes besides ``TAKEN``; the others count as granted.
    """
    granted = f"safeguards.TABLE = tuple(each for each in safeguards.TABLE if each.name in {(*TAKEN, taken)})"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        memory = Path(directory, "memory")
        memory.write_bytes(bytes(1 << 20))
        done = subprocess.run(
            [sys.executable, "-c", f"{GRANTED}{granted}\n{lacks}\nsys.exit(cli.main(sys.argv[1:]))",
             "--mode", "swap", "--listen-addr", f"unix:{directory}/s", "--status-socket", "off", "--workers", "1",
             *(arguments or ("--device", f"map:{memory}", "--map-overwrite")), "--size", "1M"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 78, done.stdout + done.stderr
    assert '"event":"ready"' not in done.stdout
    (line,) = done.stderr.splitlines()
    return line.removeprefix("vramblk: ")


@pytest.mark.skipif(os.geteuid() != 0, reason="requires root")
@pytest.mark.skipif(not kernel.held_capabilities() >> kernel.CAP_IPC_LOCK & 1, reason="requires CAP_IPC_LOCK")
def test_a_locked_worker_can_still_allocate_after_the_drop() -> None:
    """As another uid, with every capability but CAP_IPC_LOCK gone, 16 MiB more can be had, and are locked."""
    output = in_child(
        """
        import os, resource
        from vramblk.swap import safeguards
        from vramblk.system import kernel, privileges, proc
        from vramblk.config.settings import load_settings
        locked = safeguards.lock_memory(load_settings(["--size", "64M"], {}))
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
        privileges.drop(privileges.allocate(1), keep=1 << kernel.CAP_IPC_LOCK)
        before = proc.locked_bytes(os.getpid())
        more = bytearray(16 << 20)
        more[::4096] = b"x" * len(more[::4096])
        print(locked, kernel.held_capabilities() == 1 << kernel.CAP_IPC_LOCK,
              proc.locked_bytes(os.getpid()) - before > 12 << 20,
              open("/proc/self/status").read().count("NoNewPrivs:\\t1"), os.getuid() in privileges.UIDS)
        """
    )
    assert output.split() == ["True", "True", "True", "1", "True"]


@pytest.mark.skipif(os.geteuid() != 0, reason="requires root")
def test_the_signal_at_the_end_of_the_supervisor_survives_the_drop() -> None:
    """The kernel clears PR_SET_PDEATHSIG when the uid changes."""
    output = in_child(
        """
        import ctypes, os, signal
        from vramblk.system import kernel, privileges
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        privileges.drop(privileges.allocate(1))
        told = ctypes.c_int()
        kernel.prctl(kernel.PR_GET_PDEATHSIG, ctypes.addressof(told))
        print(told.value, os.getresuid()[2] in privileges.UIDS)
        """
    )
    assert output.split() == ["9", "True"]


def test_scratch_mode_takes_no_safeguard() -> None:
    """Nothing of the process changes where no swap is served."""
    before = (os.sched_getscheduler(0), Path("/proc/self/oom_score_adj").read_text())
    safeguards.prepare(settings("--allow-cpu"))
    assert (os.sched_getscheduler(0), Path("/proc/self/oom_score_adj").read_text()) == before


def test_a_tcp_listener_is_refused_by_name() -> None:
    """The first thing missing is named with its remedy, before anything is taken."""
    with pytest.raises(
        PreconditionError, match=r"swap mode needs Unix sockets: .*unix:/run/vramblk/nbd\.sock"
    ):
        safeguards.prepare(settings("--mode", "swap"))


def test_a_file_is_no_device_for_swap(tmp_path: Path) -> None:
    """A mapped regular file is system memory or a disk, and refused by name."""
    file = tmp_path / "memory"
    file.write_bytes(bytes(mmap.PAGESIZE))
    with pytest.raises(
        PreconditionError, match=r"swap mode needs device memory: .*neither a character device"
    ):
        safeguards.prepare(
            settings("--mode", "swap", "--listen-addr", f"unix:{tmp_path}/s", "--device", f"map:{file}")
        )


def test_dev_zero_is_no_device_for_swap(tmp_path: Path) -> None:
    """A character device, but what it maps is shared memory of the kernel, which is swapped like any other."""
    arguments = ("--mode", "swap", "--listen-addr", f"unix:{tmp_path}/s", "--device", "map:/dev/zero")
    with pytest.raises(PreconditionError, match=r"swap mode needs device memory: map:/dev/zero gives system memory"):
        safeguards.prepare(settings(*arguments))


def test_swap_mode_gets_no_huge_pages() -> None:
    """Taken before the first safeguard that can be refused, and inherited; the observer gives it back."""
    output = in_child(
        """
        import os
        from vramblk.swap import safeguards
        from vramblk.system import kernel, proc
        from vramblk.config.settings import load_settings
        safeguards.TABLE = ()
        arguments = ["--size", "1M", "--mode", "swap", "--listen-addr", "unix:/tmp/x"]
        safeguards.prepare(load_settings(arguments, {}))
        if not os.fork():
            print(proc.status()["THP_enabled"], flush=True)
            os._exit(0)
        os.wait()
        print(proc.status()["THP_enabled"])
        """
    )
    assert output.split() == ["0", "0"]


def test_attempts_change_nothing_here() -> None:
    """Each safeguard is tried in a process of its own and told with a remedy where it is missing."""
    before = os.sched_getscheduler(0)
    found = [item for _, item in safeguards.attempt(settings("--allow-cpu"))]
    assert os.sched_getscheduler(0) == before
    assert [item.name for item in found] == ["mlock limit", "IO_FLUSHER", "oom score", "SCHED_FIFO", "locked memory"]
    assert all(item.ok != bool(item.remedy) for item in found)


def test_threads_without_safeguards_are_named() -> None:
    """Reading back says which thread of which process lacks what, and that a process is gone."""
    (problem,) = safeguards.verify_threads([os.getpid()])[:1]
    assert "lacks IO_FLUSHER and SCHED_FIFO" in problem and str(os.getpid()) in problem
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    assert safeguards.verify_threads([child]) == [f"process {child} is gone"]


def test_what_no_longer_holds_is_read_back() -> None:
    """One thread of one process without a safeguard is enough, and the status names that process."""
    good = proc.Stat("t", "S", 0x180000, 0, 4096, os.SCHED_FIFO, (0, 0))
    engine = proc.Process(1, 4096, 4096, 0, -1000, {1: good, 2: good})
    worker = proc.Process(2, 4096, 4096, 0, -1000, {3: good, 4: good._replace(flags=0)})
    swap = settings("--mode", "swap", "--listen-addr", "unix:/tmp/x")
    running = safeguards.Running(swap, {"engine": engine, "worker-0": worker}, False)
    found = {each.name: each for each in safeguards.read_back(running)}
    assert [name for name, each in found.items() if not each.ok] == ["io_flusher"]
    assert found["io_flusher"].detail == "not in worker-0" and "CAP_SYS_RESOURCE" in found["io_flusher"].remedy
    assert found["realtime"].detail == "SCHED_FIFO in every thread of the data path"
    nobody = {each.name: each for each in safeguards.read_back(running._replace(data_path={}))}
    assert [name for name, each in nobody.items() if each.ok] == ["unix_only", "device_memory"]
    assert nobody["oom_score"].detail == "no process of the data path is alive"


@pytest.mark.parametrize("name", [each.name for each in safeguards.TABLE])
def test_a_safeguard_that_is_left_out_is_nowhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusal, threads, status and check read one table, so what tests leave out is gone from all of them."""
    taken: list[str] = []
    table = [
        each._replace(take=lambda _, name=each.name: taken.append(name), attempt=None)  # type: ignore[misc]
        for each in safeguards.TABLE
        if each.name != name
    ]
    (row,) = (each for each in safeguards.TABLE if each.name == name)
    monkeypatch.setattr(safeguards, "TABLE", tuple(table))
    monkeypatch.setattr(kernel, "try_prctl", lambda *_: True)
    swap = settings("--mode", "swap")
    safeguards.prepare(swap)
    assert safeguards.lock_memory(swap)
    assert taken == [each.name for each in table]
    assert row.label not in [found.name for _, found in safeguards.attempt(swap)]
    assert name not in [found.name for found in safeguards.read_back(safeguards.Running(swap, {}, False))]
    if row.of_thread is not None:
        assert row.label not in " ".join(safeguards.verify_threads([os.getpid()]))


def test_a_low_oom_score_is_refused_by_name() -> None:
    """Promise 4, with IO_FLUSHER granted, which takes the same capability and is asked for before."""
    line = refusal(
        "held = kernel.held_capabilities() & ~(1 << kernel.CAP_SYS_RESOURCE); kernel.set_capabilities(held, held)",
        taken="oom_score",
    )
    assert line.startswith(
        "swap mode needs oom_score_adj -1000: Permission denied, this requires CAP_SYS_RESOURCE; run as root on the host, "
        "or give the container SYS_RESOURCE"
    )
    assert line.endswith("or start it with that score (oom_score_adj of Compose, OOMScoreAdjust of systemd)")


@pytest.mark.parametrize(
    ("capabilities", "said"),
    [
        (
            "1 << kernel.CAP_SYS_NICE",
            "swap mode needs SCHED_FIFO: Operation not permitted although CAP_SYS_NICE is held, so this cgroup has a "
            "real-time budget of 0; give it one (cpu.rt_runtime_us of the cgroup, --cpu-rt-runtime of Docker) "
            "or use a kernel without CONFIG_RT_GROUP_SCHED",
        ),
        (
            "~(1 << kernel.CAP_SYS_NICE)",
            "swap mode needs SCHED_FIFO: Operation not permitted, this requires CAP_SYS_NICE or a limit of real-time "
            "priority; run as root on the host, or give the container SYS_NICE or ulimit rtprio "
            "(compose.swap.yaml does)",
        ),
    ],
)
def test_real_time_scheduling_is_refused_by_name(capabilities: str, said: str) -> None:
    """Promise 4: without the capability that is what is missing; with it, a budget of real time."""
    lacks = f"""
os.sched_setscheduler = lambda *_: refuse(errno.EPERM)
kernel.held_capabilities = lambda: {capabilities}
"""
    assert refusal(lacks, taken="realtime") == said


@pytest.mark.parametrize("process", ("vramblk-engine", "vramblk-worker", "vramblk-superv"))
@pytest.mark.parametrize(
    ("call", "number", "why"),
    [
        ("mlockall", "errno.ENOMEM", "Cannot allocate memory"),
        ("mlock", "errno.EAGAIN", "Resource temporarily unavailable"),
    ],
)
def test_memory_that_cannot_be_locked_is_refused_by_name(process: str, call: str, number: str, why: str) -> None:
    """Promise 4, in each process of the data path: all that it has, or the code that is to be resident."""
    said = f"swap mode needs locked memory: mlockall: {why}; free memory, or look at the limits of the container"
    assert refusal(f"kernel.{call} = lambda *_: refuse({number}, {process!r})") == said


def test_a_cpu_is_no_device_for_swap() -> None:
    """Promise 4: whatever --allow-cpu says, swap in system RAM would be absurd."""
    cpu = next(device for device in discover() if device.type == CPU)
    which = ("--allow-cpu", "--platform", str(cpu.platform_index), "--device", str(cpu.device_index))
    assert refusal("", *which) == (
        f"{cpu.label} is system RAM, and swap mode needs a GPU or a map: device; name one, or --mode scratch"
    )
