"""What a process takes before it serves, each tried in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from vramblk.swap import prefault

_HEAD = """
import os
from pathlib import Path
from vramblk.swap import prefault
from vramblk.system import proc

def maps():
    return Path("/proc/self/maps").read_text()

def faults():
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[7])

def use(small, large):
    for _ in range(3):
        held = [bytes(size) for size in range(16, 470, 7) for _ in range(small)]
        buffers = [bytearray(large // 4) for _ in range(3)]
        del held, buffers
"""


def in_child(code: str) -> list[str]:
    """Words that a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", _HEAD + textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("kept", (True, False))
def test_memory_in_hand_serves_without_the_kernel(kept: bool) -> None:
    """700 KiB of small objects and as much in large ones come and go; otherwise the kernel is asked for them."""
    code = f"""
    maps(), faults()
    if {kept}:
        prefault.keep_allocated(1 << 20)
    before = maps()
    start = faults()
    use(48, 1 << 20)
    print(maps() == before, faults() - start)
    """
    same, count = in_child(code)
    if kept:
        assert same == "True" and int(count) < 100  # of code that runs for the first time
    else:
        assert same == "False" or int(count) > 200


@pytest.mark.parametrize("own", ("with a pagemap", "without", ""))
def test_a_forked_process_owns_its_pages(own: str) -> None:
    """After a fork each page is shared until it is written; owned, writing it takes nothing more."""
    code = f"""
    pages = bytearray(3 << 20)
    pages[::4096] = b"x" * 768
    if {own!r} == "without":
        proc.pagemap = lambda *_: os.stat("/none")
    reader, writer = os.pipe()
    if not os.fork():
        if {own!r}:
            prefault.own_private_pages()
        faults()
        start = faults()
        pages[::4096] = b"y" * 768
        os.write(writer, str(faults() - start).encode())
        os._exit(0)
    os.wait()
    print(os.read(reader, 100).decode(), pages[:4097:4096].decode())
    """
    count, content = in_child(code)
    assert content == "xx"
    assert int(count) < 50 if own else int(count) >= 700


def test_what_is_owned_keeps_its_content() -> None:
    """Pages are written to, not over."""
    held = np.arange(1 << 20, dtype=np.uint32)
    text = bytes(range(256)) * 1000
    prefault.own_private_pages()
    assert (
        int(held.sum(dtype=np.uint64)) == (1 << 20) * ((1 << 20) - 1) // 2
        and text == bytes(range(256)) * 1000
    )


def test_runs() -> None:
    flags = np.array([1, 1, 0, 0, 1, 0, 1], bool)
    assert prefault._runs(flags) == [(0, 2), (4, 5), (6, 7)]
    assert prefault._runs(np.zeros(3, bool)) == []
