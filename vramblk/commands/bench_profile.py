"""``vramblk bench --profile``: where the time of a batch goes, stage by stage.

It measures a server of its own, made of the same settings: on a private Unix socket, with timing
around every stage (``shared.stages``). The server is forked from here, so both see the same cells.
Timing costs: the rates are lower than those of a server without it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn
from urllib.parse import quote

from ..config.settings import Settings
from ..config.units import UnixAddress, format_bytes, format_size
from ..errors import ConfigError, PreconditionError, RuntimeFailure, StartupError
from ..shared import stages
from ..shared.spin import spin_ns
from ..shared.stages import Snapshot, Stage, StageTimes
from ..supervisor.devicelist import with_all_devices
from ..supervisor.failures import startup_error
from ..supervisor.sizing import window_layouts
from ..system import kernel, logs
from .bench_client import Client, Target, parse_uri

_READ, _WRITE, _MIX = 1.0, 0.0, 0.7
_KIB = 1 << 10
#: Share of reads, block size in bytes, queue depth.
_ROWS = (
    (_READ, 4 * _KIB, 1), (_WRITE, 4 * _KIB, 1), (_READ, 4 * _KIB, 32), (_WRITE, 4 * _KIB, 32),
    (_MIX, 4 * _KIB, 32), (_READ, 32 * _KIB, 16), (_READ, 128 * _KIB, 16), (_WRITE, 128 * _KIB, 16),
    (_READ, 1024 * _KIB, 8), (_WRITE, 1024 * _KIB, 8),
)  # fmt: skip
_POLL_S = 0.02
_LAST_WORD_S = 2.0
_REPORT_BYTES = 65536

#: Process and name of each stage, as they are printed.
STAGE_NAMES = {
    Stage.RECEIVE: ("worker", "receive"),
    Stage.PARSE: ("worker", "parse"),
    Stage.SUBMIT: ("worker", "descriptors"),
    Stage.TO_TAKEN: ("wait", "doorbell to taken"),
    Stage.DECODE: ("engine", "decode"),
    Stage.PLAN: ("engine", "plan"),
    Stage.SET_ARG: ("engine", "set_arg"),
    Stage.LAUNCH: ("engine", "launch"),
    Stage.COPY: ("engine", "copy"),
    Stage.FINISH: ("engine", "finish"),
    Stage.COMPLETE: ("engine", "completion"),
    Stage.TO_COLLECTED: ("wait", "done to collected"),
    Stage.COLLECT: ("worker", "collect"),
    Stage.SEND: ("worker", "send"),
}


@dataclass(frozen=True)
class ProfiledStage:
    """One line of a profile; the microseconds are per batch of the engine.

    Attributes:
        samples: how often the stage was recorded: by the worker for what it published or collected
            at once, by the engine for each batch.
        share: of the sum over all stages, 0 to 1.
    """

    process: str
    stage: str
    samples: int
    median_us: float
    mean_us: float
    share: float


@dataclass(frozen=True)
class Profile:
    """The stages of one row.

    Attributes:
        reads: their share of the requests; the others are writes.
    """

    reads: float
    block_bytes: int
    depth: int
    seconds: float
    iops: float
    batches: int
    requests: int
    stages: list[ProfiledStage]

    @property
    def name(self) -> str:
        return f"{format_bytes(self.block_bytes).lower()} {self.command} qd{self.depth}"

    @property
    def command(self) -> str:
        return {_READ: "read", _WRITE: "write"}.get(self.reads, f"mix{self.reads * 100:.0f}")

    @property
    def requests_per_batch(self) -> float:
        return self.requests / max(1, self.batches)


def run(
    settings: Settings, seconds: float, as_json: bool, progress: Callable[[str], Callable[[float], None]]
) -> int:
    """Start the server, measure each row for so many seconds, print; gives the exit status.

    Args:
        progress: begins a row and gives what hears how many seconds of it have passed.

    Raises:
        StartupError: as the server's own, or it did not live through the measurement.
    """
    profiles = []
    with _server(settings) as (times, target), Client(target) as client:
        if client.size_bytes < max(size for _, size, _ in _ROWS):
            raise PreconditionError(
                f"the export has {format_size(client.size_bytes)}; at least 1 MiB is needed"
            )
        for reads, block_bytes, depth in _ROWS:
            row = Profile(reads, block_bytes, depth, seconds, 0, 0, 0, [])
            tick = progress(row.name)
            before = times.snapshot()
            found = client.measure(reads, block_bytes, depth, seconds, block_bytes > 4096, tick)
            profiles.append(_filled(row, found.iops, times.snapshot() - before))
        size_bytes, memory = client.size_bytes, client.description
    spinning = spin_ns(settings) > 0
    if as_json:
        print(json.dumps(_document(profiles, size_bytes, memory, spinning), indent=2))
    else:
        _print_tables(profiles, size_bytes, memory, spinning)
    return 0


def _filled(row: Profile, iops: float, found: Snapshot) -> Profile:
    summaries = {stage: found.stage(stage) for stage in Stage}
    whole_ns = sum(summary.total_ns for summary in summaries.values()) or 1
    batches = max(1, found.batches)
    profiled = [
        ProfiledStage(
            *STAGE_NAMES[stage],
            summary.samples,
            summary.median_ns / 1000,
            summary.total_ns / batches / 1000,
            summary.total_ns / whole_ns,
        )
        for stage, summary in summaries.items()
        if summary.samples
    ]
    return replace(row, iops=iops, batches=found.batches, requests=found.requests, stages=profiled)


@contextmanager
def _server(settings: Settings) -> Iterator[tuple[StageTimes, Target]]:
    """A server of these settings, ready and recording; it ends with the block."""
    settings = with_all_devices(settings)
    mapped = [export.device for export in settings.exports if export.mapped_path is not None]
    if mapped:
        raise PreconditionError(
            f"--profile starts a server that zeroes {mapped[0]} and writes over it; "
            "profile an OpenCL device, or measure the running server with vramblk bench"
        )
    with tempfile.TemporaryDirectory(prefix="vramblk-profile-") as directory:
        path = os.path.join(directory, "nbd.sock")
        private = replace(
            settings,
            exports=tuple(replace(export, read_only=False) for export in settings.exports),
            listen_addr=(UnixAddress(path),),
            tls="off",
            metrics_addr=None,
            status_socket=None,
        )
        # The stages are those of a request that a worker takes, so no client may be the engine's.
        workers = max(1, len(window_layouts(private)[0]))
        private = replace(private, workers=workers)
        times = StageTimes(workers + 1)
        server = _Server(private, times, os.path.join(directory, "log"))
        try:
            server.wait_ready()
            name = quote(private.exports[0].name, safe="")
            try:
                yield times, parse_uri(f"nbd+unix:///{name}?socket={quote(path)}")
            except RuntimeFailure as failure:
                server.raise_its_error()
                raise RuntimeFailure(f"{failure}: {server.complaint()}") from None
        finally:
            server.stop()


class _Server:
    """The forked supervisor; its log goes to a file, what ended it comes through a pipe."""

    def __init__(self, settings: Settings, times: StageTimes, log_path: str) -> None:
        self._log_path = log_path
        self._reports, report = os.pipe2(os.O_CLOEXEC)
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            os.close(self._reports)
            _serve(settings, times, log, report, parent)
        os.close(log)
        os.close(report)

    def wait_ready(self) -> None:
        """Return when it serves.

        Raises:
            StartupError: what kept it from that.
        """
        with open(self._log_path, encoding="utf-8") as log:
            unfinished = ""
            while True:
                *lines, unfinished = (unfinished + log.read()).split("\n")
                if any(json.loads(line).get("event") == "ready" for line in lines if line.startswith("{")):
                    return
                if self._ended(_POLL_S):
                    self.raise_its_error()
                    raise RuntimeFailure(f"the server ended before it was ready: {self.complaint()}")

    def raise_its_error(self) -> None:
        """Raise what ended the server, if it says so in time."""
        if self._ended(_LAST_WORD_S) and (report := os.read(self._reports, _REPORT_BYTES)):
            raise startup_error(json.loads(report))

    def complaint(self) -> str:
        """The gravest line of its log, the last of several."""
        with open(self._log_path, encoding="utf-8") as log:
            events = [(json.loads(line)["level"], line) for line in log if line.startswith("{")]
        for grave in ("critical", "error", "warning"):
            if lines := [line for level, line in events if level == grave]:
                return lines[-1].strip()
        return "nothing there"

    def stop(self) -> None:
        """End it in order: it zeroes its memory."""
        os.kill(self._pid, signal.SIGTERM)  # not reaped before this, so the id is still its own
        os.waitpid(self._pid, 0)
        os.close(self._reports)

    def _ended(self, timeout_s: float) -> bool:
        """Whether it has reported or closed its end of the pipe, within this time."""
        poll = select.poll()
        poll.register(self._reports, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))


def _serve(settings: Settings, times: StageTimes, log: int, report: int, parent: int) -> NoReturn:
    """The child: a supervisor as any other, but that its processes record."""
    status = 1
    try:
        os.setsid()  # an interrupt at the terminal is for the bench, which then ends this in order
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(status)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        logs.configure_direct("supervisor", settings.verbose, json=True)
        stages.active = times
        from ..supervisor.process import serve

        status = serve(settings)
    except StartupError as error:
        os.write(report, json.dumps({"exit_code": error.exit_code, "message": str(error)}).encode())
    except BaseException as error:
        os.write(report, json.dumps({"exit_code": 1, "message": f"{type(error).__name__}: {error}"}).encode())
    finally:
        os._exit(status)


def check_arguments(uri: str | None) -> None:
    """Raises ConfigError if a server to measure was named: the profile needs one of its own."""
    if uri:
        raise ConfigError(f"--profile with URI {uri!r}: it starts a server of its own; leave out the URI")


def _document(profiles: list[Profile], size_bytes: int, memory: str, spinning: bool) -> dict[str, Any]:
    return {
        "memory": memory,
        "size_bytes": size_bytes,
        "spinning": spinning,
        "rows": [
            {
                "name": row.name,
                "command": row.command,
                "block_bytes": row.block_bytes,
                "depth": row.depth,
                "seconds": row.seconds,
                "iops": round(row.iops, 1),
                "batches": row.batches,
                "requests_per_batch": round(row.requests_per_batch, 2),
                "stages": [
                    {
                        "process": stage.process,
                        "stage": stage.stage,
                        "samples": stage.samples,
                        "median_us": round(stage.median_us, 3),
                        "mean_us": round(stage.mean_us, 3),
                        "share": round(stage.share, 4),
                    }
                    for stage in row.stages
                ],
            }
            for row in profiles
        ],
    }


def _print_tables(profiles: list[Profile], size_bytes: int, memory: str, spinning: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    doing = "spinning" if spinning else "not spinning"
    console.print(f"{memory}, {format_size(size_bytes)}, one connection, {doing}", soft_wrap=True)
    for row in profiles:
        console.print(
            f"\n{row.name}: {row.iops:,.0f} IOPS, {row.requests_per_batch:.1f} requests per batch, "
            f"a batch each {row.seconds * 1e6 / max(1, row.batches):,.0f} us",
            soft_wrap=True,
        )
        table = Table()
        table.add_column("process", no_wrap=True)
        table.add_column("stage", no_wrap=True)
        for heading in ("median us", "mean us", "share"):
            table.add_column(heading, justify="right", no_wrap=True)
        for stage in row.stages:
            table.add_row(
                stage.process, stage.stage,
                f"{stage.median_us:,.1f}", f"{stage.mean_us:,.1f}", f"{stage.share:.1%}",
            )  # fmt: skip
        table.add_section()
        table.add_row("", "sum", "", f"{sum(stage.mean_us for stage in row.stages):,.1f}", "100.0%")
        console.print(table)
    console.print(
        "Timing is on, so the rates are lower than without --profile. Worker and engine work at the "
        "same time: the sum may exceed the time from batch to batch.",
        style="dim",
        soft_wrap=True,
    )
