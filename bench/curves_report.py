"""Tables and plots of what curves.py measured."""

from __future__ import annotations

from typing import Any

from . import results
from .results import Document, Spread


def tables(document: Document) -> list[str]:
    """Markdown: per quantity a table, points down, servers across."""
    lines: list[str] = []
    for base, unit in _bases(document).items():
        servers = list(document["servers"])
        lines += [f"## {base}, {unit}", "", "| " + " | ".join([_axis(document), *servers]) + " |"]
        lines.append("| " + " | ".join(["---:"] * (len(servers) + 1)) + " |")
        for point in _points(document, base):
            cells = [_cell(document, base, point, server) for server in servers]
            lines.append("| " + " | ".join([_shown(document, point), *cells]) + " |")
        lines.append("")
    return lines


def plot(document: Document) -> Any:
    """One panel per quantity; None if nothing was measured."""
    from matplotlib import pyplot

    bases = _bases(document)
    if not bases:
        return None
    figure, panels = pyplot.subplots(1, len(bases), figsize=(4.5 * len(bases), 3.6), squeeze=False)
    for axes, (base, unit) in zip(panels[0], bases.items(), strict=True):
        for server in document["servers"]:
            found = [(at, _spread(document, base, at, server)) for at in _points(document, base)]
            points = [(at, spread) for at, spread in found if spread]
            axes.errorbar(
                [at for at, _ in points], [spread.median for _, spread in points], marker="o", label=server,
                yerr=[[s.median - s.low for _, s in points], [s.high - s.median for _, s in points]],
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        ticks = _points(document, base)
        axes.set_xticks(ticks, [_shown(document, at) for at in ticks])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(_axis(document))
        axes.set_ylabel(unit)
        axes.set_title(base, fontsize=9)
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    return figure


def _bases(document: Document) -> dict[str, str]:
    return {row["base"]: row["unit"] for row in document["rows"].values()}


def _points(document: Document, base: str) -> list[int]:
    return sorted(row["point"] for row in document["rows"].values() if row["base"] == base)


def _spread(document: Document, base: str, point: int, server: str) -> Spread | None:
    row = f"{base} at {point}"
    if document["rows"].get(row, {}).get("unit") == "s":
        return results.column(document, row, server, "startup_s")
    return results.rates(document, row, server)


def _axis(document: Document) -> str:
    name: str = document["kind"].removeprefix("curve-")
    return "export size" if name in ("sizes", "startup") else name


def _shown(document: Document, point: int) -> str:
    return f"{point / 2**30:g} GiB" if _axis(document) == "export size" else str(point)


def _cell(document: Document, base: str, point: int, server: str) -> str:
    found = _spread(document, base, point, server)
    if found is None:
        return "failed" if server in document["rows"][f"{base} at {point}"]["samples"] else ""
    digits = ",.0f" if found.high >= 100 else ".2f"
    low, high = format(found.low, digits), format(found.high, digits)
    return f"{found.median:{digits}}" + ("" if low == high else f" ({low} to {high})")
