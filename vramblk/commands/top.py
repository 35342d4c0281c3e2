"""``vramblk top``: the status document as a live view in a terminal; q or Ctrl+C ends it."""

from __future__ import annotations

import contextlib
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..config.settings import Settings
from ..config.units import format_seconds, format_size, printable
from ..errors import RuntimeFailure
from .observerclient import StatusServer, printable_document, understood
from .status import connection_rows, headline, latency_rows
from .toplayout import Part, fit

INTERVAL_S = 1.0
#: Of a table; no terminal is higher.
_MOST_ROWS = 200
#: Fewer columns of the terminal have room for no more than client, export and requests.
_NARROW = 60

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
    view, console = _View(server), Console()
    view.refresh()
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
    poller = select.poll()
    poller.register(fd, select.POLLIN)

    def pressed(timeout_s: float) -> str:
        return sys.stdin.read(1) if poller.poll(max(0.0, timeout_s) * 1e3) else ""

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
        self._answered = time.monotonic()
        self.problem = ""

    def refresh(self) -> None:
        """Ask; errors as ``StatusServer.get``."""
        document = printable_document(self._server.json("/status.json"))
        history = self._server.json(f"/history.json?since={self._next}")
        with understood():
            if history["next"] < self._next:
                self._rows.clear()
            self._rows += [dict(zip(history["columns"], row, strict=True)) for row in history["rows"]]
            self._next = history["next"]
        del self._rows[:-600]
        self._document = document
        self._answered = time.monotonic()
        self.problem = ""

    def render(self, console: Console) -> RenderableType:
        """Head, clients and the way out always; the rest as far as the terminal is high, in this order.

        Raises:
            RuntimeFailure: what was answered is no status document.
        """
        with understood():
            return self._render(console)

    def _render(self, console: Console) -> RenderableType:
        document = self._document
        parts = [
            Part(0, [self._head(document)]),
            Part(2, _warnings(document["warnings"])),
            Part(3, _tables(lambda most: _exports(document, most), len(document["exports"]))),
            Part(4, [self._rates(console.width)]),
        ]
        if len(latency := latency_rows(document)) > 1:
            parts.append(Part(5, [_plain_table("latency, last minute", latency)]))
        clients = connection_rows(document)
        if console.width < _NARROW:
            clients = [row[:3] for row in clients]
        parts.append(Part(1, _tables(lambda most: _clients(clients, most), len(clients) - 1)))
        parts.append(Part(0, [Text("q ends", style="dim")]))
        return fit(parts, console)

    def _head(self, document: dict[str, Any]) -> Text:
        if self.problem:
            ago = format_seconds(time.monotonic() - self._answered)
            text = Text(f"no answer: {printable(self.problem)}", style="bold white on red")
            return text.append(
                f"\n{ago} ago, with all that follows: {headline(document)}", "not bold dim on default"
            )
        text = Text(headline(document))
        text.highlight_words([document["state"]], _STATE.get(document["state"], "bold red"))
        return text.append("\n" + document["health"], "green" if document["healthy"] else "bold red")

    def _rates(self, width: int) -> Table:
        points = max(min(width - 36, len(self._rows), 120), 1)
        rows: tuple[tuple[str, str, Callable[[float], str]], ...] = (
            ("read", "read_bytes", lambda value: f"{format_size(value)}/s"),
            ("write", "write_bytes", lambda value: f"{format_size(value)}/s"),
            ("reads", "read_requests", lambda value: f"{value:,.0f}/s"),
            ("writes", "write_requests", lambda value: f"{value:,.0f}/s"),
            ("engine busy", "busy", lambda value: f"{value:.0%}"),
            ("queued", "queued", lambda value: f"{value:.0f}"),
        )
        grid = _table(f"last {points} s")
        for _ in range(3):
            grid.add_column(no_wrap=True)
        grid.show_header = False
        for title, column, show in rows:
            values = [float(row[column]) for row in self._rows[-points:]] or [0.0]
            most = 1.0 if column == "busy" else max(values)
            grid.add_row(
                title, Text(show(values[-1]), justify="right"), Text(sparkline(values, most), "cyan")
            )
        return grid


