"""The loop that serves the clients of a window, without an engine."""

from __future__ import annotations

import socket

from tests.unit.sharedmemory import make_shared
from vramblk.config.settings import load_settings
from vramblk.worker.loop import ClientLoop


def test_what_only_its_owner_waits_for_is_no_progress() -> None:
    """It stays readable until its owner has slept, and an owner that sees progress does not sleep."""
    shared = make_shared(load_settings(["--size", "1M"], {}), 0, 2 << 20, 2 << 20)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        loop = ClientLoop(shared, 0, theirs, 1)
        loop.pollset.watch(shared.engine_doorbell.reader)
        assert not loop.poll(0) and not loop.called
        shared.engine_doorbell.ring()
        assert not loop.poll(0) and loop.called
