"""--slices and --device all: one export becomes several, each with data of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from . import rawclient as nbd
from .harness import Server, clean_environment

pytestmark = pytest.mark.wire
Start = Callable[..., Server]
MIB = 1 << 20


@pytest.mark.parametrize("device", ["opencl", "mapped"])
def test_slices_are_listed_and_keep_their_own_data(start: Start, device: str, tmp_path: Path) -> None:
    arguments = ["--slices", "3", "--workers", "1"]
    if device == "mapped":
        path = tmp_path / "memory"
        path.write_bytes(b"x" * (12 * MIB))
        arguments += ["--device", f"map:{path}", "--map-overwrite"]
    server = start(*arguments, size="12M")
    names = ["vram-0", "vram-1", "vram-2"]
    with server.connect() as client:
        client.greet()
        listed = [reply.data[4:].decode() for reply in client.ask(nbd.LIST) if reply.type == nbd.REP_SERVER]
        assert [text[: len("vram-0")] for text in listed] == names
        assert client.go("vram")[-1].type == nbd.ERR_UNKNOWN
    clients = [server.client(name) for name in names]
    for number, client in enumerate(clients):
        client.write(0, bytes([number + 1]) * MIB)
        client.write(3 * MIB, bytes([number + 1]) * MIB)
    for number, client in enumerate(clients):
        assert client.read(0, MIB) == client.read(3 * MIB, MIB) == bytes([number + 1]) * MIB
        assert client.read(MIB, MIB) == bytes(MIB)
        client.close()
    with server.client("") as client:  # the empty name means the first
        assert client.read(0, 1) == b"\1"
    shown = json.loads(server.get("/status.json")[1])["exports"]
    assert [(each["name"], each["size_bytes"]) for each in shown] == [(name, 4 * MIB) for name in names]


def test_all_devices_serve_with_slices(start: Start) -> None:
    """Two devices of one process, each with its own data; --size is for each device."""
    server = start("--device", "all", "--slices", "2", size="8M", environment={"POCL_DEVICES": "basic basic"})
    names = ["vram-cpu0-0", "vram-cpu0-1", "vram-cpu1-0", "vram-cpu1-1"]
    clients = [server.client(name) for name in names]
    for number, client in enumerate(clients):
        client.write(0, bytes([number + 1]) * (4 * MIB))
    for number, client in enumerate(clients):
        assert client.read(0, 4 * MIB) == bytes([number + 1]) * (4 * MIB)
        client.close()
    shown = json.loads(server.get("/status.json")[1])["exports"]
    assert [(each["name"], each["size_bytes"]) for each in shown] == [(name, 4 * MIB) for name in names]
    assert [each["device"]["device_index"] for each in shown] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("environment", "arguments", "status", "said"),
    [
        ({}, (), 78, "no GPU found"),
        ({"OCL_ICD_VENDORS": "/nowhere"}, ("--allow-cpu",), 78, "OpenCL"),
        ({}, ("--allow-cpu", "--config", "{config}"), 2, "another export has the same name"),
    ],
)
def test_devices_that_cannot_be_found(
    environment: dict[str, str], arguments: tuple[str, ...], status: int, said: str, tmp_path: Path
) -> None:
    """The child that looks for them says why, in one line, and the exit status is the same as the engine's."""
    config = tmp_path / "config.yaml"
    config.write_text("exports: [{name: a, device: all}, {name: a-cpu0, device: 0}]")
    given = [each.format(config=config) for each in arguments]
    if "--config" not in given:
        given += ["--device", "all"]
    ended = subprocess.run(
        [sys.executable, "-m", "vramblk", *given, "--listen-addr", f"unix:{tmp_path}/s"],
        capture_output=True, text=True, env=clean_environment(**environment), timeout=60, check=False,
    )  # fmt: skip
    assert (ended.returncode, len(ended.stderr.splitlines())) == (status, 1), ended.stderr
    assert said in ended.stderr
