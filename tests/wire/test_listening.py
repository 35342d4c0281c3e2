"""Sockets, exports and what a server does with the places it listens on."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from vramblk.config import exposure

from . import rawclient as nbd
from .harness import Server, alive, eventually, free_port

Start = Callable[..., Server]


def failed_start(server: Server, status: int, *words: str) -> None:
    """The server ends with this status and says why in exactly one line on stderr."""
    assert server.wait(60) == status, server.stderr
    assert server.stderr.count("\n") == 1, server.stderr
    for word in words:
        assert word in server.stderr
    assert not server.leftovers()


def test_tcp_and_unix_at_once(start: Start) -> None:
    """One server listens on TCP and on a Unix socket, and says both addresses when it is ready."""
    server = start(tcp=True)
    with server.client() as first, server.client(transport="tcp") as second:
        first.write(100, b"both")
        assert second.read(100, 4) == b"both"
    ready = str(server.find_event("ready"))
    assert str(server.unix_path) in ready and str(server.port) in ready


def test_ready_names_every_export_and_the_page(start: Start, tmp_path: Path) -> None:
    (tmp_path / "exports.yaml").write_text("exports: [{name: one, size: 16M}, {name: t w o, size: 16M}]\n")
    server = start(
        "--config", str(tmp_path / "exports.yaml"), "--metrics-addr", "127.0.0.1:0", tcp=True, size=None
    )
    ready = server.wait_event("ready")
    assert [uri.partition("?")[0] for uri in ready["uris"]] == [
        "nbd+unix:///one", f"nbd://127.0.0.1:{server.port}/one",
        "nbd+unix:///t%20w%20o", f"nbd://127.0.0.1:{server.port}/t%20w%20o",
    ]  # fmt: skip
    with urllib.request.urlopen(ready["page"], timeout=10) as page:
        assert page.headers["Content-Type"].startswith("text/html")


@pytest.mark.parametrize(
    ("host", "who"), [("127.0.0.1", "every account of this machine"), ("0.0.0.0", "every host that reaches it")]
)
def test_an_open_listener_is_warned_of(start: Start, host: str, who: str) -> None:
    """NBD asks nobody who he is: log and status say who can read and write the exports. A Unix socket has permissions."""
    server = start("--listen-addr", f"{host}:0")
    if exposure.behind_published_ports():
        who = "every account and every host that reaches the published port"
    warned = server.find_event("nbd_exposed")
    assert warned is not None and warned["address"] == f"{host}:0" and "--tls-verify-peer" in warned["remedy"]
    assert warned["detail"] == f"{who} can read and write the exports"
    [warning] = [each for each in json.loads(server.get("/status.json")[1])["warnings"] if each["code"] == "nbd_exposed"]
    assert warning["severity"] == "warning" and who in warning["text"].lower()
    assert start().find_event("nbd_exposed") is None


def test_ipv6(start: Start) -> None:
    """An IPv6 address in brackets is listened on."""
    port = free_port()
    start("--listen-addr", f"[::1]:{port}")
    with nbd.RawClient(socket.create_connection(("::1", port), 10)) as client:
        client.greet()
        client.negotiate("vram")
        assert client.call(nbd.FLUSH).error == 0


def test_stale_socket_is_replaced(start: Start, tmp_path: Path) -> None:
    """A socket file that nobody listens on is replaced, and removed at exit."""
    path = tmp_path / "server0" / "nbd.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    server = start()
    assert server.unix_path == path
    with server.client() as client:
        assert client.call(nbd.FLUSH).error == 0
    server.stop()
    assert not path.exists()


def test_live_socket_is_exit_1(start: Start) -> None:
    """A socket on which another server listens is exit 1; the other is not disturbed and keeps its file."""
    first = start()
    second = start("--listen-addr", f"unix:{first.unix_path}", ready=False)
    failed_start(second, 1, str(first.unix_path))
    with first.client() as client:
        assert client.call(nbd.FLUSH).error == 0
    assert not second.unix_path.exists()


def test_file_in_the_place_of_a_socket_is_exit_1(start: Start, tmp_path: Path) -> None:
    """A file that is no socket is neither replaced nor removed."""
    path = tmp_path / "precious"
    path.write_text("keep me")
    failed_start(start("--listen-addr", f"unix:{path}", ready=False), 1, str(path))
    assert path.read_text() == "keep me"


def test_missing_directory_is_exit_1(start: Start, tmp_path: Path) -> None:
    """A socket path whose directory does not exist is exit 1."""
    failed_start(start("--listen-addr", f"unix:{tmp_path}/no/such/nbd.sock", ready=False), 1, "no/such")


def test_too_long_socket_path_is_told(start: Start, tmp_path: Path) -> None:
    """A path longer than the kernel takes is refused with one line that names it."""
    server = start("--listen-addr", f"unix:{tmp_path}/{'x' * 120}.sock", ready=False)
    assert server.wait(60) in (1, 2)
    assert server.stderr.count("\n") == 1 and "xxxx" in server.stderr


def test_busy_port_is_exit_1(start: Start) -> None:
    """A TCP address that is taken is exit 1 and named."""
    first = start(tcp=True)
    failed_start(start("--listen-addr", f"127.0.0.1:{first.port}", ready=False), 1, str(first.port))


def test_port_is_free_right_after_exit(start: Start) -> None:
    """A server can be started again on the same port at once, although clients have been connected."""
    first = start(tcp=True)
    with first.client(transport="tcp") as client:
        client.disconnect()
        assert client.at_end()
    first.stop()
    second = start("--listen-addr", f"127.0.0.1:{first.port}")
    assert second.process.poll() is None


def test_socket_is_removed_after_a_failed_start(start: Start) -> None:
    """A start that fails after the socket was made leaves no socket file behind."""
    server = start("--size", "100000G", ready=False, size=None)
    failed_start(server, 78, "97.7 TiB")
    assert not server.unix_path.exists()


def test_many_clients_come_and_go(start: Start) -> None:
    """After 300 connections, some cut off in the middle, no descriptor is left open in any process."""
    server = start("--workers", "2")
    processes = [server.pid, *server.remember()]

    def open_files() -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in processes]

    def churn(count: int) -> None:
        for number in range(count):
            with server.client(structured=number % 2 == 0) as client:
                client.write(number * 512, b"x" * 512)
                if number % 3:
                    client.submit(nbd.READ, 0, 1 << 20)

    churn(50)
    eventually(lambda: server.metrics().get("vramblk_connections") == 0)
    time.sleep(0.3)
    before = open_files()
    churn(250)
    eventually(lambda: open_files() == before)
    assert all(alive(pid) for pid in processes)


# Limits on connections


def closed_before_negotiation(server: Server) -> bool:
    with server.connect() as client:
        return client.at_end()


def test_max_connections(start: Start) -> None:
    """One connection above --max-connections is closed before negotiation; a freed place works within a second."""
    server = start("--max-connections", "2")
    first, second = server.client(), server.client()
    assert closed_before_negotiation(server)
    assert closed_before_negotiation(server)
    first.close()
    eventually(lambda: not _refused(server), timeout_s=1.5)
    second.write(0, b"undisturbed")
    assert second.read(0, 11) == b"undisturbed"
    second.close()


def _refused(server: Server) -> bool:
    with server.connect() as client:
        try:
            client.greet()
            client.negotiate()
        except (EOFError, ConnectionError):
            return True
        return False


def test_sixty_four_connections(start: Start) -> None:
    """The default of 64 connections is reached, each of them works, the 65th is closed."""
    server = start("--workers", "2")
    clients = [server.client() for _ in range(64)]
    try:
        for index, client in enumerate(clients):
            client.write(index * 4096, bytes([index]) * 4096)
        for index, client in enumerate(clients):
            assert client.read((63 - index) * 4096, 4096) == bytes([63 - index]) * 4096
        assert closed_before_negotiation(server)
        assert server.get("/healthz")[0] == 200
    finally:
        for client in clients:
            client.close()


# Exports

EXPORTS = """
exports:
  - name: first
    size: 8M
  - name: second
    size: 12M
  - {name: "third with spaces äöü", size: 4M, read_only: true}
