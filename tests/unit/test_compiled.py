"""The compiled modules do what their sources say."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vramblk.nbd.runs

ROOT = Path(__file__).resolve().parents[2]
#: A .pxd without a module is C for the others.
TYPES = sorted(path for path in (ROOT / "vramblk").rglob("*.pxd") if path.with_suffix(".py").exists())
NAMES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in TYPES]
SIZE, ARENA = 1 << 26, 1 << 24


def source(name: str) -> ModuleType:
    """The module as plain Python, beside the one that is imported."""
    path = ROOT / Path(*name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_what_is_imported_is_as_new_as_its_source(name: str) -> None:
    """A stale shared object would hide every change of its source."""
    module = importlib.import_module(name)
    made = Path(str(module.__file__))
    python = ROOT / Path(*name.split(".")).with_suffix(".py")
    if made.suffix == ".py":
        pytest.skip("not compiled here")
    for each in (python, python.with_suffix(".pxd")):
        assert not each.exists() or each.stat().st_mtime <= made.stat().st_mtime, "type: make install"


def test_nothing_else_is_compiled() -> None:
    """A shared object whose .pxd is gone is no longer made, and hides its source."""
    objects = (ROOT / "vramblk").rglob("*.so")
    assert {path for path in objects if path.with_name(path.name.partition(".")[0] + ".pxd") not in TYPES} == set()


@pytest.mark.parametrize("path", TYPES, ids=NAMES)
def test_what_is_compiled_counts_no_index_from_the_end(path: Path) -> None:
    """It runs without checks of indices: -1 would be the cell in front of the first."""
    tree = ast.parse(path.with_suffix(".py").read_text())
    indices = [node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
    assert [ast.unparse(each) for each in indices if ast.unparse(each).startswith("-")] == []


def test_the_image_compiles_every_package_that_has_types() -> None:
    """A package that is not copied would only be slower."""
    copied = re.findall(r"^COPY (vramblk/\w+) ", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    types = (ROOT / "vramblk").rglob("*.pxd")
    assert copied == sorted({str(path.parent.relative_to(ROOT)) for path in types})


def run_setup(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """setup.py in a directory with little of the project, so that little is translated."""
    pytest.importorskip("Cython")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, directory)
    shutil.copytree(ROOT / "share", directory / "share")
    (directory / "vramblk" / "shared").mkdir(parents=True, exist_ok=True)
    for name in ("__init__.py", "shared/__init__.py", "shared/contiguousfifo.py"):
        shutil.copy(ROOT / "vramblk" / name, directory / "vramblk" / name)
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *words], cwd=directory, text=True, capture_output=True, timeout=300,
        env={**os.environ, "VRAMBLK_COMPILE": "require"},
    )  # fmt: skip


def test_a_source_distribution_brings_the_types(tmp_path: Path) -> None:
    """What is built from one would otherwise be slower, and nothing would say so."""
    types = ["vramblk/shared/contiguousfifo.pxd", "vramblk/system/ccalls.pxd"]
    for each in types:
        (tmp_path / each).parent.mkdir(parents=True)
        shutil.copy(ROOT / each, tmp_path / each)
    run = run_setup(tmp_path, "sdist")
    assert run.returncode == 0, run.stderr
    (made,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(made) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert [name for name in names if name.endswith(".pxd")] == types


def test_without_types_nothing_can_be_compiled_that_is_required(tmp_path: Path) -> None:
    run = run_setup(tmp_path, "--version")
    assert run.returncode and "VRAMBLK_COMPILE=require" in run.stderr


def taken(module: Any, extended: bool, words: bytearray, have: int, run_bytes: int) -> Any:
    plain = module.Plain(
        memoryview(words).cast("I"), extended=extended, size_bytes=SIZE, arena_bytes=ARENA, read_only=False,
        run_bytes=run_bytes,
    )  # fmt: skip
    count = plain.take(0, have)
    reads, writes = plain.reads, plain.writes
    lengths = [[side.length[i] for i in range(side.count)] for side in (reads, writes)]
    places = [writes.payload[i] for i in range(writes.count)]
    totals = (reads.total_bytes, writes.total_bytes)
    return count, plain.end, reads.identities(), writes.identities(), lengths, places, totals


@pytest.mark.parametrize("extended", [False, True])
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([0, 0, 1, 1, 3]),
            st.sampled_from([0, 0, 1]),
            st.integers(0, SIZE // 512 + 1).map(lambda number: number * 512 - 16 * (number % 2)),
            st.sampled_from([0, 16, 512, 4096, 131072, 131088, 4097]),
        ),
        max_size=40,
    ),
    cut=st.integers(0, 40),
    run_bytes=st.sampled_from([4096, 1 << 18, 8 << 20]),
)
@settings(max_examples=200, deadline=None)
def test_runs_are_taken_alike(
    extended: bool, rows: list[tuple[int, int, int, int]], cut: int, run_bytes: int
) -> None:
    """Whatever comes: the same requests, places and sums, compiled or not."""
    data = b""
    for number, (command, flags, offset, length) in enumerate(rows):
        offset = max(offset, 0)
        if extended:
            flags |= (command == 1) << 5
            data += struct.pack(">IHHQQQ", 0x21E41C71, flags, command, number, offset, length)
        else:
            data += struct.pack(">IHHQQI", 0x25609513, flags, command, number, offset, length)
        data += bytes(length if command == 1 else 0)
    have = max(0, len(data) - cut)
    words = bytearray(data) + bytes(64 + -len(data) % 4)
    plain = source("vramblk.nbd.runs")
    assert taken(vramblk.nbd.runs, extended, words, have, run_bytes) == taken(
        plain, extended, words, have, run_bytes
    )


def test_a_parser_goes_on_after_so_many_runs_that_their_count_begins_anew() -> None:
    """Each run marks the blocks it meets with its number, of 32 bits."""
    write = struct.pack(">IHHQQI", 0x25609513, 0, 1, 1, 0, 512) + bytes(512)
    words = bytearray(write * 2)
    plain = vramblk.nbd.runs.Plain(
        memoryview(words).cast("I"), extended=False, size_bytes=SIZE, arena_bytes=SIZE, read_only=False,
        run_bytes=1 << 18,
    )  # fmt: skip
    plain.runs = (1 << 32) - 2
    for _ in range(3):
        assert plain.take(0, len(words)) == 1, "the second write overlaps the first"
