"""TLS with certificates and with pre-shared keys.

Needs: gnutls-bin; libnbd-bin for the test with its client.
"""

from __future__ import annotations

import os
import random
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit import rig as unit
from vramblk.serving.connection import complete
from vramblk.serving.lanes import SMALLEST

from . import rawclient as nbd
from .certificates import Certificates
from .harness import REPOSITORY, Server, eventually, requires

Start = Callable[..., Server]
HAS_PSK = sys.version_info >= (3, 13)
PSK_NAME, PSK_KEY = "alice", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"


def tls_options(certificates: Certificates, policy: str) -> tuple[str, ...]:
    return "--tls", policy, "--tls-certificates", str(certificates.server)


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates):
    """A server that requires TLS and the client's certificate."""
    directory = tmp_path_factory.mktemp("strict")
    with Server(directory, *tls_options(certificates, "require"), "--tls-verify-peer", tcp=True) as server:
        yield server


def test_require_refuses_plaintext(strict: Server) -> None:
    """Under --tls require every option but STARTTLS and ABORT is ERR_TLS_REQD, EXPORT_NAME ends it."""
    with strict.connect() as client:
        client.greet()
        for code, data in (
            (nbd.LIST, b""),
            (nbd.STRUCTURED_REPLY, b""),
            (nbd.EXTENDED_HEADERS, b""),
            (nbd.INFO, nbd.info_payload("vram")),
            (nbd.GO, nbd.info_payload("vram")),
            (nbd.LIST_META_CONTEXT, nbd.context_payload("vram")),
            (nbd.SET_META_CONTEXT, nbd.context_payload("vram", "base:allocation")),
        ):
            assert [reply.type for reply in client.ask(code, data)] == [nbd.ERR_TLS_REQD], code
        client.send(nbd.option_bytes(nbd.EXPORT_NAME, b"vram"))
        assert client.at_end()
    with strict.connect() as client:
        client.greet()
        assert client.ask(nbd.ABORT)[-1].type == nbd.ACK
        assert client.at_end()


def test_a_plaintext_client_that_is_refused_leaves_a_trace(strict: Server) -> None:
    before = strict.metrics()["vramblk_negotiations_failed_total"]
    with strict.connect() as client:
        client.greet()
        for code in (nbd.STRUCTURED_REPLY, nbd.ABORT):
            client.ask(code)
    warning = strict.wait_event("negotiation_refused")
    assert warning["reason"] == "STRUCTURED_REPLY: this server requires TLS"
    assert strict.metrics()["vramblk_negotiations_failed_total"] == before + 1


def test_verified_client_is_served(strict: Server, certificates: Certificates) -> None:
    """With --tls-verify-peer a client whose certificate the authority signed is served."""
    for transport in ("unix", "tcp"):
        with strict.connect(transport) as client:
            client.greet()
            client.start_tls(certificates.context(certificates.client))
            client.negotiate("vram", structured=True)
            client.write(4096, b"over tls" * 512)
            assert client.read(4096, 4096) == b"over tls" * 512


@pytest.mark.parametrize("identity", ("none", "stranger"))
def test_unverified_client_is_refused(strict: Server, certificates: Certificates, identity: str) -> None:
    """With --tls-verify-peer no certificate, or one of another authority, gets no further."""
    own = certificates.stranger if identity == "stranger" else None
    with strict.connect("tcp") as client:
        client.greet()
        with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
            client.start_tls(certificates.context(own))
            # With TLS 1.3 the client's own handshake is over before the server has judged it.
            client.go("vram")


def test_the_authority_itself_is_no_client(strict: Server, certificates: Certificates) -> None:
    """Its certificate is trusted, so OpenSSL lets it pass. Nobody is served by it, however it is offered."""
    context = certificates.context()
    context.load_cert_chain(certificates.authority / "ca-cert.pem", certificates.authority / "ca-key.pem")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context.minimum_version = context.maximum_version = version
        with strict.connect("tcp") as client:
            client.greet()
            with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
                client.start_tls(context)
                client.go("vram")
    eventually(lambda: sum("the authority's own" in reason for reason in failures(strict)) == 2)


