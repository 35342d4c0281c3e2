"""The commands of the guides, run as they are printed: certificates and their clients, several exports, units."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests import guides

from .harness import REPOSITORY, Server, clean_environment, eventually, requires

Start = Callable[..., Server]
TLS = "docs/guides/tls.md"
DISK = "docs/guides/disk-at-boot.md"


def sh(command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command], cwd=directory, env=clean_environment(), capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module", params=["With openssl", "With certtool"])
def pki(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the commands of one section have run."""
    tool = request.param.split()[1]
    if shutil.which(tool) is None:
        pytest.skip(f"requires {tool}")
    directory = tmp_path_factory.mktemp("pki")
    done = sh("set -e\n" + "\n".join(guides.commands(TLS, request.param)), directory)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def strict(pki: Path, start: Start) -> Server:
    """A server with the options of the guide, apart from its address."""
    (line,) = [line for line in guides.commands(TLS, "Start the server") if line.startswith("vramblk ")]
    words = line.split()[1:]
    address = words.index("--listen-addr")
    del words[address : address + 2]
    options = [str(pki / word) if word.startswith("pki/") else word for word in words]
    return start(*options, tcp=True)


def client_command(program: str, server: Server) -> str:
    """The line of the guide, for this server and this machine."""
    (line,) = [line for line in guides.commands(TLS, "Connect clients") if program in line.split()]
    line = line.removeprefix("sudo ").replace("gpuhost.example:10809", f"localhost:{server.port}")
    return line.replace("gpuhost.example", "localhost").replace("10809", str(server.port))


@requires("nbdinfo", "nbdcopy", "qemu-img")
@pytest.mark.parametrize("program", ["nbdinfo", "nbdcopy", "qemu-img"])
def test_clients_connect_with_the_certificates_of_the_guide(strict: Server, pki: Path, program: str) -> None:
    done = sh(client_command(program, strict), pki)
    assert done.returncode == 0, done.stderr


@requires("nbd-client")
def test_nbd_client_negotiates_with_the_line_of_the_guide(strict: Server, pki: Path) -> None:
    """Without the kernel's module it fails afterwards."""
    sh(client_command("nbd-client", strict), pki)
    connected = eventually(lambda: [event for event in strict.events if event["event"] == "client_connected"])
    assert connected[0]["tls"] is True


@requires("nbdinfo")
def test_the_names_of_the_server_certificate_are_those_of_the_guide(pki: Path) -> None:
    """A client that connects by another name refuses the certificate."""
    found = ssl._ssl._test_decode_cert(str(pki / "pki/server/server-cert.pem"))  # type: ignore[attr-defined]
    names = set(found["subjectAltName"])
    assert names == {("DNS", "gpuhost.example"), ("DNS", "localhost"), ("IP Address", "127.0.0.1")}


@pytest.mark.parametrize("page", ["docs/guides/several-gpus.md"])
def test_check_accepts_the_file_with_exports(page: str, tmp_path: Path, start: Start) -> None:
    """On devices of this machine; names and sizes are the guide's."""
    (text,) = guides.files(page, "Different exports", "yaml")
    document = yaml.safe_load(text)
    document["listen_addr"] = [f"unix:{tmp_path}/own.sock"]
    for export in document["exports"]:
        export.update(device=0, size="64M")
    path = tmp_path / "exports.yaml"
    path.write_text(yaml.safe_dump(document))
    server = start("--config", str(path), size=None)
    assert {urllib.parse.urlsplit(uri).path for uri in server.wait_ready()["uris"]} == {"/fast", "/big"}


@requires("systemd-analyze")
def test_systemd_accepts_the_units_of_a_disk_at_boot(tmp_path: Path) -> None:
    """The server's unit is replaced by one that every machine has."""
    attach, mount = guides.files(DISK, "At each boot", "ini")
    (tmp_path / "vram-attach.service").write_text(attach.replace("docker.service", "basic.target"))
    (tmp_path / "mnt-vram.mount").write_text(mount)
    for command in ("/sbin/modprobe", "/usr/sbin/nbd-client", "/sbin/mkfs.ext4"):
        assert command in attach
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "vram-attach.service", tmp_path / "mnt-vram.mount"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    said = [line for line in (done.stdout + done.stderr).splitlines() if "is not executable" not in line]
    assert said == []


def test_the_units_run_the_commands_of_by_hand() -> None:
    """Options of nbd-client, mkfs and mount are the same in both ways."""
    attach, mount = guides.files(DISK, "At each boot", "ini")
    by_hand = [line.removeprefix("sudo ") for line in guides.commands(DISK, "By hand")]
    for program in ("nbd-client -unix", "mkfs.ext4"):
        (line,) = [line for line in by_hand if line.startswith(program)]
        assert f"/{line}\n" in attach
    (line,) = [line for line in by_hand if line.startswith("mount")]
    options = dict(line.split("=", 1) for line in mount.splitlines() if "=" in line)
    others = options["Options"].removesuffix(",_netdev")
    assert line == f"mount -o {others} {options['What']} {options['Where']}"
    assert (REPOSITORY / DISK).exists()
