"""Files made from tables: dashboard, rules, docs, completions and man page name what exists and are up to date."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from vramblk import shellgen
from vramblk.cli import COMMANDS
from vramblk.observer.metriclist import METRICS
from vramblk.options import OPTIONS

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
_EVENT = re.compile(r"[a-z]+(?:_[a-z]+)*")
_LEVELS = {"debug", "info", "warning", "error", "critical", "limited", "fail"}


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("monitoring_build", MONITORING / "build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_dashboard_and_page_of_metrics_are_up_to_date(build: ModuleType) -> None:
    assert build.main(["--check"]) == 0


def test_every_query_of_the_dashboard_names_existing_metrics(build: ModuleType) -> None:
    """And every metric of the table is in some query, with balanced brackets and no leftover placeholder."""
    dashboard = json.loads(build.DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    names = {build.metric_of(name) for query in queries for name in re.findall(r"vramblk_\w+", query)}
    assert names == {info.name for info in METRICS}
    for query in queries:
        assert (
            "{S" not in query
            and query.count("(") == query.count(")")
            and query.count("{") == query.count("}")
        )
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_panels_do_not_overlap(build: ModuleType) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in build.dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells


def test_a_query_with_an_unknown_metric_is_refused(build: ModuleType) -> None:
    for name in (
        "vramblk_nothing",
        "vramblk_requests",
        "vramblk_request_seconds",
        "vramblk_connections_bucket",
    ):
        with pytest.raises(ValueError, match=name):
            build.metric_of(name)


def test_rules_name_existing_metrics_and_every_rule_is_tested(build: ModuleType) -> None:
    rules = yaml.safe_load((MONITORING / "vramblk.rules.yaml").read_text())["groups"][0]["rules"]
    for rule in rules:
        for name in re.findall(r"vramblk_\w+", rule["expr"]):
            build.metric_of(name)
        assert {"summary", "description"} == set(rule["annotations"])
    cases = yaml.safe_load((MONITORING / "vramblk.rules.test.yaml").read_text())["tests"]
    fired = {each["alertname"] for case in cases for each in case["alert_rule_test"] if each["exp_alerts"]}
    quiet = {
        each["alertname"] for case in cases for each in case["alert_rule_test"] if not each["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in rules} and fired <= quiet


def test_compose_file_mounts_what_exists_and_pins_images() -> None:
    """Every mounted file is there, images have full versions, ports are on loopback."""
    compose = yaml.safe_load((MONITORING / "compose.monitoring.yaml").read_text())
    for service in compose["services"].values():
        assert service["profiles"] == ["monitoring"]
        assert re.search(r":v?\d+\.\d+\.\d+\}$", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (ROOT / source).exists(), volume


def test_compose_configuration_renders() -> None:
    """Compose accepts the files together; without the profile nothing of them runs."""
    command = next(
        (each for each in (["docker", "compose"], ["docker-compose"]) if _works([*each, "version"])), None
    )
    if command is None:
        pytest.skip("requires docker compose")
    files = ["-f", "compose.yaml", "-f", "deploy/monitoring/compose.monitoring.yaml"]
    done = subprocess.run(
        [*command, *files, "--profile", "monitoring", "config"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert {"vramblk", "prometheus", "grafana"} <= set(yaml.safe_load(done.stdout)["services"])


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except OSError:
        return False


def test_completions_and_man_page_are_up_to_date() -> None:
    assert shellgen.main(["--check"], ROOT) == 0


def test_completions_and_man_page_name_every_option() -> None:
    texts = {
        path: (ROOT / path).read_text() for path in (shellgen.BASH, shellgen.ZSH, shellgen.FISH, shellgen.MAN)
    }
    for option in OPTIONS:
        assert option.flag in texts[shellgen.BASH] and option.flag in texts[shellgen.ZSH]
        assert f"-l {option.flag[2:]}" in texts[shellgen.FISH]
        assert option.flag.replace("-", "\\-") in texts[shellgen.MAN]
    for command in COMMANDS:
        assert all(command in text for text in texts.values())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["vramblk", "sta"], {"status"}),
        (["vramblk", "--mo"], {"--mode"}),
        (["vramblk", "--mode", ""], {"scratch", "swap"}),
        (["vramblk", "status", "--h"], {"--health", "--help"}),
        (["vramblk", "--tls", "re"], {"require"}),
        (["vramblk", "--size", ""], set()),
    ],
)
def test_bash_completes(words: list[str], expected: set[str]) -> None:
    quoted = " ".join(f"'{word}'" for word in words)
    script = (
        f"source {ROOT / shellgen.BASH}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
        "_vramblk; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=10, check=True)
    assert set(done.stdout.split()) == expected


def test_every_log_event_is_documented() -> None:
    """docs/events.md lists exactly the events that the source can log."""
    found = {"events_suppressed"}
    for path in (ROOT / "vramblk").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                found |= set(_events(node))
    listed = set(re.findall(r"^\| `([a-z_]+)` \|", (ROOT / "docs" / "events.md").read_text(), re.MULTILINE))
    assert found - listed == set(), "not in docs/events.md"
    assert listed - found == set(), "in docs/events.md only"


def _events(call: ast.Call) -> list[str]:
    function = call.func
    logs = isinstance(function, ast.IfExp) or (
        isinstance(function, ast.Attribute) and function.attr in _LEVELS
    )
    if not logs:
        return []
    values = [argument.value for argument in call.args[:2] if isinstance(argument, ast.Constant)]
    return [value for value in values[:1] if isinstance(value, str) and _EVENT.fullmatch(value)]
