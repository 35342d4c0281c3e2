"""What code that runs in a worker or in the observer tries: see SECURITY.md."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .harness import Server, alive, eventually

pytestmark = [pytest.mark.wire, pytest.mark.skipif(os.geteuid() != 0, reason="requires root")]
Start = Callable[..., Server]
PROGRAM = (sys.executable, str(Path(__file__).with_name("taken_server.py")))


def taken(start: Start, program: str, *arguments: str) -> Server:
    """A server whose workers and observer run ``program`` on SIGUSR2."""
    return start(*arguments, program=PROGRAM, environment={"TAKEN": program})


#: Whoever is traced is reported as stopped to its parent, which waits for its end.
PRETEND_DEATH = """
import ctypes, os, signal
libc = ctypes.CDLL(None)
libc.prctl(1, 0, 0, 0, 0)
libc.ptrace(0, 0, 0, 0)
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.parametrize("role", ["worker", "observer"])
def test_a_child_cannot_pretend_that_it_has_ended(start: Start, role: str) -> None:
    """It has the supervisor trace it, and stops: it is killed, and only then has a successor."""
    server = taken(start, PRETEND_DEATH, "--workers", "1")
    (bad,) = server.named(role)
    os.kill(bad, signal.SIGUSR2)
    event = server.wait_event(f"{role}_died")
    assert event["child"] == bad and event["signal"] == "SIGKILL"
    assert not alive(bad)
    eventually(lambda: set(server.named(role)) - {bad})
