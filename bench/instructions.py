#!/usr/bin/env python3
"""Instructions of engine and worker per 4 KiB request at depth 1, as valgrind's callgrind counts them.

    bench/instructions.py         a server with one worker, then one without workers, no GPU

Each server runs three times, with different numbers of requests: the difference leaves out start and end.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import fio, peers, procstat, session
from bench.rows import Row

_SIZE_BYTES, _BLOCK_BYTES = 16 << 20, 4 << 10
_READ, _WRITE = (Row(f"4k {pattern} qd1", pattern, "4k", 1) for pattern in ("randread", "randwrite"))
#: Each process writes its file at its end, which takes a worker longer than it is given otherwise.
_SERVER = """
from vramblk.supervisor import process
process._WORKER_GRACE_S = 60.0
from vramblk.cli import main
raise SystemExit(main())
"""
_STOP_TIMEOUT_S = 300
_ROLES = ("engine", "worker")
#: The health check's own reads, one a second, would count among so few instructions.
_MORE = 20


def main() -> int:
    parser = argparse.ArgumentParser(description="Count instructions per request with callgrind.")
    parser.add_argument(
        "--requests", metavar="N", type=session.positive, default=1000,
        help=f"of each kind, per run, {_MORE} times as many without workers [%(default)s]",
    )  # fmt: skip
    arguments = parser.parse_args()
    session.end_by_signal()
    os.environ["PYTHONPATH"] = str(peers.ROOT)  # the server runs in another directory
    print("| `--workers` | request | engine | worker |", "| ---: | --- | ---: | ---: |", sep="\n")
    try:
        _measure(1, arguments.requests)
        _measure(0, arguments.requests * _MORE)
    except (peers.PeerError, fio.FioError, OSError) as error:
        session.say(f"instructions.py: {error}")
        return 1
    return 0


def _measure(workers: int, requests: int) -> None:
    once = _counted(workers, {_READ: requests, _WRITE: requests})
    for row in (_READ, _WRITE):
        twice = _counted(workers, {_READ: requests, _WRITE: requests, row: 2 * requests})
        found = [f"{(twice[role] - once[role]) / requests:,.0f}" if role in once else "" for role in _ROLES]
        print(f"| {workers} | {row.name} | {' | '.join(found)} |", flush=True)


def _counted(workers: int, load: dict[Row, int]) -> dict[str, int]:
    """Instructions of each process of a server's whole life, by role."""
    with session.scratch_directory() as scratch, session.plain_memory(_SIZE_BYTES) as device:
        # The option that names the output would not survive a process that sets its own title.
        os.chdir(scratch)
        command = shlex.join(["valgrind", "--tool=callgrind", sys.executable, "-c", _SERVER])
        with peers.direct(_SIZE_BYTES, scratch, device, command, workers) as running:
            running.stop_timeout_s = _STOP_TIMEOUT_S
            for row, count in load.items():
                fio.run_bytes(row, running.uri, count * _BLOCK_BYTES, _SIZE_BYTES)
            assert running.pid is not None
            roles = {process.pid: _role(process.pid) for process in procstat.tree(running.pid)}
        totals = {role: _total(scratch / f"callgrind.out.{pid}") for pid, role in roles.items() if role}
        os.chdir("/")
    return totals


def _role(pid: int) -> str:
    name = Path(f"/proc/{pid}/comm").read_text()
    return next((role for role in _ROLES if role in name), "")


def _total(path: Path) -> int:
    found = re.search(r"^totals: (\d+)", path.read_text(), re.MULTILINE)
    if found is None:
        raise peers.PeerError(f"{path.name} holds no total")
    return int(found[1])


if __name__ == "__main__":
    sys.exit(main())
