"""``vramblk bench --profile``: a server of its own, every stage of a batch, and nothing left behind.

Needs the CPU OpenCL that the project's test extra brings.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vramblk.memory.hotcalls import HotCalls
from vramblk.shared import stages
from vramblk.shared.stages import Stage, StageTimes

from .harness import REPOSITORY, alive, clean_environment, descendants, eventually

BEFORE = ["receive", "parse", "descriptors", "doorbell to taken", "decode", "plan"]
AFTER = ["finish", "completion", "done to collected", "collect", "send"]
DIRECT, RUN = [*BEFORE, "copy", *AFTER], [*BEFORE, "set_arg", "launch", "copy", *AFTER]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where the profile puts its files; short, since the path of a Unix socket has 107 bytes at most."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


@pytest.fixture
def start(temporary: Path) -> Iterator[Start]:
    """Starts ``bench --profile``."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "vramblk", "bench", "--profile", "--size", "64M", *words]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
            env=clean_environment(TMPDIR=str(temporary)), start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_every_row_names_every_stage_of_a_batch(start: Start, temporary: Path) -> None:
    """Ten rows; runs of small requests go through kernels, single and large ones are copied directly."""
    process = start("--allow-cpu", "--seconds", "0.3", "--json")
    out, err = process.communicate(timeout=150)
    assert (process.returncode, err) == (0, "")
    found = json.loads(out)
    assert found["size_bytes"] == 64 << 20 and found["memory"].startswith("memory of ")
    rows = {row["name"]: row for row in found["rows"]}
    assert len(rows) == 10
    for command in ("read", "write"):
        for shape, expected in (("4k {} qd1", DIRECT), ("4k {} qd32", RUN), ("1m {} qd8", DIRECT)):
            check(rows[shape.format(command)], expected)
        assert rows[f"4k {command} qd1"]["requests_per_batch"] == pytest.approx(1, abs=0.05)
        assert rows[f"4k {command} qd32"]["requests_per_batch"] > 1.5
        check(rows[f"128k {command} qd16"], DIRECT)
    check(rows["4k mix70 qd32"], RUN)
    check(rows["32k read qd16"], RUN)
    assert not os.listdir(temporary)


def check(row: dict[str, Any], expected: list[str]) -> None:
    stages = row["stages"]
    assert [stage["stage"] for stage in stages if stage["stage"] in expected] == expected
    assert sum(stage["share"] for stage in stages) == pytest.approx(1, abs=0.01)
    whole = sum(stage["mean_us"] for stage in stages)
    for stage in stages:
        assert stage["share"] == pytest.approx(stage["mean_us"] / whole, abs=0.01)
        if stage["stage"] in expected:
            assert stage["median_us"] > 0 and stage["samples"] > 0
    engine = {stage["stage"]: stage["samples"] for stage in stages if stage["process"] == "engine"}
    assert engine["decode"] == engine["finish"] == row["batches"] > 0
    waits = {stage["stage"]: stage["samples"] for stage in stages if stage["process"] == "wait"}
    # A worker may publish more than once before the engine looks; at the row's edges one is cut. Of what was
    # published at once a turn takes only a part if a request in it overlaps an earlier one.
    assert waits["doorbell to taken"] >= 0.9 * row["batches"] - 1
    busy = sum(stage["mean_us"] for stage in stages if stage["process"] == "engine") * row["batches"] / 1e6
    assert busy < row["seconds"] * 1.2 + 1, "an engine cannot work longer than the row has lasted"


def test_the_table_has_a_line_for_each_stage(start: Start) -> None:
    out, err = start("--allow-cpu", "--seconds", "0.1").communicate(timeout=150)
    assert err == ""
    assert out.count("requests per batch") == 10
    assert out.count("doorbell to taken") == out.count("finish") == 10


def test_a_server_that_cannot_start_says_why_in_one_line(start: Start, temporary: Path) -> None:
    """The exit status is the server's own."""
    process = start("--allow-cpu", "--size", "900T")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 78
    assert out == "" and err.count("\n") == 1 and "900 TiB" in err
    assert not os.listdir(temporary)


def test_the_death_of_the_engine_ends_the_profile(start: Start, temporary: Path) -> None:
    process = start("--allow-cpu", "--seconds", "60", "--json")
    engine, everybody = running(process)
    os.kill(engine, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == "" and err.count("\n") == 1 and "the engine died" in err
    eventually(lambda: not any(map(alive, everybody)))
    assert not os.listdir(temporary)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_ended_bench_ends_its_server(start: Start, temporary: Path, number: int, status: int) -> None:
    process = start("--allow-cpu", "--seconds", "60")
    _, everybody = running(process)
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode == status
    eventually(lambda: not any(map(alive, everybody)), 30)
    if number == signal.SIGINT:
        assert not os.listdir(temporary)


def running(process: subprocess.Popen[str]) -> tuple[int, list[int]]:
    """The engine and all processes of the server, once a client has its connection."""

    def engine_and_all() -> tuple[int, list[int]] | None:
        found = descendants(process.pid)
        engines = [pid for pid, name in found.items() if name == "vramblk-engine"]
        workers = [pid for pid, name in found.items() if name == "vramblk-worker"]
        if not engines or not any(map(serves, workers)):
            return None
        return engines[0], list(found)

    found: tuple[int, list[int]] = eventually(engine_and_all, 60)
    return found


def serves(worker: int) -> bool:
    """Whether a worker has used the processor for longer than its start takes: it has a client."""
    fields = Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12]) > 50


def test_opencl_calls_are_wrapped_only_where_times_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off, the engine calls the library itself."""
    names = ("set_arg", "launch", "read", "write", "finish")
    library = type(ctypes.CDLL(None).getpid).__mro__[1]
    assert all(isinstance(getattr(HotCalls(), name), library) for name in names)
    times = StageTimes(1)
    monkeypatch.setattr(stages, "active", times)
    calls = HotCalls()
    calls.finish(None)  # CL_INVALID_COMMAND_QUEUE
    assert times.engine.gathered[Stage.FINISH] > 0
    assert not any(isinstance(getattr(calls, name), library) for name in names)
