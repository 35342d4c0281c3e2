"""What run.py and curves.py share: options, servers that are up for a run, one sample of one row."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from . import fio, peers, procstat
from .peers import Peer, PeerError
from .rows import FAIRNESS, Row

RESULTS = Path(__file__).resolve().parent / "results"

_SHIFT = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_AUTO = ("memory", "vram")


def size(text: str) -> int:
    """Bytes from 2g, 512m or a plain number; powers of 1024."""
    match = re.fullmatch(r"(\d+)([kmgt]?)", text.strip().lower())
    if not match or int(match[1]) << _SHIFT[match[2]] < 1 << 20:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512m or 2g, at least 1m")
    return int(match[1]) << _SHIFT[match[2]]


def positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0.1 <= found <= 600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 600")
    return found


def add_arguments(parser: argparse.ArgumentParser, runtime_s: float, size_bytes: int) -> None:
    """Options of every command that measures."""
    servers = parser.add_argument_group("servers")
    servers.add_argument(
        "--server", metavar="CMD", default="", help="command of this project's server [.venv/bin/vramblk]"
    )
    servers.add_argument(
        "--server-uri", metavar="URI", help="measure a server that is running instead of starting one"
    )
    servers.add_argument(
        "--peers", metavar="LIST", default="auto",
        help="memory, vram: nbdkit's plugins; none; auto: those that nbdkit has [%(default)s]",
    )  # fmt: skip
    servers.add_argument("--original", metavar="PATH", help="binary of the Rust program vramblk 0.1.0")
    servers.add_argument(
        "--sketch", metavar="PATH", help="Python script, run as: SZ=bytes W=6 SPIN=60 python PATH SOCKET"
    )
    servers.add_argument(
        "--uri", metavar="[NAME=]URI", action="append", default=[], help="any other server; may be repeated"
    )
    servers.add_argument(
        "--overwrite", action="store_true", help="allow writing to servers given by --uri and --server-uri"
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--runtime", metavar="S", type=seconds, default=runtime_s, help="seconds per sample [%(default)s]"
    )
    run.add_argument(
        "--repeats", metavar="N", type=positive, default=3, help="samples per row and server [%(default)s]"
    )
    run.add_argument(
        "--size", metavar="SIZE", type=size, default=size_bytes, help=f"export size [{size_bytes >> 20}m]"
    )
    run.add_argument("--no-fill", action="store_true", help="do not write each export once before the rows")
    run.add_argument(
        "--output",
        metavar="FILE.json",
        type=Path,
        help="a file that exists is continued [bench/results/DATE-...]",
    )
    parser.epilog = (
        "FIO and NBDKIT hold the commands of fio and nbdkit, wrappers included; "
        "NBDKIT_PLUGINS names a directory of nbdkit's plugins."
    )


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What makes two runs comparable, as the result keeps it."""
    return {
        "runtime_s": arguments.runtime,
        "repeats": arguments.repeats,
        "size_bytes": arguments.size,
        "fill": not arguments.no_fill,
        "server": " ".join(Path(word).name for word in arguments.server.split()) if arguments.server else "",
        "peers": [
            *plugins(arguments),
            *(
                name
                for name, given in (("original", arguments.original), ("sketch", arguments.sketch))
                if given
            ),
            *(peers.given(text).name for text in arguments.uri),
        ],
    }


def plugins(arguments: argparse.Namespace) -> list[str]:
    """Names of the plugins of nbdkit to measure."""
    if arguments.peers == "auto":
        return [name for name in _AUTO if peers.has_plugin(name)]
    return [name for name in arguments.peers.split(",") if name != "none"]


