"""The table of promises in docs/swap.md: a test that exists in each row, and safeguards that can be left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import without
from tests.qemu import test_container_swap
from tests.vm import rig, test_swap

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "swap.md").read_text()
ROWS = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE, re.M)
RUN_IN_GUESTS = {*test_swap.CASES, "fill.sh"}


def test_there_are_twenty() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, 21))


@pytest.mark.parametrize(("number", "tests"), [(row[0], row[2]) for row in ROWS])
def test_each_row_has_a_test(number: str, tests: str) -> None:
    """Cases that are run, files and functions that are there."""
    cases = re.findall(r"\bvm/(\w+\.sh)", tests)
    assert set(cases) <= RUN_IN_GUESTS
    assert set(re.findall(r"\bqemu/(\w+)", tests)) <= set(test_container_swap.CASES)
    files = re.findall(r"\btests/[\w/.]+", tests)
    assert all((ROOT / file).exists() for file in files)
    hosts = re.findall(r"`(test_\w+)`", tests)
    script = "".join(path.read_text() for path in (ROOT / "tests" / "unit" / "host").glob("test_*.py"))
    assert all(f"def {name}(" in script for name in hosts)
    assert cases or files or hosts, f"promise {number} has no test"


@pytest.mark.parametrize(("number", "outcome"), [(row[0], row[3]) for row in ROWS])
def test_each_row_tells_the_outcome_without_it(number: str, outcome: str) -> None:
    """Of a safeguard that can be left out, or plainly that there is none."""
    names = {name for names in re.findall(r"`([\w,]+)`", outcome) for name in names.split(",")}
    assert names <= without.NAMES
    assert names or outcome == "none of its own", f"promise {number}: {outcome}"


def test_the_guests_ram_is_said() -> None:
    """As small as the server allows; vm/fill.sh keeps the server's part of it from growing."""
    assert f"{rig.RAM_MIB} MiB of RAM" in PAGE
