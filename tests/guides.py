"""Commands and files of a page in docs/, for the tests that run them as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def section(page: str, heading: str) -> str:
    """The text below a heading of any level, up to the next heading of that level or above."""
    text = (ROOT / page).read_text()
    found = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert found, f"{page} has no heading {heading!r}"
    rest = text[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def commands(page: str, heading: str) -> list[str]:
    """The lines of the indented blocks of a section, each with its continued lines."""
    lines = re.findall(r"^    (.*)$", section(page, heading), re.MULTILINE)
    return re.sub(r"\\\n\s*", "", "\n".join(lines)).split("\n")


def files(page: str, heading: str, kind: str) -> list[str]:
    """The fenced blocks of a section that are marked as ``kind``, such as yaml."""
    return re.findall(rf"^```{kind}\n(.*?)^```", section(page, heading), re.MULTILINE | re.DOTALL)
