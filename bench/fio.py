"""fio as the client: command lines, and the results in its JSON.

The command comes from the environment variable FIO, so that a wrapper works too:
FIO='env LD_LIBRARY_PATH=/x /x/ld-linux-x86-64.so.2 /x/fio'.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from .rows import Row

Sample = dict[str, Any]

_PERCENTILES = ("50.000000", "99.000000", "99.900000")
_GRACE_S = 60
_STREAM = Row("stream", "write", "1m", 8)


class FioError(Exception):
    """fio ended with an error, or said nothing that could be read."""


def program() -> list[str]:
    return shlex.split(os.environ.get("FIO", "fio"))


def version() -> str:
    """Raises FioError where there is no fio with the nbd engine."""
    try:
        text = subprocess.run(
            [*program(), "--version"], capture_output=True, text=True, timeout=30
        ).stdout.strip()
        engines = subprocess.run([*program(), "--enghelp"], capture_output=True, text=True, timeout=30).stdout
    except OSError as error:
        raise FioError(f"{shlex.join(program())}: {error.strerror}; install fio or set FIO") from None
    if "nbd" not in engines.split():
        raise FioError(f"{text} has no nbd engine; Debian's package fio has it")
    return text


def job(row: Row, uri: str, runtime_s: float, size_bytes: int) -> list[str]:
    """Arguments of one job; every read and write stays within the first ``size_bytes``."""
    block = [f"--bs={row.block}"] if row.block else []
    return [
        f"--name={row.pattern}", "--ioengine=nbd", f"--uri={uri}", f"--rw={row.pattern}", *block,
        f"--iodepth={row.depth}", f"--numjobs={row.connections}", f"--size={size_bytes}",
        "--time_based", f"--runtime={runtime_s * 1000:.0f}ms", "--randrepeat=0", "--norandommap",
        "--refill_buffers=0", *row.extra,
    ]  # fmt: skip


def run(row: Row, uri: str, runtime_s: float, size_bytes: int) -> Sample:
    """One sample of a row.

    Raises:
        FioError: with fio's own words.
    """
    arguments = [*_output_options(), "--group_reporting", *job(row, uri, runtime_s, size_bytes)]
    return sample(_run(arguments, runtime_s)["jobs"][0])


def run_fairness(row: Row, uri: str, runtime_s: float, size_bytes: int) -> Sample:
    """``row`` alone, then beside a client that streams 1 MiB writes.

    The sample is of the second, with ``alone_p50_us`` of the first and ``slowdown``, the medians' ratio.
    """
    alone = run(row, uri, runtime_s, size_bytes)
    half = size_bytes // 2 // (1 << 20) * (1 << 20)
    streaming = [*job(_STREAM, uri, runtime_s + 0.5, half), f"--offset={size_bytes - half}"]
    reading = [*job(row, uri, runtime_s, half), "--startdelay=250ms"]
    jobs = _run([*_output_options(), *reading, *streaming], runtime_s)["jobs"]
    found = sample(next(each for each in jobs if each["jobname"] == row.pattern))
    stream = sample(next(each for each in jobs if each["jobname"] == _STREAM.pattern))
    return found | {
        "alone_p50_us": alone["p50_us"],
        "slowdown": found["p50_us"] / alone["p50_us"],
        "stream_bytes_per_s": stream["bytes_per_s"],
    }


def fill(uri: str, size_bytes: int) -> None:
    """Write everything once, so that no server answers from memory that it never allocated.

    Raises:
        FioError: with fio's own words.
    """
    _run([*_output_options(), *_untimed(job(replace(_STREAM, depth=4), uri, 0, size_bytes))], 600)


def run_bytes(row: Row, uri: str, amount_bytes: int, size_bytes: int) -> None:
    """As many requests of a row as these bytes are, however long they take.

    Raises:
        FioError: with fio's own words.
    """
    _run([*_output_options(), *_untimed(job(row, uri, 0, size_bytes)), f"--io_size={amount_bytes}"], 600)


def _untimed(arguments: list[str]) -> list[str]:
    return [each for each in arguments if not each.startswith(("--time_based", "--runtime"))]


def sample(found: dict[str, Any]) -> Sample:
    """Rates and latencies of one job of fio's JSON.

    Where it reads and writes, the mean is over both and each percentile is the worse of the two.
    """
    if found.get("error"):
        raise FioError(f"fio error {found['error']}")
    sides = {side: found[side] for side in ("read", "write") if found[side]["total_ios"]}
    if not sides:
        raise FioError("no request was answered")
    total = sum(side["total_ios"] for side in sides.values())
    latency = {name: _latency(side) for name, side in sides.items()}
    result: Sample = {
        "requests": total,
        "iops": sum(side["iops"] for side in sides.values()),
        "bytes_per_s": sum(side["bw_bytes"] for side in sides.values()),
        "mean_us": sum(latency[name]["mean_us"] * side["total_ios"] for name, side in sides.items()) / total,
    }
    for key in ("p50_us", "p99_us", "p999_us"):
        result[key] = max(each[key] for each in latency.values())
    return result | {name: each for name, each in latency.items() if len(latency) > 1}


def _latency(side: dict[str, Any]) -> dict[str, float]:
    completion = side["clat_ns"]
    values = (completion["mean"], *(completion["percentile"][each] for each in _PERCENTILES))
    return {
        key: value / 1000
        for key, value in zip(("mean_us", "p50_us", "p99_us", "p999_us"), values, strict=True)
    }


def _output_options() -> list[str]:
    return [
        "--output-format=json",
        "--percentile_list=" + ":".join(str(float(each)) for each in _PERCENTILES),
    ]


def _run(arguments: list[str], runtime_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="vramblk-fio-") as scratch:
        output = Path(scratch) / "fio.json"
        command = [*program(), f"--output={output}", *arguments]
        try:
            ended = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=2 * runtime_s + _GRACE_S,
            )
        except subprocess.TimeoutExpired:
            raise FioError(f"no end after {2 * runtime_s + _GRACE_S:g} s") from None
        except OSError as error:
            raise FioError(f"{command[0]}: {error.strerror}") from None
        text = output.read_text() if output.exists() else ""
    if ended.returncode:
        words = [
            line for line in (ended.stderr + text).splitlines() if "error" in line.lower() or "nbd" in line
        ]
        raise FioError(
            f"fio ended with status {ended.returncode}: {' / '.join(words[:2]) or 'no reason given'}"
        )
    try:
        found: dict[str, Any] = json.loads(text[text.index("{") :])
    except ValueError:
        raise FioError("fio wrote no JSON") from None
    return found