"""


@pytest.fixture
def several(start: Start, tmp_path: Path) -> Server:
    config = tmp_path / "config.yaml"
    config.write_text(EXPORTS)
    return start("--config", str(config), size=None)


def test_several_exports(several: Server) -> None:
    """Exports of a YAML file have their own names, sizes and data; the empty name is the first."""
    sizes = {"first": 8 << 20, "second": 12 << 20, "third with spaces äöü": 4 << 20, "": 8 << 20}
    with several.connect() as client:
        client.greet()
        names = []
        for reply in client.ask(nbd.LIST)[:-1]:
            (length,) = struct.unpack_from(">I", reply.data)
            names.append(reply.data[4 : 4 + length].decode())
        assert names == ["first", "second", "third with spaces äöü"]
    for name, size in sizes.items():
        with several.client(name) as client:
            assert client.size == size
    with several.client("first") as first, several.client("second", extended=True) as second:
        first.write(0, b"1" * 4096)
        second.write(0, b"2" * 4096)
        second.write((12 << 20) - 4096, b"e" * 4096)
        assert first.read(0, 4096) == b"1" * 4096
        assert second.read(0, 4096) == b"2" * 4096
        assert first.call(nbd.READ, 8 << 20, 512).error == nbd.EINVAL
    with several.client("") as default:
        assert default.read(0, 4096) == b"1" * 4096
    with several.client("third with spaces äöü") as third:
        assert third.flags & nbd.READ_ONLY
        assert third.call(nbd.WRITE, 0, payload=b"x").error == nbd.EPERM
        assert third.read(0, 4096) == bytes(4096)


def test_duplicate_export_is_exit_2(start: Start, tmp_path: Path) -> None:
    """Two exports of one name are exit 2."""
    config = tmp_path / "config.yaml"
    config.write_text("exports: [{name: twice, size: 4M}, {name: twice, size: 4M}]\n")
    failed_start(start("--config", str(config), ready=False, size=None), 2, "twice")


@pytest.mark.parametrize("kind", ({}, {"structured": True}, {"extended": True}))
def test_read_only(start: Start, kind: dict[str, bool]) -> None:
    """--read-only sets the flag, refuses every change with EPERM, drains payloads, and serves reads."""
    server = start("--read-only")
    with server.client("vram", **kind) as client:
        assert client.flags & nbd.READ_ONLY
        for length in (512, 4096, 100_000, 2 << 20):
            assert client.call(nbd.WRITE, 0, payload=b"w" * length).error == nbd.EPERM
        cookies = [client.submit(nbd.WRITE, index * 4096, payload=b"w" * 4096) for index in range(100)]
        assert {reply.error for reply in client.gather(cookies).values()} == {nbd.EPERM}
        assert client.call(nbd.TRIM, 0, 4096).error == nbd.EPERM
        assert client.call(nbd.WRITE_ZEROES, 0, 4096).error == nbd.EPERM
        assert client.read(0, 1 << 20) == bytes(1 << 20)
        assert client.call(nbd.CACHE, 0, 4096).error == 0
        assert client.call(nbd.FLUSH).error in (0, nbd.EINVAL)


def test_export_name_option(start: Start) -> None:
    """--export-name is the only name, besides the empty one, that is served."""
    server = start("--export-name", "other")
    with server.client("other") as client, server.client("") as default:
        assert client.size == default.size == 64 << 20
    with server.connect() as client:
        client.greet()
        assert client.go("vram")[-1].type == nbd.ERR_UNKNOWN


def test_fresh_memory_reads_as_zero(start: Start) -> None:
    """Every byte of a new export reads as zero."""
    server = start(size="16M")
    with server.client() as client:
        assert client.read(0, 16 << 20) == bytes(16 << 20)


def test_status_socket_that_is_busy_is_exit_1(start: Start) -> None:
    """A status socket that was asked for and is in use is exit 1 and named."""
    first = start()
    second = start("--status-socket", str(first.status_path), ready=False)
    failed_start(second, 1, str(first.status_path))
    assert first.get("/healthz")[0] == 200


def test_unix_socket_is_a_socket(start: Start) -> None:
    """The socket file is one."""
    server = start()
    mode = server.unix_path.stat().st_mode
    assert stat.S_ISSOCK(mode)
