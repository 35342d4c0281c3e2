"""fio writes with checksums in every block and verifies them.

Needs: fio with its nbd engine; nbdkit as the TLS client, since fio's engine cannot be given certificates.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .certificates import Certificates
from .conftest import TRANSPORTS, make_route
from .harness import Server, eventually, requires

pytestmark = requires("fio", "nbdkit")

#: Bytes that each connection writes and verifies.
PART = 24 << 20


@pytest.fixture(params=TRANSPORTS)
def uri(request: pytest.FixtureRequest, shared: Server, certificates: Certificates, tmp_path: Path) -> Iterator[str]:
    """What fio connects to: the server itself, or nbdkit's client that speaks TLS to it."""
    if request.param != "tls":
        yield make_route(request.param, shared, certificates).uri
        return
    path = tmp_path / "tunnel.sock"
    tunnel = subprocess.Popen(
        ["nbdkit", "-f", "-U", str(path), "nbd", "hostname=localhost", f"port={shared.port}", "export=vram",
         "tls=require", f"tls-certificates={certificates.client}", "shared=false"],
    )  # fmt: skip
    try:
        eventually(path.exists)
        yield f"nbd+unix:///vram?socket={path}"
    finally:
        tunnel.terminate()
        tunnel.wait(10)


def fio(uri: str, directory: Path, connections: int, *options: str) -> dict:
    """fio's result of the job; fails if fio found an error."""
    report = directory / "report.json"
    done = subprocess.run(
        ["fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", f"--numjobs={connections}", f"--size={PART}",
         f"--offset_increment={PART}", "--group_reporting", "--verify=crc32c", "--verify_fatal=1",
         "--do_verify=1", "--randseed=1", "--output-format=json", f"--output={report}", *options],
        capture_output=True, text=True, timeout=150, cwd=directory,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    text = report.read_text()
    (job,) = json.loads(text[text.index("{") :])["jobs"]
    assert job["error"] == 0
    return job


@pytest.mark.parametrize("connections", (1, 4))
def test_mixed_sizes_verify(uri: str, connections: int, tmp_path: Path) -> None:
    """What 1 and 4 connections write in blocks of 512 B to 2 MiB is what they read back."""
    job = fio(uri, tmp_path, connections, "--rw=randwrite", "--bsrange=512-2m", "--blockalign=512", "--iodepth=16",
              "--bssplit=512/20:4k/30:13k/10:64k/20:256k/10:2m/10", "--norandommap=0")  # fmt: skip
    assert job["write"]["io_bytes"] >= connections * PART * 0.9
    assert job["read"]["io_bytes"] >= connections * PART * 0.9


@pytest.mark.parametrize("connections", (1, 4))
def test_deep_queue_of_small_blocks_verifies(uri: str, connections: int, tmp_path: Path) -> None:
    """4 KiB blocks at queue depth 64, written at random, verify."""
    fio(uri, tmp_path, connections, "--rw=randwrite", "--bs=4k", "--iodepth=64", "--size=8m")


def test_reads_while_writing_verify(uri: str, tmp_path: Path) -> None:
    """Verification that runs behind the writes on the same connection finds each block as written."""
    fio(uri, tmp_path, 2, "--rw=randwrite", "--bs=8k", "--iodepth=32", "--verify_backlog=64", "--size=8m", "--trim_percentage=0")
