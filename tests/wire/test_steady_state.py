"""Swap mode's promise 2 without a kernel under pressure: once ready the data path maps no memory, starts no thread,
opens no file, imports no module and takes next to no page, whatever clients do. On any machine; what only a guest
kernel grants is left out.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from . import rawclient as nbd
from .harness import Server, eventually

MIB = 1 << 20
#: Settled it takes 4, otherwise 5,000: each is a page that may have to be taken when there is none.
MOST_FAULTS = 20
PROGRAM = Path(__file__).with_name("prefaulted_server.py")
Start = Callable[..., Server]


def start_swap(
    start: Start, report: Path, how: str = "prefaulted", *, workers: int = 0, ready: bool = True,
    under: tuple[str, ...] = (), environment: dict[str, str] | None = None,
) -> Server:
    """``under`` is a command that runs the server."""
    return start(
        "--mode", "swap", "--device", "map:/dev/zero", *(("--workers", str(workers)) if workers else ()),
        program=(*under, sys.executable, str(PROGRAM), str(report), how), size="64M", ready=ready,
        environment=environment,
    )  # fmt: skip


def data_path(server: Server) -> list[int]:
    return [server.pid, *server.named("engine"), *server.named("worker")]


def maps(pid: int) -> list[str]:
    """Every mapping: its addresses, its rights and what is behind it."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [f"{line.split()[0]} {line.split()[1]} {line.split()[-1]}" for line in lines]


def threads(pid: int) -> list[str]:
    return sorted(entry.name for entry in Path(f"/proc/{pid}/task").iterdir())


