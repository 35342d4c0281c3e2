"""A swap server that is started as process 1, as in a container: its end would be the end of all its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from . import rawclient as nbd
from .harness import Server, eventually
from .rawclient import RawClient
from .test_steady_state import start_swap

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="requires root: makes a process namespace")

BLOCK = b"x" * 4096


@pytest.fixture
def server(start: Callable[..., Server], tmp_path: Path) -> Server:
    namespace = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    return start_swap(start, tmp_path / "report", under=namespace)


def process_one(server: Server) -> int:
    """Its number outside: the child of unshare."""
    (pid,) = map(int, Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split())
    return pid


def serves(client: RawClient) -> None:
    client.write(0, BLOCK)
    assert client.read(0, 4096) == BLOCK
    assert not client.call(nbd.FLUSH).error


def kill_supervisor(server: Server) -> None:
    (supervisor,) = server.named("supervisor")
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: not server.named("supervisor"), 5)
    time.sleep(1)


def test_the_data_path_outlives_the_supervisor_in_a_container_too(server: Server) -> None:
    """Promise 9; the last client is the end, with the status that the supervisor had."""
    with server.client() as client:
        serves(client)
        kill_supervisor(server)
        serves(client)
        os.kill(process_one(server), signal.SIGTERM)
        time.sleep(1)
        serves(client)
    assert server.wait(10) == 128 + signal.SIGKILL
    assert not server.leftovers()


def test_without_its_supervisor_sigquit_ends_it(server: Server) -> None:
    with server.client() as client:
        kill_supervisor(server)
        serves(client)
        os.kill(process_one(server), signal.SIGQUIT)
        assert server.wait(10) == 128 + signal.SIGKILL
    assert not server.leftovers()


def test_signals_reach_the_supervisor(server: Server) -> None:
    first = process_one(server)
    with server.client() as client:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(first, number)
            time.sleep(0.3)
            serves(client)
        assert server.wait_event("signal_ignored")["signal"] == "SIGHUP"
        server.wait_event("draining")
    assert server.wait(10) == 0


def test_a_process_that_is_left_behind_does_not_hold_up_a_clean_end(server: Server) -> None:
    """Whoever has taken the observer over can leave one. Docker waits for a day for the end of a swap server."""
    first = process_one(server)
    leave = ("nsenter", f"--target={first}", "--pid", "--mount", "sh", "-c", "sleep 60 >/dev/null 2>&1 &")
    subprocess.run(leave, check=True)
    eventually(lambda: "sleep" in server.remember().values())
    os.kill(first, signal.SIGTERM)
    assert server.wait(10) == 0
    assert not server.leftovers()


def test_sigquit_ends_it_at_once(server: Server) -> None:
    with server.client() as client:
        serves(client)
        os.kill(process_one(server), signal.SIGQUIT)
        assert server.wait(10) == 1
    assert not server.leftovers()


def test_orphans_are_reaped(server: Server) -> None:
    """Whatever dies with process 1 as its parent, here the observer once its supervisor has gone."""
    first = process_one(server)
    with server.client() as client:
        kill_supervisor(server)
        serves(client)
        states = {
            pid: Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] for pid in server.remember() if pid != first
        }
    assert states and "Z" not in states.values()
    assert server.wait(10) == 128 + signal.SIGKILL
