"""A progress bar on stderr while the engine sets its memory up, where stderr is a terminal.

Another process, the observer, writes log lines to the same terminal meanwhile. So the bar lies in
the line below the cursor, which waits at the start of an empty one: a log line finds its place and
the next picture moves on. No thread draws, since the supervisor forks, and a terminal that takes
nothing (Ctrl+S) is not waited for.
"""

from __future__ import annotations

import math
import os
import select
import sys
import time

from ..config.units import format_part
from .eventloop import EventLoop

_TIMER = "startup bar"
_WIDTH = 24
#: Of a bar that cannot tell how far it is.
_BLOCK = 6
_STEP_S = 0.1
#: Of a terminal that does not tell.
_COLUMNS = 80
_BRIGHT, _DIM, _PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[0m"
_ERASE_BELOW = "\r\x1b[J"
_BACK_UP = "\r\x1b[A"


class StartupBar:
    """Draws from ``begin`` to ``end``, if stderr is a terminal that can; otherwise does nothing.

    Args:
        first_s: a start that is over sooner needs no bar.
        next_s: from one picture to the next.
    """

    def __init__(
        self, loop: EventLoop, stderr: int = 2, *, first_s: float = 1.0, next_s: float = 0.1
    ) -> None:
        self._loop = loop
        self._stderr = stderr
        self._first_s, self._next_s = first_s, next_s
        self._what, self._done, self._total = "opening", 0, 0
        self._picture: _Picture | None = None

    def begin(self) -> None:
        if self._is_terminal():
            self._loop.after(_TIMER, self._first_s, self._draw)

    def update(self, what: str, done: int, total: int) -> None:
        """What the engine is doing, bytes done and bytes in all."""
        self._what, self._done, self._total = what, done, total

    def end(self) -> None:
        """Leave the terminal as if there had been no bar."""
        self._loop.cancel(_TIMER)
        if self._picture is not None:
            self._picture = None
            self._write(_ERASE_BELOW)

    def _draw(self) -> None:
        if self._picture is None:
            encoding = getattr(sys.stderr, "encoding", None) or "ascii"
            self._picture = _Picture(
                self._columns(),
                ascii_only=not encoding.lower().startswith("utf"),
                colours="NO_COLOR" not in os.environ,
            )
        line = self._picture.line(self._what, self._done, self._total, time.monotonic())
        self._write(f"{_ERASE_BELOW}\n{line}{_BACK_UP}")
        self._loop.after(_TIMER, self._next_s, self._draw)

    def _is_terminal(self) -> bool:
        return os.isatty(self._stderr) and os.environ.get("TERM", "") not in ("", "dumb", "unknown")

    def _columns(self) -> int:
        given = os.environ.get("COLUMNS", "")
        if given.isascii() and given.isdigit() and int(given):
            return int(given)
        try:
            return os.get_terminal_size(self._stderr).columns or _COLUMNS
        except OSError:
            return _COLUMNS

    def _in_background(self) -> bool:
        """Whether the terminal is somebody else's for now, the shell's with ``vramblk &``."""
        try:
            return os.tcgetpgrp(self._stderr) != os.getpgrp()
        except OSError:
            return False  # it does not control this process

    def _write(self, text: str) -> None:
        if self._in_background():
            return
        poller = select.poll()
        poller.register(self._stderr, select.POLLOUT)
        try:
            if poller.poll(0):
                os.write(self._stderr, text.encode(errors="replace"))
        except OSError:
            pass  # the terminal is gone, and the server does not need it


class _Picture:
    """One line of text and colours, drawn by hand: rich would be 2 MiB more, locked in swap mode."""

    def __init__(self, columns: int, *, ascii_only: bool, colours: bool) -> None:
        self._columns = columns
        self._full, self._empty = "#-" if ascii_only else "━━"
        self._colours = colours
        self._what = ""
        self._began_s, self._began_at = 0.0, 0

    def line(self, what: str, done: int, total: int, now_s: float) -> str:
        """What is done, the bar, how much it is and how long it will take, as far as there is room."""
        if what != self._what:
            # The speed of what came before says nothing of the time that this will take.
            self._what, self._began_s, self._began_at = what, now_s, done
        parts = [(f"{what:9} ", ""), *self._bar(done, total, now_s)]
        if total:
            parts.append((f" {format_part(done, total)} {self._left(done, total, now_s)}", ""))
        line, room = "", self._columns
        for text, colour in parts:
            text = text[:room]
            room -= len(text)
            line += f"{colour}{text}{_PLAIN}" if colour and self._colours else text
        return line

    def _bar(self, done: int, total: int, now_s: float) -> list[tuple[str, str]]:
        """Of what has no total a block that wanders."""
        before = 0 if total else int(now_s / _STEP_S) % (_WIDTH - _BLOCK)
        full = min(_WIDTH * done // total, _WIDTH) if total else _BLOCK
        return [
            (self._empty * before, _DIM),
            (self._full * full, _BRIGHT),
            (self._empty * (_WIDTH - before - full), _DIM),
        ]

    def _left(self, done: int, total: int, now_s: float) -> str:
        passed_s, moved = now_s - self._began_s, done - self._began_at
        if passed_s <= 0 or moved <= 0:
            return "-:--:--"
        seconds = math.ceil((total - done) * passed_s / moved)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
