"""What a worker or the observer can do to others once it is taken over: it is not root, and leaves no core."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .harness import REPOSITORY, Server, eventually, requires
from .test_worker_memory import MIB

pytestmark = [pytest.mark.wire, pytest.mark.skipif(os.geteuid() != 0, reason="requires root")]
Start = Callable[..., Server]
PIDFD_GETFD = 438

#: Joins the namespaces and takes the uid, the groups and the capabilities of process argv[1], and then tries what
#: whoever has taken that process over would try.
ATTACKER = """
import json, os, signal, sys
from pathlib import Path
uid, gid, engine, worker, supervisor, directory = *map(int, sys.argv[1:6]), sys.argv[6]
os.setgroups([])
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
def outcome(act):
    try:
        act()
    except OSError as error:
        return type(error).__name__
    return "done"
print(json.dumps({
    "reads the engine's memory": outcome(lambda: open(f"/proc/{engine}/mem", "rb")),
    "writes the engine's memory": outcome(lambda: open(f"/proc/{engine}/mem", "r+b")),
    "reads another worker's memory": outcome(lambda: open(f"/proc/{worker}/mem", "rb")),
    "kills the engine": outcome(lambda: os.kill(engine, signal.SIGTERM)),
    "kills another worker": outcome(lambda: os.kill(worker, signal.SIGKILL)),
    "kills the supervisor": outcome(lambda: os.kill(supervisor, signal.SIGKILL)),
    "reads /etc/shadow": outcome(lambda: open("/etc/shadow")),
    "writes to the run directory": outcome(lambda: Path(directory, "file").write_bytes(b"x")),
    "removes the socket": outcome(lambda: os.unlink(Path(directory, "nbd.sock"))),
}))
"""


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def uid_of(pid: int) -> int:
    """The uid, which is the gid too; fails unless all four of each are the same."""
    status = status_of(pid)
    uids, gids = set(status["Uid"].split()), set(status["Gid"].split())
    assert len(uids) == 1 and uids == gids and not status["Groups"], status
    return int(uids.pop())


def limits_of(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:25].strip(): line[25:].split()[:2] for line in lines}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("unprivileged"), "--workers", "2") as running:
        yield running


def test_each_worker_and_the_observer_has_a_uid_of_its_own(server: Server) -> None:
    """None of them is root or has an account; supervisor and engine stay what they are."""
    pids = [*server.named("worker"), *server.named("observer")]
    uids = {uid_of(pid) for pid in pids}
    assert len(uids) == 3 and 0 not in uids
    accounts = {line.split(":")[2] for line in Path("/etc/passwd").read_text().splitlines()}
    assert not accounts & set(map(str, uids))
    for pid in (server.pid, *server.named("engine")):
        assert status_of(pid)["Uid"].split() == ["0"] * 4
    assert server.find_event("uid_not_changed") is None


@pytest.mark.parametrize("role", ["worker", "observer"])
def test_whoever_takes_it_over_reaches_nothing_else(server: Server, role: str) -> None:
    """Memory and life of other processes, root's files and the run directory are out of reach for its uid."""
    uid = uid_of(server.named(role)[0])
    directory = server.directory
    (engine,), worker = server.named("engine"), server.named("worker")[1]
    for path in (directory, *directory.parents):
        if path != Path("/tmp") and path.stat().st_uid == 0 and path.is_relative_to("/tmp"):
            path.chmod(0o755)  # what a run directory has
    done = subprocess.run(
        [sys.executable, "-c", ATTACKER, *map(str, (uid, uid, engine, worker, server.pid)), str(directory)],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    outcomes = json.loads(done.stdout)
    assert len(outcomes) == 9 and set(outcomes.values()) == {"PermissionError"}, outcomes


def test_no_child_gains_rights(server: Server) -> None:
    """No new privileges for any of them; workers keep CAP_IPC_LOCK, the observer nothing, and workers start nothing,
    the observer not too much."""
    for role, kept in (("worker", 1 << 14), ("observer", 0)):
        for pid in server.named(role):
            status = status_of(pid)
            for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"):
                assert int(status[kind], 16) & ~kept == 0, (role, kind)
    (engine,) = server.named("engine")
    for kind in ("CapEff", "CapPrm"):
        assert int(status_of(engine)[kind], 16) & 7 << 5 == 0, "KILL, SETGID, SETUID are the supervisor's"
    for role in ("worker", "observer", "engine"):
        for pid in server.named(role):
            assert status_of(pid)["NoNewPrivs"] == "1", role
    for pid in server.named("worker"):
        assert limits_of(pid)["Max processes"] == ["0", "0"]
    (observer,) = server.named("observer")
    assert limits_of(observer)["Max processes"] == ["512", "512"], "or it used up those of the container or unit"


def test_no_process_leaves_a_core(server: Server) -> None:
    """The limit is 0 everywhere, and the windows are left out of any core that is taken all the same."""
    for pid in (server.pid, *server.named("engine"), *server.named("worker"), *server.named("observer")):
        assert limits_of(pid)["Max core file size"] == ["0", "0"]
        shared = [
            (size_kib, flags.split())
            for name, size_kib, flags in mappings(pid)
            if name.startswith("/dev/zero") and size_kib > 16
        ]
        assert sum(size_kib for size_kib, _ in shared) * 1024 > MIB
        assert all("dd" in flags for _, flags in shared), (pid, shared)


def mappings(pid: int) -> list[tuple[str, int, str]]:
    """Name, KiB and VmFlags of each."""
    found, name, size_kib = [], "", 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "Size":
            size_kib = int(value.split()[0])
        elif key == "VmFlags":
            found.append((name, size_kib, value))
        elif not key[:1].isupper():
            name = line.split(maxsplit=5)[5] if len(line.split(maxsplit=5)) > 5 else ""
    return found


def spoil_doorbells(worker: int, engine: int, log: str) -> None:
    """Make the doorbells that a worker has blocking, and fill them, as whoever has taken it over can."""
    call, process = ctypes.CDLL(None, use_errno=True).syscall, os.pidfd_open(worker)
    heard = {os.readlink(path) for path in Path(f"/proc/{engine}/fd").iterdir() if int(path.name) > 2}
    for path in Path(f"/proc/{worker}/fd").iterdir():
        target = os.readlink(path)
        if "eventfd" not in target and not (target.startswith("pipe:") and target in heard):
            continue
        if path.name == log:
            continue
        descriptor = call(PIDFD_GETFD, process, int(path.name), 0)
        os.set_blocking(descriptor, False)
        try:
            while True:
                os.write(descriptor, ((1 << 64) - 2).to_bytes(8, sys.byteorder))
        except OSError:
            pass
        os.set_blocking(descriptor, True)
        os.close(descriptor)
    os.close(process)


def pipes_that_block(pid: int) -> list[str]:
    """Descriptors of pipes, but for stdout and stderr, on which a process would wait."""
    return [
        path.name
        for path in Path(f"/proc/{pid}/fd").iterdir()
        if int(path.name) > 2
        and os.readlink(path).startswith("pipe:")
        and not int(Path(f"/proc/{pid}/fdinfo/{path.name}").read_text().split()[3], 8) & os.O_NONBLOCK
    ]


def log_pipe(worker: int, observer: int) -> str:
    """Which descriptor of a worker is the log."""
    read = {
        os.readlink(path)
        for path in Path(f"/proc/{observer}/fd").iterdir()
        if os.readlink(path).startswith("pipe:")
        and not int(Path(f"/proc/{observer}/fdinfo/{path.name}").read_text().split()[3], 8) & os.O_ACCMODE
    }
    theirs = [path for path in Path(f"/proc/{worker}/fd").iterdir() if int(path.name) > 2]
    return next(path.name for path in theirs if os.readlink(path) in read)


def test_a_worker_leaves_its_successor_nothing_that_blocks(start: Start) -> None:
    """It has made all that it has blocking, and dies: the next one would wait at its doorbell for ever."""
    server = start("--workers", "1")
    (bad,) = server.named("worker")
    before = pipes_that_block(bad)
    call, process = ctypes.CDLL(None, use_errno=True).syscall, os.pidfd_open(bad)
    for path in Path(f"/proc/{bad}/fd").iterdir():
        if os.readlink(path).startswith("pipe:"):
            descriptor = call(PIDFD_GETFD, process, int(path.name), 0)
            os.set_blocking(descriptor, True)
            os.close(descriptor)
    os.close(process)
    os.kill(bad, signal.SIGKILL)
    fresh = server.wait_event("worker_restarted")["child"]
    eventually(lambda: server.get("/readyz")[0] == 200)
    assert pipes_that_block(fresh) == before


def test_a_worker_holds_up_nobody_by_its_doorbells(start: Start) -> None:
    """It stands still, its doorbells are full and would block: others are served, and SIGTERM is obeyed."""
    server = start("--workers", "2")
    bad, (engine,), (observer,) = server.named("worker")[0], server.named("engine"), server.named("observer")
    os.kill(bad, signal.SIGSTOP)
    try:
        spoil_doorbells(bad, engine, log_pipe(bad, observer))
        for _ in range(3):
            with server.client() as client:
                client.write(0, b"served")
                assert client.read(0, 6) == b"served"
        os.kill(server.pid, signal.SIGTERM)
        server.wait_event("draining")
    finally:
        os.kill(bad, signal.SIGKILL)


def test_a_replaced_worker_has_its_uid_again(start: Start) -> None:
    """A worker and an observer that follow a dead one give up as much, and end with the supervisor."""
    server = start("--workers", "2")
    before = {role: server.named(role)[0] for role in ("worker", "observer")}
    uids = {role: uid_of(pid) for role, pid in before.items()}
    assert 0 not in uids.values()
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    server.wait_event("worker_restarted")

    def successors() -> set[int]:
        return {
            uid_of(pid)
            for pid in (*server.named("worker"), *server.named("observer"))
            if pid not in before.values() and status_of(pid)["NoNewPrivs"] == "1"
        }

    eventually(lambda: set(uids.values()) <= successors())
    with server.client() as client:
        client.write(0, b"served")
        assert client.read(0, 6) == b"served"
    children = server.remember()
    os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))


