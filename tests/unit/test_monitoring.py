"""Files made from tables: dashboard, rules, docs, completions and man page name what exists and are up to date."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import hostpages, monitoring, shellgen
from vramblk.cli import COMMANDS
from vramblk.config.options import OPTIONS
from vramblk.observer.metriclist import METRICS

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
_EVENT = re.compile(r"[a-z]+(?:_[a-z]+)*")
_LEVELS = {"debug", "info", "warning", "error", "critical", "limited", "fail", "log"}


def test_dashboard_and_page_of_metrics_are_up_to_date() -> None:
    assert monitoring.main(["--check"]) == 0


def test_every_query_of_the_dashboard_names_existing_metrics() -> None:
    """And every metric of the table is in some query, with balanced brackets and no leftover placeholder."""
    dashboard = json.loads(monitoring.DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    names = {monitoring.metric_of(name) for query in queries for name in re.findall(r"vramblk_\w+", query)}
    assert names == {info.name for info in METRICS}
    for query in queries:
        assert (
            "{S" not in query
            and query.count("(") == query.count(")")
            and query.count("{") == query.count("}")
        )
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in monitoring.dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells


def test_a_query_with_an_unknown_metric_is_refused() -> None:
    for name in (
        "vramblk_nothing",
        "vramblk_requests",
        "vramblk_request_seconds",
        "vramblk_connections_bucket",
    ):
        with pytest.raises(ValueError, match=name):
            monitoring.metric_of(name)


def test_rules_name_existing_metrics_and_every_rule_is_tested() -> None:
    rules = yaml.safe_load((MONITORING / "vramblk.rules.yaml").read_text())["groups"][0]["rules"]
    for rule in rules:
        for name in re.findall(r"vramblk_\w+", rule["expr"]):
            monitoring.metric_of(name)
        assert {"summary", "description"} == set(rule["annotations"])
    cases = yaml.safe_load((MONITORING / "vramblk.rules.test.yaml").read_text())["tests"]
    fired = {each["alertname"] for case in cases for each in case["alert_rule_test"] if each["exp_alerts"]}
    quiet = {
        each["alertname"] for case in cases for each in case["alert_rule_test"] if not each["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in rules} and fired <= quiet


def test_compose_file_mounts_what_exists_and_pins_images() -> None:
    """Every mounted file is there, images have full versions, ports are on loopback."""
    compose = yaml.safe_load((MONITORING / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        if name != "exporter":
            assert re.search(r":v?\d+\.\d+\.\d+\}$", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or source.startswith("${") or (ROOT / source).exists(), volume


def test_the_scraper_asks_the_exporter() -> None:
    compose = yaml.safe_load((MONITORING / "compose.yaml").read_text())
    jobs = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"]
    (target,) = jobs[0]["static_configs"][0]["targets"]
    service, _, port = target.partition(":")
    assert compose["services"][service]["ports"][0].endswith(f":{port}")
    [names] = [text for text in compose["services"][service]["environment"] if "METRICS_HOST=" in text]
    assert service in names.partition("=")[2].split(","), "without a token it answers to configured names only"
    exporter = compose["services"]["exporter"]
    assert exporter["pull_policy"] == "never", "the image's name is free in registries"
    assert exporter["volumes"] == ["${VRAMBLK_RUN_DIR:-/run/vramblk}:/run/vramblk:ro"]


def test_with_a_token_prometheus_does_the_same_and_shows_it() -> None:
    plain, token = (
        yaml.safe_load((MONITORING / name).read_text()) for name in ("prometheus.yaml", "prometheus.token.yaml")
    )
    authorization = token["scrape_configs"][0].pop("authorization")
    assert authorization == {"credentials_file": "/run/secrets/metrics_token"}
    assert token == plain


def test_every_file_that_prometheus_is_to_read_is_mounted(tmp_path: Path) -> None:
    """With a token and without, as each Compose puts the files together."""
    (tmp_path / "token").write_text("s3cret\n")
    for command in _composes():
        for files, config in (
            (["compose.yaml"], "prometheus.yaml"),
            (["compose.yaml", "compose.token.yaml"], "prometheus.token.yaml"),
        ):
            services = _rendered(
                command, files, VRAMBLK_MONITORING_TOKEN_PATH=str(tmp_path / "token"), VRAMBLK_METRICS_TOKEN="other"
            )
            mounted = {target: source for source, target in _mounts(services["prometheus"])}
            assert mounted["/etc/prometheus/prometheus.yml"].endswith(f"/deploy/monitoring/{config}")
            text = (MONITORING / config).read_text()
            wanted = re.findall(r"^[^#]*?(/(?:etc|run)/\S+)", text, re.MULTILINE)
            assert wanted and set(wanted) <= set(mounted), config


def test_with_a_token_the_exporter_reads_the_file_and_nothing_else(tmp_path: Path) -> None:
    """An empty variable beside the file is none; the server's own two would be one token too many."""
    (tmp_path / "token").write_text("s3cret\n")
    for command in _composes():
        variables = {"VRAMBLK_METRICS_TOKEN": "other", "VRAMBLK_METRICS_TOKEN_FILE": "/run/secrets/mine"}
        exporter = _rendered(command, ["compose.yaml"], **variables)["exporter"]
        assert {name: exporter["environment"][name] for name in variables} == variables, "an error of the exporter"
        variables["VRAMBLK_MONITORING_TOKEN_PATH"] = str(tmp_path / "token")
        exporter = _rendered(command, ["compose.yaml", "compose.token.yaml"], **variables)["exporter"]
        path = exporter["environment"]["VRAMBLK_METRICS_TOKEN_FILE"]
        assert not exporter["environment"]["VRAMBLK_METRICS_TOKEN"]
        assert path == "/run/secrets/metrics_token" and path in {target for _, target in _mounts(exporter)}


