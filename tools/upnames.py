"""The names and defaults of the variables that `make up` reads, from the calls in deploy/.

``python -m tools.shellgen`` writes them.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tools.variables import FOREIGN_VARIABLES
from vramblk.config.options import OPTIONS

NAMES = "deploy/lib/names.sh"

#: Variables that neither the server nor this project defines.
_OTHERS = ("COMPOSE_FILE", "COMPOSE_PROJECT_NAME", "RUSTICL_ENABLE")
_CALL = re.compile(r"\b(given|setting|remember) ([A-Z_]+)")


def names(root: Path) -> str:
    """The text of names.sh, from the scripts below ``root``."""
    scripts = [root / "deploy" / "up.sh", *sorted((root / "deploy" / "lib").glob("*.sh"))]
    return render(calls("\n".join(path.read_text() for path in scripts)))


def calls(text: str) -> dict[str, bool]:
    """Each name that a script looks up, and whether it asks for the default."""
    found: dict[str, bool] = {}
    for line in text.splitlines():
        if not line.lstrip().startswith("#"):
            for function, name in _CALL.findall(line):
                found[name] = found.get(name, False) or function == "setting"
    return found


def render(found: dict[str, bool]) -> str:
    """A shell function that prints NAME or NAME=DEFAULT for each name.

    Raises:
        ValueError: a name is in no table, or its default is asked for and it has none.
    """
    defaults = {option.environment: option.default or "" for option in OPTIONS}
    defaults |= {option.file_variable: "" for option in OPTIONS if not option.path}
    defaults |= {variable.name: variable.default for variable in FOREIGN_VARIABLES}
    defaults |= dict.fromkeys(_OTHERS, "")
    lines = [_HEAD]
    for name, asks in sorted(found.items()):
        if name not in defaults:
            raise ValueError(f"deploy/ reads {name}, which is in no table; add it to tools/variables.py")
        if asks and not defaults[name]:
            raise ValueError(f"deploy/ reads the default of {name}, which has none; type given, not setting")
        lines.append(shlex.quote(f"{name}={defaults[name]}") if asks else name)
    return " \\\n        ".join(lines) + "\n}\n"


_HEAD = """\
# shellcheck shell=sh
# Made by python -m tools.shellgen from the calls of `given`, `setting` and `remember` in deploy/.

# Prints the name of each variable that is looked up, with its default if that is looked up too.
known_settings() {
    printf '%s\\n'"""