@requires("nbdinfo")
def test_libnbd_is_verified(strict: Server, certificates: Certificates) -> None:
    """libnbd gets in with a signed certificate, and not with a stranger's."""
    uri = f"nbds://localhost:{strict.port}/vram?tls-certificates="
    for directory, expected in ((certificates.client, 0), (certificates.stranger, 1)):
        done = subprocess.run(["nbdinfo", "--size", f"{uri}{directory}"], capture_output=True, text=True, timeout=30)
        assert done.returncode == expected, done.stderr


def test_on_serves_plaintext_and_tls(shared: Server, certificates: Certificates) -> None:
    """--tls on serves a client that asks for TLS and one that does not, from the same export."""
    with shared.client("vram") as plain, shared.connect("tcp") as secret:
        secret.greet()
        secret.start_tls(certificates.context())
        secret.negotiate("vram")
        secret.write(12288, b"s" * 4096)
        assert plain.read(12288, 4096) == b"s" * 4096


def test_starttls_resets_the_negotiation(shared: Server, certificates: Certificates) -> None:
    """What was negotiated before STARTTLS is forgotten: a read is answered by a simple reply."""
    with shared.connect("tcp") as client:
        client.greet()
        assert client.ask(nbd.STRUCTURED_REPLY)[-1].type == nbd.ACK
        assert client.ask(nbd.SET_META_CONTEXT, nbd.context_payload("vram", "base:allocation"))[-1].type == nbd.ACK
        client.start_tls(certificates.context())
        client.negotiate("vram")
        assert client.flags & nbd.SEND_DF == 0
        reply = client.call(nbd.READ, 0, 4096)
        assert reply.simple and not reply.error
        assert client.call(nbd.BLOCK_STATUS, 0, 4096).error == nbd.EINVAL


def test_second_starttls_is_invalid(shared: Server, certificates: Certificates) -> None:
    """STARTTLS inside TLS is ERR_INVALID, and the connection goes on."""
    with shared.connect("tcp") as client:
        client.greet()
        client.start_tls(certificates.context())
        assert client.ask(nbd.STARTTLS)[-1].type == nbd.ERR_INVALID
        assert client.go("vram")[-1].type == nbd.ACK


def test_starttls_with_data_is_invalid(shared: Server) -> None:
    """STARTTLS that carries data is ERR_INVALID."""
    with shared.connect() as client:
        client.greet()
        assert client.ask(nbd.STARTTLS, b"data")[-1].type == nbd.ERR_INVALID


def test_bytes_behind_starttls_are_not_executed(shared: Server, certificates: Certificates) -> None:
    """An option glued behind STARTTLS in clear text is never answered, in clear text or inside TLS."""
    with shared.connect() as client:
        client.greet()
        glued = nbd.option_bytes(nbd.LIST) + nbd.option_bytes(nbd.GO, nbd.info_payload("vram"))
        client.send(nbd.option_bytes(nbd.STARTTLS) + glued)
        received = b""
        try:
            while piece := client.socket.recv(65536):
                received += piece
        except ConnectionError:
            pass
        starttls = (nbd.OPTION_REPLY_MAGIC << 32 | nbd.STARTTLS).to_bytes(12, "big")
        replies = received.count(nbd.OPTION_REPLY_MAGIC.to_bytes(8, "big"))
        assert replies == received.count(starttls) <= 1


def test_failed_tls_handshake_ends_only_its_connection(shared: Server) -> None:
    """Rubbish where a TLS handshake should be ends that connection; another is not disturbed."""
    with shared.client("vram") as other, shared.connect() as client:
        client.greet()
        assert client.ask(nbd.STARTTLS)[-1].type == nbd.ACK
        client.send(b"GET / HTTP/1.0\r\n\r\n" * 4)
        while not client.at_end():
            pass
        other.write(0, b"undisturbed")
        assert other.read(0, 11) == b"undisturbed"


def test_client_that_leaves_within_the_tls_handshake(shared: Server) -> None:
    """A client that goes away half-way through the TLS handshake costs nothing but its connection."""
    for _ in range(10):
        with shared.connect() as client:
            client.greet()
            assert client.ask(nbd.STARTTLS)[-1].type == nbd.ACK
            client.send(b"\x16\x03\x01\x02\x00\x01\x00")
    with shared.client("vram") as client:
        assert len(client.read(0, 512)) == 512


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_tls_is_refused(shared: Server, certificates: Certificates) -> None:
    """TLS below 1.2 is not spoken."""
    context = certificates.context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with shared.connect() as client:
        client.greet()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            client.start_tls(context)