def servers(
    arguments: argparse.Namespace, size_bytes: int, scratch: Path, extra: tuple[str, ...] = ()
) -> list[Peer]:
    """This project first, then the others. Raises PeerError."""
    found = [
        Peer(peers.PROJECT, peers.given(arguments.server_uri).uri)
        if arguments.server_uri
        else peers.project(size_bytes, scratch, arguments.server, extra)
    ]
    for name in plugins(arguments):
        if name not in _AUTO:
            raise PeerError(f"--peers {name}: allowed are {', '.join(_AUTO)}, none, auto")
        found.append((peers.memory if name == "memory" else peers.vram)(size_bytes, scratch))
    if arguments.original:
        try:
            found.append(peers.original(arguments.original, size_bytes, scratch))
        except PeerError as error:
            say(f"left out: {error}")
    if arguments.sketch:
        found.append(peers.sketch(arguments.sketch, size_bytes, scratch))
    found.extend(peers.given(text) for text in arguments.uri)
    names = [peer.name for peer in found]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise PeerError(f"two servers are called {doubled.pop()}; name them with --uri NAME=URI")
    return found


def refuse_overwriting(arguments: argparse.Namespace, rows: tuple[Row, ...]) -> None:
    """Raises PeerError if data of a server that was not started here would be lost."""
    foreign = [*arguments.uri, *filter(None, [arguments.server_uri])]
    writes = not arguments.no_fill or any(not row.reads_only or row.name == FAIRNESS for row in rows)
    if foreign and writes and not arguments.overwrite:
        raise PeerError(
            f"this run would overwrite what {foreign[0]} holds; add --overwrite if that may be lost, "
            "or choose rows that read and --no-fill"
        )


@contextmanager
def started(wanted: list[Peer], fill_bytes: int) -> Iterator[list[Peer]]:
    """Those that run, ended at the end. A peer that cannot start is left out, with a line saying why.

    Raises:
        PeerError: this project's own server does not start.
    """
    with ExitStack() as stack:
        running = []
        for peer in wanted:
            try:
                stack.enter_context(peer)
                if fill_bytes:
                    fio.fill(peer.uri, fill_bytes)
                running.append(peer)
            except (PeerError, fio.FioError) as error:
                if peer.name == peers.PROJECT:
                    raise PeerError(str(error)) from None
                say(f"left out: {error}")
        yield running


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """For sockets and logs; its path is short, since that of a Unix socket is at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vb-", dir="/tmp" if os.path.isdir("/tmp") else None) as path:
        yield Path(path)


@contextmanager
def plain_memory(size_bytes: int) -> Iterator[str]:
    """Memory of this process as ``--device`` takes it; the limit of /dev/shm does not apply to it."""
    with open(os.memfd_create("vramblk-bench"), "wb") as file:
        file.truncate(size_bytes)
        yield f"map:/proc/{os.getpid()}/fd/{file.fileno()}"


def take(peer: Peer, row: Row, runtime_s: float, size_bytes: int) -> dict[str, Any]:
    """One sample, with the server's CPU time per request and memory where its processes can be seen."""
    try:
        peer.check()
        pid = peer.pid
        before = procstat.cpu_seconds(pid) if pid else 0.0
        if row.name == FAIRNESS:
            return fio.run_fairness(row, peer.uri, runtime_s, size_bytes)
        sample = fio.run(row, peer.uri, runtime_s, size_bytes)
        if pid:
            used = procstat.cpu_seconds(pid) - before
            sample |= {"cpu_s_per_million": used / sample["requests"] * 1e6} | procstat.memory(pid)
        return sample
    except (fio.FioError, PeerError) as error:
        say(f"{row.name}: {peer.name}: {error}")
        return {"error": str(error)}


def interleave(
    running: list[Peer], row: Row, arguments: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    """Samples of one row: each server in turn, as often as there are repeats."""
    samples: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in running}
    for _ in range(arguments.repeats):
        for peer in running:
            samples[peer.name].append(take(peer, row, arguments.runtime, arguments.size))
    return samples


def end_by_signal() -> None:
    """SIGTERM ends a run as Ctrl+C does, so that no server is left behind."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
