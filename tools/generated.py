"""Files of the repository that are made from tables in the code, and the check that they are up to date."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path


def main(command: str, arguments: list[str], make: Callable[[], Mapping[Path, str]]) -> int:
    """Write the files that differ, or with ``--check`` only name them; gives the exit status.

    Args:
        command: what makes the files, as it is typed.
        make: gives each file's path and whole text.
    """
    if arguments not in ([], ["--check"]):
        print(f"usage: {command} [--check]", file=sys.stderr)
        return 2
    made = make()
    stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if arguments:
            print(f"{path} is not up to date: run {command}", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made[path])
            print(f"wrote {path}")
    return 1 if arguments and stale else 0


def roff(text: str) -> str:
    """Text for a man page, with what roff would take for its own escaped."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped.startswith((".", "'")) else escaped
