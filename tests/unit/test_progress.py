"""How far the engine's start is: what it reports, and what is drawn of it."""

from __future__ import annotations

import itertools
import json
import os
import pty
import select
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from typing import Any

import pytest

from vramblk.engine.progressmail import ProgressMail
from vramblk.memory.base import DeviceError, Pattern
from vramblk.memory.patterns import prove
from vramblk.supervisor.eventloop import EventLoop
from vramblk.supervisor.startupbar import StartupBar, _Picture

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
    mail.theirs.send(b'{"event": "window_drained"}')
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
        poll = select.poll()
        poll.register(self.outside, select.POLLIN)
        while poll.poll(100):
            found += os.read(self.outside, 65536)
        return found.decode()

    def close(self) -> None:
        os.close(self.outside)
        os.close(self.inside)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
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
    bar = StartupBar(loop, terminal.inside, first_s=0.05, next_s=0.02)
    bar.begin()
    assert loop.until(lambda: "opening" in terminal.read(), 20)
    bar.update("prove", 1 << 30, 4 << 30)
    assert loop.until(lambda: "1.0/4.0 GiB" in terminal.read(), 20)
    bar.end()
    assert terminal.read().endswith("\r\x1b[J")
    loop.until(lambda: False, 0.2)
    assert terminal.read() == ""


def test_short_start_has_no_bar(terminal: Terminal, loop: EventLoop) -> None:
    """What is over within a second leaves the terminal alone."""
    bar = StartupBar(loop, terminal.inside, first_s=1.0)
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
    bar = StartupBar(loop, terminal.inside, first_s=0.05, next_s=0.02)
    bar.begin()
    loop.until(lambda: False, 0.2)
    bar.end()
    assert terminal.read() == ""


def test_background_has_no_bar(
    terminal: Terminal, loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After ``vramblk &`` the terminal is the shell's."""
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
    bar = StartupBar(loop, terminal.inside, first_s=0.05, next_s=0.02)
    bar.begin()
    loop.until(lambda: bar._picture is not None, 20)
    bar.end()
    assert terminal.read() == ""


@pytest.mark.parametrize("columns", [20, 40, 300])
def test_bar_is_one_line(terminal: Terminal, loop: EventLoop, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However narrow the terminal is; with two the cursor would not find back."""
    monkeypatch.setenv("COLUMNS", str(columns))
    bar = StartupBar(loop, terminal.inside, first_s=0.05, next_s=0.02)
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


def test_bar_tells_how_long_it_will_take() -> None:
    """By the speed since this step began; what has just begun, or does not move, has no end yet."""
    picture = _Picture(80, ascii_only=True, colours=False)
    assert picture.line("prove", 0, 4 << 30, 100.0) == f"prove     {'-' * 24} 0.0/4.0 GiB -:--:--"
    assert picture.line("prove", 1 << 30, 4 << 30, 130.0) == f"prove     {'#' * 6}{'-' * 18} 1.0/4.0 GiB 0:01:30"
    assert picture.line("prove", 4 << 30, 4 << 30, 160.0) == f"prove     {'#' * 24} 4.0/4.0 GiB 0:00:00"
    assert picture.line("zero", 1 << 30, 4 << 30, 200.0).endswith(" -:--:--"), "the time of another step"
    assert picture.line("zero", 1 << 30, 4 << 30, 260.0).endswith(" -:--:--"), "nothing has moved"


def test_bar_of_what_has_no_total_wanders() -> None:
    picture = _Picture(80, ascii_only=True, colours=False)
    seen = {picture.line("opening", 0, 0, step / 10) for step in range(100)}
    assert len(seen) > 10 and all(len(line) == 34 and line.count("######") == 1 for line in seen)


@pytest.mark.parametrize(("columns", "ascii_only", "colours"), [(10, True, False), (33, False, True), (47, False, False)])
def test_bar_is_cut_where_the_terminal_ends(columns: int, ascii_only: bool, colours: bool) -> None:
    """Colours take no room and are always switched off again; without UTF-8 and with NO_COLOR it is plain ASCII."""
    line = _Picture(columns, ascii_only=ascii_only, colours=colours).line("prove", 1 << 30, 4 << 30, 1.0)
    assert printed(line) == columns
    assert line.isascii() is ascii_only or colours
    assert ("\x1b" in line) is colours
    assert line.count("\x1b[0m") * 2 == line.count("\x1b")


def test_supervisor_loads_no_rich() -> None:
    """Neither by itself nor for the bar: it would be 2 MiB more, locked in swap mode."""
    code = """
import os, pty, sys
from vramblk.supervisor import eventloop, process, startupbar
os.environ["TERM"] = "xterm"
outside, inside = pty.openpty()
loop = eventloop.EventLoop()
bar = startupbar.StartupBar(loop, inside, first_s=0.0)
bar.begin()
loop.until(lambda: False, 0.2)
print("opening" in os.read(outside, 65536).decode(), "rich" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_stopped_terminal_is_not_waited_for(terminal: Terminal, loop: EventLoop) -> None:
    """With the output held (Ctrl+S), or nobody reading it, the start goes on."""
    termios.tcflow(terminal.inside, termios.TCOOFF)
    bar = StartupBar(loop, terminal.inside, first_s=0.05, next_s=0.02)
    bar.begin()
    loop.until(lambda: False, 0.2)
    bar.end()
    assert terminal.read() == ""
    termios.tcflow(terminal.inside, termios.TCOON)
