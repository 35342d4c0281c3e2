#!/usr/bin/env python3
"""A result as Markdown and as plots: ``bench/report.py RESULT.json`` writes RESULT.md, .png and .svg.

With ``--rates FILE.svg`` it draws the rates instead of ratios, for readers who do not know the other servers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import curves_report, goals, machine, results
from bench.peers import MEMORY, PROJECT
from bench.results import Document, Spread


def markdown(document: Document) -> str:
    """Everything in the result that a reader wants: machine, rates, ratios, latency, cost, goals."""
    head = [
        f"# {document['kind']}, {document['created'][:10]}",
        "",
        *(f"- {line}" for line in machine.lines(document["machine"])),
        f"- Servers: {'; '.join(_server(name, found) for name, found in document['servers'].items())}",
        f"- Run: {_run(document)}. Each cell: median (least to most).",
        "",
    ]
    if document["kind"].startswith("curve"):
        return "\n".join([*head, *curves_report.tables(document), ""])
    parts = [_rates(document), _ratios(document), _latencies(document), _costs(document), _startup(document)]
    return "\n".join([*head, *(line for part in parts for line in part), *goals.lines(document), ""])


def write(path: Path, document: Document) -> list[Path]:
    """Markdown beside the JSON, plots too where matplotlib is installed; gives what was written."""
    written = [path.with_suffix(".md")]
    written[0].write_text(markdown(document))
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (pip install 'vramblk[bench]')", file=sys.stderr)
        return written
    matplotlib.use("Agg")
    figure = curves_report.plot(document) if document["kind"].startswith("curve") else _plot(document)
    for suffix in (".png", ".svg") if figure else ():
        figure.savefig(path.with_suffix(suffix), dpi=120, bbox_inches="tight")
        written.append(path.with_suffix(suffix))
    return written


def table(header: list[str], body: list[list[str]], left: int = 1) -> list[str]:
    """Lines of a Markdown table: the first ``left`` columns aligned left, the others, numbers, right."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *body)] + [""]


def cell(found: Spread | None, pattern: str = ",.0f") -> str:
    if found is None:
        return "failed"
    low, high = format(found.low, pattern), format(found.high, pattern)
    return f"{found.median:{pattern}}" + ("" if low == high else f" ({low} to {high})")


def others(document: Document) -> list[str]:
    return [name for name in document["servers"] if name != PROJECT]


def _run(document: Document) -> str:
    options = document["options"]
    if document["kind"] == "curve-startup":
        return f"{options['repeats']} starts"
    size = "" if document["kind"] == "curve-sizes" else f", export of {options['size_bytes'] / 2**20:.0f} MiB"
    filled = ", written once before" if options.get("fill") else ""
    return f"{options['repeats']} times {options['runtime_s']:g} s, the servers in turn{size}{filled}"


def _server(name: str, found: dict[str, Any]) -> str:
    return f"{name} ({found['version']})" if found.get("version") else name


def _rates(document: Document) -> list[str]:
    servers = list(document["servers"])
    has_targets = any(goals.target(document, row) for row in document["rows"])
    body = []
    for name, row in document["rows"].items():
        target = goals.target(document, name) if has_targets else None
        body.append(
            [f"{name}, {row['unit']}"]
            + ([f"{target:,.0f}" if target else ""] if has_targets else [])
            + [cell(results.rates(document, name, server)) for server in servers]
        )
    note = []
    if has_targets:
        note = [
            "Target = factor x best C program on an H200 x (nbdkit memory now / nbdkit memory then)."
            if MEMORY in servers
            else "nbdkit memory was not measured: the targets are an H200's, not scaled to this machine.",
            "",
        ]
    return ["## Rates", "", *note, *table(["row", *(["target"] if has_targets else []), *servers], body)]


def _ratios(document: Document) -> list[str]:
    if not others(document) or PROJECT not in document["servers"]:
        return []
    body = [
        [name, *(cell(results.ratios(document, name, PROJECT, other), ".2f") for other in others(document))]
        for name in document["rows"]
    ]
    return [f"## {PROJECT} as a multiple of", "", *table(["row", *others(document)], body)]


def _latencies(document: Document) -> list[str]:
    body = []
    for name in document["rows"]:
        for server in document["servers"]:
            found = [
                results.column(document, name, server, key)
                for key in ("mean_us", "p50_us", "p99_us", "p999_us")
            ]
            texts = ["failed" if each is None else f"{each.median:,.0f}" for each in found]
            middle, tail = found[1], found[2]
            times = f"{tail.median / middle.median:.1f}" if middle and tail and middle.median else ""
            body.append([name, server, *texts, times])
    header = ["row", "server", "mean", "median", "p99", "p99.9", "p99 / median"]
    return ["## Latency in microseconds", "", *table(header, body, left=2)]


