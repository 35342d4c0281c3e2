"""The safeguards that need no kernel to show: with one left out the tests of its promise fail, each time.

docs/design/swap-safety.md lists them; those that need a kernel under pressure are left out by tests/vm/matrix.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXECUTOR, PROOF = "tests/unit/test_executor.py", "tests/unit/test_proof_and_zeroing.py"

SHOWN = {
    "copy_first": (EXECUTOR, {"test_nothing_is_acknowledged_before_it_is_executed"}),
    "status_check": (
        EXECUTOR,
        {
            "test_an_error_hits_only_the_request_it_belongs_to",
            "test_a_lost_device_answers_everything_with_eio",
            "test_a_piece_of_a_large_read_that_fails_is_an_error_chunk",
            "test_a_failed_piece_of_a_large_write_fails_the_write",
        },
    ),
    "one_by_one": (EXECUTOR, {"test_an_error_hits_only_the_request_it_belongs_to"}),
    "proof": (PROOF, {"test_memory_with_a_stuck_bit_never_becomes_ready"}),
    "zeroing": (
        PROOF,
        {
            "test_memory_with_a_stuck_bit_never_becomes_ready",
            "test_memory_is_zero_before_it_is_used",
            "test_memory_is_zero_after_a_clean_exit",
        },
    ),
}


@pytest.mark.parametrize("name", SHOWN)
def test_without_it_the_promise_is_broken(name: str) -> None:
    """Exactly the tests that speak of it fail, so the rest of the file was run and is sound."""
    path, expected = SHOWN[name]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.without", "--without", name, path],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert result.returncode == 1, result.stdout + result.stderr
    failed = set(re.findall(r"^FAILED \S+::(\w+)", result.stdout, re.M))
    assert failed == expected, result.stdout
