"""What memory a worker can write that others read: its own window, and nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from .harness import Server, eventually

MIB = 1 << 20
Start = Callable[..., Server]


class Mapping(NamedTuple):
    size_bytes: int
    permissions: str
    inode: int
    name: str


def shared_mappings(pid: int) -> list[Mapping]:
    """Mappings that a process shares with others."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, permissions, _, _, inode, *name = line.split(maxsplit=5)
        if permissions.endswith("s"):
            start, end = (int(address, 16) for address in addresses.split("-"))
            found.append(Mapping(end - start, permissions, int(inode), name[0] if name else ""))
    return found


@pytest.fixture
def server(start: Start, tmp_path: Path) -> Server:
    """Three workers and two exports, each with a client that has written."""
    config = tmp_path / "exports.yaml"
    config.write_text("exports:\n  - {name: one, size: 16M}\n  - {name: two, size: 16M}\n")
    running = start("--workers", "3", "--config", str(config), size=None)
    for name in ("one", "two"):
        with running.client(name) as client:
            client.write(0, b"x" * 4096)
    return running


def test_a_worker_writes_its_own_window_only(server: Server) -> None:
    """Of the memory that processes share, a worker may write one window, which no other worker may write."""
    windows = set()
    for pid in server.named("worker"):
        writable = [each for each in shared_mappings(pid) if "w" in each.permissions]
        assert len([each for each in writable if each.size_bytes > MIB]) == 1, writable
        # A window may be in parts, some of them not writable; all parts are of one file.
        assert len({each.inode for each in writable}) == 1, writable
        windows.add(writable[0].inode)
    assert len(windows) == 3


def test_a_worker_cannot_write_the_written_map(server: Server) -> None:
    """The written-map of each export is there for workers to read."""
    for pid in server.named("worker"):
        maps = [each for each in shared_mappings(pid) if "vramblk-written" in each.name]
        assert len(maps) == 2
        assert {each.permissions for each in maps} == {"r--s"}


def test_a_replaced_worker_writes_its_own_window_only(server: Server) -> None:
    """That holds for a worker that was started later, too."""
    before = server.named("worker")
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: len(server.named("worker")) == 3 and set(server.named("worker")) != set(before))
    server.wait_event("worker_restarted")
    eventually(lambda: server.get("/readyz")[0] == 200)
    (fresh,) = set(server.named("worker")) - set(before)
    eventually(lambda: len({each.inode for each in shared_mappings(fresh) if "w" in each.permissions}) == 1)
