"""Signals and deaths: how the server stops, and what it survives."""

from __future__ import annotations

import fcntl
import os
import pty
import random
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from . import rawclient as nbd
from .harness import Server, alive, clean_environment, descendants, eventually

MIB = 1 << 20
Start = Callable[..., Server]


def refuses_connections(server: Server) -> bool:
    """Whether a new client gets no greeting."""
    try:
        with server.connect() as client:
            return client.at_end()
    except (ConnectionError, FileNotFoundError):
        return True


# SIGTERM: draining


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_leaves_at_once_without_clients(start: Start, number: int) -> None:
    """With no client attached the server leaves at once, with exit status 0 and without its socket files."""
    server = start("--drain-timeout", "60s", tcp=True)
    begun = time.monotonic()
    server.signal(number)
    assert server.wait(10) == 0
    assert time.monotonic() - begun < 5
    assert not server.unix_path.exists() and not server.status_path.exists()
    assert not server.leftovers()


def test_drain_ends_with_the_last_client(start: Start) -> None:
    """While a client is attached the server drains: no new greeting, /readyz 503; it leaves with the client."""
    server = start("--drain-timeout", "60s")
    with server.client() as client:
        client.write(0, b"before")
        assert server.get("/readyz")[0] == 200
        server.signal(signal.SIGTERM)
        eventually(lambda: server.get("/readyz")[0] == 503)
        eventually(lambda: refuses_connections(server))
        assert server.get("/metrics")[0] == 200
        assert "DRAINING" in server.get("/status.json")[1].upper()
        time.sleep(1)
        assert server.process.poll() is None
        reply = client.call(nbd.READ, 0, 6)
        assert reply.error == nbd.ESHUTDOWN
        assert client.call(nbd.WRITE, 0, payload=b"refused").error == nbd.ESHUTDOWN
        client.disconnect()
    begun = time.monotonic()
    assert server.wait(10) == 0
    assert time.monotonic() - begun < 3


def test_drain_ends_with_a_client_that_vanishes(start: Start) -> None:
    """A client that closes without DISC lets a draining server leave, too."""
    server = start("--drain-timeout", "60s")
    with server.client():
        server.signal(signal.SIGTERM)
        eventually(lambda: refuses_connections(server))
    assert server.wait(5) == 0


def test_drain_timeout_is_the_latest(start: Start) -> None:
    """A client that stays is left after --drain-timeout, not before, and the exit status is 0."""
    server = start("--drain-timeout", "3s")
    with server.client() as client:
        begun = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait(15) == 0
        assert 2.5 < time.monotonic() - begun < 8
        assert client.ends()


def test_default_drain_leaves_time_to_zero_and_leave_within_what_docker_waits(start: Start) -> None:
    """`docker stop` kills after 10 s: by then the memory is zeroed and the sockets are gone, also with a client."""
    server = start(program=SLOW_SERVER, environment={"VRAMBLK_TEST_ZERO_S": "2"})
    with server.client():
        begun = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait(15) == 0
        assert time.monotonic() - begun < 9
    assert not server.unix_path.exists() and not server.status_path.exists()
    assert server.find_event("stopped") is not None


def test_requests_before_the_signal_are_finished(start: Start) -> None:
    """Every request gets exactly one reply over a drain, success or ESHUTDOWN, and successes come first."""
    server = start("--drain-timeout", "30s", "--workers", "2")
    clients = [server.client(structured=True) for _ in range(2)]
    try:
        for client in clients:
            for index in range(64):
                client.submit(nbd.WRITE, index * 65536, payload=b"d" * 65536)
        server.signal(signal.SIGTERM)
        for client in clients:
            for _ in range(64):
                assert client.wait().error in (0, nbd.ESHUTDOWN)
            client.disconnect()
    finally:
        for client in clients:
            client.close()
    assert server.wait(10) == 0


def test_drain_closes_negotiations(start: Start) -> None:
    """A client that is still negotiating does not hold up a drain for long."""
    server = start("--drain-timeout", "60s")
    with server.connect() as client:
        client.greet()
        server.signal(signal.SIGTERM)
        assert server.wait(15) == 0


