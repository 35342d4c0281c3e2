"""The compiled modules do what their sources say."""

from __future__ import annotations

import importlib
import importlib.util
import re
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vramblk.nbd.runs

ROOT = Path(__file__).resolve().parents[2]
NAMES = re.findall(r'"(vramblk\.[a-z.]+)"', (ROOT / "setup.py").read_text())
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
