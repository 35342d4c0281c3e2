"""Fixtures that several of these tests use."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import structlog

from tests.unit import rig
from vramblk.system import logs

#: pyopencl's cache of generated code: another test process may hold its lock when this one opens it.
_CACHE = "/pytools/"
#: A thread that is about to end has this long to close what it has open.
_LOOKS, _PAUSE_S = 150, 0.02


def pytest_collection_finish() -> None:
    """From here on a collection looks only at what tests have made."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def descriptors(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that passes has closed what it has opened, with all of its fixtures."""
    before = _open_descriptors()
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed or len(_open_descriptors()) <= len(before):
        return
    request.node.funcargs.clear()  # pytest would keep the fixtures' values for a moment
    for _ in range(_LOOKS):
        gc.collect()
        after = _open_descriptors()
        if len(after) <= len(before):
            return
        time.sleep(_PAUSE_S)
    left = Counter(after.values()) - Counter(before.values())
    pytest.fail(f"{len(after) - len(before)} descriptors more than before are open: {dict(left)}")


def _open_descriptors() -> dict[str, str]:
    """What each is open on."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the directory itself
            target = os.readlink(f"/proc/self/fd/{number}")
            if _CACHE not in target:
                found[number] = target
    return found


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What this process logs; its children log nothing."""
    monkeypatch.setattr(logs, "limiter", logs.Limiter())
    structlog.reset_defaults()
    with structlog.testing.capture_logs() as found:
        yield found
    structlog.reset_defaults()


@pytest.fixture
def events(log: list[Any]) -> list[Any]:
    """The same by the name that tests use whose processes have a log too."""
    return log


@pytest.fixture
def make_rig() -> Iterator[Callable[..., rig.Rig]]:
    """Makes rigs; see ``rig.make``, whose sockets it brings."""
    opened: list[socket.socket] = []

    def make(*arguments: Any, **options: Any) -> rig.Rig:
        pair = socket.socketpair()
        opened.extend(pair)
        return rig.make(*pair, *arguments, **options)

    yield make
    for sock in opened:
        sock.close()