def test_tls_off_refuses_starttls(start: Start) -> None:
    """Without TLS STARTTLS is refused by policy, no option is ever ERR_TLS_REQD."""
    with start().connect() as client:
        client.greet()
        assert client.ask(nbd.STARTTLS)[-1].type in (nbd.ERR_POLICY, nbd.ERR_UNSUP)
        assert client.go("vram")[-1].type == nbd.ACK


@pytest.mark.parametrize("missing", ("ca-cert.pem", "server-cert.pem", "server-key.pem"))
def test_missing_certificate_file_is_exit_2(
    start: Start, certificates: Certificates, tmp_path: Path, missing: str
) -> None:
    """A TLS file that is not there is exit 2 with one line that names it, before anything is served."""
    incomplete = tmp_path / "incomplete"
    incomplete.mkdir()
    for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
        if name != missing:
            (incomplete / name).write_bytes((certificates.server / name).read_bytes())
    server = start("--tls", "require", "--tls-verify-peer", "--tls-certificates", str(incomplete), ready=False)
    assert server.wait() == 2
    assert missing in server.stderr and server.stderr.count("\n") == 1


def psk_file(directory: Path) -> Path:
    path = directory / "keys.psk"
    path.write_text(f"{PSK_NAME}:{PSK_KEY}\n")
    path.chmod(0o600)
    return path


def find_psk_python() -> str | None:
    """An interpreter of this machine that is new enough for PSK."""
    if HAS_PSK:
        return sys.executable
    roots = [Path(place) for place in os.environ.get("PATH", "").split(":")]
    found = [root / name for root in roots for name in ("python3.13", "python3.14")]
    found += Path.home().glob(".pyenv/versions/3.1[34]*/bin/python3")
    script = "import ensurepip, ssl, sys; sys.exit(not hasattr(ssl.SSLContext, 'set_psk_server_callback'))"
    for path in found:
        if path.exists() and subprocess.run([path, "-c", script], capture_output=True).returncode == 0:
            return str(path)
    return None


PSK_PYTHON = find_psk_python()


