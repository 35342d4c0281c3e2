"""A test that leaves descriptors open fails; the fixture ``descriptors`` sees to that for each."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import os, socket
from tests.unit.windows import Windows

KEPT = []

def test_keeps_a_pipe():
    os.pipe()

def test_keeps_windows():
    KEPT.append(Windows(1))

def test_drops_windows_in_a_cycle():
    windows = Windows(1)
    windows.itself = windows

def test_closes_its_socket():
    with socket.socket():
        pass
"""


def test_descriptors_left_open_are_an_error(tmp_path: Path) -> None:
    """Of the test that has opened them, and no other; what a collection closes is not left open."""
    path = tmp_path / "test_leaks.py"
    path.write_text(TESTS)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.unit.conftest", "-p", "no:cacheprovider", str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert result.returncode == 1, result.stdout + result.stderr
    assert "4 passed, 2 errors" in result.stdout
    failed = re.findall(r"^ERROR \S+::(\w+)", result.stdout, re.M)
    assert failed == ["test_keeps_a_pipe", "test_keeps_windows"], result.stdout
    assert "2 descriptors more than before are open: {'pipe:" in result.stdout
