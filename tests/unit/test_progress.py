"""How far the engine's start is: what it reports, and what is drawn of it."""

from __future__ import annotations

import itertools
import json
import os
import pty
import select
import socket
import termios
from collections.abc import Iterator
from typing import Any

import pytest

from vramblk.memory.base import DeviceError, Pattern
from vramblk.memory.patterns import prove
from vramblk.progressmail import ProgressMail
from vramblk.supervision.eventloop import EventLoop
from vramblk.supervision.startupbar import StartupBar

MIB = 1 << 20


class Mail:
    """Both ends of the mail, and a clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.ours, self.theirs):
            end.setblocking(False)
        self.report = ProgressMail(self.theirs, lambda: self.now_s)

    def read(self) -> list[dict[str, Any]]:
        found = []
        while True:
            try:
                found.append(json.loads(self.ours.recv(4096)))
            except BlockingIOError:
                return found


@pytest.fixture
def mail() -> Iterator[Mail]:
    found = Mail()
    yield found
    found.ours.close()
    found.theirs.close()


def test_reports_are_at_most_ten_a_second(mail: Mail) -> None:
    """Most are left out; those that are sent say what, how much and of how much."""
    sent = []
    for step in range(1000):
        mail.report("prove", step, 1000)
        sent += mail.read()
        mail.now_s += 0.001
    assert 9 <= len(sent) <= 10
    assert sent[0] == {"event": "progress", "what": "prove", "done": 0, "total": 1000}
    assert [message["done"] for message in sent] == sorted({message["done"] for message in sent})


def test_reports_never_fill_the_mail(mail: Mail) -> None:
    """While nobody reads, one waits and no more; so there is room for what must arrive."""
    for step in range(10000):
        mail.report("prove", step, 10000)
        mail.now_s += 1
    mail.theirs.send(b'{"event": "ready"}')
    assert [message["event"] for message in mail.read()] == ["progress", "ready"]
    mail.report("prove", 1, 2)
    assert [message["done"] for message in mail.read()] == [1]


def test_report_waits_behind_other_mail(mail: Mail) -> None:
    """Any unread message keeps it back, not only its like."""
    mail.theirs.send(b'{"event": "retired"}')
    mail.report("prove", 1, 2)
    assert len(mail.read()) == 1


def test_reports_to_nobody(mail: Mail) -> None:
    """A supervisor that is gone is no failure of the report."""
    mail.ours.close()
    for _ in range(3):
        mail.report("prove", 1, 2)
        mail.now_s += 1


class Memory:
    """Bytes by block, of which some are bad."""

    def __init__(self, size_bytes: int, *bad: int) -> None:
        self.size_bytes = size_bytes
        self.bad = bad
        self.calls: list[tuple[str, str, int, int]] = []

    def fill(self, offset: int, length: int, pattern: Pattern, seed: int = 0) -> None:
        self.calls.append(("fill", pattern.name, offset, offset + length))

    def mismatches(self, offset: int, length: int, pattern: Pattern, seed: int = 0) -> list[tuple[int, int]]:
        self.calls.append(("read", pattern.name, offset, offset + length))
        return [(lo, lo + 4096) for lo in self.bad if offset <= lo < offset + length]


def test_proof_is_whole_and_in_order() -> None:
    """Every byte is written before any is read back, and zeroed after; the reports rise from 0 to the end."""
    memory, reports = Memory(300 * MIB), []
    prove(memory, lambda *report: reports.append(report))  # type: ignore[arg-type]
    passes = [(call[0], call[1]) for call in memory.calls]
    assert list(dict.fromkeys(passes)) == [
        ("fill", "ADDRESS"), ("read", "ADDRESS"), ("fill", "ZERO"), ("read", "ZERO")
    ]  # fmt: skip
    for kind in dict.fromkeys(passes):
        pieces = [(lo, hi) for *which, lo, hi in memory.calls if tuple(which) == kind]
        assert pieces[0][0] == 0 and pieces[-1][1] == 300 * MIB
        assert all(before[1] == after[0] for before, after in itertools.pairwise(pieces))
        assert len(pieces) > 1, "no progress within a pass"
    assert {(what, total) for what, _, total in reports} == {("prove", 300 * MIB)}
    done = [report[1] for report in reports]
    assert done == sorted(done) and done[0] == 0 and 200 * MIB < done[-1] < 300 * MIB


def test_bad_memory_fails_the_proof() -> None:
    """A block of the second memory, in the last step, is found and named."""
    good, bad = Memory(4096), Memory(300 * MIB, 300 * MIB - 8192)
    with pytest.raises(DeviceError, match=f"from {300 * MIB - 8192:#x} to {300 * MIB - 4096:#x}"):
        for memory in (good, bad):
            prove(memory, lambda *_: None)  # type: ignore[arg-type]
    assert len(good.calls) == 4


# The bar


class Terminal:
    """A pseudo-terminal in the place of stderr."""

    def __init__(self) -> None:
        self.outside, self.inside = pty.openpty()

    def read(self) -> str:
        """All that has been written since the last call."""
        found = b""
        while select.select([self.outside], [], [], 0.1)[0]:
            found += os.read(self.outside, 65536)
        return found.decode()

    def close(self) -> None:
        os.close(self.outside)
        os.close(self.inside)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("vramblk.supervision.startupbar._FIRST_S", 0.05)
    monkeypatch.setattr("vramblk.supervision.startupbar._NEXT_S", 0.02)
    found = Terminal()
    yield found
    found.close()


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    found = EventLoop()
    yield found
    found.close()


def test_bar_follows_the_reports(terminal: Terminal, loop: EventLoop) -> None:
    """First that it is opening, then what is done and how much; in the end there is nothing of it."""
    bar = StartupBar(loop, terminal.inside)
    bar.begin()
    assert loop.until(lambda: "opening" in terminal.read(), 20)
    bar.update("prove", 1 << 30, 4 << 30)
    assert loop.until(lambda: "1.0/4.0 GiB" in terminal.read(), 20)
    bar.end()
    assert terminal.read().endswith("\r\x1b[J")
    loop.until(lambda: False, 0.2)
    assert terminal.read() == ""


def test_short_start_has_no_bar(terminal: Terminal, loop: EventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is over within a second leaves the terminal alone."""
    monkeypatch.setattr("vramblk.supervision.startupbar._FIRST_S", 1.0)
    bar = StartupBar(loop, terminal.inside)
    bar.begin()
    bar.update("prove", 1, 2)
    loop.until(lambda: False, 0.1)
    bar.end()
    assert terminal.read() == ""