def _mounts(service: dict[str, Any]) -> list[tuple[str, str]]:
    """Source and target of each, a secret's by its name."""
    mounts = []
    for each in service.get("volumes", []):
        source, target = each.split(":")[:2] if isinstance(each, str) else (each["source"], each["target"])
        mounts.append((source, target))
    for each in service.get("secrets", []):
        name = each if isinstance(each, str) else each["source"]
        mounts.append((name, f"/run/secrets/{name}"))
    return mounts


def _composes() -> list[list[str]]:
    commands = [each for each in (["docker", "compose"], ["docker-compose"]) if _works([*each, "version"])]
    return commands or pytest.skip("requires docker compose, or docker-compose")


def _rendered(command: list[str], files: list[str], **variables: str) -> dict[str, Any]:
    named = [part for name in files for part in ("-f", f"deploy/monitoring/{name}")]
    done = subprocess.run(
        [*command, "-p", "vramblk-monitoring", "--project-directory", ".", *named, "config"],
        cwd=ROOT, env=_environment() | {"COMPOSE_FILE": "compose.yaml:mine.yaml"} | variables,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return services


def test_no_command_for_monitoring_names_the_server() -> None:
    """With the server's file in a -f list Compose would make the server anew, without the host's own files."""
    files = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", MONITORING / "compose.yaml", *ROOT.glob("deploy/lib/*.sh")]
    lines = [line for path in files for line in re.sub(r"\\\n", " ", path.read_text()).splitlines()]
    commands = [line for line in lines if "-f deploy/monitoring" in line]
    assert len(commands) >= 2
    for command in commands:
        files = re.findall(r" -f (\S+)", command)
        assert " -p " in command and all(file.startswith("deploy/monitoring/") for file in files), command


def test_monitoring_is_a_project_without_the_server() -> None:
    """Whatever COMPOSE_FILE a host has, and whichever Compose, monitoring has services of its own only."""
    for command in _composes():
        assert set(_rendered(command, ["compose.yaml"])) == {"exporter", "prometheus", "grafana"}


def _environment() -> dict[str, str]:
    """With the plugins that the set-up of the container tests has unpacked, if it has."""
    plugins = ROOT / "build" / "docker-config"
    return dict(os.environ) | ({"DOCKER_CONFIG": str(plugins)} if plugins.exists() else {})


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, env=_environment(), timeout=60).returncode == 0
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


def test_completions_and_man_page_name_what_subcommands_take_besides() -> None:
    """Asked of the parsers: an argument that is added to one of them is not forgotten."""
    man = (ROOT / shellgen.MAN).read_text()
    for flag in ("--overwrite", "--seconds", "--profile", "--passes", "--health", "--list-devices"):
        assert flag in (ROOT / shellgen.BASH).read_text() and flag in (ROOT / shellgen.ZSH).read_text()
        assert f"-l {flag[2:]}" in (ROOT / shellgen.FISH).read_text()
        assert flag.replace("-", "\\-") in man
    assert ".B URI\n" in man and "(bench)" in man


@pytest.mark.skipif(not shutil.which("man"), reason="requires man")
@pytest.mark.parametrize("page", [shellgen.MAN, hostpages.MAN])
def test_man_page_breaks_no_names_and_says_nothing_twice(page: str) -> None:
    for width in ("60", "72", "80"):
        shown = subprocess.run(
            ["man", "-l", str(ROOT / page)], env=dict(os.environ) | {"MANWIDTH": width, "LC_ALL": "C.UTF-8"},
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
        assert not re.search("[-\N{HYPHEN}]$", shown, re.MULTILINE), width
    assert "May be repeated. May be" not in " ".join(shown.split())


def test_wheel_and_image_hold_them() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    assert {path for paths in data.values() for path in paths} == {
        shellgen.BASH, shellgen.ZSH, shellgen.FISH, shellgen.MAN,
    }  # fmt: skip
    assert all(path.rpartition("/")[0] == folder for folder, paths in data.items() for path in paths)
    assert "!share\n" in (ROOT / ".dockerignore").read_text()
    assert "COPY share /src/share\n" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["vramblk", "bench", "--ov"], {"--overwrite"}),
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
    """docs/reference/events.md lists exactly the events that the source can log."""
    found = {"events_suppressed"}
    for path in (ROOT / "vramblk").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                found |= set(_events(node))
    listed = set(re.findall(r"^\| `([a-z_]+)` \|", (ROOT / "docs" / "reference" / "events.md").read_text(), re.MULTILINE))
    assert found - listed == set(), "not in docs/reference/events.md"
    assert listed - found == set(), "in docs/reference/events.md only"


def _events(call: ast.Call) -> list[str]:
    function = call.func
    logs = isinstance(function, ast.IfExp) or (
        isinstance(function, ast.Attribute) and function.attr in _LEVELS
    )
    if not logs:
        return []
    values = [argument.value for argument in call.args[:2] if isinstance(argument, ast.Constant)]
    return [value for value in values[:1] if isinstance(value, str) and _EVENT.fullmatch(value)]


def test_the_guide_lists_every_alert_with_its_severity() -> None:
    text = (ROOT / "docs" / "guides" / "prometheus.md").read_text()
    listed = re.findall(r"^\| `(Vramblk\w+)` \| (\w+) \|", text, re.MULTILINE)
    groups = yaml.safe_load((MONITORING / "vramblk.rules.yaml").read_text())["groups"]
    assert listed == [(rule["alert"], rule["labels"]["severity"]) for group in groups for rule in group["rules"]]
