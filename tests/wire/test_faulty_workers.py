"""Workers that write garbage into their window, die of it, or stand still: neither the others nor the signals notice."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from . import rawclient as nbd
from .harness import Server, eventually
from .test_steady_state import start_swap

Start = Callable[..., Server]
GARBLING = (sys.executable, str(Path(__file__).with_name("garbling_server.py")))
UNDESCRIBED = (sys.executable, str(Path(__file__).with_name("undescribed_server.py")))
KINDS = ("ones", "states", "exports")


def start_garbling(start: Start, kind: str, *arguments: str) -> Server:
    return start(
        "--workers", "2", "--drain-timeout", "3s", *arguments,
        program=GARBLING, environment={"VRAMBLK_TEST_GARBAGE": kind},
    )  # fmt: skip


def worker_pid(server: Server, index: int) -> int:
    workers = json.loads(server.get("/status.json")[1])["workers"]
    return int(workers[index]["pid"])


def faults(server: Server) -> list[str]:
    """Events that tell of an error that nobody foresaw."""
    unforeseen = (
        "supervisor_error",
        "observer_request_failed",
        "observer_sample_failed",
        "uncaught_exception",
    )
    return [line for line in server.raw_lines if any(f'"{name}"' in line for name in unforeseen)]


@pytest.mark.parametrize("kind", KINDS)
def test_worker_that_garbles_its_window_and_dies_is_replaced(start: Start, kind: str) -> None:
    """Its clients are cut off; a new worker takes its place and serves, and SIGTERM ends the server."""
    server = start_garbling(start, f"{kind}-dies")
    garbling = worker_pid(server, 1)
    clients = [server.client() for _ in range(2)]
    os.kill(garbling, signal.SIGUSR2)
    assert server.wait_event("worker_died")["worker"] == 1
    assert server.wait_event("worker_restarted", 20)["worker"] == 1
    eventually(lambda: json.loads(server.get("/status.json")[1])["workers"][1]["ready"])
    for client in clients:
        client.close()
    again = [server.client() for _ in range(4)]
    for client in again:
        client.write(0, b"served")
        assert client.read(0, 6) == b"served"
    for client in again:
        client.disconnect()
    assert not faults(server)
    server.signal(signal.SIGTERM)
    assert server.wait(15) == 0


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGQUIT))
@pytest.mark.parametrize("kind", KINDS)
def test_signals_work_with_a_garbled_window(start: Start, kind: str, number: int) -> None:
    """The garbling worker lives and the status is asked for: a drain ends at its time, SIGQUIT at once."""
    server = start_garbling(start, kind)
    garbling = worker_pid(server, 1)
    with server.client(), server.client():
        os.kill(garbling, signal.SIGUSR2)
        time.sleep(1.5)  # a sample of the observer's too
        for path in ("/status.json", "/metrics", "/history.json", "/map.json", "/healthz"):
            assert server.get(path)[0] == 200
        server.signal(number)
        status = server.wait(20)
    assert status == (0 if number == signal.SIGTERM else 1)
    assert not faults(server)
    if number == signal.SIGQUIT:
        assert (server.stderr.count("\n") == 1 and server.stderr.isascii()) or "\x1b" not in server.stderr


def test_worker_whose_window_is_corrupt_is_killed_and_replaced(start: Start) -> None:
    """The engine says so: the worker's clients are cut off, the others' are not, and another takes its place."""
    server = start_garbling(start, "ones")
    faulty = worker_pid(server, 1)
    clients = [server.client() for _ in range(2)]
    os.kill(server.named("engine")[0], signal.SIGUSR2)
    event = server.wait_event("worker_killed")
    assert (event["worker"], event["child"]) == (1, faulty) and event["reason"]
    assert server.wait_event("worker_died")["signal"] == "SIGKILL"
    assert server.wait_event("worker_restarted", 20)["worker"] == 1
    connections = eventually(lambda: json.loads(server.get("/status.json")[1])["connections"])
    assert [row["worker"] for row in connections] == [0], "the other worker's client is still attached"
    for client in (*clients, *(server.client() for _ in range(2))):
        client.close()
    assert server.stop() == 0 and not faults(server)


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGQUIT))
def test_what_cannot_be_described_is_done_all_the_same(start: Start, number: int) -> None:
    """An error in the words for the log: a dead worker is replaced, and the signals end the server in order."""
    server = start("--workers", "2", "--drain-timeout", "1s", program=UNDESCRIBED)
    for index in range(2):
        dead = worker_pid(server, index)
        os.kill(dead, signal.SIGKILL)
        eventually(lambda dead=dead: len(found := server.named("worker")) == 2 and dead not in found)
    server.wait_event("supervisor_error")
    with server.client() as first, server.client() as second:
        assert first.read(0, 6) == second.read(0, 6) == bytes(6)
        server.signal(number)
        assert server.wait(15) == (0 if number == signal.SIGTERM else 1)
    assert bool(server.find_event("stopped")) == (number == signal.SIGTERM)
    assert server.stderr.count("\n") == (number == signal.SIGQUIT)


# Workers that stand still


class Stopped:
    """Workers of a server that are stopped while the block runs, and go on behind it."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids

    def __enter__(self) -> Stopped:
        for pid in self._pids:
            os.kill(pid, signal.SIGSTOP)
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("workers", (2, 3))
def test_stopped_worker_keeps_no_client_waiting(start: Start, workers: int) -> None:
    """SIGSTOP: four new clients are served within two seconds by the others; the log names it, and its return."""
    server = start("--workers", str(workers))
    stopped = worker_pid(server, 0)
    clients: list[nbd.RawClient] = []
    with Stopped(stopped):
        begun = time.monotonic()
        waiting = [server.connect() for _ in range(4)]
        for client in waiting:
            client.greet()
            clients.append(client.negotiate(""))
        assert time.monotonic() - begun < 2
        for client in clients:
            client.write(0, b"served")
            assert client.read(0, 6) == b"served"
        event = server.wait_event("worker_stalled")
        assert (event["worker"], event["child"]) == (0, stopped)
        assert server.find_event("worker_resumed") is None
        for _ in range(4):
            clients.append(server.client())
    event = server.wait_event("worker_resumed")
    assert (event["worker"], event["child"]) == (0, stopped)
    assert sum(event.get("event") == "worker_stalled" for event in server.events) == 1
    for client in clients:
        client.write(0, b"still served")
        assert client.read(0, 12) == b"still served"
        client.disconnect()
    again: list[nbd.RawClient] = []

    def has_client_of_its_own() -> bool:
        again.append(server.client())
        connections = json.loads(server.get("/status.json")[1])["connections"]
        return any(row["worker"] == 0 for row in connections)

    eventually(has_client_of_its_own)
    for client in again:
        client.disconnect()
    assert server.stop() == 0 and not faults(server)


