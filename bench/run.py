#!/usr/bin/env python3
"""The table: rows of fio against this project and, in turn, other servers; see docs/design/performance.md.

    bench/run.py                                     the 14 rows beside nbdkit's plugins
    bench/run.py --quick                             six rows beside nbdkit's memory plugin, for a CPU
    bench/run.py --rows extra                        mixed sizes, fairness
    bench/run.py --sketch PATH --original PATH       two more servers
    bench/run.py --server-uri URI --overwrite        a server that is running already

Each finished row is written to the result at once; the same command again goes on where it ended.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import fio, machine, peers, report, results, session
from bench.results import Results
from bench.rows import QUICK, Row, choose


def main() -> int:
    arguments = _parse()
    rows = _rows(arguments)
    kind = "quick" if arguments.quick else "rows"
    session.end_by_signal()
    try:
        session.refuse_overwriting(arguments, rows)
        described = machine.describe()
        options = session.options(arguments)
        path = arguments.output or results.default_path(
            session.RESULTS, kind, options, described, [row.name for row in rows]
        )
        result = Results.open(path, kind, options, described)
        _measure(arguments, rows, result)
    except (peers.PeerError, results.ResultError, fio.FioError) as error:
        session.say(f"run.py: {error}")
        return 1
    except KeyboardInterrupt:
        session.say("run.py: interrupted; the same command goes on with the rows that are missing")
        return 130
    print(f"\n{report.markdown(result.document)}")
    print("written:", path, *report.write(path, result.document))
    return 0 if all(results.good(result.document, row.name, peers.PROJECT) for row in rows) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure this project beside other NBD servers with fio.")
    parser.add_argument("--quick", action="store_true", help="six rows, 256m, beside nbdkit's memory plugin")
    parser.add_argument(
        "--rows", metavar="ROWS", default="table", help="table, extra, all, or parts of names [%(default)s]"
    )
    session.add_arguments(parser, runtime_s=2, size_bytes=2 << 30)
    arguments = parser.parse_args()
    if arguments.quick:
        if arguments.size == parser.get_default("size"):
            arguments.size = 256 << 20
        if arguments.peers == "auto":
            arguments.peers = "memory"
    return arguments


def _rows(arguments: argparse.Namespace) -> tuple[Row, ...]:
    if arguments.quick and arguments.rows == "table":
        return QUICK
    try:
        return choose(arguments.rows)
    except ValueError as error:
        raise SystemExit(f"run.py: --rows: {error}") from None


def _measure(arguments: argparse.Namespace, rows: tuple[Row, ...], result: Results) -> None:
    missing = [row for row in rows if not result.has(row.name)]
    if not missing:
        return
    with session.scratch_directory() as scratch, session.plain_memory(arguments.size) as device:
        wanted = session.servers(arguments, arguments.size, scratch)
        if arguments.quick and not arguments.server_uri:
            wanted.append(peers.direct(arguments.size, scratch, device, arguments.server))
        with session.started(wanted, 0 if arguments.no_fill else arguments.size) as running:
            for peer in running:
                result.document["servers"][peer.name] = {"version": peer.version, "startup_s": peer.startup_s}
            session.say(f"{len(missing)} rows, {', '.join(peer.name for peer in running)}: {result.path}")
            for row in missing:
                began = time.monotonic()
                result.append(row.name, row.unit, session.interleave(running, row, arguments))
                _say_row(result, row, time.monotonic() - began)


def _say_row(result: Results, row: Row, took_s: float) -> None:
    words = []
    for server in result.document["servers"]:
        found = results.rates(result.document, row.name, server)
        ratio = results.ratios(result.document, row.name, peers.PROJECT, server)
        times = f" ({ratio.median:.2f})" if ratio and server != peers.PROJECT else ""
        words.append(f"{server} {found.median:,.0f}{times}" if found else f"{server} failed")
    session.say(f"{row.name:<30} {row.unit:<6} {'  '.join(words)}  [{took_s:.0f} s]")


if __name__ == "__main__":
    sys.exit(main())
