"""A whole server on Oclgrind. Needs Oclgrind, which ``setup.sh`` fetches."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tests.wire import harness
from tests.wire.harness import Server
from vramblk.memory.devices import DeviceInfo

from .simulator import FEW_LANES, variables

SIZE = 1 << 20
#: The server, with several work-items for each request.
PROGRAM = (
    "import sys; from vramblk import cli; from vramblk.memory import opendevice;"
    f" opendevice._CPU_LANES = {FEW_LANES}; sys.exit(cli.main(sys.argv[1:]))"
)


def test_a_server_at_1m(info: DeviceInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It proves its export, serves reads and writes of any alignment, zeroes at the end, and Oclgrind finds nothing."""
    log = tmp_path / "log"
    monkeypatch.setattr(harness, "START_TIMEOUT_S", 400)  # the proof alone takes a minute
    with Server(
        tmp_path / "server", "--workers", "1", "--verify-reads", size="1M", program=(sys.executable, "-c", PROGRAM),
        environment=variables(log),
    ) as server:  # fmt: skip
        choose, model = random.Random(1), bytearray(SIZE)
        with server.client() as client:
            for _ in range(60):
                length = choose.choice((512, 4096, 65536, choose.randrange(1, 9000)))
                offset = choose.randrange(SIZE - length)
                offset -= offset % choose.choice((1, 16, 4096))
                if choose.random() < 0.5:
                    data = choose.randbytes(length)
                    client.write(offset, data)
                    model[offset : offset + length] = data
                else:
                    assert client.read(offset, length) == model[offset : offset + length]
            cookies = {client.submit(0, block * 4096, 4096): block for block in range(64)}
            for cookie, reply in client.gather(list(cookies)).items():
                block = cookies[cookie]
                assert reply.data == model[block * 4096 : (block + 1) * 4096]
    assert log.read_text() == ""