def test_second_signal_while_draining(start: Start) -> None:
    """Repeated SIGTERM while draining changes nothing: it still leaves cleanly with its client."""
    server = start("--drain-timeout", "60s")
    with server.client() as client:
        for _ in range(3):
            server.signal(signal.SIGTERM)
            time.sleep(0.1)
        assert server.process.poll() is None
        client.disconnect()
    assert server.wait(10) == 0


# Other signals


@pytest.mark.parametrize("attached", (False, True))
def test_ctrl_c_from_a_terminal(tmp_path: Path, attached: bool) -> None:
    """Ctrl+C typed at a terminal stops the server with exit status 0, also while a client is attached."""
    path = tmp_path / "nbd.sock"
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "vramblk", "--allow-cpu", "--size", "16M", "--listen-addr", f"unix:{path}",
         "--status-socket", "off", "--drain-timeout", "1s"],
        stdin=inside, stdout=inside, stderr=inside, start_new_session=True, env=clean_environment(),
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), cwd=tmp_path,
    )  # fmt: skip
    os.close(inside)
    output = bytearray()
    known: dict[int, str] = {}
    client = None
    try:
        deadline = time.monotonic() + 60
        poll = select.poll()
        poll.register(terminal, select.POLLIN)
        while b"ready" not in output:
            assert time.monotonic() < deadline, output.decode(errors="replace")
            if poll.poll(1000):
                output += os.read(terminal, 65536)
        assert not output.lstrip().startswith(b"{"), "lines for people, not JSON, on a terminal"
        known = descendants(process.pid)
        if attached:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(path))
            client = nbd.RawClient(connection)
            client.greet()
            client.negotiate()
            client.write(0, b"live")
        os.write(terminal, b"\x03")
        drain = threading.Thread(target=_swallow, args=(terminal,), daemon=True)
        drain.start()
        assert process.wait(15) == 0
        eventually(lambda: not any(alive(pid) for pid in known))
        assert not path.exists()
    finally:
        if client is not None:
            client.close()
        for pid in (process.pid, *known):
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        os.close(terminal)


def _swallow(terminal: int) -> None:
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:
        pass


def test_sigquit_ends_at_once(start: Start) -> None:
    """SIGQUIT ends at once with exit status 1, and names the clients that were attached."""
    server = start("--drain-timeout", "60s")
    with server.client() as client:
        client.write(0, b"x")
        begun = time.monotonic()
        server.signal(signal.SIGQUIT)
        assert server.wait(10) == 1
        assert time.monotonic() - begun < 3
        assert client.ends()
    assert f"pid={os.getpid()}" in "".join(server.raw_lines)
    assert not server.leftovers()


def test_sighup_never_kills(start: Start) -> None:
    """SIGHUP does not kill the server under its clients: it goes on, or drains."""
    server = start("--drain-timeout", "60s")
    with server.client() as client:
        client.write(0, b"x")
        server.signal(signal.SIGHUP)
        time.sleep(0.5)
        assert server.process.poll() is None
        assert client.call(nbd.READ, 0, 1).error in (0, nbd.ESHUTDOWN)
        client.disconnect()
    if refuses_connections(server):
        assert server.wait(10) == 0


