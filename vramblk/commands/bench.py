"""``vramblk bench``: the speed of a running server, for users without fio.

Only reads by default: a server may hold somebody's file system or swap. One Python client on one
connection cannot saturate a fast server; the table for that is made by bench/run.py with fio.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import quote

from ..config.settings import Settings
from ..config.units import TcpAddress, UnixAddress, format_bytes, format_size
from ..errors import ConfigError, PreconditionError
from ..nbd.constants import Command
from . import bench_profile
from .bench_client import Client, Measurement, Target, parse_uri

_SECONDS = 2.0
_MAXIMUM_SECONDS = 600.0
_PERCENTILES = (50.0, 99.0, 99.9)
_SWAP_SIGNATURE = b"SWAPSPACE2"  # mkswap writes it at the end of the first page
_PAGE = 4096
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True)
class Row:
    """One workload: 4 KiB blocks at random places, or 1 MiB blocks one after another."""

    command: Literal[Command.READ, Command.WRITE]
    block_bytes: int
    depth: int

    @property
    def name(self) -> str:
        return f"{format_bytes(self.block_bytes).lower()} {self.command.name.lower()} qd{self.depth}"

    @property
    def sequential(self) -> bool:
        return self.block_bytes > _PAGE


_SHAPES = ((4 << 10, 1), (4 << 10, 32), (1 << 20, 1), (1 << 20, 32))
READ_ROWS = tuple(Row(Command.READ, *shape) for shape in _SHAPES)
WRITE_ROWS = tuple(Row(Command.WRITE, *shape) for shape in _SHAPES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``bench`` takes beside the settings."""
    parser.add_argument(
        "uri", nargs="?", metavar="URI",
        help="server to measure, such as nbd+unix:///?socket=/run/vramblk/nbd.sock [default: --listen-addr]",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite", action="store_true", help="measure writes too: this OVERWRITES the data of the export"
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=_SECONDS,
        metavar="S",
        help=f"for each row [default: {_SECONDS:g}]",
    )
    parser.add_argument(
        "--profile", action="store_true",
        help="the time of each stage of a batch, on a server that is started for it with these settings",
    )  # fmt: skip


def run(settings: Settings, arguments: argparse.Namespace) -> int:
    """Measure and print; the exit status is 0 if every row was measured.

    Raises:
        StartupError: the server is not there, refuses, or must not be written to.
    """
    if arguments.profile:
        bench_profile.check_arguments(arguments.uri)
        with _progress(arguments.seconds) as start:
            return bench_profile.run(settings, arguments.seconds, arguments.json, start)
    target = parse_uri(arguments.uri) if arguments.uri else default_target(settings)
    with Client(target) as client:
        rows = READ_ROWS + (WRITE_ROWS if arguments.overwrite else ())
        _check_size(client, rows)
        if arguments.overwrite:
            _check_writable(client)
        measured = []
        with _progress(arguments.seconds) as start:
            for row in rows:
                tick = start(row.name)
                found = client.measure(
                    float(row.command is Command.READ),
                    row.block_bytes,
                    row.depth,
                    arguments.seconds,
                    row.sequential,
                    tick,
                )
                measured.append((row, found))
        if arguments.json:
            print(json.dumps(_document(client, arguments.seconds, measured), indent=2))
        else:
            _print_table(client, measured)
    return 0


def default_target(settings: Settings) -> Target:
    """The server that these settings would start: its first listener, its first export.

    Raises:
        ConfigError: it would take pre-shared keys only, which this client does not have.
    """
    address = settings.listen_addr[0]
    scheme = "nbd"
    if settings.tls == "require":
        if not settings.tls_certificates:
            raise ConfigError(
                "vramblk bench does not speak TLS with pre-shared keys; use a Unix socket without TLS"
            )
        scheme = "nbds"
    export = quote(settings.exports[0].name, safe="")
    if isinstance(address, UnixAddress):
        uri = f"{scheme}+unix:///{export}?socket={quote(address.path)}"
    else:
        host = _WILDCARDS.get(address.host, address.host)
        uri = f"{scheme}://{TcpAddress(host, address.port)}/{export}"
    return replace(parse_uri(uri), certificates=settings.tls_certificates or "")


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0.1 <= found <= _MAXIMUM_SECONDS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds from 0.1 to {_MAXIMUM_SECONDS:g}"
        )
    return found


def _check_size(client: Client, rows: tuple[Row, ...]) -> None:
    largest = max(row.block_bytes for row in rows)
    if client.size_bytes < largest:
        raise PreconditionError(
            f"{client.target.uri}: the export has {format_size(client.size_bytes)}; "
            f"at least {format_size(largest)} is needed"
        )


def _check_writable(client: Client) -> None:
    """Refuse what would bring down the machine: swap may be live, and nothing here can tell."""
    if client.read_only:
        raise PreconditionError(f"{client.target.uri}: the export is read-only; leave out --overwrite")
    if client.read(_PAGE - len(_SWAP_SIGNATURE), len(_SWAP_SIGNATURE)) == _SWAP_SIGNATURE:
        raise PreconditionError(
            f"{client.target.uri}: the export holds swap space, so --overwrite is refused; "
            "swapoff, detach, and restart the server to begin with empty memory"
        )


@contextmanager
def _progress(seconds: float) -> Iterator[Callable[[str], Callable[[float], None]]]:
    """Gives a function that begins a row and returns the row's own tick; a bar only on a terminal."""
    if not sys.stderr.isatty():
        yield lambda name: lambda passed: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:

        def start(name: str) -> Callable[[float], None]:
            for shown in bar.task_ids:
                bar.remove_task(shown)
            task = bar.add_task(name, total=seconds)
            return lambda passed: bar.update(task, completed=passed)

        yield start


def _document(client: Client, seconds: float, measured: list[tuple[Row, Measurement]]) -> dict[str, Any]:
    return {
        "uri": client.target.uri,
        "size_bytes": client.size_bytes,
        "seconds": seconds,
        "rows": [
            {
                "name": row.name,
                "command": row.command.name.lower(),
                "block_bytes": row.block_bytes,
                "depth": row.depth,
                "iops": round(found.iops, 1),
                "bytes_per_s": round(found.bytes_per_s),
                "mean_us": round(found.mean_us, 1),
                **{f"p{percent:g}_us": round(found.percentile_us(percent), 1) for percent in _PERCENTILES},
            }
            for row, found in measured
        ],
    }


def _print_table(client: Client, measured: list[tuple[Row, Measurement]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{client.target.uri}, {format_size(client.size_bytes)}", title_justify="left")
    table.add_column("row", no_wrap=True)
    for heading in ("IOPS", "MiB/s", "mean us", *(f"p{percent:g} us" for percent in _PERCENTILES)):
        table.add_column(heading, justify="right", no_wrap=True)
    for row, found in measured:
        latencies = [found.mean_us, *(found.percentile_us(percent) for percent in _PERCENTILES)]
        cells = [
            f"{found.iops:,.0f}",
            f"{found.bytes_per_s / 2**20:,.0f}",
            *(f"{each:,.0f}" for each in latencies),
        ]
        table.add_row(row.name, *cells)
    console = Console()
    console.print(table)
    note = "One connection from Python: with fio and several connections the server does more."
    if len(measured) == len(READ_ROWS):
        note += " Writes: --overwrite, which destroys the data of the export."
    console.print(note, style="dim", soft_wrap=True)
