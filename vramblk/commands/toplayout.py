"""Fits what ``vramblk top`` shows into the height of a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.segment import Segment, Segments

_Lines = list[list[Segment]]


@dataclass(frozen=True)
class Part:
    """A part of the view.

    Attributes:
        rank: 0 is shown always, the others in this order.
        variants: the same from the least to the most detailed; none if there is nothing to show.
    """

    rank: int
    variants: Sequence[RenderableType]


def fit(parts: Sequence[Part], console: Console) -> RenderableType:
    """The parts one below the other, as detailed as the terminal is high, with blank lines if there is room.

    Every part gets its least detailed variant before one gets more; the lowest ranks come first both times.
    """
    variants = [[_lines(variant, console) for variant in part.variants] for part in parts]
    by_rank = sorted(range(len(parts)), key=lambda index: parts[index].rank)
    chosen: dict[int, _Lines] = {}
    room = console.height
    for index in by_rank:
        if variants[index] and (parts[index].rank == 0 or len(variants[index][0]) <= room):
            chosen[index] = variants[index][0]
            room -= len(chosen[index])
    for index in by_rank:
        for better in variants[index][::-1] if index in chosen else ():
            if len(better) - len(chosen[index]) <= room:
                room -= len(better) - len(chosen[index])
                chosen[index] = better
                break
    gap: _Lines = [[]] if room >= len(chosen) - 1 else []
    shown: _Lines = []
    for index in sorted(chosen):
        shown += (gap if shown else []) + chosen[index]
    ends = [Segment.line()]
    return Group(
        *(Segments([*line, *(ends if number < len(shown) else [])]) for number, line in enumerate(shown, 1))
    )


def _lines(renderable: RenderableType, console: Console) -> _Lines:
    return console.render_lines(renderable, pad=False)
