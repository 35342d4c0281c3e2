"""The goals of each row, and whether a result reaches them. A missed goal is printed and is no failure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import results
from .peers import DIRECT, MEMORY, ORIGINAL, PROJECT, SKETCH, VRAM
from .results import Document
from .rows import BY_NAME, FAIRNESS, QUICK

_TIMES_FASTER = 10
_MIX_TO_READS = 0.8
_TAIL_TO_MEDIAN = 4
_SLOWDOWN = 4


@dataclass(frozen=True)
class Goal:
    """``reached`` compares medians; ``within_spread`` is a miss that the best repeat does not show."""

    what: str
    found: str
    wanted: str
    reached: bool
    within_spread: bool = False


def target(document: Document, row: str) -> float | None:
    """In the row's unit, scaled by nbdkit's memory plugin where that was measured."""
    if row not in BY_NAME or document["kind"] == "quick":
        return None
    memory = results.rates(document, row, MEMORY)
    return BY_NAME[row].target(memory.median if memory else None)


def lines(document: Document) -> list[str]:
    """Markdown; empty if no goal belongs to the rows of this result."""
    found = list(check(document))
    if not found:
        return []
    missed = [goal for goal in found if not goal.reached]
    body = [
        f"| {goal.what} | {goal.found} | {goal.wanted} | "
        f"{'reached' if goal.reached else 'missed, within the spread' if goal.within_spread else 'missed'} |"
        for goal in found
    ]
    summary = f"{len(found) - len(missed)} of {len(found)} reached."
    return ["## Goals", "", summary, "", "| what | found | wanted | |", "| --- | ---: | ---: | --- |", *body]


def check(document: Document) -> Iterator[Goal]:
    quick = {row.name: row for row in QUICK} if document["kind"] == "quick" else {}
    for name in document["rows"]:
        if name in quick:
            yield from _ratio(document, name, MEMORY, quick[name].floor)
            yield from _ratio(document, name, MEMORY, quick[name].direct_floor, DIRECT)
            continue
        own = results.rates(document, name, PROJECT)
        if own is None:
            continue
        wanted = target(document, name)
        if wanted:
            yield Goal(
                f"{name}: target",
                f"{own.median:,.0f}",
                f"{wanted:,.0f}",
                own.median >= wanted,
                own.high >= wanted,
            )
        yield from _ratio(document, name, SKETCH, 1.0)
        if name.startswith("4k") and "qd32" in name:
            yield from _ratio(document, name, ORIGINAL, _TIMES_FASTER)
            yield from _ratio(document, name, VRAM, _TIMES_FASTER)
        if "qd32" in name:
            yield from _tail(document, name)
    yield from _mix(document)
    slowdown = results.column(document, FAIRNESS, PROJECT, "slowdown")
    if slowdown:
        yield _at_most(
            "fairness: 4k qd1 median beside a stream",
            slowdown.median,
            slowdown.low,
            _SLOWDOWN,
            " times that alone",
        )


def _ratio(
    document: Document, row: str, other: str, wanted: float | None, server: str = PROJECT
) -> Iterator[Goal]:
    found = results.ratios(document, row, server, other)
    if found and wanted:
        yield Goal(
            f"{row}: {'' if server == PROJECT else f'{server} '}against {other}",
            f"{found.median:.2f}",
            f"{wanted:g}",
            found.median >= wanted,
            found.high >= wanted,
        )


def _tail(document: Document, row: str) -> Iterator[Goal]:
    times = results.spread(
        [
            sample["p99_us"] / sample["p50_us"]
            for sample in results.good(document, row, PROJECT)
            if sample["p50_us"]
        ]
    )
    if times:
        yield _at_most(f"{row}: p99", times.median, times.low, _TAIL_TO_MEDIAN, " medians")


def _mix(document: Document) -> Iterator[Goal]:
    reads = results.rates(document, "4k randread qd32 x4", PROJECT)
    mix = results.rates(document, "4k 70/30 mix qd32 x4", PROJECT)
    if reads and mix:
        found = mix.median / reads.median
        yield Goal(
            "4k 70/30 mix x4 against 4k reads x4", f"{found:.2f}", f"{_MIX_TO_READS}", found >= _MIX_TO_READS,
            mix.high / reads.low >= _MIX_TO_READS,
        )  # fmt: skip


def _at_most(what: str, found: float, best: float, limit: float, unit: str) -> Goal:
    return Goal(what, f"{found:.1f}{unit}", f"at most {limit:g}", found <= limit, best <= limit)
