"""Which uids children get, and what is logged if they get none."""

from __future__ import annotations

import os
from typing import Any

import pytest

from vramblk.supervisor import preparation
from vramblk.system import privileges

Events = list[dict[str, Any]]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The uids that a child was to become; root is assumed, and any attempt succeeds."""
    found: list[int] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(privileges, "_try", found.append)
    monkeypatch.setattr(privileges, "_in_use", lambda: iter(()))
    monkeypatch.setattr(privileges, "_accounts", lambda: iter(()))
    return found


@pytest.mark.parametrize("source", ["_accounts", "_in_use"])
def test_what_others_have_is_left_alone(
    tried: list[int], monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """The one run of three uids that is free is found every time, at either end of the range too."""
    for first in (privileges.UIDS[0], privileges.UIDS[100], privileges.UIDS[-3]):
        taken = set(privileges.UIDS) - set(range(first, first + 3))
        monkeypatch.setattr(privileges, source, lambda taken=taken: iter(taken))
        assert privileges.allocate(3) == first
        with pytest.raises(OSError, match="no 4 uids in a row are free"):
            privileges.allocate(4)
    assert len(tried) == 3


def test_two_servers_that_start_together_hardly_meet(tried: list[int]) -> None:
    assert len({privileges.allocate(3) for _ in range(50)}) > 25


def test_without_root_it_is_information(monkeypatch: pytest.MonkeyPatch, events: Events) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert preparation._allocate_uids(3) is None
    (event,) = events
    assert (event["event"], event["log_level"]) == ("uid_not_changed", "info")
    assert event["detail"] == "this is not root" and event["effect"] and event["remedy"]


@pytest.mark.parametrize("text", ["a child cannot change its uid: Operation not permitted", "anything"])
def test_as_root_it_is_a_warning(
    tried: list[int], monkeypatch: pytest.MonkeyPatch, events: Events, text: str
) -> None:
    def refuse(_: int) -> None:
        raise PermissionError(text)

    monkeypatch.setattr(privileges, "_try", refuse)
    assert preparation._allocate_uids(3) is None
    (event,) = events
    assert event["log_level"] == "warning" and event["detail"] == text
    assert privileges.NEEDED in event["remedy"]


def test_the_machine_s_own_accounts_and_processes_are_seen() -> None:
    assert 0 in set(privileges._accounts())
    assert {os.getuid(), os.getgid()} <= set(privileges._in_use())
