"""entrypoint.sh alone. Needs a POSIX shell and awk; no Docker."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from .docker import REPOSITORY

STAND_IN = """#!/usr/bin/env python3
import json, os, sys
print(json.dumps({"arguments": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid()}))
"""


@pytest.fixture
def start(tmp_path: Path):
    program = tmp_path / "vramblk"
    program.write_text(STAND_IN)
    program.chmod(0o755)

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
        return subprocess.run(
            [REPOSITORY / "entrypoint.sh", *arguments], env=env, capture_output=True, text=True, timeout=10
        )

    return run


def test_passes_arguments_through_unchanged(start):
    arguments = ["devices", "--json", "two words", "", "*", "$HOME", "-e", "a'b\"c"]
    assert json.loads(start(*arguments).stdout)["arguments"] == arguments


def test_gives_way_to_the_server(start):
    process = subprocess.Popen(
        [REPOSITORY / "entrypoint.sh"], env={"PATH": os.environ["PATH"]}, stderr=subprocess.DEVNULL
    )
    process.wait(10)
    assert process.returncode == 127, "exec of a missing program must not be survived by the shell"
    assert json.loads(start().stdout)["pid"] > 0


def test_reads_a_value_from_a_file(start, tmp_path):
    (tmp_path / "size").write_text("64M\n")
    seen = json.loads(start(VRAMBLK_SIZE_FILE=str(tmp_path / "size")).stdout)["environment"]
    assert seen["VRAMBLK_SIZE"] == "64M"
    assert "VRAMBLK_SIZE_FILE" not in seen


def test_reads_several_files_and_keeps_odd_characters(start, tmp_path):
    odd = "a b $(touch x) `id` \\n 'quoted' \"double\" é"
    (tmp_path / "name with space").write_text(odd)
    (tmp_path / "token").write_text("secret")
    files = {"EXPORT_NAME": tmp_path / "name with space", "METRICS_TOKEN": tmp_path / "token"}
    done = start(**{f"VRAMBLK_{option}_FILE": str(path) for option, path in files.items()})
    seen = json.loads(done.stdout)["environment"]
    assert (seen["VRAMBLK_EXPORT_NAME"], seen["VRAMBLK_METRICS_TOKEN"]) == (odd, "secret")


def test_an_empty_variable_does_not_count_as_set(start, tmp_path):
    (tmp_path / "size").write_text("64M")
    done = start(VRAMBLK_SIZE="", VRAMBLK_SIZE_FILE=str(tmp_path / "size"))
    assert json.loads(done.stdout)["environment"]["VRAMBLK_SIZE"] == "64M"


@pytest.mark.parametrize("option", ["CONFIG", "STATUS_SOCKET", "TLS_CERTIFICATES", "TLS_PSK"])
def test_refuses_a_file_for_an_option_that_holds_a_path(start, tmp_path, option):
    (tmp_path / "value").write_text("/x")
    refused(start(**{f"VRAMBLK_{option}_FILE": str(tmp_path / "value")}), f"VRAMBLK_{option}_FILE")


def test_refuses_both(start, tmp_path):
    (tmp_path / "size").write_text("64M")
    refused(start(VRAMBLK_SIZE="1G", VRAMBLK_SIZE_FILE=str(tmp_path / "size")), "VRAMBLK_SIZE_FILE")


@pytest.mark.parametrize("path", ["/nonexistent/size", "/"])
def test_refuses_a_file_that_cannot_be_read(start, path):
    refused(start(VRAMBLK_SIZE_FILE=path), "VRAMBLK_SIZE_FILE")


def test_a_value_of_several_lines_is_not_taken_for_a_variable(start):
    done = start(VRAMBLK_EXPORT_NAME="x\nVRAMBLK_SIZE_FILE=/nonexistent")
    assert "VRAMBLK_SIZE" not in json.loads(done.stdout)["environment"]


def refused(done: subprocess.CompletedProcess[str], name: str) -> None:
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert name in done.stderr


def test_knows_every_option_that_holds_a_path():
    options = pytest.importorskip("vramblk.options")
    named = set(re.findall(r"VRAMBLK_\w+(?=[ )])", (REPOSITORY / "entrypoint.sh").read_text()))
    assert named == {option.environment for option in options.OPTIONS if option.path}