def test_nobody_hangs_when_all_workers_stand_still(start: Start) -> None:
    """A client that no worker takes gets an end within seconds, the supervisor idles and obeys, and all goes on."""
    server = start("--workers", "2")
    pids = [worker_pid(server, index) for index in range(2)]
    with Stopped(*pids):
        waiting = [server.connect() for _ in range(6)]
        begun, cpu_s = time.monotonic(), cpu_seconds(server.pid)
        ended = 0
        for client in waiting[:2]:
            assert client.at_end()
            ended += 1
        assert ended == 2 and time.monotonic() - begun < 9
        assert cpu_seconds(server.pid) - cpu_s < 0.5, "it does not spin"
        assert server.wait_event("connection_refused")["reason"].startswith("worker ")
    with server.client() as client:
        client.write(0, b"served")
        assert client.read(0, 6) == b"served"
    for client in waiting:
        client.close()
    assert server.stop() == 0 and not faults(server)


def test_clients_of_a_worker_that_dies_before_it_takes_them_are_served(start: Start) -> None:
    """SIGKILL of a stopped worker: what it had not taken goes to another one."""
    server = start("--workers", "2")
    stopped = worker_pid(server, 0)
    os.kill(stopped, signal.SIGSTOP)
    waiting = [server.connect() for _ in range(4)]
    os.kill(stopped, signal.SIGKILL)
    for client in waiting:
        client.greet()
        with client.negotiate("") as served:
            assert served.read(0, 6) == bytes(6)


def test_drain_does_not_wait_for_a_stopped_worker_without_clients(start: Start) -> None:
    """SIGTERM while it stands still: nobody is attached, so the server leaves."""
    server = start("--workers", "2", "--drain-timeout", "60s")
    with Stopped(worker_pid(server, 0)):
        with server.client(), server.client():
            server.wait_event("worker_stalled")
        server.remember()
        server.signal(signal.SIGTERM)
        assert server.wait(20) == 0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# The same in swap mode


def test_swap_device_gets_a_worker_that_runs(start: Start, tmp_path: Path) -> None:
    """One of two is stopped: the other takes the device, and the prefaulted supervisor takes no resource for that."""
    report = tmp_path / "report"
    server = start_swap(start, report, workers=2)
    report.write_text("")  # what the supervisor did between settling and ready
    with Stopped(worker_pid(server, 0)):
        begun = time.monotonic()
        with server.client() as client:
            assert time.monotonic() - begun < 2
            client.write(0, b"served")
            assert client.read(0, 6) == b"served"
            server.wait_event("worker_stalled")
    server.wait_event("worker_resumed")
    assert report.read_text() == ""
    for _ in range(2):
        eventually(lambda: json.loads(server.get("/status.json")[1])["connections"] == [])
        with server.client() as first, server.connect() as second:
            second.greet()
            assert second.go()[-1].type == nbd.ERR_POLICY, "both workers answer, and one client is attached"
            first.write(0, b"again!")
            assert first.read(0, 6) == b"again!"
            first.disconnect()


def test_swap_device_waits_for_its_worker(start: Start, tmp_path: Path) -> None:
    """All are stopped: its connection is kept, however long that takes."""
    server = start_swap(start, tmp_path / "report", workers=2)
    with Stopped(*server.named("worker")), server.connect() as waiting:
        server.wait_event("worker_stalled")
        time.sleep(6)
        for pid in server.named("worker"):
            os.kill(pid, signal.SIGCONT)
        waiting.greet()
        assert waiting.negotiate("").read(0, 6) == bytes(6)
