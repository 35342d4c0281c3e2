"""Fixtures that several of these tests use."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit import rig


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
