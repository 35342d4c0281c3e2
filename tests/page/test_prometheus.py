"""Figures in a real Prometheus, against what fio says it did. Requires prometheus (with promtool) and fio."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import guides
from tests.wire.harness import REPOSITORY, Server, eventually, free_port, requires

pytestmark = requires("prometheus", "promtool", "fio")
RULES = REPOSITORY / "deploy" / "monitoring"


class Prometheus:
    """Scrapes one address every second, as the file for a server with a token says, with the rules of the project."""

    def __init__(self, directory: Path, target: int, token: str) -> None:
        directory.mkdir()
        port = free_port()
        (directory / "token").write_text(f"{token}\n")
        config = yaml.safe_load((RULES / "prometheus.token.yaml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(RULES / "vramblk.rules.yaml")]
        (job,) = config["scrape_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{target}"]}]
        job["authorization"]["credentials_file"] = str(directory / "token")
        (directory / "prometheus.yml").write_text(json.dumps(config))
        self._url = f"http://127.0.0.1:{port}/api/v1/"
        self._log = (directory / "log").open("w")
        self._process = subprocess.Popen(
            ["prometheus", f"--config.file={directory / 'prometheus.yml'}", f"--storage.tsdb.path={directory / 'data'}",
             f"--web.listen-address=127.0.0.1:{port}"],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip

    def query(self, expression: str) -> float | None:
        """The value of an expression with one sample, None without one."""
        try:
            found = self._get("query?" + urllib.parse.urlencode({"query": expression}))["result"]
        except OSError:
            return None
        return float(found[0]["value"][1]) if found else None

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self._url + path, timeout=10) as answer:
            return json.load(answer)["data"]

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Prometheus]]:
    directory = tmp_path_factory.mktemp("watched")
    port = free_port()
    arguments = ("--metrics-addr", f"127.0.0.1:{port}", "--metrics-token", "s3cret", "--workers", "2")
    with Server(directory / "server", *arguments) as server:
        prometheus = Prometheus(directory / "prometheus", port, "s3cret")
        try:
            eventually(lambda: prometheus.query("up") == 1, 40, 0.5)
            yield server, prometheus
        finally:
            prometheus.close()


def test_counters_equal_what_fio_did(watched: tuple[Server, Prometheus], tmp_path: Path) -> None:
    """Requests and bytes by operation grow in Prometheus by exactly what fio counts, at two connections."""
    server, prometheus = watched
    names = {
        (metric, op): f'vramblk_{metric}_total{{export="vram",op="{op}"}}'
        for metric in ("requests", "bytes")
        for op in ("read", "write")
    }
    before = {key: prometheus.query(name) or 0 for key, name in names.items()}
    done = subprocess.run(
        ["fio", "--name=known", "--ioengine=nbd", f"--uri={server.unix_uri('vram')}", "--rw=randrw", "--rwmixread=60",
         "--bssplit=512/20:4k/60:64k/20", "--size=32M", "--iodepth=16", "--numjobs=2", "--group_reporting",
         "--output-format=json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    wanted = {
        (metric, op): job[op][field]
        for metric, field in (("requests", "total_ios"), ("bytes", "io_bytes"))
        for op in ("read", "write")
    }
    assert all(wanted.values()) and job["error"] == 0

    def grown() -> dict[tuple[str, str], float]:
        return {key: (prometheus.query(name) or 0) - before[key] for key, name in names.items()}

    eventually(lambda: grown() == wanted, 15, 0.5)
    count = prometheus.query('vramblk_request_seconds_count{op="read"}')
    assert count == prometheus.query(names["requests", "read"])


def test_promtool_finds_nothing_to_say(watched: tuple[Server, Prometheus]) -> None:
    """promtool check metrics accepts the exposition without a remark."""
    body = watched[0].get("/metrics")[1]
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=body, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_rules_load_and_are_quiet_on_a_healthy_server(watched: tuple[Server, Prometheus]) -> None:
    """Prometheus evaluates every rule without an error, and none fires."""
    prometheus = watched[1]
    eventually(lambda: all(rule["health"] == "ok" for rule in prometheus.rules()), 20, 0.5)
    assert len(prometheus.rules()) >= 6
    assert not [rule["name"] for rule in prometheus.rules() if rule.get("state") == "firing"]


def test_rules_by_promtool() -> None:
    """The rules do what their unit tests say."""
    for arguments in (("check", "rules", "vramblk.rules.yaml"), ("test", "rules", "vramblk.rules.test.yaml")):
        done = subprocess.run(["promtool", *arguments], cwd=RULES, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("heading", ["A Prometheus of your own", "A server in swap mode", "With a token"])
def test_configurations_of_the_guide_by_promtool(heading: str, tmp_path: Path) -> None:
    """The rules lie next to the file, as the guide demands; the token's path is one that exists here."""
    (text,) = guides.files("docs/guides/prometheus.md", heading, "yaml")
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus/vramblk-token", str(tmp_path / "token")))
    shutil.copy(RULES / "vramblk.rules.yaml", tmp_path)
    done = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [job["job_name"] for job in yaml.safe_load(text)["scrape_configs"]] == ["vramblk"], "the alerts require it"
