"""Whatever befalls clients, workers and device calls: no block ever holds what it may not.

A short form of ``python -m tests.soak``; the controls show that it finds faults of every kind.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from .harness import REPOSITORY, clean_environment

SEED = "11"


def soak(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.soak", "--seed", SEED, *arguments],
        cwd=REPOSITORY, env=clean_environment(), capture_output=True, text=True, timeout=150,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("memory", "verify_reads", "workers"),
    (
        ("pocl", "off", "3"), ("pocl", "on", "3"), ("map", "off", "3"), ("map", "on", "3"),
        ("pocl", "off", "auto"), ("map", "off", "auto"),
    ),
)  # fmt: skip
def test_no_block_holds_what_it_may_not(memory: str, verify_reads: str, workers: str) -> None:
    """Ten seconds of everything at once, then every block is read and compared, and the server ends cleanly."""
    arguments = ("--memory", memory, "--verify-reads", verify_reads, "--workers", workers)
    result = soak("--seconds", "10", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    counts = {
        name: int(number) for number, name in re.findall(r"(\d+) (\w[\w ]*)", result.stdout.splitlines()[-1])
    }
    assert counts["mismatches"] == 0
    for name in ("requests", "deaths", "stops", "stalls", *(["moves"] if workers == "auto" else [])):
        assert counts[name] > 0


@pytest.mark.parametrize(
    ("plant", "memory"),
    (
        ("lose", "pocl"),
        ("lose", "map"),
        ("late", "pocl"),
        ("late", "map"),
        ("blind", "pocl"),
        ("blind", "map"),
        ("stale", "map"),
        ("torn", "map"),
    ),
)
def test_a_fault_on_purpose_is_found(plant: str, memory: str) -> None:
    """The control: a wrong value is reported with its history. A reply that the engine did not lay breaks the protocol."""
    arguments = ("--plant", plant, "--memory", memory, "--verify-reads", "off", "--only", "failures,death")
    result = soak("--seconds", "30", *arguments)
    assert result.returncode == 1, result.stdout + result.stderr
    if plant in ("stale", "torn"):
        assert re.search(r"^MISMATCH: unit \d+ .*\n(.*\n)*  operation \d+ write ", result.stdout, re.M)
    else:
        assert re.search(r"^(MISMATCH: unit \d+|FAILED: client \d) ", result.stdout, re.M)
    assert f"seed: {SEED}" in result.stdout
