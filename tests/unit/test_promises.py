"""The table of promises in docs/design/swap-safety.md.

In each row is a test that names the promise; safeguards that can be left out have their result.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import without
from tests.qemu import test_container_swap
from tests.vm import rig, test_swap

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "design" / "swap-safety.md").read_text()
ROWS = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE, re.M)
RUN_IN_GUESTS = {*test_swap.CASES, *test_swap.SLICED, *test_swap.MIRROR_CASES, "fill.sh", "mirror.sh"}
#: The source of each test of the host script, by its name.
OF_THE_HOST = {
    name: text
    for file in sorted((ROOT / "tests" / "unit" / "host").glob("test_*.py"))
    for text, name in re.findall(r"^(def (test_\w+)\(.*?)(?=^\S|\Z)", file.read_text(), re.M | re.S)
}


def named(text: str) -> set[int]:
    """The promises that a test says it is of: "promise 3", "Promises 1, 2 and 6"."""
    lists = re.findall(r"\bpromises? (\d+(?:(?:, | and )\d+)*)", text, re.I)
    return {int(number) for numbers in lists for number in re.findall(r"\d+", numbers)}


def test_there_are_twenty_two() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, 23))


@pytest.mark.parametrize(("number", "tests"), [(int(row[0]), row[2]) for row in ROWS])
def test_each_row_has_a_test_that_names_it(number: int, tests: str) -> None:
    """Cases that are run, files and functions that are there; one of them at least says which promise it shows."""
    cases = re.findall(r"\bvm/(\w+\.sh)", tests)
    assert set(cases) <= RUN_IN_GUESTS
    machines = re.findall(r"\bqemu/(\w+)", tests)
    assert set(machines) <= set(test_container_swap.CASES)
    functions = re.findall(r"`(test_\w+)`", tests)
    assert set(functions) <= set(OF_THE_HOST)
    paths = [ROOT / name for name in re.findall(r"\btests/[\w/.]+", tests)]
    paths += [ROOT / "tests" / "vm" / "guest" / "cases" / name for name in cases]
    paths += [ROOT / "tests" / "qemu" / "guest" / "cases" / f"{name}.sh" for name in machines]
    files = [file for path in paths for file in (sorted(path.glob("*.py")) if path.is_dir() else [path])]
    texts = [file.read_text() for file in files] + [OF_THE_HOST[name] for name in functions]
    assert any(number in named(text) for text in texts), f"promise {number} is named by none of its tests: {tests}"


def test_each_safeguard_is_on_the_page() -> None:
    """What tests can leave out is told, with what came of it."""
    told = {name for names in re.findall(r"`([\w,]+)`", PAGE) for name in names.split(",")}
    assert without.NAMES - {"nothing"} - told == set()


@pytest.mark.parametrize(("number", "outcome"), [(row[0], row[3]) for row in ROWS])
def test_each_row_tells_the_outcome_without_it(number: str, outcome: str) -> None:
    """Of a safeguard that can be left out, or plainly that there is none."""
    names = {name for names in re.findall(r"`([\w,]+)`", outcome) for name in names.split(",")}
    assert names <= without.NAMES
    assert names or outcome == "none of its own", f"promise {number}: {outcome}"


def test_the_guests_ram_is_said() -> None:
    """As small as the server allows; vm/fill.sh keeps the server's part of it from growing."""
    assert f"{rig.RAM_MIB} MiB of RAM" in PAGE
