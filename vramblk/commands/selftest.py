"""``vramblk selftest``: a test of the memory that the settings name, before it is used for swap.

Each pattern is written over the whole export and read back on the device: address-in-address finds
crossed address lines, walking bits find crossed data lines and neighbours that influence each other,
random contents find the rest. Contents of the memory are lost.
"""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from ..config.settings import Settings
from ..config.units import format_size
from ..errors import RuntimeFailure
from ..memory import alldevices, devices, open_memories
from ..memory.base import DeviceError, Memory, Pattern

_STEP_BYTES = 1 << 30
_MAPPED_STEP_BYTES = 64 << 20
#: Of each walking pattern, the bit shifts by one from seed to seed: these meet each bit in each word.
_WALKING_SEEDS = (0, 7, 13, 26)
_MOST_SHOWN = 20

#: Called with what is being done, bytes done and bytes in all.
_Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Result:
    """What the test of one export found.

    Attributes:
        bad: ranges [lo, hi) of export offsets, each with the pattern that found it, without repetition.
        error: why the test ended early, None if it did not.
    """

    export: str
    device: str
    size_bytes: int
    passes: int
    seconds: float
    bad: list[tuple[int, int, str]]
    error: str | None = None

    @property
    def passed(self) -> bool:
        return not self.bad and self.error is None


def run(settings: Settings, passes: int, json: bool) -> int:
    """Test every export's memory; prints the result to stdout. Exit status 0, or 1 if any memory is bad.

    Raises:
        PreconditionError: no such device, or the size is beyond it.
        RuntimeFailure: the device failed while it was being set up.
    """
    if settings.on_all_devices:
        settings = settings.placed(alldevices.places(settings, devices.discover()))
    bar: AbstractContextManager[_Progress] = nullcontext(_silent)
    if not json and sys.stdout.isatty():
        bar = _Bar()
    with bar as progress:
        try:
            memories = open_memories(
                settings.exports,
                (),
                allow_cpu=settings.allow_cpu,
                map_overwrite=settings.map_overwrite,
                progress=progress,
            )
        except DeviceError as error:
            raise RuntimeFailure(f"the device failed while it was being set up: {error}") from None
        try:
            results = [
                examine(export.name, memory, passes, progress)
                for export, memory in zip(settings.exports, memories, strict=True)
            ]
        finally:
            for memory in memories:
                memory.close()
    _print(results, json)
    return 0 if all(result.passed for result in results) else 1


def examine(export: str, memory: Memory, passes: int, progress: _Progress = lambda *_: None) -> Result:
    """Run all patterns ``passes`` times over one memory, and leave it zeroed."""
    started = time.monotonic()
    bad: list[tuple[int, int, str]] = []
    seen: set[tuple[int, int]] = set()
    error = None
    plan = [step for number in range(passes) for step in _patterns(number)]
    total = 2 * len(plan) * memory.size_bytes
    done = 0
    step = _MAPPED_STEP_BYTES if memory.description.get("memory") == "mapped" else _STEP_BYTES
    try:
        for pattern, seed in plan:
            name = pattern.name.lower().replace("_", " ")
            for verify in (False, True):
                for offset in range(0, memory.size_bytes, step):
                    length = min(step, memory.size_bytes - offset)
                    if verify:
                        for lo, hi in memory.mismatches(offset, length, pattern, seed):
                            if (lo, hi) not in seen:
                                seen.add((lo, hi))
                                bad.append((lo, hi, name))
                    else:
                        memory.fill(offset, length, pattern, seed)
                    done += length
                    progress(name, done, total)
        memory.zero_all()
    except DeviceError as failure:
        error = failure.detail
    seconds = time.monotonic() - started
    device = str(memory.description.get("device", "unknown"))
    return Result(export, device, memory.size_bytes, passes, seconds, sorted(bad), error)


def _patterns(number: int) -> list[tuple[Pattern, int]]:
    """The patterns of one pass; each pass has seeds of its own."""
    walking = [
        (pattern, seed + number)
        for pattern in (Pattern.WALKING_ONE, Pattern.WALKING_ZERO)
        for seed in _WALKING_SEEDS
    ]
    return [*walking, (Pattern.ADDRESS, 0), (Pattern.ADDRESS, 0xFFFFFFFF), (Pattern.RANDOM, number + 1)]


def _print(results: list[Result], json: bool) -> None:
    if json:
        print(json_module.dumps({"exports": [_row(result) for result in results]}, indent=2))
        return
    for result in results:
        # Written and read once per pattern.
        moved = 2 * len(_patterns(0)) * result.passes * result.size_bytes
        verdict = "passed" if result.passed else "FAILED"
        print(
            f"export {result.export} on {result.device}: {verdict}, {format_size(result.size_bytes)},"
            f" passes {result.passes}, {format_size(moved)} written and read in {result.seconds:.1f} s"
        )
        for lo, hi, pattern in result.bad[:_MOST_SHOWN]:
            print(f"  bad: offsets {lo:#x} to {hi:#x} ({hi - lo} bytes), found by {pattern}")
        if len(result.bad) > _MOST_SHOWN:
            print(f"  and {len(result.bad) - _MOST_SHOWN} more ranges; --json lists all")
        if result.error:
            print(f"  ended early: {result.error}")


def _row(result: Result) -> dict[str, Any]:
    return {
        "export": result.export,
        "device": result.device,
        "size_bytes": result.size_bytes,
        "passes": result.passes,
        "seconds": round(result.seconds, 3),
        "passed": result.passed,
        "bad_ranges": [{"lo": lo, "hi": hi, "pattern": pattern} for lo, hi, pattern in result.bad],
        "error": result.error,
    }


def _silent(_: str, __: int, ___: int) -> None:
    pass


class _Bar:
    """A rich progress bar that vanishes at the end."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description:14}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TimeRemainingColumn(),
            transient=True,
        )
        self._task = self._progress.add_task("opening")

    def __enter__(self) -> _Progress:
        self._progress.start()
        return self._update

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _update(self, what: str, done: int, total: int) -> None:
        self._progress.update(self._task, description=what, completed=done, total=total)
