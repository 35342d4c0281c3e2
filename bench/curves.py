#!/usr/bin/env python3
"""How the rate follows one quantity.

bench/curves.py connections [--points 1,2,4,8,16]   beside nbdkit's plugins
bench/curves.py workers     [--points 1,2,4,8,16]   of this project, with --connections each time
bench/curves.py sizes       [--points 1g,16g,64g]   of the export, start-up time too
bench/curves.py startup     [--points 100g]         start-up time alone
"""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import fio, machine, peers, report, results, session
from bench.results import Results
from bench.rows import BY_NAME, Row

_POINTS = {
    "connections": "1,2,4,8,16",
    "workers": "1,2,4,8,16",
    "sizes": "1g,16g,64g,128g",
    "startup": "1g,16g,100g",
}
_ROWS = ("4k randread qd32", "4k randwrite qd32", "1m read qd8")
STARTUP = "start-up"


def main() -> int:
    arguments = _parse()
    rows = () if arguments.curve == "startup" else tuple(BY_NAME[name] for name in _ROWS)
    session.end_by_signal()
    try:
        session.refuse_overwriting(arguments, rows)
        described = machine.describe()
        options = session.options(arguments) | {
            "points": arguments.points,
            "connections": arguments.connections,
        }
        kind = f"curve-{arguments.curve}"
        last = [_row_name(row, point) for row in rows or (None,) for point in arguments.points]
        path = arguments.output or results.default_path(session.RESULTS, kind, options, described, last)
        result = Results.open(path, kind, options, described)
        for point in arguments.points:
            _measure_point(arguments, rows, result, point)
    except (peers.PeerError, results.ResultError, fio.FioError) as error:
        session.say(f"curves.py: {error}")
        return 1
    except KeyboardInterrupt:
        session.say("curves.py: interrupted; the same command goes on with the points that are missing")
        return 130
    print(f"\n{report.markdown(result.document)}")
    print("written:", path, *report.write(path, result.document))
    return (
        0 if all(results.good(result.document, row, peers.PROJECT) for row in result.document["rows"]) else 1
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rates over connections, workers or export sizes.")
    parser.add_argument("curve", choices=tuple(_POINTS))
    parser.add_argument("--points", metavar="LIST", help="comma-separated")
    parser.add_argument(
        "--connections", metavar="N", type=session.positive, default=4,
        help="for workers, sizes: connections of each row [%(default)s]",
    )  # fmt: skip
    session.add_arguments(parser, runtime_s=2, size_bytes=1 << 30)
    arguments = parser.parse_args()
    parse = session.size if arguments.curve in ("sizes", "startup") else session.positive
    try:
        arguments.points = [parse(each) for each in (arguments.points or _POINTS[arguments.curve]).split(",")]
    except argparse.ArgumentTypeError as error:
        parser.error(f"--points: {error}")
    if arguments.curve != "connections" and arguments.server_uri:
        parser.error(f"{arguments.curve} needs servers that it starts itself; leave out --server-uri")
    if arguments.curve == "workers":
        arguments.peers = "none"
    if arguments.curve == "startup":
        arguments.no_fill = True
    return arguments


def _row_name(row: Row | None, point: int) -> str:
    return f"{row.name if row else STARTUP} at {point}"


def _measure_point(arguments: argparse.Namespace, rows: tuple[Row, ...], result: Results, point: int) -> None:
    by_size = arguments.curve in ("sizes", "startup")
    if all(result.has(_row_name(row, point)) for row in rows or (None,)):
        return
    if by_size:
        arguments.size = point
    extra = ("--workers", str(point)) if arguments.curve == "workers" else ()
    connections = point if arguments.curve == "connections" else arguments.connections
    with session.scratch_directory() as scratch:
        wanted = session.servers(arguments, arguments.size, scratch, extra)
        if by_size:
            result.append(
                _row_name(None, point), "s", _startups(wanted, arguments.repeats), base=STARTUP, point=point
            )
        if not rows:
            result.document["servers"] |= {peer.name: {"version": peer.version} for peer in wanted}
            result.save()
            return
        with session.started(wanted, 0 if arguments.no_fill else arguments.size) as running:
            result.document["servers"] |= {peer.name: {"version": peer.version} for peer in running}
            for row in rows:
                # A row's name says how many connections it has, so the base keeps the plain one.
                wide = replace(row, connections=connections)
                samples = session.interleave(running, wide, arguments)
                result.append(_row_name(row, point), row.unit, samples, base=row.name, point=point)
                rates = (
                    f"{peer.name} {found.median:,.0f}"
                    for peer in running
                    if (found := results.rates(result.document, _row_name(row, point), peer.name))
                )
                session.say(f"{arguments.curve} {point}: {row.name} {row.unit} {'  '.join(rates)}")


def _startups(wanted: list[peers.Peer], repeats: int) -> dict[str, list[dict[str, Any]]]:
    samples: dict[str, list[dict[str, Any]]] = {}
    for peer in wanted:
        if not peer.command:
            continue
        samples[peer.name] = []
        for _ in range(repeats):
            with suppress(peers.PeerError):
                peer.start()
            samples[peer.name].append(
                {"startup_s": peer.startup_s} if peer.startup_s else {"error": "no start"}
            )
            peer.stop()
            peer.startup_s = None
    return samples


if __name__ == "__main__":
    sys.exit(main())