def sparkline(values: list[float], most: float) -> str:
    """One character of eight heights for each value; what is not zero is never blank."""
    if most <= 0:
        return " " * len(values)
    return "".join(_BARS[min(max(round(value / most * 8), 1 if value > 0 else 0), 8)] for value in values)


def _warnings(found: list[dict[str, Any]]) -> list[RenderableType]:
    """From the gravest alone, in one line, to all with their remedies."""
    if not found:
        return []
    brief = [
        Text(
            f"{each['severity']}: {each['text']}",
            _SEVERITY.get(each["severity"], ""),
            no_wrap=True,
            overflow="ellipsis",
        )
        for each in found
    ]
    variants: list[RenderableType] = []
    for shown in range(1, len(found)):
        rest = Text(f"{len(found) - shown} more: vramblk status", style="dim")
        variants.append(Group(*brief[:shown], rest))
    variants.append(Group(*brief))
    full = [
        Text.assemble(
            (f"{each['severity']}: {each['text']}", _SEVERITY.get(each["severity"], "")),
            (f"\n  -> {each['remedy']}", "dim"),
        )
        for each in found
    ]
    return [*variants, Group(*full)]


def _tables(make: Callable[[int], RenderableType], count: int) -> list[RenderableType]:
    """From a table of one row to one of all."""
    return [make(most) for most in range(min(count, 1), min(count, _MOST_ROWS) + 1)]


def _exports(document: dict[str, Any], most: int) -> Table:
    exports = document["exports"]
    table = _table(_title("exports", len(exports), most))
    for title in ("EXPORT", "DEVICE", "SIZE", "WRITTEN", "READS", "WRITES", "ERRORS"):
        _add_column(table, title, gives_way=title == "DEVICE", left=title in ("EXPORT", "DEVICE"))
    for export in exports[:most]:
        size, written = export["size_bytes"], export["written_bytes"]
        errors = sum(count for by_errno in export["errors"].values() for count in by_errno.values())
        table.add_row(
            _cut(export["name"]),
            _cut(export["device"]["name"]),
            format_size(size),
            f"{written / size:.0%}" if export["held"] else "given back",
            f"{export['requests']['read']:,}",
            f"{export['requests']['write']:,}",
            Text(f"{errors:,}", "bold red" if errors else ""),
        )
    return table


def _clients(rows: list[tuple[str, ...]], most: int) -> Table:
    return _plain_table(_title("clients", len(rows) - 1, most), rows[: most + 1])


def _title(what: str, count: int, shown: int) -> str:
    return f"{what}: {count}" + (f", {count - shown} not shown" if shown < count else "")


def _plain_table(title: str, rows: list[tuple[str, ...]]) -> Table:
    table = _table(title)
    for index, head in enumerate(rows[0]):
        _add_column(table, head, gives_way=index == 0, left=index == 0)
    for row in rows[1:]:
        table.add_row(*map(_cut, row))
    table.show_header = len(rows) > 1
    return table


def _add_column(table: Table, title: str, *, gives_way: bool, left: bool) -> None:
    """``gives_way``: it is narrowed first, for its texts may be long."""
    justify: Literal["left", "right"] = "left" if left else "right"
    table.add_column(
        Text(title, no_wrap=True), justify=justify, no_wrap=not gives_way, overflow="ellipsis",
        min_width=6 if gives_way else None,
    )  # fmt: skip


def _cut(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _table(title: str) -> Table:
    return Table(
        box=None, padding=(0, 2, 0, 0), pad_edge=False, title=title, title_justify="left", title_style="bold",
        header_style="dim",
    )  # fmt: skip
