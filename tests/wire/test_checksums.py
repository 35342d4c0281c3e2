"""Promise 13 end to end, ``--verify-reads``: bits are flipped in the file that a server maps, from outside.

Needs: libnbd's Python binding for the real client, fio for the load.
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import rawclient as nbd
from .harness import Server, eventually, requires
from .test_clients import SYSTEM_PYTHON, _has_libnbd_python
from .test_fio import PART, fio

MIB = 1 << 20
BLOCK = 4096
KINDS = {"simple": {}, "structured": {"structured": True}, "extended": {"extended": True}}
MISMATCHES = "vramblk_checksum_mismatches_total"


class Mapped:
    """A server with checksums on a file in RAM that this process can write as well."""

    def __init__(self, directory: Path, file: Path) -> None:
        self.file = file
        self.server = Server(directory, "--device", f"map:{file}", "--verify-reads", "--workers", "2", size="max")

    def flip(self, offset: int, mask: int = 1) -> None:
        with self.file.open("r+b", buffering=0) as memory:
            (byte,) = os.pread(memory.fileno(), 1, offset)
            os.pwrite(memory.fileno(), bytes([byte ^ mask]), offset)

    def mismatches(self) -> float:
        return self.server.metrics()[MISMATCHES]


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[Mapped]:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.truncate(16 * MIB)
        made = Mapped(tmp_path / "server", Path(file.name))
        with made.server:
            yield made


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_fails_one_read(mapped: Mapped, kind: str) -> None:
    """Of 200 reads in flight the one on the bad block is EIO; counter and log say so; the connection lives."""
    data = random.Random(5).randbytes(200 * BLOCK)
    with mapped.server.client(**KINDS[kind]) as client:
        client.write(0, data)
        assert mapped.mismatches() == 0
        mapped.flip(57 * BLOCK + 4000, 0x40)
        cookies = [client.submit(nbd.READ, index * BLOCK, BLOCK) for index in range(200)]
        replies = client.gather(cookies)
        for index, cookie in enumerate(cookies):
            if index == 57:
                assert replies[cookie].error == nbd.EIO
                assert not replies[cookie].data
            else:
                assert not replies[cookie].error
                assert replies[cookie].data == data[index * BLOCK : (index + 1) * BLOCK]
        assert mapped.mismatches() == 1
        event = mapped.server.wait_event("checksum_mismatch")
        assert (event["offset"], event["blocks"], event["level"]) == (57 * BLOCK, 1, "error")

        # A write of a part of it is EIO too, alone or among others, and never makes it good.
        cookies = [client.submit(nbd.WRITE, at * BLOCK + 512, payload=b"w" * 512) for at in range(50, 60)]
        errors = [client_reply.error for client_reply in map(client.gather(cookies).get, cookies)]
        assert errors == [nbd.EIO if at == 57 else 0 for at in range(50, 60)]
        assert client.call(nbd.READ, 57 * BLOCK, 100).error == nbd.EIO
        assert mapped.mismatches() == 3
        client.write(57 * BLOCK, data[:BLOCK])
        assert client.read(57 * BLOCK, BLOCK) == data[:BLOCK]
        assert client.read(58 * BLOCK + 512, 512) == b"w" * 512
        assert mapped.mismatches() == 3
        assert mapped.server.metrics()["vramblk_device_errors_total"] == 0


def test_large_read_over_a_bad_block(mapped: Mapped) -> None:
    """A read of many pieces is EIO, in an error chunk; what lies around it reads well."""
    data = random.Random(6).randbytes(8 * MIB)
    with mapped.server.client(structured=True) as client:
        client.write(0, data)
        mapped.flip(7 * MIB + 1)
        assert client.call(nbd.READ, 0, len(data)).error == nbd.EIO
        assert client.read(0, 7 * MIB) == data[: 7 * MIB]
        assert client.read(7 * MIB + BLOCK, MIB - BLOCK) == data[7 * MIB + BLOCK :]


@pytest.mark.skipif(not _has_libnbd_python, reason="requires python3-libnbd")
def test_libnbd_sees_eio_and_goes_on(mapped: Mapped) -> None:
    """libnbd gets EIO for what needs the bad block and nothing else, all on one connection."""
    script = Path(__file__).with_name("libnbd_checksums.py")
    done = subprocess.run(
        [SYSTEM_PYTHON, str(script), mapped.server.unix_uri("vram"), str(mapped.file)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "all promises hold" in done.stdout
    eventually(lambda: mapped.mismatches() == 5)


def test_without_the_option_nothing_is_checked(tmp_path: Path) -> None:
    """The tests above can fail: the same flip goes through where checksums are off."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.truncate(MIB)
        with Server(tmp_path / "off", "--device", f"map:{file.name}", size="max") as server, server.client() as client:
            client.write(0, b"a" * BLOCK)
            os.pwrite(file.fileno(), b"b", 0)
            assert client.read(0, 2) == b"ba"
            assert server.metrics()[MISMATCHES] == 0


@requires("fio", "nbdkit")
@pytest.mark.parametrize("aligned", [True, False])
def test_fio_verifies_with_checksums_on(start: Callable[..., Server], tmp_path: Path, aligned: bool) -> None:
    """4 connections, blocks of 512 B to 2 MiB, through OpenCL: what was written is read, and no alarm is false."""
    server = start("--verify-reads", "--workers", "2", size="128M")
    sizes = "4k/40:64k/30:256k/20:2m/10" if aligned else "512/20:4k/30:13k/10:64k/20:256k/10:2m/10"
    unit = BLOCK if aligned else 512
    job = fio(server.unix_uri("vram"), tmp_path, 4, "--rw=randwrite", f"--bsrange={unit}-2m",
              f"--blockalign={unit}", "--iodepth=16", f"--bssplit={sizes}")  # fmt: skip
    assert job["read"]["io_bytes"] >= 4 * PART * 0.9
    assert server.metrics()[MISMATCHES] == 0
    assert server.find_event("checksum_mismatch") is None
