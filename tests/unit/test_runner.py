"""The test runner itself: its table, its closing line and its exit status, on a small tree of tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

PYTEST_INI = "[pytest]\naddopts = --strict-markers\nmarkers =\n unit:\n container:\n gpu:\n wire:\n vm:\n needs_sys_resource:\n"
MIXED = "import pytest\ndef test_good(): pass\n@pytest.mark.skip(reason='no frobnicator')\ndef test_skipped(): pass\n"
CONTAINER = (
    "import pytest\ndef test_good(): pass\n@pytest.mark.needs_sys_resource\ndef test_priv(): pytest.skip('not granted')\n"
)


def run(tree: Path, *groups: str, require: str = "") -> tuple[int, list[str]]:
    environment = {**os.environ, "VRAMBLK_TEST_REQUIRE": require}
    done = subprocess.run(
        [sys.executable, str(tree / "tests" / "run.py"), *groups],
        capture_output=True, text=True, env=environment, timeout=100,
    )  # fmt: skip
    return done.returncode, done.stdout.splitlines()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tmp_path / "pytest.ini").write_text(PYTEST_INI)
    for name in ("run.py", "conftest.py"):
        shutil.copy(TESTS / name, tests)
    for name, text in (("unit", MIXED), ("container", CONTAINER), ("gpu", MIXED)):
        (tests / name).mkdir()
        (tests / name / f"test_{name}.py").write_text(text)
    (tests / "setup.sh").write_text('#!/bin/sh\necho "set up: $*"\nexit 1\n')
    (tests / "setup.sh").chmod(0o755)
    return tmp_path


def row(lines: list[str], group: str) -> list[str]:
    (found,) = [line for line in lines if line.split()[:1] == [group] and len(line.split()) > 4]
    return found.split()


def test_minutes_are_printed_before_the_first_group(tree: Path) -> None:
    """All that will run, group by group, and the sum; the gpu group takes none without a GPU."""
    lines = run(tree, "unit", "container", "gpu")[1]
    assert lines[0] == "about 34 minutes on two cores:"
    assert [line.split()[:2] for line in lines[1:4]] == [["unit", "9"], ["container", "25"], ["gpu", "30"]]
    assert lines[4] == "== unit"


def test_skips_are_listed_with_their_reasons(tree: Path) -> None:
    """A skip is no failure by itself; the table says why, and groups without tests say so."""
    status, lines = run(tree)
    assert status == 0
    assert lines[-1] == "3 passed, 0 failed, 3 skipped"
    assert row(lines, "unit")[1:4] == ["1", "0", "1"]
    assert "no frobnicator" in " ".join(row(lines, "unit"))
    assert row(lines, "wire")[-2:] == ["no", "tests"]


def test_required_groups_may_not_skip(tree: Path) -> None:
    """With VRAMBLK_TEST_REQUIRE=all a skip fails, but not in gpu nor where CAP_SYS_RESOURCE is needed."""
    status, lines = run(tree, require="all")
    assert status == 1
    assert lines[-1] == "3 passed, 1 failed, 2 skipped"
    assert row(lines, "unit")[1:4] == ["1", "1", "1"]
    assert "needs CAP_SYS_RESOURCE (test_priv): not granted" in " ".join(row(lines, "container"))
    assert run(tree, "gpu", "container", require="all")[0] == 0


def test_failures_and_broken_files_fail(tree: Path) -> None:
    """A failed test, a file that cannot be imported and a directory without tests are told apart."""
    (tree / "tests" / "unit" / "test_bad.py").write_text("def test_bad(): assert False\n")
    (tree / "tests" / "gpu" / "test_gpu.py").write_text("import no_such_module\n")
    (tree / "tests" / "container" / "test_container.py").write_text("")
    status, lines = run(tree)
    assert status == 1
    assert lines[-1] == "1 passed, 2 failed, 1 skipped"
    assert row(lines, "container")[-2:] == ["no", "tests"]


def test_a_group_is_set_up_when_it_runs(tree: Path) -> None:
    """Only the groups that run, each right before its own tests; what it lacks then, its tests skip."""
    (tree / "tests" / "qemu").mkdir()
    (tree / "tests" / "qemu" / "test_qemu.py").write_text(MIXED)

    def order(lines: list[str]) -> list[str]:
        return [line for line in lines if line.startswith(("==", "set up:")) and not line.endswith("==")]

    every = ["== unit", "set up: unit", "== wire", "== page", "== oclgrind"]
    every += ["== container", "set up: container", "== vm", "== gpu"]
    assert order(run(tree)[1]) == [*every, "set up: gpu"]
    status, lines = run(tree, "gpu")
    assert (status, order(lines)) == (0, ["== gpu", "set up: gpu"])


def test_unknown_group_is_refused(tree: Path) -> None:
    """A group that does not exist, or a requirement that is not known, ends with status 2."""
    assert run(tree, "nonsense")[0] == 2
    assert run(tree, require="some")[0] == 2
