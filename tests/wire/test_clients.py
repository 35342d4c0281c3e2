"""Clients that other projects wrote, each over a Unix socket, TCP and TLS.

Needs: libnbd-bin, python3-libnbd, qemu-utils, nbd-client, e2fsprogs, gnutls-bin.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from .conftest import SIZE, Route
from .harness import Server, eventually, find_program, requires

#: The interpreter that Debian's python3-libnbd is made for.
SYSTEM_PYTHON = "/usr/bin/python3"
_has_libnbd_python = Path("/usr/lib/python3/dist-packages/nbd.py").exists()


def run(*command: str, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    program = find_program(command[0]) or command[0]
    done = subprocess.run(
        [program, *command[1:]], capture_output=True, text=True, timeout=120, input=stdin,
        env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def write_random(path: Path, size: int, seed: int) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def zero_export(route: Route) -> None:
    with route.client() as client:
        assert client.call(6, 0, SIZE).error == 0


@pytest.fixture(scope="session")
def ext4_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file system of the export's size with files in it."""
    directory = tmp_path_factory.mktemp("ext4")
    files = directory / "files"
    files.mkdir()
    for number in range(200):
        write_random(files / f"file{number}", number * 997 % 40_000, number)
    write_random(files / "large", 24 << 20, 7)
    image = directory / "image"
    with image.open("wb") as target:
        target.truncate(SIZE)
    run("mkfs.ext4", "-q", "-F", "-d", str(files), str(image))
    return image


@requires("nbdinfo")
def test_nbdinfo_describes_the_export(route: Route) -> None:
    """nbdinfo --json shows size, name, block sizes and every capability that is promised."""
    (export,) = json.loads(run("nbdinfo", "--json", route.uri).stdout)["exports"]
    assert export["export-name"] == "vram"
    assert export["export-size"] == SIZE
    assert (export["block_size_minimum"], export["block_size_preferred"], export["block_size_maximum"]) == (1, 4096, 32 << 20)
    for capability in ("flush", "fua", "trim", "zero", "df", "cache", "fast_zero", "multi_conn"):
        name = {"df": "can_df", "multi_conn": "can_multi_conn", "flush": "can_flush"}.get(capability, f"can_{capability}")
        assert export[name] is True, name
    assert export["is_read_only"] is False
    assert export["is_rotational"] is False
    assert "base:allocation" in export["contexts"]


@requires("nbdinfo")
def test_nbdinfo_speaks_structured_replies(route: Route) -> None:
    """nbdinfo negotiates newstyle-fixed with structured replies, and TLS where it is asked for."""
    out = run("nbdinfo", route.uri).stdout
    assert "newstyle-fixed" in out and "using structured packets" in out
    assert ("with TLS" in out) == (route.transport == "tls")


@requires("nbdinfo")
def test_nbdinfo_lists_exports(route: Route) -> None:
    """nbdinfo --list finds the export by its own name."""
    listed = json.loads(run("nbdinfo", "--list", "--json", route.uri.replace("/vram", "/", 1)).stdout)
    assert [export["export-name"] for export in listed["exports"]] == ["vram"]


@requires("nbdinfo")
def test_nbdinfo_maps_written_blocks(route: Route) -> None:
    """nbdinfo --map shows data where something was written and holes elsewhere."""
    zero_export(route)
    with route.client() as client:
        client.write(1 << 20, b"x" * 8192)
    rows = json.loads(run("nbdinfo", "--map", "--json", route.uri).stdout)
    assert [(row["offset"], row["length"], row["type"]) for row in rows] == [
        (0, 1 << 20, 3),
        (1 << 20, 8192, 0),
        ((1 << 20) + 8192, SIZE - (1 << 20) - 8192, 3),
    ]


@requires("nbdcopy", "e2fsck", "mkfs.ext4")
def test_ext4_image_comes_out_as_it_went_in(route: Route, ext4_image: Path, tmp_path: Path) -> None:
    """nbdcopy carries a file system in and out unchanged, and e2fsck finds nothing wrong with it."""
    zero_export(route)
    out = tmp_path / "out"
    run("nbdcopy", str(ext4_image), route.uri)
    run("nbdcopy", route.uri, str(out))
    run("cmp", str(ext4_image), str(out))
    run("e2fsck", "-f", "-n", str(out))


@requires("nbddump")
def test_nbddump_shows_what_was_written(route: Route) -> None:
    """nbddump prints the bytes at the offset where they were written."""
    zero_export(route)
    with route.client() as client:
        client.write(0x1230, b"written by test.")
    out = run("nbddump", "-n", "8192", route.uri).stdout
    assert "0000001230" in out and "written by test." in out


@requires("nbdsh")
@pytest.mark.skipif(not _has_libnbd_python, reason="requires python3-libnbd")
def test_nbdsh_uses_every_command_and_flag(route: Route) -> None:
    """libnbd's Python binding, strict about the protocol, exercises each command and flag."""
    script = Path(__file__).with_name("libnbd_script.py")
    done = run(SYSTEM_PYTHON, str(script), route.uri)
    assert done.stdout.splitlines()[-1] == "all promises hold"