@pytest.mark.parametrize("role", ("worker", "engine", "observer"))
def test_children_ignore_signals(start: Start, role: str) -> None:
    """SIGINT, SIGTERM, SIGHUP and SIGQUIT to a child change nothing."""
    server = start()
    before = server.remember()
    with server.client() as client:
        for pid in server.named(role):
            # A library's handler would survive most of what this test sends.
            ignored = int(re.search(r"SigIgn:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[1], 16)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                assert ignored >> (number - 1) & 1, f"{number.name} is not ignored"
                os.kill(pid, number)
        time.sleep(0.5)
        client.write(4096, b"still here")
        assert client.read(4096, 10) == b"still here"
        assert server.get("/healthz")[0] == 200
    assert server.remember() == before


def test_processes_carry_their_names(start: Start) -> None:
    """Each process says in its name what it is."""
    server = start("--workers", "3")
    assert Path(f"/proc/{server.pid}/comm").read_text().strip() == "vramblk-supervisor"[:15]
    assert len(server.named("worker")) == 3
    assert len(server.named("engine")) == 1
    assert len(server.named("observer")) == 1
    assert len(server.remember()) == 5


def test_only_the_engine_loads_opencl(start: Start) -> None:
    """No process but the engine has an OpenCL library mapped."""
    server = start()
    with server.client() as client:
        client.write(0, b"x" * 4096)
    for pid in (server.pid, *server.named("worker"), *server.named("observer")):
        assert "libOpenCL" not in Path(f"/proc/{pid}/maps").read_text()
        assert "libpocl" not in Path(f"/proc/{pid}/maps").read_text()


def test_workers_drop_privileges(start: Start) -> None:
    """Workers run with no-new-privileges and hold no capability but CAP_IPC_LOCK."""
    server = start()
    cap_ipc_lock = 1 << 14
    for pid in server.named("worker"):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert status["NoNewPrivs"].strip() == "1"
        for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
            assert int(status[kind], 16) & ~cap_ipc_lock == 0, kind


# SIGKILL


def test_killed_worker_costs_only_its_connections(start: Start) -> None:
    """A worker killed in the middle of 256 requests: the others' data holds, a new worker serves at once."""
    server = start("--workers", "2", size="128M")
    region = 32 * MIB
    clients = [server.client(structured=True) for _ in range(4)]
    chance = random.Random(5)
    old = [chance.randbytes(region) for _ in clients]
    new = [chance.randbytes(16 * MIB) for _ in clients]
    try:
        for index, client in enumerate(clients):
            client.write(index * region, old[index])
        workers = server.named("worker")
        killed = threading.Event()
        senders = []
        for index, client in enumerate(clients):
            stream = b"".join(
                client.encode(nbd.WRITE, index * region + at, payload=new[index][at : at + 65536])[1]
                for at in range(0, 16 * MIB, 65536)
            )
            senders.append(threading.Thread(target=_send_quietly, args=(client, stream, killed), daemon=True))
        for sender in senders:
            sender.start()
        time.sleep(0.02)
        os.kill(workers[0], signal.SIGKILL)
        killed.set()
        survivors = []
        for index, client in enumerate(clients):
            try:
                for _ in range(256):
                    assert client.wait().error == 0
                survivors.append(index)
            except (EOFError, ConnectionError):
                pass
        for sender in senders:
            sender.join(30)
        assert len(survivors) == 2
        eventually(lambda: len(server.named("worker")) == 2 and workers[0] not in server.named("worker"))
        with server.client() as checker:
            for index in range(4):
                found = checker.read(index * region, region)
                if index in survivors:
                    assert found == new[index] + old[index][16 * MIB :]
                    assert clients[index].read(index * region, MIB) == new[index][:MIB]
                else:
                    assert found[16 * MIB :] == old[index][16 * MIB :]
                    for at in range(0, 16 * MIB, 4096):
                        assert found[at : at + 4096] in (new[index][at : at + 4096], old[index][at : at + 4096])
        fresh = [server.client(structured=True) for _ in range(2)]
        for client in fresh:
            client.write(0, b"fresh" * 1000)
            assert client.read(0, 5000) == b"fresh" * 1000
            client.close()
        assert server.get("/healthz")[0] == 200
        assert server.get("/readyz")[0] == 200
    finally:
        for client in clients:
            client.close()


def _send_quietly(client: nbd.RawClient, data: bytes, killed: threading.Event) -> None:
    """Send all but the end; that too once the worker is dead, so that none is done with its client before."""
    try:
        client.send(data[:-1])
        killed.wait()
        client.send(data[-1:])
    except (ConnectionError, TimeoutError):
        pass


def test_workers_killed_again_and_again(start: Start) -> None:
    """Ten workers killed one after another are each replaced, and no descriptor is lost in the supervisor."""
    server = start("--workers", "1")
    counts = []
    for round_number in range(10):
        with server.client() as client:
            client.write(round_number * 4096, b"%4d" % round_number * 1024)
            (worker,) = server.named("worker")
            os.kill(worker, signal.SIGKILL)
            assert client.ends()
        eventually(lambda dead=worker: server.named("worker") not in ([], [dead]))
        with server.client() as client:
            for earlier in range(round_number + 1):
                assert client.read(earlier * 4096, 4096) == b"%4d" % earlier * 1024
        counts.append(len(os.listdir(f"/proc/{server.pid}/fd")))
    assert counts[-1] == counts[1]


def test_killed_engine_is_exit_1(start: Start) -> None:
    """The engine's death is loud: exit status 1, an event that names it, connections end, nothing hangs."""
    server = start()
    with server.client() as client, server.client() as busy:
        client.write(0, b"x" * 4096)
        for _ in range(64):
            busy.submit(nbd.READ, 0, 65536)
        os.kill(server.named("engine")[0], signal.SIGKILL)
        assert server.wait(15) == 1
        assert client.ends() and busy.ends()
    assert any("engine" in str(event.get("event", "")) for event in server.events)
    assert not server.leftovers()
    assert not server.unix_path.exists()


def test_killed_supervisor_takes_all_along(start: Start) -> None:
    """In scratch mode the death of the supervisor ends every other process and connection."""
    server = start()
    with server.client() as client:
        client.write(0, b"x")
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        assert client.ends()
    assert not server.leftovers(10)


def test_killed_observer_is_not_noticed(start: Start) -> None:
    """The observer's death disturbs no client, and the server still stops cleanly."""
    server = start()
    with server.client() as client:
        os.kill(server.named("observer")[0], signal.SIGKILL)
        for index in range(200):
            client.write(index * 4096, b"o" * 4096)
            assert client.read(index * 4096, 4096) == b"o" * 4096
    assert server.stop() == 0


def test_a_worker_holds_no_socket_but_its_own(start: Start) -> None:
    """With a copy of the supervisor's end of its socket it would outlive the supervisor under live swap."""
    server = start("--workers", "2")
    for pid in server.named("worker"):
        open_files = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        assert len([name for name in open_files if name.startswith("socket:")]) == 1, open_files


# What is told of the engine's end

SLOW_SERVER = (sys.executable, str(Path(__file__).with_name("slow_server.py")))


def complaints(server: Server) -> list[str]:
    """Names of the events that say that something is wrong."""
    return [event["event"] for event in server.events if event.get("level") in ("error", "critical")]


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_stopped_while_it_starts(start: Start, number: int) -> None:
    """A server that is told to stop before it is ready gives up at once, and nothing is wrong with that."""
    server = start(ready=False, program=SLOW_SERVER, environment={"VRAMBLK_TEST_STEP_S": "60"})
    server.wait_event("child_stderr", 60)
    server.remember()
    server.signal(number)
    assert server.wait(10) == 0
    assert complaints(server) == [] and server.stderr == ""
    assert not server.leftovers() and not server.unix_path.exists()


def test_failed_start_is_no_death_of_the_engine(start: Start) -> None:
    """What the engine found missing is the line on stderr, and no event speaks of a death."""
    server = start("--size", "100000G", ready=False, size=None)
    assert server.wait(60) == 78
    assert server.stderr.count("\n") == 1
    assert complaints(server) == []


def test_sigquit_is_the_only_complaint(start: Start) -> None:
    """An engine that the supervisor has told to end has not died."""
    server = start()
    server.signal(signal.SIGQUIT)
    assert server.wait(10) == 1
    assert complaints(server) == ["quit"]


@pytest.mark.parametrize("stopping", (False, True))
def test_sigquit_does_not_wait_for_the_zeroing(start: Start, stopping: bool) -> None:
    """Also after SIGTERM; that the engine had to be killed is told once."""
    server = start(program=SLOW_SERVER, environment={"VRAMBLK_TEST_ZERO_S": "60"})
    if stopping:
        server.signal(signal.SIGTERM)
        eventually(lambda: not server.named("worker"))
    server.signal(signal.SIGQUIT)
    assert server.wait(10) == 1
    assert complaints(server) == ["quit", "engine_killed"]
    assert server.stderr.count("\n") == 1 and "SIGQUIT" in server.stderr
    assert not server.leftovers()


def test_engine_that_dies_while_zeroing_is_told(start: Start) -> None:
    """The memory may hold what it held: an event names the engine, and the exit status is 1."""
    server = start(program=SLOW_SERVER, environment={"VRAMBLK_TEST_ZERO_S": "60"})
    (engine,) = server.named("engine")
    server.signal(signal.SIGTERM)
    eventually(lambda: not server.named("worker"))
    os.kill(engine, signal.SIGKILL)
    assert server.wait(15) == 1
    assert complaints(server) == ["engine_died"]
    assert server.find_event("engine_died")["signal"] == "SIGKILL"
    assert server.find_event("stopped") is None
    assert server.stderr.count("\n") == 1 and "zeroed" in server.stderr


# As process 1


def may_unshare() -> str:
    """Why there can be no namespace of process ids, empty if there can."""
    try:
        done = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, text=True, timeout=20
        )
    except FileNotFoundError:
        return "requires unshare"
    return done.stderr.strip()


@pytest.fixture
def process_1(start: Start) -> tuple[Server, int]:
    """A server that is process 1 of its namespace, and its process id here."""
    if reason := may_unshare():
        pytest.skip(f"requires a namespace of process ids: {reason}")
    namespace = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    server = start("--verbose", program=(*namespace, sys.executable, "-m", "vramblk"))
    (pid,) = server.named("supervisor")
    assert Path(f"/proc/{pid}/status").read_text().split("NSpid:")[1].split("\n")[0].split()[-1] == "1"
    return server, pid


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_process_1_stops_in_order(process_1: tuple[Server, int], number: int) -> None:
    """The kernel gives process 1 no default for signals: they work all the same."""
    server, pid = process_1
    with server.client() as client:
        client.write(0, b"one")
        os.kill(pid, number)
        eventually(lambda: refuses_connections(server))
        client.disconnect()
    assert server.wait(15) == 0
    assert complaints(server) == [] and server.find_event("stopped") is not None
    assert not server.unix_path.exists() and not server.leftovers()


def test_process_1_obeys_sigquit(process_1: tuple[Server, int]) -> None:
    """SIGQUIT ends at once, exit 1, although its default would not reach process 1."""
    server, pid = process_1
    os.kill(pid, signal.SIGQUIT)
    assert server.wait(10) == 1
    assert not server.leftovers()


def test_process_1_reaps_orphans(process_1: tuple[Server, int]) -> None:
    """A process whose parent has gone becomes a child of the server and leaves no zombie."""
    server, pid = process_1
    before = set(server.remember())
    orphans = subprocess.run(
        ["nsenter", "--target", str(pid), "--pid", "--mount", "sh", "-c", "for i in 1 2 3; do sleep 0.5 & done"],
        timeout=20,
    )
    assert orphans.returncode == 0

    def reaped() -> list[dict[str, object]]:
        return [event for event in server.events if event.get("event") == "orphan_reaped"]

    eventually(lambda: len(reaped()) >= 3)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert {int(child) for child in children} <= before, "a zombie is left"
    with server.client() as client:
        client.write(0, b"still here")
        assert client.read(0, 10) == b"still here"
    assert set(server.remember()) == before
    os.kill(pid, signal.SIGTERM)
    assert server.wait(15) == 0


def test_what_sigkill_leaves_in_a_mapped_file(start: Start) -> None:
    """Nobody overwrites it then, as README says; the next start does, and a clean stop."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.truncate(16 << 20)
        arguments = ("--workers", "0", "--device", f"map:{file.name}")
        killed = start(*arguments, size="max")
        with killed.client() as client:
            client.write(0, b"secret" * 100)
            os.kill(killed.named("engine")[0], signal.SIGKILL)
            assert killed.wait() == 1
        assert Path(file.name).read_bytes()[:600] == b"secret" * 100
        again = start(*arguments, size="max")
        with again.client() as client:
            assert client.read(0, 4096) == bytes(4096)
            client.write(0, b"secret" * 100)
        assert again.stop() == 0
        assert not any(Path(file.name).read_bytes())
