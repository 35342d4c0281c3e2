"""Servers that many tests share, and the three ways to reach one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .certificates import Certificates
from .harness import Server, find_program
from .rawclient import RawClient

SIZE = 256 << 20
TRANSPORTS = ("unix", "tcp", "tls")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if not find_program("certtool"):
        pytest.skip("requires certtool")
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Server]:
    """One server of 256 MiB for all tests that leave it as they found it: running."""
    directory = tmp_path_factory.mktemp("shared")
    arguments = ("--tls", "on", "--tls-certificates", str(certificates.server), "--workers", "2")
    with Server(directory, *arguments, tcp=True, size=f"{SIZE >> 20}M") as server:
        yield server


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers that live as long as the test; ``ready=False`` does not wait for one."""
    servers: list[Server] = []

    def starter(*arguments: str, ready: bool = True, **options: Any) -> Server:
        server = Server(tmp_path / f"server{len(servers)}", *arguments, **options)
        servers.append(server)
        if ready:
            server.wait_ready()
        return server

    try:
        yield starter
        for server in servers:
            server.__exit__(None)
    finally:
        for server in servers:
            server.kill()


@dataclass(frozen=True)
class Route:
    """How clients reach the shared server over one transport.

    Attributes:
        uri: for libnbd.
        qemu: options before the image of qemu-img and qemu-io, and the image itself last.
    """

    transport: str
    server: Server
    certificates: Certificates
    uri: str
    qemu: tuple[str, ...]

    def client(self, name: str = "", **negotiate: Any) -> RawClient:
        """A raw client in transmission."""
        client = self.greeted()
        try:
            return client.negotiate(name, **negotiate)
        except BaseException:
            client.close()
            raise

    def greeted(self) -> RawClient:
        """A raw client behind the greeting, and behind STARTTLS if that is the transport."""
        client = self.server.connect("unix" if self.transport == "unix" else "tcp")
        client.greet()
        if self.transport == "tls":
            client.start_tls(self.certificates.context())
        return client


def make_route(transport: str, server: Server, certificates: Certificates) -> Route:
    place = f"{certificates.client}"
    if transport == "unix":
        uri, qemu = server.unix_uri("vram"), (server.unix_uri("vram"),)
    elif transport == "tcp":
        uri, qemu = server.tcp_uri("vram"), (server.tcp_uri("vram"),)
    else:
        uri = f"nbds://localhost:{server.port}/vram?tls-certificates={place}"
        qemu = (
            "--object", f"tls-creds-x509,id=tls0,dir={place},endpoint=client",
            "--image-opts", f"driver=nbd,host=localhost,port={server.port},export=vram,tls-creds=tls0",
        )  # fmt: skip
    return Route(transport, server, certificates, uri, qemu)


@pytest.fixture(params=TRANSPORTS)
def route(request: pytest.FixtureRequest, shared: Server, certificates: Certificates) -> Route:
    """The shared server over Unix socket, TCP and TLS in turn."""
    return make_route(request.param, shared, certificates)


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server like ``shared`` whose engine serves its clients itself."""
    with Server(tmp_path_factory.mktemp("local"), "--workers", "0", size=f"{SIZE >> 20}M") as server:
        yield server


@pytest.fixture(params=("worker", "engine"))
def either(request: pytest.FixtureRequest) -> Server:
    """A server whose clients are served by workers, and one whose engine serves them itself."""
    server: Server = request.getfixturevalue("shared" if request.param == "worker" else "local")
    return server


@pytest.fixture(params=("simple", "structured", "extended"))
def client(request: pytest.FixtureRequest, either: Server) -> Iterator[RawClient]:
    """A raw client of either server with each kind of reply in turn."""
    wanted = {} if request.param == "simple" else {request.param: True}
    with either.client(**wanted) as raw:
        yield raw
