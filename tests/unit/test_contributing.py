"""The workflows call the commands of the repository, and grant little."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in load(workflow)["jobs"].values() for step in job.get("steps", ())]


def test_ci_calls_the_script_of_the_repository() -> None:
    (script,) = [step["run"] for step in steps(ROOT / ".github/workflows/ci.yml") if "run" in step]
    assert re.search(r"^\s*\.ci/run$", script, re.MULTILINE)


def test_a_release_builds_with_the_commands_of_releasing() -> None:
    workflow = ROOT / ".github/workflows/release.yml"
    jobs, text = load(workflow)["jobs"], (ROOT / "RELEASING.md").read_text()
    assert jobs["tests"]["uses"] == "./.github/workflows/ci.yml"
    assert "tests" in jobs["image"]["needs"] and jobs["publish"]["needs"] == "image"
    scripts = "\n".join(step["run"] for step in steps(workflow) if "run" in step)
    for command in ("tools.release", "make dist", "docker buildx build", "docker buildx imagetools inspect", "--sbom=true"):
        assert command in scripts and command in text, command
    for argument in re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE):
        assert argument == "RUNTIMES" or f"--build-arg {argument}=" in scripts, argument


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_pin_actions_and_grant_little(workflow: Path) -> None:
    """A tag of an action can be moved to other code; a commit cannot."""
    used = re.findall(r"uses: (\S+)(.*)", workflow.read_text())
    assert used
    for action, comment in used:
        assert action.startswith("./") or (re.search(r"@[0-9a-f]{40}$", action) and re.match(r" # v\d+\.", comment)), action
    assert load(workflow)["permissions"] == {}
    assert "has never run" in workflow.read_text().partition("name:")[0]
