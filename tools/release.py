"""Check that a tag fits the version and the changelog, and print the version's changes, for the release page.

    python -m tools.release v0.1.0

The tag must be ``v`` and ``vramblk.__version__``, and CHANGELOG.md must have a heading of the form
``## 0.1.0 - 2026-12-01`` for it. Otherwise: exit status 1 and one line on standard error. Without a tag: 2.
"""

from __future__ import annotations

import re
import sys
from datetime import date
from pathlib import Path

from vramblk import __version__

CHANGELOG = Path(__file__).resolve().parents[1] / "CHANGELOG.md"


def changes(tag: str, version: str, changelog: str) -> str:
    """The changelog's section of this version, without its heading.

    Raises:
        ValueError: the tag is not the version's, or the section is missing, empty or without a date.
    """
    if tag != f"v{version}":
        raise ValueError(f"tag {tag}: vramblk/__init__.py has version {version}, whose tag is v{version}")
    found = re.search(
        rf"^## {re.escape(version)} - (\S+)\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL
    )
    if not found:
        raise ValueError(f"CHANGELOG.md: add a heading '## {version} - YYYY-MM-DD' below '## Unreleased'")
    try:
        date.fromisoformat(found[1])
    except ValueError:
        raise ValueError(f"CHANGELOG.md: {found[1]} is no date; write YYYY-MM-DD") from None
    if not (text := found[2].strip()):
        raise ValueError(f"CHANGELOG.md: the section of {version} is empty; move the changes there")
    return text


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m tools.release TAG", file=sys.stderr)
        return 2
    try:
        print(changes(arguments[0], __version__, CHANGELOG.read_text()))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