def test_a_server_that_only_root_can_read_serves(start: Start, tmp_path: Path) -> None:
    """Installed in root's home: nothing has to be read from there after the change of uid."""
    home = tmp_path / "home"
    shutil.copytree(REPOSITORY / "vramblk", home / "vramblk")
    home.chmod(0o700)
    with start("--workers", "2", environment={"PYTHONPATH": str(home)}) as server:
        with server.client() as client:
            client.write(0, b"served")
            assert client.read(0, 6) == b"served"
        for path in ("/status.json", "/metrics", "/history.json", "/map.json", "/healthz", "/readyz", "/"):
            assert server.get(path)[0] == 200, path
        assert server.get("/none")[0] == 404
        assert not [line for line in server.raw_lines if "observer_" in line or "exception" in line]


#: What each machine lacks, and how the event names it.
LACKING = {
    "setuid": (("setpriv", "--bounding-set=-setuid"), "change its uid"),
    "setgid": (("setpriv", "--bounding-set=-setgid"), "change its uid"),
    "kill": (("setpriv", "--bounding-set=-kill"), "cannot be killed"),
    "hidepid": (
        ("unshare", "-m", "sh", "-c", 'mount -t proc -o hidepid=2 proc /proc && exec "$@"', "sh"),
        "hidepid=0",
    ),
}


@requires("setpriv")
@pytest.mark.parametrize("lacking", LACKING)
def test_where_children_cannot_have_other_uids_it_serves_as_before(start: Start, lacking: str) -> None:
    """One event says what is missing and how to grant it."""
    command, named = LACKING[lacking]
    server = start("--workers", "1", program=(*command, sys.executable, "-m", "vramblk"))
    event = server.wait_event("uid_not_changed")
    assert event["level"] == "warning" and named in event["detail"] and "CAP_SETUID" in event["remedy"]
    assert status_of(server.named("worker")[0])["Uid"].split() == ["0"] * 4
    with server.client() as client:
        assert client.read(0, 6) == bytes(6)
    assert server.get("/readyz")[0] == 200
    os.kill(server.named("worker")[0], signal.SIGKILL)
    server.wait_event("worker_restarted")
    assert server.stop() == 0
    assert sum(event.get("event") == "uid_not_changed" for event in server.events) == 1
