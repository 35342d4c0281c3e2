"""`make run` against a stand-in for vramblk: where it serves system RAM, and where it does not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import hostpages, shellgen

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="requires make")


def make_run(directory: Path, devices: str) -> subprocess.CompletedProcess[str]:
    programs = directory / "venv/bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    (programs / "vramblk").write_text(
        f'#!/bin/sh\ncase $1 in devices) {devices} ;; *) echo "served: $* ${{VRAMBLK_SIZE-}}" ;; esac\n'
    )
    (programs / "vramblk").chmod(0o755)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("VRAMBLK_", "MAKE"))
    }
    return subprocess.run(
        ["make", "--no-print-directory", "-f", ROOT / "Makefile", "-o", "install", "run", "VENV=venv", "ARGS=-v"],
        cwd=directory, env=environment, capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def test_install_brings_man_page_and_completions(tmp_path: Path) -> None:
    """An editable install alone leaves them out."""
    shutil.copytree(ROOT / "share", tmp_path / "share")
    for _ in range(2):
        subprocess.run(
            ["make", "--no-print-directory", "-f", ROOT / "Makefile", "-o", "venv/.compiled", "install", "VENV=venv"],
            cwd=tmp_path, check=True, capture_output=True, timeout=30,
        )  # fmt: skip
    found = {path.relative_to(tmp_path / "venv") for path in (tmp_path / "venv/share").rglob("*") if path.is_file()}
    names = (shellgen.BASH, shellgen.ZSH, shellgen.FISH, shellgen.MAN, hostpages.MAN)
    assert found == {Path(name) for name in names}


def test_install_in_a_fresh_checkout_has_a_rule_for_each_file_it_needs(tmp_path: Path) -> None:
    """Not each .pxd file has a module beside it: some only declare what others use."""
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "install", f"VENV={tmp_path}/venv"],
        cwd=ROOT, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "build_ext" in done.stdout


def test_help_names_every_target() -> None:
    """Groups of tests by their own names."""
    done = subprocess.run(
        ["make", "--no-print-directory", "-f", ROOT / "Makefile", "PYTHON=python3"],
        cwd=ROOT, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (targets,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = set(re.findall(r"[a-z]+(?:-[a-z]+)*", done.stdout))
    assert {target.removeprefix("test-") for target in targets.split()} - named == {"help"}
    assert max(map(len, done.stdout.splitlines())) <= 120


def answer(*devices: str) -> str:
    return f"echo '{{\"devices\": [{', '.join(devices)}]}}'"


CPU_ONLY = '{"type": "CPU", "usable": true}'
A_GPU = '{"type": "GPU", "usable": true}'


def test_a_gpu_is_served(tmp_path: Path) -> None:
    assert make_run(tmp_path, answer(CPU_ONLY, A_GPU)).stdout == "served: -v \n"


@pytest.mark.parametrize("devices", [(), (CPU_ONLY,)])
def test_without_a_gpu_512m_of_ram_are_served(tmp_path: Path, devices: tuple[str, ...]) -> None:
    done = make_run(tmp_path, answer(*devices))
    assert done.stdout.splitlines() == [
        "no usable GPU: serving system RAM through CPU OpenCL", "served: --allow-cpu -v 512M",
    ]  # fmt: skip


def test_a_question_that_fails_is_not_taken_for_no_gpu(tmp_path: Path) -> None:
    """A driver that crashes, say: what follows would be slow and called a GPU disk."""
    done = make_run(tmp_path, "echo libcuda.so.1: broken >&2; exit 139")
    assert done.returncode != 0
    assert "served" not in done.stdout
    assert "libcuda.so.1: broken" in done.stderr
    assert "not known whether there is a GPU" in done.stderr
