"""``python -m tools.monitoring [--check]``: the dashboard and docs/reference/metrics.md, from the metrics.

With ``--check`` writes nothing and exits 1 if one of them is not up to date. A query that names a
metric which does not exist stops it either way.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools import generated
from vramblk.observer.metriclist import BY_NAME, COUNTER, HISTOGRAM, METRICS, MetricInfo

ROOT = Path(__file__).resolve().parents[1]

DASHBOARD = ROOT / "deploy" / "monitoring" / "grafana" / "dashboards" / "vramblk.json"
PAGE = ROOT / "docs" / "reference" / "metrics.md"
SOURCE = {"type": "prometheus", "uid": "${source}"}
_NAME = re.compile(r"vramblk_\w+")
_SELECT = '{job="$job",instance="$instance"}'


@dataclass(frozen=True)
class Panel:
    """One panel: ``queries`` are (expression, legend); ``S`` in an expression stands for the selector."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    width: int = 12
    height: int = 8


def _rate(name: str, by: str, extra: str = "") -> str:
    return f"sum by ({by}) (rate({name}{{S{extra}}}[$__rate_interval]))"


def _quantile(share: float, op: str) -> str:
    buckets = f'rate(vramblk_request_seconds_bucket{{S,op="{op}"}}[$__rate_interval])'
    return f"histogram_quantile({share}, sum by (le) ({buckets}))"


def _latency(op: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (_quantile(share, op), "median" if share == 0.5 else f"{share:.0%} below")
        for share in (0.5, 0.95, 0.99)
    )


_BATCH = (
    "rate(vramblk_batch_requests_sum{S}[$__rate_interval])"
    " / rate(vramblk_batch_requests_count{S}[$__rate_interval])"
)

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Is it well",
        (
            Panel("Healthy", "bool_yes_no", (("vramblk_healthy{S}", ""),), "stat", 4, 4),
            Panel("State", "none", (("vramblk_state{S} == 1", "{{state}}"),), "stat", 4, 4),
            Panel("Up since", "s", (("vramblk_uptime_seconds{S}", ""),), "stat", 4, 4),
            Panel("Clients", "none", (("vramblk_connections{S}", ""),), "stat", 4, 4),
            Panel("Device errors", "none", (("vramblk_device_errors_total{S}", ""),), "stat", 4, 4),
            Panel(
                "Swap preconditions missing",
                "none",
                (("count(vramblk_swap_precondition{S} == 0) or vector(0)", ""),),
                "stat",
                4,
                4,
            ),
        ),
    ),
    (
        "Is it used, is it fast",
        (
            Panel("Throughput", "Bps", ((_rate("vramblk_bytes_total", "export, op"), "{{export}} {{op}}"),)),
            Panel(
                "Requests", "reqps", ((_rate("vramblk_requests_total", "export, op"), "{{export}} {{op}}"),)
            ),
            Panel("Latency of reads", "s", _latency("read")),
            Panel("Latency of writes", "s", _latency("write")),
            Panel(
                "Engine busy",
                "percentunit",
                ((_rate("vramblk_engine_busy_seconds_total", "instance"), "busy"),),
            ),
            Panel("Queue depth", "none", (("vramblk_queue_depth{S}", "requests"),)),
            Panel(
                "Requests in a batch",
                "none",
                ((_BATCH, "mean"),),
            ),
            Panel(
                "Errors", "reqps", ((_rate("vramblk_request_errors_total", "op, errno"), "{{op}} {{errno}}"),)
            ),
        ),
    ),
    (
        "Space, memory and device",
        (
            Panel(
                "Export",
                "bytes",
                (
                    ("vramblk_export_size_bytes{S}", "{{export}} size"),
                    ("vramblk_export_written_bytes{S}", "{{export}} written"),
                ),
            ),
            Panel(
                "Swap on NBD devices",
                "bytes",
                (
                    ("vramblk_host_swap_size_bytes{S}", "{{device}} size"),
                    ("vramblk_host_swap_used_bytes{S}", "{{device}} used"),
                ),
            ),
            Panel(
                "Locked memory",
                "bytes",
                (("vramblk_process_locked_bytes{S}", "{{process}}"), ("vramblk_locked_bytes{S}", "all")),
            ),
            Panel("Major faults since ready", "none", (("vramblk_process_major_faults{S}", "{{process}}"),)),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's JSON; metrics that no row shows get a panel each in a row of their own."""
    shown = {
        metric_of(name)
        for _, panels in ROWS
        for panel in panels
        for query, _ in panel.queries
        for name in _NAME.findall(query)
    }
    rest = tuple(_generic(info) for info in METRICS if info.name not in shown)
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in (*ROWS, ("Everything else", rest)):
        panels.append(
            {"type": "row", "title": title, "collapsed": False, "gridPos": _place(0, y, 24, 1), "panels": []}
        )
        x, y, height = 0, y + 1, 0
        for panel in row:
            if x + panel.width > 24:
                x, y, height = 0, y + height, 0
            panels.append(_panel(panel, _place(x, y, panel.width, panel.height)))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    for number, panel_json in enumerate(panels, start=1):
        panel_json["id"] = number
    return {
        "uid": "vramblk",
        "title": "vramblk",
        "tags": ["vramblk"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": list(_variables())},
        "panels": panels,
    }


def metric_of(name: str) -> str:
    """The metric to which a sample's name belongs.

    Raises:
        ValueError: there is none.
    """
    for candidate in (name, *(name.removesuffix(suffix) for suffix in ("_bucket", "_sum", "_count"))):
        info = BY_NAME.get(candidate)
        if info is not None and (candidate == name) != (info.kind == HISTOGRAM):
            return candidate
    raise ValueError(f"no metric is called {name}")


def _generic(info: MetricInfo) -> Panel:
    legend = " ".join(f"{{{{{label}}}}}" for label in info.labels)
    unit = next(
        (
            unit
            for part, unit in (("_bytes", "bytes"), ("_seconds", "s"), ("_celsius", "celsius"))
            if part in info.name
        ),
        "none",
    )
    if info.kind == COUNTER:
        return Panel(
            f"{info.name} per second",
            "Bps" if unit == "bytes" else "cps",
            ((f"rate({info.name}{{S}}[$__rate_interval])", legend),),
        )
    return Panel(info.name, unit, ((f"{info.name}{{S}}", legend),))


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    selector = _SELECT.strip("{}")
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": SOURCE,
            "expr": re.sub(r"\{S(?=[,}])", "{" + selector, query),
            "legendFormat": legend,
        }
        for index, (query, legend) in enumerate(panel.queries)
    ]
    names = sorted({metric_of(name) for query, _ in panel.queries for name in _NAME.findall(query)})
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": " ".join(BY_NAME[name].help for name in names),
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": targets,
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "source", "label": "Source", "type": "datasource", "query": "prometheus"}
    for name, query in (
        ("job", "label_values(vramblk_build_info, job)"),
        ("instance", 'label_values(vramblk_build_info{job="$job"}, instance)'),
    ):
        yield {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": SOURCE,
            "query": query,
            "refresh": 2,
        }