@requires("nbdsh")
def test_nbdsh_reads_and_writes(route: Route) -> None:
    """nbdsh itself connects by URI, writes and reads back."""
    path = f"PATH={Path(SYSTEM_PYTHON).parent}:{os.environ['PATH']}"
    commands = [
        "h.set_uri_allow_local_file(True)", f"h.connect_uri({route.uri!r})",
        "h.pwrite(b'nbdsh' * 1000, 12345)", "assert h.pread(5000, 12345) == b'nbdsh' * 1000",
    ]  # fmt: skip
    run("env", path, "nbdsh", *(part for command in commands for part in ("-c", command)))


@requires("qemu-img")
def test_qemu_img_converts_and_compares(route: Route, tmp_path: Path) -> None:
    """qemu-img info, convert in, compare, convert out: the image is identical."""
    zero_export(route)
    source, out = tmp_path / "source", tmp_path / "out"
    write_random(source, 20 << 20, 1)
    with source.open("r+b") as image:
        image.truncate(SIZE)
        image.seek(128 << 20)
        image.write(random.Random(2).randbytes(3 << 20))
    info = json.loads(run("qemu-img", "info", "--output=json", *route.qemu).stdout)
    assert info["virtual-size"] == SIZE
    target = ("--target-image-opts",) if len(route.qemu) > 1 else ("-O", "raw")
    options = tuple(part for part in route.qemu if part != "--image-opts")
    run("qemu-img", "convert", "-n", "-f", "raw", *target, *options[:-1], str(source), options[-1])
    if len(route.qemu) == 1:
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(source), route.qemu[-1])
    run("qemu-img", "convert", *route.qemu, "-O", "raw", str(out))
    run("cmp", str(source), str(out))


@requires("qemu-img")
def test_qemu_img_maps_holes(route: Route) -> None:
    """qemu-img map shows written blocks as data and the rest as zero."""
    zero_export(route)
    with route.client() as client:
        client.write(64 << 20, b"y" * 65536)
    rows = json.loads(run("qemu-img", "map", "--output=json", *route.qemu).stdout)
    data = [(row["start"], row["length"]) for row in rows if row["data"]]
    assert data == [(64 << 20, 65536)]
    assert all(row["zero"] for row in rows if not row["data"])


@requires("qemu-io")
def test_qemu_io_patterns_hold(route: Route) -> None:
    """qemu-io's pattern reads find what was written, zeroed and discarded; checked by its words."""
    zero_export(route)
    commands = [
        "write -P 0xa5 0 64k", "write -P 0x5a 65537 12345", "aio_write -P 0x11 1M 2M", "aio_flush",
        "read -P 0xa5 0 64k", "read -P 0x5a 65537 12345", "aio_read -P 0x11 1M 2M", "aio_flush",
        "write -z 4k 8k", "read -P 0 4k 8k", "read -P 0xa5 12k 4k", "discard 32k 16k", "read -P 0 32k 16k",
        "write -f -P 0x77 100M 4k", "flush", "read -P 0x77 100M 4k", "write -z -u 1536k 1M",
        "read -P 0 1536k 1M", "read -P 0x11 1M 512k", "read -P 0x11 2560k 512k",
    ]  # fmt: skip
    arguments = [part for command in commands for part in ("-c", command)]
    image = route.qemu if len(route.qemu) > 1 else ("-f", "raw", *route.qemu)
    done = run("qemu-io", *arguments, *image)
    words = done.stdout + done.stderr
    assert "verification failed" not in words and "error" not in words.lower() and "Invalid" not in words
    assert words.count("read ") == 10 and words.count("wrote ") == 6


@requires("qemu-io")
def test_qemu_io_check_itself_would_notice() -> None:
    """The words that the pattern tests look for are the ones that qemu-io prints on a mismatch."""
    done = run("qemu-io", "-f", "raw", "-c", "aio_read -P 1 0 4k", "-c", "aio_flush", "null-co://,read-zeroes=on",
               check=False)  # fmt: skip
    assert done.returncode != 0 or "verification failed" in done.stdout + done.stderr


@requires("qemu-nbd", "qemu-io")
def test_qemu_nbd_forwards_the_export(route: Route, tmp_path: Path) -> None:
    """qemu-nbd as a client: what is written through it into the export is read back directly."""
    zero_export(route)
    socket_path = tmp_path / "forward.sock"
    image = route.qemu if len(route.qemu) > 1 else ("-f", "raw", *route.qemu)
    forward = subprocess.Popen(["qemu-nbd", "-t", "-k", str(socket_path), *image])
    try:
        eventually(lambda: socket_path.exists() or forward.poll() is not None)
        run("qemu-io", "-f", "raw", "-c", "write -P 0x3c 12288 40960", "-c", "flush", f"nbd+unix:///?socket={socket_path}")
    finally:
        forward.terminate()
        forward.wait(10)
    with route.client() as client:
        assert client.read(12288, 40960) == b"\x3c" * 40960


@requires("nbd-client")
def test_nbd_client_lists_exports(shared: Server) -> None:
    """nbd-client -l names the export that is served, over TCP and over a Unix socket."""
    for place in (("127.0.0.1", str(shared.port)), ("-unix", str(shared.unix_path))):
        names = [line.split(":")[0] for line in run("nbd-client", "-l", *place).stdout.splitlines()[1:]]
        assert names == ["vram"]
