"""A progress bar on stderr while the engine sets its memory up, where stderr is a terminal.

Another process, the observer, writes log lines to the same terminal meanwhile. So the bar lies in
the line below the cursor, which waits at the start of an empty one: a log line finds its place and
the next picture moves on. No thread draws, since the supervisor forks, and a terminal that takes
nothing (Ctrl+S) is not waited for.
"""

from __future__ import annotations

import os
import select

from .eventloop import EventLoop

#: A start that is over sooner needs no bar.
_FIRST_S = 1.0
_NEXT_S = 0.1
_TIMER = "startup bar"
_WIDTH = 24
_ERASE_BELOW = "\r\x1b[J"
_BACK_UP = "\r\x1b[A"


class StartupBar:
    """Draws from ``begin`` to ``end``, if stderr is a terminal that can; otherwise does nothing."""

    def __init__(self, loop: EventLoop, stderr: int = 2) -> None:
        self._loop = loop
        self._stderr = stderr
        self._what, self._done, self._total = "opening", 0, 0
        self._picture: _Picture | None = None

    def begin(self) -> None:
        if self._is_terminal():
            self._loop.after(_TIMER, _FIRST_S, self._draw)

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
            self._picture = _Picture()
        line = self._picture.line(self._what, self._done, self._total)
        self._write(f"{_ERASE_BELOW}\n{line}{_BACK_UP}")
        self._loop.after(_TIMER, _NEXT_S, self._draw)

    def _is_terminal(self) -> bool:
        return os.isatty(self._stderr) and os.environ.get("TERM", "") not in ("", "dumb", "unknown")

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
    """One line of text and colours; rich is loaded for whoever sees it only."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:9}"),
            BarColumn(bar_width=_WIDTH),
            DownloadColumn(binary_units=True),
            TimeRemainingColumn(),
            console=self._console,
            auto_refresh=False,
        )
        self._task = self._progress.add_task("", total=None)
        self._what = ""

    def line(self, what: str, done: int, total: int) -> str:
        if what != self._what:
            self._what = what
            self._progress.reset(self._task)  # its speed says nothing of the time that this will take
        self._progress.update(self._task, description=what, completed=done, total=total or None)
        with self._console.capture() as captured:
            self._console.print(self._progress.get_renderable(), overflow="crop", no_wrap=True)
        return captured.get().partition("\n")[0]