@pytest.mark.parametrize("term", ["dumb", ""])
def test_terminal_that_cannot_has_no_bar(
    terminal: Terminal, loop: EventLoop, monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    """Where the cursor does not move, nothing is drawn."""
    monkeypatch.setenv("TERM", term)
    bar = StartupBar(loop, terminal.inside)
    bar.begin()
    loop.until(lambda: False, 0.2)
    bar.end()
    assert terminal.read() == ""


def test_background_has_no_bar(
    terminal: Terminal, loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After ``vramblk &`` the terminal is the shell's."""
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
    bar = StartupBar(loop, terminal.inside)
    bar.begin()
    loop.until(lambda: bar._picture is not None, 20)
    bar.end()
    assert terminal.read() == ""


@pytest.mark.parametrize("columns", [20, 40, 300])
def test_bar_is_one_line(terminal: Terminal, loop: EventLoop, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However narrow the terminal is; with two the cursor would not find back."""
    monkeypatch.setenv("COLUMNS", str(columns))
    bar = StartupBar(loop, terminal.inside)
    bar.update("prove", 1 << 30, 4 << 30)
    bar.begin()
    seen: list[str] = []
    assert loop.until(lambda: seen.append(terminal.read()) or "prove" in "".join(seen), 20)
    bar.end()
    for picture in "".join(seen).split("\r\x1b[J")[1:]:
        assert picture.count("\n") == 1 and picture.endswith("\r\x1b[A")
        assert printed(picture) <= columns


def printed(picture: str) -> int:
    """Characters of a picture that take a place."""
    count, escape = 0, False
    for character in picture:
        if character == "\x1b":
            escape = True
        elif escape:
            escape = not character.isalpha()
        elif character not in "\r\n":
            count += 1
    return count


def test_stopped_terminal_is_not_waited_for(terminal: Terminal, loop: EventLoop) -> None:
    """With the output held (Ctrl+S), or nobody reading it, the start goes on."""
    termios.tcflow(terminal.inside, termios.TCOOFF)
    bar = StartupBar(loop, terminal.inside)
    bar.begin()
    loop.until(lambda: False, 0.2)
    bar.end()
    assert terminal.read() == ""
    termios.tcflow(terminal.inside, termios.TCOON)