def exercise(server: Server) -> None:
    """All kinds of requests, good and bad, and all ways to come and go."""
    for kind in ({}, {"structured": True}, {"extended": True}):
        with server.client(**kind) as client:
            blocks = [bytes([n]) * 4096 for n in range(128)]
            writes = [client.encode(nbd.WRITE, n * 4096, payload=block) for n, block in enumerate(blocks)]
            reads = [client.encode(nbd.READ, n * 4096, 4096) for n in range(128)]
            for requests in (writes, reads):
                replies = client.exchange(b"".join(text for _, text in requests), 128)
                assert not any(reply.error for reply in replies.values())
            assert [bytes(replies[cookie].data) for cookie, _ in reads] == blocks
            for length in (512, 128 << 10, MIB, 8 * MIB):
                payload = bytes(range(256)) * (length // 256)
                client.write(4 * MIB, payload)
                assert client.read(4 * MIB, length) == payload
            assert not client.call(nbd.FLUSH).error
            for command in (nbd.TRIM, nbd.WRITE_ZEROES):
                assert not client.call(command, 0, 65536).error
                assert client.call(command, 1 << 40, 4096).error
            assert client.call(nbd.READ, 1 << 40, 4096).error
            assert client.call(99).error
            client.send(b"no request at all" * 10)
            assert ends(client)
    with server.connect() as stranger:
        stranger.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        assert ends(stranger)
    eventually(lambda: not server.metrics()["vramblk_connections"])
    with ExitStack() as stack:
        stack.enter_context(server.client())
        for _ in range(int(server.metrics()["vramblk_connections_limit"]) + 3):
            stack.enter_context(server.connect())
        second = stack.enter_context(server.connect())
        second.greet()
        assert second.go()[-1].type == nbd.ERR_POLICY
    server.signal(signal.SIGHUP)
    time.sleep(0.5)


def ends(client: nbd.RawClient) -> bool:
    """Whether the server closes this connection; what it has sent before is skipped."""
    try:
        while client.socket.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


def faults(pid: int) -> tuple[int, int]:
    """Minor and major page faults of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[7]), int(fields[9])


def changes(server: Server) -> tuple[list[str], int]:
    """What of the data path is no longer as it was after everything that clients can do, and its page faults."""
    pids = data_path(server)
    before = {pid: (maps(pid), threads(pid)) for pid in pids}
    faults_before = {pid: faults(pid) for pid in pids}
    exercise(server)
    found, count = [], 0
    for pid in pids:
        minor, major = (now - then for now, then in zip(faults(pid), faults_before[pid], strict=True))
        count += minor
        print(f"{Path(f'/proc/{pid}/comm').read_text().strip()} {minor} minor faults, {major} major")
        old, new = before[pid], (maps(pid), threads(pid))
        found += [f"{pid}: {line}" for line in set(old[0]) ^ set(new[0])]
        found += [f"{pid}: thread {thread}" for thread in set(old[1]) ^ set(new[1])]
    return found, count


@pytest.mark.parametrize("workers", [0, 2])
def test_a_prefaulted_server_takes_nothing_more(start: Start, tmp_path: Path, workers: int) -> None:
    """Promise 2, and no import, no file and no fork besides."""
    report = tmp_path / "report"
    server = start_swap(start, report, workers=workers)
    assert len(data_path(server)) == 2 + workers
    report.write_text("")  # what the supervisor did between settling and ready
    found, faults = changes(server)
    assert found == [] and faults <= MOST_FAULTS
    assert report.read_text() == ""


def test_an_unprefaulted_server_does(start: Start, tmp_path: Path) -> None:
    """The same, so that the test above is known to be able to fail."""
    server = start_swap(start, tmp_path / "report", "not_prefaulted")
    assert changes(server)[1] > 50 * MOST_FAULTS


@pytest.mark.parametrize("role", ("worker", "engine"))
def test_all_that_will_be_written_is_resident(start: Start, tmp_path: Path, role: str) -> None:
    """Windows are in memory before the first request, as each of their pages would be taken when there is none."""
    server = start_swap(start, tmp_path / "report", workers=2)
    for pid in server.named(role):
        sizes: dict[str, int] = {}
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            words = line.split()
            if "-" in words[0]:
                window = words[-2:] == ["/dev/zero", "(deleted)"]
            elif window and words[0] in ("Size:", "Rss:"):
                sizes[words[0]] = int(words[1])
                if words[0] == "Rss:" and 4 << 10 <= sizes["Size:"] < 32 << 10:
                    own = sizes["Rss:"] == sizes["Size:"]
                    sizes["own"] = sizes.get("own", 0) + own
        assert sizes.get("own", 0) >= (1 if role == "worker" else 2), sizes


def test_a_thread_without_its_safeguards_is_refused(start: Start, tmp_path: Path) -> None:
    """Promise 3: read back for every thread before ready, exit 78."""
    server = start_swap(start, tmp_path / "report", "unsafe", ready=False)
    assert server.wait(60) == 78
    assert server.stderr.count("\n") == 1
    assert (
        "swap mode needs every thread safe: thread " in server.stderr and "lacks IO_FLUSHER" in server.stderr
    )
    assert server.find_event("ready") is None


def test_only_sigquit_ends_a_swap_server_with_a_client(start: Start, tmp_path: Path) -> None:
    """Promise 9: SIGTERM drains, a second one changes nothing, nor does Ctrl+C; SIGQUIT is the way to use force."""
    server = start_swap(start, tmp_path / "report")
    with server.client() as client:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            server.signal(number)
            time.sleep(0.3)
            client.write(0, b"x" * 4096)
            assert client.read(0, 4096) == b"x" * 4096
        assert server.wait_event("still_attached")["detach"] == "vramblk-swap down"
        assert sum(event.get("event") == "draining" for event in server.events) == 1
        server.signal(signal.SIGQUIT)
        assert server.wait(10) == 1
    assert "SIGQUIT" in server.stderr and "unix:pid=" in server.stderr


@pytest.mark.parametrize("workers", [0, 2])
def test_a_swap_export_has_one_client(start: Start, tmp_path: Path, workers: int) -> None:
    """Nobody else can read or change live swap; INFO is answered. When the client leaves, another may follow."""
    server = start_swap(start, tmp_path / "report", workers=workers)
    with server.client() as attached:
        assert not attached.flags & nbd.CAN_MULTI_CONN
        attached.write(0, b"x" * 4096)
        with server.connect() as second:
            second.greet()
            for name in ("", "vram"):
                (refusal,) = second.go(name)
                assert refusal.type == nbd.ERR_POLICY and b"one at a time" in refusal.data
            assert second.ask(nbd.INFO, nbd.info_payload("vram"))[-1].type == nbd.ACK
            second.send(nbd.option_bytes(nbd.EXPORT_NAME))
            assert ends(second)
        assert server.wait_event("connection_refused")["export"] == "vram"
        assert attached.read(0, 4096) == b"x" * 4096
    # A process gives the place of a client of its own that has gone to the next one at once; others take a moment.
    later = eventually(lambda: attach(server), 5) if workers else server.client()
    with later:
        later.write(0, b"y" * 4096)
        assert later.read(0, 4096) == b"y" * 4096


@pytest.mark.skipif(os.geteuid() != 0, reason="requires root: gives a socket to a group")
@pytest.mark.parametrize("group", [0, 1234])
def test_a_group_that_may_attach_is_warned_of(start: Start, tmp_path: Path, group: int) -> None:
    """In log and status: its members could attach an export before the kernel does. Root's group is no news."""
    server = start_swap(start, tmp_path / "report", environment={"VRAMBLK_SOCKET_GID": str(group)})
    event = server.find_event("swap_socket_group")
    codes = [each["code"] for each in json.loads(server.get("/status.json")[1])["warnings"]]
    assert (event is not None) == ("swap_socket_group" in codes) == (group != 0)
    assert event is None or (event["group"], event["path"]) == (group, str(server.unix_path))


def attach(server: Server) -> nbd.RawClient | None:
    client = server.connect()
    client.greet()
    if client.go()[-1].type == nbd.ACK:
        return client
    client.close()
    return None


def test_a_swap_server_ends_once_its_last_client_has_gone(start: Start, tmp_path: Path) -> None:
    server = start_swap(start, tmp_path / "report")
    with server.client() as client:
        server.signal(signal.SIGTERM)
        server.wait_event("draining")
        client.write(0, b"x" * 4096)
    assert server.wait(10) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_the_data_path_outlives_the_supervisor(start: Start, tmp_path: Path, workers: int) -> None:
    """Promise 9: its death leaves live swap alone; workers and engine end with the last client."""
    server = start_swap(start, tmp_path / "report", workers=workers)
    with server.client() as client:
        client.write(0, b"x" * 4096)
        server.signal(signal.SIGKILL)
        server.wait()
        time.sleep(1.5)
        assert client.read(0, 4096) == b"x" * 4096
        assert not client.call(nbd.FLUSH).error
    assert not server.leftovers()


def test_the_observer_comes_back_but_not_at_once(start: Start, tmp_path: Path) -> None:
    """Its death is no reason to fork while memory may be what is short, and nothing that a client notices."""
    server = start_swap(start, tmp_path / "report")
    with server.client() as client:
        (observer,) = server.named("observer")
        os.kill(observer, signal.SIGKILL)
        killed = time.monotonic()
        while time.monotonic() < killed + 8:
            client.write(0, b"x" * 4096)
            assert server.named("observer") in ([], [observer]) or time.monotonic() > killed + 10
            time.sleep(0.1)
        eventually(lambda: server.named("observer") not in ([], [observer]), 20)
        assert client.read(0, 4096) == b"x" * 4096
