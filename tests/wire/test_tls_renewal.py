"""SIGHUP reads the TLS files again: for new handshakes, without a restart, and never worse than before."""

from __future__ import annotations

import os
import re
import shutil
import signal
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from . import rawclient as nbd
from .certificates import Certificates
from .harness import Server, eventually

pytestmark = pytest.mark.wire
Start = Callable[..., Server]


@pytest.fixture
def folder(certificates: Certificates, tmp_path: Path) -> Path:
    """The directory that the server is given; the test changes what is in it."""
    shutil.copytree(certificates.server, tmp_path / "served")
    return tmp_path / "served"


@pytest.fixture
def others(tmp_path: Path) -> Certificates:
    """Certificates of another authority."""
    return Certificates(tmp_path / "others")


@pytest.fixture
def server(start: Start, folder: Path) -> Server:
    return start(
        "--tls", "require", "--tls-verify-peer", "--tls-certificates", str(folder), "--workers", "2", tcp=True
    )


def served(server: Server, whose: Certificates) -> bool:
    """Whether a client of these certificates gets through the handshake and is served."""
    with server.connect("tcp") as client:
        client.greet()
        try:
            client.start_tls(whose.context(whose.client))
            client.negotiate()
            return client.read(0, 512) == bytes(512)
        except (ssl.SSLError, OSError, AssertionError):
            return False


def events(server: Server, name: str) -> list[dict[str, object]]:
    return [event for event in server.events if event.get("event") == name]


def hang_up(server: Server, expected: str) -> dict[str, object]:
    before = len(events(server, expected))
    server.signal(signal.SIGHUP)
    eventually(lambda: len(events(server, expected)) > before)
    return events(server, expected)[-1]


def test_new_certificates_are_served_and_old_connections_stay(
    server: Server, folder: Path, certificates: Certificates, others: Certificates
) -> None:
    assert served(server, certificates) and not served(server, others)
    with server.connect("tcp") as old:
        old.greet()
        old.start_tls(certificates.context(certificates.client))
        old.negotiate()
        shutil.copytree(others.server, folder, dirs_exist_ok=True)
        hang_up(server, "tls_renewed")
        for _ in range(4):  # every worker
            assert served(server, others)
        assert not served(server, certificates)
        old.write(0, b"x" * 512)
        assert old.call(nbd.READ, 0, 512).data == b"x" * 512
        old.write(0, bytes(512))
    assert len(events(server, "settings_kept")) == 1
    hang_up(server, "tls_renewed")
    assert len(events(server, "settings_kept")) == 1, "said once"


@pytest.mark.parametrize("broken", ["key", "missing", "empty"])
def test_bad_files_are_refused_and_the_old_ones_kept(
    server: Server, folder: Path, certificates: Certificates, others: Certificates, broken: str
) -> None:
    """Also by a worker that is started afterwards."""
    if broken == "key":
        shutil.copy(others.server / "server-key.pem", folder)
    elif broken == "missing":
        (folder / "server-cert.pem").unlink()
    else:
        (folder / "ca-cert.pem").write_text("")
    refused = hang_up(server, "tls_refused")
    assert str(folder) in str(refused["detail"])
    assert served(server, certificates)
    for pid in server.named("worker"):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(events(server, "worker_restarted")) == 2)
    eventually(lambda: served(server, certificates))


def test_a_worker_that_starts_later_has_the_new_ones(
    server: Server, folder: Path, certificates: Certificates, others: Certificates
) -> None:
    shutil.copytree(others.server, folder, dirs_exist_ok=True)
    hang_up(server, "tls_renewed")
    for pid in server.named("worker"):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(events(server, "worker_restarted")) == 2)
    eventually(lambda: served(server, others))
    assert not served(server, certificates)


def test_the_end_of_the_certificate_follows(
    server: Server, folder: Path, certificates: Certificates, others: Certificates
) -> None:
    """The certificates of the tests end in 30 days; then one that has ended."""
    (left,) = [
        value for name, value in server.metrics().items() if name.startswith("vramblk_tls_certificate")
    ]
    assert 29 * 86400 < left < 30 * 86400
    assert not events(server, "certificate_expires")
    eventually(lambda: events(server, "certificate_valid"))
    (valid,) = events(server, "certificate_valid")
    assert valid["level"] == "info" and Path(str(valid["file"])).parent == folder
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC", str(valid["until"]))
    assert 29 <= float(str(valid["days_left"])) <= 30
    shutil.copytree(others.server, folder, dirs_exist_ok=True)
    hang_up(server, "certificate_valid")
    assert len(events(server, "certificate_valid")) == 2, "at start and at SIGHUP"
    expired(folder, certificates)
    assert "expired" in str(hang_up(server, "certificate_expires")["detail"])
    eventually(lambda: len(events(server, "tls_renewed")) == 2)
    assert len(events(server, "certificate_valid")) == 2
    (left,) = [
        value for name, value in server.metrics().items() if name.startswith("vramblk_tls_certificate")
    ]
    assert left < 0
    warnings = server.get("/status.json")[1]
    assert '"certificate_expires"' in warnings and "expired" in warnings


def expired(folder: Path, certificates: Certificates) -> None:
    """A self-signed certificate that ended in 2020, in the place of the server's."""
    import subprocess

    template = folder / "template"
    template.write_text(
        'cn = localhost\nactivation_date = "2019-01-01 00:00:00 UTC"\nexpiration_date = "2020-01-01 00:00:00 UTC"\n'
    )
    subprocess.run(
        ["certtool", "--generate-self-signed", "--load-privkey", folder / "server-key.pem",
         "--template", template, "--outfile", folder / "server-cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip


def test_check_says_when_it_ends(folder: Path, certificates: Certificates) -> None:
    from vramblk.commands import check
    from vramblk.config.settings import load_settings

    def tls() -> tuple[str, str]:
        arguments = ["--tls", "require", "--tls-certificates", str(folder), "--listen-addr", "127.0.0.1:0"]
        found = next(each for each in check.examine(load_settings(arguments, {})) if each.name == "tls")
        return found.state, found.detail

    assert tls()[0] == "ok" and "expires on 20" in tls()[1]
    expired(folder, certificates)
    assert tls()[0] == "warning" and "expired on 2020-01-01" in tls()[1]


def test_a_worker_that_stands_still_gets_them_too(
    start: Start, folder: Path, certificates: Certificates, others: Certificates
) -> None:
    """Connections are taken back from it meanwhile; the files stay on their way."""
    server = start("--tls", "require", "--tls-verify-peer", "--tls-certificates", str(folder),
                   "--workers", "2", tcp=True)  # fmt: skip
    stalled, other = server.named("worker")
    os.kill(stalled, signal.SIGSTOP)
    try:
        shutil.copytree(others.server, folder, dirs_exist_ok=True)
        hang_up(server, "tls_renewed")
        for _ in range(4):
            assert served(server, others)
        assert events(server, "worker_stalled") or server.wait_event("worker_stalled")
    finally:
        os.kill(stalled, signal.SIGCONT)
    server.wait_event("worker_resumed")
    os.kill(other, signal.SIGSTOP)
    try:
        for _ in range(4):
            assert served(server, others)
    finally:
        os.kill(other, signal.SIGCONT)
