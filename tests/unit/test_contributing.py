"""CONTRIBUTING, workflows, hooks and templates name what exists, and leave nothing out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.run import GROUPS

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = [ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml" for name in ("bug", "feature", "question")]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def recipe(target: str) -> str:
    """The commands of a target of the Makefile."""
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found, target
    return found[1].replace("\\\n", " ")


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in load(workflow)["jobs"].values() for step in job.get("steps", ())]


# ------------------------------------------------------------------------------- CONTRIBUTING.md


def test_contributing_names_every_group_of_tests_with_minutes() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (?:\d+ to )?(\d+)(?: at most)? \| (yes|no|a part)\b.*\|$",
                      (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)  # fmt: skip
    assert [name for name, _, _ in rows] == [group.name for group in GROUPS]
    for group, (_, minutes, part) in zip(GROUPS, rows, strict=True):
        assert int(minutes) * 60 <= group.total_timeout_s, group.name
        assert int(minutes) == group.minutes, group.name
        assert (part == "no") is group.by_name_only, group.name


# ------------------------------------------------------------------------------- hooks


def test_hooks_run_every_command_of_make_lint() -> None:
    """Shell scripts apart: the recipe has a list of files there, which the next test compares."""
    (repo,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local", "a hook of another repository would be downloaded"
    entries = [hook["entry"] for hook in repo["hooks"]]
    commands = re.findall(r"^\t\$\(BIN\)/(.+)$", recipe("lint"), re.MULTILINE)
    assert len(commands) >= 6
    assert entries == [*(f".venv/bin/{command}" for command in commands), "shellcheck -x"]


def test_the_shell_hook_takes_the_scripts_of_make_lint() -> None:
    hooks = load(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    (pattern,) = [hook["files"] for hook in hooks if "files" in hook]
    listed = re.search(r"'\*\.sh'\)\s+(.+?);", recipe("lint"))
    assert listed
    named = listed[1].split()
    assert ".ci/run" in named
    made = {".git", ".venv", "build", "dist"}
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name not in made]
    files = [path for folder in folders for path in folder.rglob("*")] + list(ROOT.iterdir())
    names = {path.relative_to(ROOT).as_posix() for path in files if path.is_file()}
    assert {name for name in names if re.search(pattern, name)} == {
        *named, *(name for name in names if name.endswith(".sh")),
    }  # fmt: skip


# ------------------------------------------------------------------------------- workflows


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


# ------------------------------------------------------------------------------- templates


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_issue_forms_ask_for_check(form: Path) -> None:
    asked = [field["attributes"]["label"] for field in load(form)["body"] if "label" in field["attributes"]]
    assert any("`vramblk check --json`" in label for label in asked)


def test_the_other_templates_are_complete() -> None:
    assert "`vramblk check --json`" in (ROOT / ".github/PULL_REQUEST_TEMPLATE.md").read_text()
    names = {path.stem for path in (ROOT / ".github/ISSUE_TEMPLATE").iterdir()}
    assert names == {"config", *(form.stem for form in FORMS)}
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert all(f'"{load(form)["name"]}"' in contributing for form in FORMS)
