"""The check of a release's tag, and the text of its page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.release import changes
from vramblk import __version__

ROOT = Path(__file__).resolve().parents[2]
SECTION = "## Unreleased\n\n## 1.2.0 - 2026-12-01\n\n### Added\n- A thing.\n\n## 1.1.0 - 2026-11-01\n\n- Another.\n"


def test_the_text_of_a_release_is_its_section() -> None:
    assert changes("v1.2.0", "1.2.0", SECTION) == "### Added\n- A thing."


@pytest.mark.parametrize(
    ("tag", "changelog", "message"),
    [
        ("v1.2.1", SECTION, "whose tag is v1.2.0"),
        ("1.2.0", SECTION, "whose tag is v1.2.0"),
        ("v1.2.0", "## Unreleased\n- A thing.\n", "add a heading"),
        ("v1.2.0", SECTION.replace("1.2.0", "1x2.0"), "add a heading"),
        ("v1.2.0", SECTION.replace("2026-12-01", "soon"), "soon is no date"),
        ("v1.2.0", "## 1.2.0 - 2026-12-01\n\n## 1.1.0 - 2026-11-01\n- A thing.\n", "is empty"),
    ],
)
def test_a_tag_that_does_not_fit_is_refused(tag: str, changelog: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changes(tag, "1.2.0", changelog)


def test_a_wrong_tag_ends_with_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.release", "v0.0.0"], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == f"tag v0.0.0: vramblk/__init__.py has version {__version__}, whose tag is v{__version__}\n"