def metrics_page() -> str:
    """docs/reference/metrics.md."""
    rows = ["| Metric | Type | Labels | |", "| --- | --- | --- | --- |"]
    for info in METRICS:
        labels = ", ".join(f"`{label}`" for label in info.labels)
        when = f" Only {info.when}." if info.when else ""
        rows.append(f"| `{info.name}` | {info.kind} | {labels} | {info.help}{when} |")
    return _HEAD + "\n".join(rows) + "\n" + _TAIL


_HEAD = """# Metrics

`python -m tools.monitoring` makes this page from the table in `vramblk/observer/metriclist.py`.

The server always answers `/metrics` on the status socket. With `--metrics-addr` it also answers there:

    curl --unix-socket /run/vramblk/status.sock http://localhost/metrics
    curl -H "Authorization: Bearer $TOKEN" http://127.0.0.1:10810/metrics

- A scraper that requests OpenMetrics gets it.
- A scrape costs the observer about 3 ms and the data path nothing. Workers and engine add to integers in
  shared memory, and the observer reads them.
- Counters begin at 0 when the server starts. They survive the death of a worker and of the observer.

"""
_TAIL = """
| Label | Values |
| --- | --- |
| `op` | read, write, flush, trim, write_zeroes, cache or block_status |
| `errno` | a name such as EINVAL |
| `connection` | a number, unique while the server runs. The series of a connection end with it |
| `process` | supervisor, engine, observer, worker-0 and so on |

- The GPU's values come from NVML for NVIDIA, and from amdgpu's files in sysfs. A value that the driver does
  not give is absent, never 0.
- For Intel, used memory is the sum of what xe or i915 report for each client in /proc/PID/fdinfo. It is
  absent unless the observer can see every process: as root, and in the host's pid namespace.
- `vramblk_process_major_faults` counts from the moment when the observer first saw the server ready.

## Collect them

[Prometheus](../guides/prometheus.md) has the scrape configuration, the alerts, the dashboard, and what a
server in swap mode or with a token requires.
"""


def main(arguments: list[str]) -> int:
    """Write both, or with ``--check`` only compare."""
    return generated.main(
        "python -m tools.monitoring",
        arguments,
        lambda: {DASHBOARD: json.dumps(dashboard(), indent=2) + "\n", PAGE: metrics_page()},
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
