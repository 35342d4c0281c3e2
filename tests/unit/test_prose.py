"""The linter for prose finds what it should, leaves code and quotations alone, and finds nothing in this repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import prose

LONG = " ".join(["word"] * (prose.MOST_WORDS + 1)) + "."


def found(name: str, text: str) -> list[str]:
    read = prose.python if name.endswith(".py") else prose.markdown
    return [finding for each in read(name, text) for finding in prose.findings(each)]


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("# A page\n\nThe server says so.\n", 3),
        ("Fine.\n\n- `vramblk check` tells more\n", 3),
        ("| a | the log said it |\n", 1),
        ("a crew of\nworkers\n", 1),
        ("one that fails for want\nof memory\n", 1),
        ("it Settled\n", 1),
        (f"Short. {LONG}\n", 1),
        (f"1. {LONG}\n", 1),
    ],
)
def test_findings_name_file_and_line(text: str, at: int) -> None:
    (finding,) = found("page.md", text)
    assert finding.startswith(f"page.md:{at}: ")


@pytest.mark.parametrize(
    "text",
    [
        "The server reports it. A person says so.\n",
        "    vramblk tells nothing of the crew\n",
        "```\nthe server says\n```\n",
        "> … of the crew\n",
        "`the server says` is quoted\n",
        f"{LONG[: len(LONG) // 2].strip()}. W{LONG[len(LONG) // 2 + 1 :]}\n",
        "| " + " | ".join(["word"] * 60) + " |\n",
        "- word\n" * 60,
    ],
)
def test_code_quotations_and_short_sentences_are_left_alone(text: str) -> None:
    assert found("page.md", text) == []


def test_of_python_comments_and_docstrings_are_checked_by_the_words_only() -> None:
    source = f'"""The engine says no."""\n# a crew\ncrew = "the server says"  # {LONG}\n'
    assert [finding.split(": ")[:2] for finding in found("a.py", source)] == [["a.py:2", "crew"], ["a.py:1", "engine says"]]


def test_the_glossary_has_one_line_for_each_term_in_order() -> None:
    rows = [line.split(" | ")[0] for line in prose.GLOSSARY.read_text().splitlines() if line.startswith("| ")][2:]
    assert rows == sorted(set(rows))
    for word in ("bell", "crew", "geometry", "figures", "physician", "mad", "obstacle", "settles", "retired"):
        assert prose.refused_words().fullmatch(word), word


def test_nothing_is_found_here_and_the_exit_status_says_what_was(tmp_path: Path) -> None:
    def run(*files: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tools.prose", *files], cwd=prose.ROOT, env=dict(os.environ),
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    done = run()
    assert (done.returncode, done.stdout) == (0, "")
    (tmp_path / "bad.md").write_text("The server wants it.\n")
    done = run(str(tmp_path / "bad.md"))
    assert done.returncode == 1 and done.stdout.startswith(f"{tmp_path}/bad.md:1: server wants:")