@pytest.fixture(scope="module")
def psk_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with PSK that can run the server; makes an environment for it if this one has none."""
    assert PSK_PYTHON is not None
    if HAS_PSK:
        return PSK_PYTHON
    place = tmp_path_factory.mktemp("python-with-psk")
    subprocess.run([PSK_PYTHON, "-m", "venv", str(place)], check=True, capture_output=True)
    pip = [str(place / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    packages = ["-r", str(REPOSITORY / "requirements.txt")]
    done = subprocess.run([*pip, *packages], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(place / "bin" / "python")


if not HAS_PSK:

    def test_psk_on_old_python_is_exit_78(start: Start, tmp_path: Path) -> None:
        """--tls-psk on Python before 3.13 is exit 78 with one line that names the version needed."""
        server = start("--tls", "require", "--tls-psk", str(psk_file(tmp_path)), ready=False)
        assert server.wait() == 78
        assert "3.13" in server.stderr and server.stderr.count("\n") == 1


# Without an interpreter that has PSK there is nothing that could be served: the refusal above is the whole promise.
if PSK_PYTHON is not None:

    @requires("nbdinfo", "qemu-img")
    def test_psk_clients_are_served(start: Start, tmp_path: Path, psk_python: str) -> None:
        """libnbd and qemu with the right key are served, with a wrong key or another name they are not."""
        keys, wrong = psk_file(tmp_path), tmp_path / "wrong.psk"
        wrong.write_text(f"{PSK_NAME}:{PSK_KEY[::-1]}\nmallory:{PSK_KEY}\n")
        program = (psk_python, "-m", "vramblk")
        server = start("--tls", "require", "--tls-psk", str(keys), program=program, tcp=True)
        assert nbdinfo_psk(keys, server).stdout.strip() == str(64 << 20)
        refused = []
        for number, name in enumerate((PSK_NAME, "mallory"), 1):
            done = nbdinfo_psk(wrong, server, name)
            assert done.returncode != 0
            eventually(lambda number=number: len(failures(server)) == number)
            refused.append(done.stderr)
        assert refused[0] == refused[1], "a client does not learn which names there are"
        assert len(set(failures(server))) == 1
        directory = tmp_path / "qemu"
        directory.mkdir()
        (directory / "keys.psk").write_bytes(keys.read_bytes())
        credentials = f"tls-creds-psk,id=tls0,dir={directory},username={PSK_NAME},endpoint=client"
        image = f"driver=nbd,host=localhost,port={server.port},export=vram,tls-creds=tls0"
        command = ["qemu-img", "info", "--object", credentials, "--image-opts", image]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert "64 MiB" in done.stdout, done.stderr
        with server.connect() as client:
            client.greet()
            assert client.ask(nbd.LIST)[-1].type == nbd.ERR_TLS_REQD


def failures(server: Server) -> list[str]:
    return [event["reason"] for event in server.events if event.get("event") == "negotiation_failed"]


def nbdinfo_psk(path: Path, server: Server, name: str = PSK_NAME) -> subprocess.CompletedProcess[str]:
    uri = f"nbds+unix://{name}@/vram?socket={server.unix_path}&tls-psk-file={path}"
    return subprocess.run(["nbdinfo", "--size", uri], capture_output=True, text=True, timeout=30)


def test_stalled_tls_handshake_does_not_stop_others(shared: Server) -> None:
    """A client that says STARTTLS and then nothing does not hold up another on the same worker."""
    stalled: list[socket.socket] = []
    try:
        for _ in range(6):
            client = shared.connect()
            client.greet()
            assert client.ask(nbd.STARTTLS)[-1].type == nbd.ACK
            stalled.append(client.socket)
        with shared.client("vram") as other:
            assert len(other.read(0, 4096)) == 4096
    finally:
        for connection in stalled:
            connection.close()


def test_a_client_that_resets_at_starttls_costs_no_worker(start: Start, certificates: Certificates) -> None:
    """The reset falls between the acknowledgement and the handshake, some time in a thousand tries."""
    server = start(*tls_options(certificates, "on"), "--workers", "1", tcp=True)
    worker = server.named("worker")
    for number in range(1500):
        client = socket.create_connection(("127.0.0.1", server.port), 10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):
            client.recv(18)
            client.sendall(struct.pack(">I", 3) + nbd.option_bytes(nbd.STARTTLS))
            until = time.perf_counter() + random.random() * 0.0006
            while time.perf_counter() < until:
                pass
        client.close()
        if number % 50 == 0:
            time.sleep(0.02)
    with server.client() as other:
        assert len(other.read(0, 4096)) == 4096
    assert server.named("worker") == worker


def test_no_decrypted_request_is_forgotten(certificates: Certificates) -> None:
    """A record ends beyond the lane's end: its rest goes on when there is room, though nothing more arrives."""
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server / "server-cert.pem", certificates.server / "server-key.pem")
    wrapped: list[ssl.SSLSocket] = []
    thread = threading.Thread(
        target=lambda: wrapped.append(certificates.context().wrap_socket(ours, server_hostname="localhost"))
    )
    thread.start()
    served = context.wrap_socket(theirs, server_side=True)
    thread.join()
    [client] = wrapped
    rig = unit.make(client, served, lane_bytes=SMALLEST)
    connection = rig.connection
    poll = select.poll()
    poll.register(served, select.POLLIN)

    def turn() -> bool:
        """As a worker that does not spin: input only where epoll would tell of it."""
        touched = complete(rig.submissions)
        for each in touched:
            each.resume()
            each.replies.flush()
        heard = connection.wants_input and poll.poll(0)
        return bool(touched) | ((connection.again or connection.blocked or bool(heard)) and connection.pump())

    client.setblocking(True)
    count = 0
    for count in range(1, connection.lane.rx_bytes // 4124 + 2):
        header = struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, 0, nbd.WRITE, count, 0, 4096)
        client.sendall(header + bytes(4096))
    client.setblocking(False)
    while turn():
        pass  # the engine stands still until the lane is full
    for _ in range(1000):
        if not rig.engine.turn() | turn():
            break
    answers = 0
    with suppress(ssl.SSLWantReadError):
        while True:
            answers += len(client.recv(1 << 16)) // 16
    assert answers == count
    client.close()
    served.close()
