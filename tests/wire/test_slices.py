"""--slices: one export becomes several of equal size, each with data of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from . import rawclient as nbd
from .harness import Server

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
