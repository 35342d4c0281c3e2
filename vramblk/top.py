"""``vramblk top``: the status document as a live view in a terminal; q or Ctrl+C ends it."""

from __future__ import annotations

import contextlib
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .errors import RuntimeFailure
from .settings import Settings
from .status_client import StatusServer, clean, connection_rows, format_size, headline, latency_rows
from .units import format_bytes

INTERVAL_S = 1.0

_BARS = " ▁▂▃▄▅▆▇█"
_SEVERITY = {"error": "bold white on red", "warning": "yellow", "note": "dim"}
_STATE = {"ready": "bold green", "draining": "bold yellow"}


def top(settings: Settings) -> int:
    """Show the live view until the user has enough.

    Raises:
        RuntimeFailure: nothing answers, or this is no terminal.
    """
    server = StatusServer(settings)
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        raise RuntimeFailure("top needs a terminal; without one use: vramblk status")
    view = _View(server)
    view.refresh()
    console = Console()
    with (
        _keys() as pressed,
        Live(view.render(console), console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            due = time.monotonic() + INTERVAL_S
            while (left := due - time.monotonic()) > 0:
                if pressed(left) in ("q", "Q", "\x1b", "\x03"):
                    return 0
            try:
                view.refresh()
            except RuntimeFailure as failure:
                view.problem = str(failure)
            live.update(view.render(console), refresh=True)


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits so many seconds for a key and gives it, or an empty text."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def pressed(timeout_s: float) -> str:
        ready, _, _ = select.select([fd], [], [], timeout_s)
        return sys.stdin.read(1) if ready else ""

    try:
        tty.setcbreak(fd)
        yield pressed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class _View:
    """What was last told, and how to draw it.

    Attributes:
        problem: why the last question was not answered; empty if it was.
    """

    def __init__(self, server: StatusServer) -> None:
        self._server = server
        self._document: dict[str, Any] = {}
        self._rows: list[dict[str, Any]] = []
        self._next = 0
        self.problem = ""

    def refresh(self) -> None:
        """Ask; errors as ``StatusServer.get``."""
        self._document = self._server.json("/status.json")
        history = self._server.json(f"/history.json?since={self._next}")
        if history["next"] < self._next:
            self._rows.clear()
        self._rows += [dict(zip(history["columns"], row, strict=True)) for row in history["rows"]]
        del self._rows[:-600]
        self._next = history["next"]
        self.problem = ""

    def render(self, console: Console) -> RenderableType:
        document = self._document
        parts: list[RenderableType] = [self._head(document)]
        if self.problem:
            parts.append(Text(f"no answer: {clean(self.problem)}", style="bold white on red"))
        for warning in document["warnings"]:
            parts.append(
                Text(f"{warning['severity']}: {clean(warning['text'])}", style=_SEVERITY[warning["severity"]])
            )
            parts.append(Text(f"  -> {clean(warning['remedy'])}", style="dim"))
        parts += [_exports(document), self._rates(console.width)]
        if len(rows := latency_rows(document)) > 1:
            parts.append(_plain_table("latency, last minute", rows))
        rows = connection_rows(document)
        room = max(console.height - 20, 3)
        parts.append(_plain_table(f"connections: {len(rows) - 1}", rows[: room + 1]))
        parts.append(Text("q ends", style="dim"))
        return Group(*parts)

    def _head(self, document: dict[str, Any]) -> Text:
        text = Text(clean(headline(document)))
        text.highlight_words([document["state"]], _STATE.get(document["state"], "bold red"))
        text.append("\n" + clean(document["health"]), "green" if document["healthy"] else "bold red")
        return text

    def _rates(self, width: int) -> Panel:
        grid = Table.grid(padding=(0, 1))
        points = max(min(width - 36, len(self._rows), 120), 1)
        figures: tuple[tuple[str, str, Callable[[float], str]], ...] = (
            ("read", "read_bytes", lambda value: f"{format_size(value)}/s"),
            ("write", "write_bytes", lambda value: f"{format_size(value)}/s"),
            ("reads", "read_requests", lambda value: f"{value:,.0f}/s"),
            ("writes", "write_requests", lambda value: f"{value:,.0f}/s"),
            ("engine busy", "busy", lambda value: f"{value:.0%}"),
            ("queued", "queued", lambda value: f"{value:.0f}"),
        )
        for title, column, show in figures:
            values = [float(row[column]) for row in self._rows[-points:]] or [0.0]
            most = 1.0 if column == "busy" else max(values)
            grid.add_row(
                title, Text(show(values[-1]), justify="right"), Text(sparkline(values, most), "cyan")
            )
        return Panel(grid, title=f"last {points} s", box=box.SIMPLE, padding=0)


def sparkline(values: list[float], most: float) -> str:
    """One character of eight heights for each value; what is not zero is never blank."""
    if most <= 0:
        return " " * len(values)
    return "".join(_BARS[min(max(round(value / most * 8), 1 if value > 0 else 0), 8)] for value in values)


def _exports(document: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1))
    for title in ("EXPORT", "DEVICE", "SIZE", "WRITTEN", "READS", "WRITES", "ERRORS"):
        table.add_column(title, justify="left" if title in ("EXPORT", "DEVICE") else "right", no_wrap=True)
    for export in document["exports"]:
        size, written = export["size_bytes"], export["written_bytes"]
        errors = sum(count for by_errno in export["errors"].values() for count in by_errno.values())
        table.add_row(
            Text(clean(export["name"])),
            Text(clean(export["device"]["name"])),
            format_bytes(size),
            f"{written / size:.0%}",
            f"{export['requests']['read']:,}",
            f"{export['requests']['write']:,}",
            Text(f"{errors:,}", "bold red" if errors else ""),
        )
    return table


def _plain_table(title: str, rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1), title=title, title_justify="left")
    for index, head in enumerate(rows[0]):
        table.add_column(head, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*(Text(cell) for cell in row))
    return table