def _costs(document: Document) -> list[str]:
    body = []
    for name in document["rows"]:
        costs = [
            results.column(document, name, server, "cpu_s_per_million") for server in document["servers"]
        ]
        if any(costs):
            body.append([name, *("" if cost is None else f"{cost.median:.1f}" for cost in costs)])
    lines = [
        "## CPU seconds of the server per million requests",
        "",
        *table(["row", *document["servers"]], body),
    ]
    body = []
    for server in document["servers"]:
        samples = [sample for row in document["rows"] for sample in results.good(document, row, server)]
        peaks = [
            max((sample[key] for sample in samples if sample.get(key) is not None), default=None)
            for key in ("locked_bytes", "resident_bytes", "proportional_bytes")
        ]
        body.append([server, *("" if peak is None else f"{peak / 2**20:,.0f}" for peak in peaks)])
    note = [
        "Sums over all processes of the server, the most in any row. Memory that they share counts in each",
        "of them in the first two columns, and once in the third.",
        "",
    ]
    return [
        *lines,
        "## Memory of the server in MiB",
        "",
        *note,
        *table(["server", "locked", "resident", "PSS"], body),
    ]


def _startup(document: Document) -> list[str]:
    body = [
        [name, f"{found['startup_s']:.2f}"]
        for name, found in document["servers"].items()
        if found.get("startup_s")
    ]
    if not body:
        return []
    size = f"{document['options']['size_bytes'] / 2**30:g} GiB"
    return [
        f"## Seconds from the command to the first greeting, {size}",
        "",
        *table(["server", "seconds"], body),
    ]


def _plot(document: Document) -> Any:
    """Bars per row, one colour per peer, the spread as error bars; None if there is nothing to compare."""
    from matplotlib import pyplot

    rows, peers = list(document["rows"]), others(document)
    if not rows or not peers or PROJECT not in document["servers"]:
        return None
    height = 0.8 / len(peers)
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + len(rows) * (0.25 + 0.17 * len(peers))))
    for index, peer in enumerate(peers):
        found = [(at, results.ratios(document, row, PROJECT, peer)) for at, row in enumerate(rows)]
        bars = [(at + (index - (len(peers) - 1) / 2) * height, ratio) for at, ratio in found if ratio]
        medians = [ratio.median for _, ratio in bars]
        below = [ratio.median - ratio.low for _, ratio in bars]
        above = [ratio.high - ratio.median for _, ratio in bars]
        places = [at for at, _ in bars]
        axes.barh(places, medians, height, label=peer, xerr=[below, above], error_kw={"linewidth": 0.8})
    axes.axvline(1, color="black", linewidth=1)
    most = [
        ratio.high
        for row in rows
        for peer in peers
        if (ratio := results.ratios(document, row, PROJECT, peer))
    ]
    if max(most, default=1) > 8:
        axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlabel(f"rate of {PROJECT} / rate of the other (more is better)")
    axes.set_title(machine.lines(document["machine"])[0].partition(" (")[0], fontsize=9)
    axes.legend(fontsize=8)
    return figure


def draw_rates(path: Path, document: Document) -> None:
    """The rates of every server, one panel for each unit, without the rows of depth 4."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("no plot: matplotlib is not installed (pip install 'vramblk[bench]')") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    servers = [PROJECT, *others(document)]
    units = list(dict.fromkeys(found["unit"] for found in document["rows"].values()))
    figure, panels = pyplot.subplots(1, len(units), figsize=(5 * len(units), 2.8), squeeze=False)
    for panel, unit in zip(panels[0], units, strict=True):
        rows = [row for row, each in document["rows"].items() if each["unit"] == unit and "qd4" not in row]
        width = 0.8 / len(servers)
        for index, server in enumerate(servers):
            found = [results.rates(document, row, server) for row in rows]
            heights = [each.median if each else 0 for each in found]
            spread = [[each.median - each.low if each else 0 for each in found],
                      [each.high - each.median if each else 0 for each in found]]  # fmt: skip
            places = [at + (index - (len(servers) - 1) / 2) * width for at in range(len(rows))]
            panel.bar(places, heights, width, label=server, yerr=spread, error_kw={"linewidth": 0.8})
        panel.set_xticks(range(len(rows)), [row.replace(" ", "\n", 1) for row in rows], fontsize=7)
        panel.set_ylabel(unit)
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncols=len(servers), loc="lower center")
    figure.suptitle(", ".join(machine.lines(document["machine"])[0].split(", ")[:2]), fontsize=9)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Markdown and plots from results that bench/run.py or curves.py wrote."
    )
    parser.add_argument("result", nargs="+", type=Path, metavar="RESULT.json")
    parser.add_argument("--rates", type=Path, metavar="FILE", help="draw the rates of one result here")
    arguments = parser.parse_args()
    for path in arguments.result:
        try:
            document = results.load(path)
            if arguments.rates:
                draw_rates(arguments.rates, document)
                written = [arguments.rates]
            else:
                written = write(path, document)
        except results.ResultError as error:
            print(f"report.py: {error}", file=sys.stderr)
            return 1
        print(*written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
