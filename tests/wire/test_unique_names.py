"""--unique-names: a client that reconnects to a server that was started again fails, instead of reading zeros."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from . import rawclient as nbd
from .harness import Server, clean_environment, eventually, requires

pytestmark = pytest.mark.wire
Start = Callable[..., Server]


def name_of(server: Server) -> str:
    uri = server.wait_ready()["uris"][0]
    return re.search(r"///([^?]+)\?", uri)[1]


def asked(server: Server, name: str) -> int:
    """The answer to GO: ACK or an error."""
    with server.connect() as client:
        client.greet()
        return client.go(name)[-1].type


def test_the_name_of_an_earlier_life_is_refused(start: Start) -> None:
    first = start("--unique-names", "--workers", "1")
    earlier = name_of(first)
    assert re.fullmatch(r"vram-[0-9a-f]{8}", earlier)
    with first.client(earlier) as client:
        client.write(0, b"x" * 512)
    first.stop()
    second = start("--unique-names", "--workers", "1")
    now = name_of(second)
    assert now != earlier
    assert asked(second, now) == nbd.ACK
    # Also the names that would not change: that of the option, and the empty one, which means the first.
    for name in (earlier, "vram", ""):
        assert asked(second, name) == nbd.ERR_UNKNOWN, name
    with second.connect() as client:
        client.greet()
        client.send(nbd.option_bytes(nbd.EXPORT_NAME))
        assert client.at_end()
    shown = json.loads(second.get("/status.json")[1])["exports"]
    assert [each["name"] for each in shown] == [now]


def test_each_worker_of_one_life_has_the_same_name(start: Start) -> None:
    server = start("--unique-names", "--workers", "3")
    for _ in range(6):
        assert asked(server, name_of(server)) == nbd.ACK


def test_without_it_names_stay(start: Start) -> None:
    server = start("--workers", "1")
    assert name_of(server) == "vram"
    assert asked(server, "") == asked(server, "vram") == nbd.ACK


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mode", "swap", "--listen-addr", "unix:/x"], "swap mode"),
        (["--export-name", "x" * 4090], "4087"),
    ],
)
def test_what_it_does_not_go_with_is_exit_2(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vramblk", "check", "--unique-names", *arguments],
        env=clean_environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "unique_names" in done.stderr and said in done.stderr


@requires("qemu-io")
@pytest.mark.parametrize("unique", [False, True])
def test_qemu_that_reconnects(start: Start, tmp_path: Path, unique: bool) -> None:
    """Without the guard it reads zeros where it has written, and notices nothing."""
    arguments = ("--workers", "1", "--listen-addr", f"unix:{tmp_path}/nbd.sock", *(["--unique-names"] * unique))
    first = start(*arguments)
    export = name_of(first)
    image = f"driver=nbd,server.type=unix,server.path={tmp_path}/nbd.sock,export={export},reconnect-delay=3"
    client = subprocess.Popen(
        ["qemu-io", "--image-opts", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert client.stdin is not None
        client.stdin.write("write -P 7 0 4096\n")
        client.stdin.flush()
        eventually(lambda: first.metrics()[f'vramblk_bytes_total{{export="{export}",op="write"}}'] == 4096)
        first.kill()
        (tmp_path / "nbd.sock").unlink()
        start(*arguments)
        client.stdin.write("read -P 7 0 4096\n")
        out, _ = client.communicate(timeout=60)
    finally:
        client.kill()
    assert ("Pattern verification failed" in out) == (not unique), out
    assert ("read failed" in out) == unique, out
