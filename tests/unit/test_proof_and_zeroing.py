"""The engine from its start to its end on a file: what it proves before it is ready, and what it leaves behind."""

from __future__ import annotations

import gc
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.memory.stuck import Stuck
from tests.unit.sharedmemory import make_shared
from vramblk.config.settings import load_settings
from vramblk.engine import process as engine
from vramblk.memory import open_memories

BYTES = 1 << 20
Events = list[dict[str, Any]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Memory that somebody else has used."""
    found = tmp_path / "memory"
    found.write_bytes(b"secret  " * (BYTES // 8))
    return found


Served = tuple[int, Events, list[bytes]]
Serve = Callable[..., Served]


@pytest.fixture
def serve(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Runs an engine that is told to stop at once: its status, what it said, and the memory when it was ready."""
    ready: list[bytes] = []
    monkeypatch.setattr(engine.safeguards, "lock_memory", lambda _: ready.append(path.read_bytes()))
    monkeypatch.setattr(engine.childsignals, "ignore", lambda: None)

    def run(alter: Callable[[Any], Any] = lambda memory: memory) -> Served:
        settings = load_settings(["--device", f"map:{path}", "--size", "max", "--map-overwrite"], {})
        shared = make_shared(settings, 1, 1 << 16, 1 << 16)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.send(json.dumps({"event": "stop"}).encode())
        status = engine.run(
            shared, theirs, lambda *arguments, **options: list(map(alter, open_memories(*arguments, **options)))
        )
        ours.setblocking(False)
        events = []
        while True:
            try:
                events.append(json.loads(ours.recv(65536)))
            except BlockingIOError:
                break
        ours.close()
        theirs.close()
        return status, [event for event in events if event["event"] != "progress"], ready

    yield run
    gc.unfreeze()


def used(memory: bytes) -> int:
    """How many bytes are not zero. Where CI is set pytest would compare two such memories for many minutes."""
    return len(memory) - memory.count(0)


def test_memory_with_a_stuck_bit_never_becomes_ready(serve: Serve) -> None:
    """Promise 14."""
    opened = []
    status, events, _ = serve(lambda memory: opened.append(memory) or Stuck(memory, 70_000))
    for memory in opened:
        memory.close()  # which the end of the process would do
    assert status == 1
    assert [event["event"] for event in events] == ["failed"]
    assert "while it was being set up" in events[0]["message"]


def test_memory_is_zero_before_it_is_used(serve: Serve) -> None:
    """Promise 15: nothing of what was there before can be read."""
    status, events, ready = serve()
    assert status == 0 and [event["event"] for event in events] == ["ready", "stopped"]
    assert [used(memory) for memory in ready] == [0]


def test_memory_is_zero_after_a_clean_exit(path: Path, serve: Serve) -> None:
    """Promise 15: nothing of what clients wrote stays."""

    class Written:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def prove(self, progress: Any = None) -> None:
            self._inner.prove(progress)
            self._inner._bytes[5000:5006] = b"client"

    status, _, ready = serve(Written)
    assert status == 0
    assert b"client" in ready[0]
    assert used(path.read_bytes()) == 0
