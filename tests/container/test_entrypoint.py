"""entrypoint.sh alone. Needs a POSIX shell; no Docker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .docker import REPOSITORY

STAND_IN = f"""#!{sys.executable}
import json, os, sys
print(json.dumps({{"arguments": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid()}}))
sys.exit(78)
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which vramblk tells what it is given and fails."""
    program = tmp_path / "vramblk"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def test_the_server_takes_its_place_and_gets_all_as_it_is(path: str) -> None:
    arguments = ["devices", "--json", "two words", "", "*", "$HOME", "-e", "a'b\"c"]
    environment = {"PATH": path, "VRAMBLK_SIZE_FILE": "/run/secrets/size", "VRAMBLK_EXPORT_NAME": "one\ntwo"}
    process = subprocess.Popen(
        [REPOSITORY / "entrypoint.sh", *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )
    seen = json.loads(process.communicate(timeout=10)[0])
    assert seen["arguments"] == arguments
    assert environment.items() <= seen["environment"].items()
    assert (seen["pid"], process.returncode) == (process.pid, 78)


def test_a_server_that_is_missing_is_an_error() -> None:
    done = subprocess.run(
        [REPOSITORY / "entrypoint.sh"], env={"PATH": "/usr/bin:/bin"}, capture_output=True, timeout=10
    )
    assert done.returncode == 127
