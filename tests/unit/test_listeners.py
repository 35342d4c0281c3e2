"""Listening sockets and their files, and what is done with the connections that come."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.sharedmemory import make_control
from vramblk.config.settings import load_settings
from vramblk.config.units import TcpAddress, UnixAddress
from vramblk.errors import ConfigError, PreconditionError, RuntimeFailure
from vramblk.shared.control import ControlWord
from vramblk.supervisor import listeners
from vramblk.supervisor.acceptor import Acceptor
from vramblk.supervisor.eventloop import EventLoop
from vramblk.supervisor.listeners import Listener, socket_group

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="requires root: gives a file to another group")


def bind_unix(path: Path, group: int | None = None) -> Listener:
    (listener,) = listeners.bind(UnixAddress(str(path)), "listen_addr", group)
    return listener


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


# Socket files


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_socket_file_is_for_owner_and_group(tmp_path: Path, mask: int) -> None:
    """Mode 0660 whatever the umask is, from the first moment on, and the umask stays."""
    path = tmp_path / "nbd.sock"
    before = os.umask(mask)
    try:
        listener = bind_unix(path)
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    with listener.sock:
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert path.stat().st_gid == os.getegid()


@needs_root
def test_socket_file_belongs_to_the_given_group(tmp_path: Path) -> None:
    """VRAMBLK_SOCKET_GID is the group of the file; owner and mode stay."""
    path = tmp_path / "nbd.sock"
    group = socket_group({"VRAMBLK_SOCKET_GID": " 54321 "})
    with bind_unix(path, group).sock:
        found = path.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 54321, 0o660)


def test_group_that_cannot_be_given_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variable and both ways out."""
    path = tmp_path / "nbd.sock"

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(PreconditionError, match=r"group 7 \(VRAMBLK_SOCKET_GID\).*group_add.*CHOWN"):
        bind_unix(path, 7)
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "  "])
def test_no_group_given(text: str) -> None:
    """Unset and empty leave the group as it is."""
    assert socket_group({}) is None and socket_group({"VRAMBLK_SOCKET_GID": text}) is None


@pytest.mark.parametrize("text", ["docker", "-1", "4294967295", "1.5", "²"])
def test_bad_group_is_exit_2(text: str) -> None:
    """The message names variable, value and what is allowed; the last number means none to the kernel."""
    with pytest.raises(ConfigError, match=r"VRAMBLK_SOCKET_GID.*0 to 4294967294"):
        socket_group({"VRAMBLK_SOCKET_GID": text})
    assert socket_group({"VRAMBLK_SOCKET_GID": "4294967294"}) == 4294967294


def test_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    """Nobody listens on it: a new one takes its place."""
    path = tmp_path / "nbd.sock"
    stale_socket(path)
    assert not connects(path)
    with bind_unix(path).sock:
        assert connects(path)


def test_live_socket_is_an_error_and_stays(tmp_path: Path) -> None:
    """Another server listens there, also if its backlog is full: it keeps its file and its clients."""
    path = tmp_path / "nbd.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        before = path.stat().st_ino
        waiting = []
        for _ in range(4):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            client.connect_ex(str(path))
            waiting.append(client)
            with pytest.raises(RuntimeFailure, match="another server listens there"):
                bind_unix(path)
        for client in waiting:
            client.close()
        assert path.stat().st_ino == before


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "link to a file"])
def test_something_else_in_the_way_is_an_error_and_stays(tmp_path: Path, kind: str) -> None:
    """Only a socket is ever removed."""
    path, precious = tmp_path / "nbd.sock", tmp_path / "precious"
    precious.write_text("keep me")
    if kind == "file":
        path.write_text("keep me")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(precious)
    before = path.lstat()
    with pytest.raises(RuntimeFailure, match="exists and is no socket"):
        bind_unix(path)
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert precious.read_text() == "keep me"


def test_missing_directory_names_the_command(tmp_path: Path) -> None:
    """mkdir -p is what helps."""
    with pytest.raises(RuntimeFailure, match=f"mkdir -p {tmp_path}/no/such"):
        bind_unix(tmp_path / "no/such/nbd.sock")


def test_own_file_is_removed_at_the_end(tmp_path: Path) -> None:
    """Once; that it is gone already is no error."""
    path = tmp_path / "nbd.sock"
    listener = bind_unix(path)
    with listener.sock:
        listener.remove_file()
        assert not path.exists()
        listener.remove_file()


@pytest.mark.parametrize("kind", ["socket", "file"])
def test_foreign_file_in_our_place_stays(tmp_path: Path, kind: str) -> None:
    """Somebody has removed ours and put theirs there: it is not ours to remove."""
    path = tmp_path / "nbd.sock"
    listener = bind_unix(path)
    with listener.sock:
        path.rename(tmp_path / "ours")  # its inode stays in use
        if kind == "socket":
            stale_socket(path)
        else:
            path.write_text("theirs")
        listener.remove_file()
        assert path.exists()


# Addresses


def test_port_zero_is_told_as_bound() -> None:
    """The kernel chooses a port, and the listener knows which."""
    (listener,) = listeners.bind(TcpAddress("127.0.0.1", 0), "listen_addr")
    with listener.sock:
        assert isinstance(listener.address, TcpAddress) and listener.address.port > 0
        assert listener.uri("a b", secure=False) == f"nbd://127.0.0.1:{listener.address.port}/a%20b"
        assert listener.uri("vram", secure=True).startswith("nbds://")
        listener.remove_file()  # there is none


def test_uri_of_a_unix_socket(tmp_path: Path) -> None:
    """Export and path are quoted, the slash of an export too."""
    with (listener := bind_unix(tmp_path / "a b.sock")).sock:
        assert listener.uri("x/y", secure=True) == f"nbds+unix:///x%2Fy?socket={tmp_path}/a%20b.sock"


def test_busy_port_names_who_to_ask() -> None:
    """The message has the command that shows who listens there."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            RuntimeFailure, match=f"listen_addr 127.0.0.1:{port}: .*ss -ltnp 'sport = :{port}'"
        ):
            listeners.bind(TcpAddress("127.0.0.1", port), "listen_addr")


def test_peers_are_introduced(tmp_path: Path) -> None:
    """A Unix client by process and user, a TCP client by address; and small replies do not wait."""
    listener = bind_unix(tmp_path / "nbd.sock")
    with listener.sock, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "nbd.sock"))
        connection, peer = listener.accept()
        connection.close()
        assert peer == f"unix:pid={os.getpid()},uid={os.geteuid()}"
    (listener,) = listeners.bind(TcpAddress("127.0.0.1", 0), "listen_addr")
    with listener.sock, socket.create_connection(listener.sock.getsockname()) as client:
        connection, peer = listener.accept()
        with connection:
            assert peer == f"tcp:127.0.0.1:{client.getsockname()[1]}"
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_client_that_is_gone_before_accept(tmp_path: Path) -> None:
    """A TCP client that has reset its connection raises, and leaves no descriptor open."""
    (listener,) = listeners.bind(TcpAddress("127.0.0.1", 0), "listen_addr")
    with listener.sock:
        client = socket.create_connection(listener.sock.getsockname())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError):
            listener.accept()
        assert len(os.listdir("/proc/self/fd")) == before


# Accepting


class Workers:
    """The part of a worker_pool that takes connections."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.attached = 0
        self.has_room = True
        self.willing = True
        self.numbers: list[int] = []

    def accepts(self, *, local: bool) -> bool:
        return self.has_room

    def admit(self, connection: socket.socket, number: int, peer: str) -> str:
        if self.attached >= self.most or not self.willing:
            return "full"
        self.attached += 1
        self.numbers.append(number)
        connection.send(b"hello")
        return ""


class FailingListener:
    """A listener whose ``accept`` raises what a test puts in before it goes on."""

    def __init__(self, inner: Listener) -> None:
        self.sock = inner.sock
        self.errors: list[int] = []
        self.accepts = 0
        self._inner = inner

    def accept(self) -> tuple[socket.socket, str]:
        self.accepts += 1
        if self.errors:
            raise OSError(self.errors.pop(0), "injected")
        return self._inner.accept()


class Door:
    """An acceptor on one Unix socket."""

    def __init__(self, path: Path, *arguments: str) -> None:
        self.path = path
        self.loop = EventLoop()
        self.control = make_control()
        self.listener = FailingListener(bind_unix(path))
        settings = load_settings(["--size", "4M", *arguments], {})
        self.workers = Workers(settings.max_connections)
        self.acceptor = Acceptor(
            settings, self.control, self.loop, self.workers, [self.listener],  # type: ignore[arg-type,list-item]
            full_pause_s=0.05, exhausted_pause_s=0.1,
        )  # fmt: skip
        self.acceptor.open()

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.path))
        client.setblocking(False)
        return client

    def answered(self, client: socket.socket) -> bytes | None:
        """What came at once; None for nothing yet, b"" if the connection was closed."""
        try:
            return client.recv(100)
        except BlockingIOError:
            return None

    def refused(self) -> int:
        return self.control.load(ControlWord.CONNECTIONS_REFUSED)


@pytest.fixture
def door(tmp_path: Path, log: list[Any]) -> Iterator[Door]:
    found = Door(tmp_path / "nbd.sock", "--max-connections", "3")
    yield found
    found.acceptor.close()
    found.loop.close()


def test_connections_are_handed_over_in_order(door: Door) -> None:
    """All that wait are taken at one turn, each with a number of its own."""
    with door.connect() as first, door.connect() as second:
        door.loop.turn(5)
        assert door.answered(first) == door.answered(second) == b"hello"
    assert door.workers.numbers == [1, 2]


def test_one_above_the_limit_is_closed(door: Door) -> None:
    """--max-connections: the one beyond is closed and counted; a place that is freed is given away."""
    clients = [door.connect() for _ in range(4)]
    door.loop.turn(5)
    assert [door.answered(client) for client in clients] == [b"hello"] * 3 + [b""]
    assert door.refused() == 1
    door.workers.attached = 2
    clients.append(door.connect())
    door.loop.turn(5)
    assert door.answered(clients[-1]) == b"hello"
    for client in clients:
        client.close()


def test_nobody_is_refused_while_a_worker_is_replaced(door: Door) -> None:
    """Clients wait in the backlog, without a turn for them, until there is room again."""
    door.workers.has_room = False
    with door.connect() as client:
        door.loop.turn(5)
        assert door.listener.accepts == 0
        door.loop.turn(0.01)
        assert door.answered(client) is None and door.refused() == 0
        door.workers.has_room = True
        assert door.loop.until(lambda: door.workers.attached == 1, 20)
        assert door.answered(client) == b"hello"


def test_worker_that_takes_nothing(door: Door) -> None:
    """A connection that no worker takes is closed, not kept."""
    door.workers.willing = False
    with door.connect() as client:
        door.loop.turn(5)
        assert door.answered(client) == b"" and door.refused() == 1


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_exhaustion_pauses_and_resumes(door: Door, log: list[Any], number: int) -> None:
    """No descriptor or no memory is left: it is told once, the client waits unaccepted, then is served."""
    door.listener.errors = [number]
    with door.connect() as client:
        door.loop.turn(5)
        assert door.listener.accepts == 1 and [event["event"] for event in log] == ["accept_failed"]
        for _ in range(3):
            door.loop.turn(0.01)
        assert door.listener.accepts == 1, "a socket that is watched on would make the loop spin"
        assert door.loop.until(lambda: door.workers.attached == 1, 20)
        assert door.answered(client) == b"hello"


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.ENOTCONN])
def test_client_that_went_away_costs_the_next_nothing(door: Door, log: list[Any], number: int) -> None:
    """An error of one connection is skipped at once, and is nothing to tell."""
    door.listener.errors = [number]
    with door.connect() as client:
        door.loop.turn(5)
        assert door.answered(client) == b"hello" and not log


def test_swap_refuses_what_has_no_worker(tmp_path: Path, log: list[Any]) -> None:
    """Each connection has a worker of its own: without one it is closed before negotiation."""
    path = tmp_path / "nbd.sock"
    door = Door(path, "--mode", "swap", "--listen-addr", f"unix:{path}")
    door.workers.has_room = door.workers.willing = False
    with door.connect() as client:
        door.loop.turn(5)
        assert door.answered(client) == b""
    assert log[0]["event"] == "connection_refused" and log[0]["reason"] == "full"
    door.acceptor.close()
    door.loop.close()


def test_closed_door(door: Door) -> None:
    """A drain closes the sockets, also while accepting pauses, and nothing opens them again."""
    door.listener.errors = [errno.EMFILE]
    with door.connect() as client:
        door.loop.turn(5)
        door.acceptor.close()
        assert not connects(door.path)
        door.loop.until(lambda: False, 0.2)
        assert door.workers.attached == 0
        client.setblocking(True)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_listening_is_not_held_up_by_many_clients(tmp_path: Path) -> None:
    """A crowd is taken in portions, so that signals and mail have their turn in between."""
    door = Door(tmp_path / "nbd.sock", "--max-connections", "1000")
    clients = [door.connect() for _ in range(100)]
    door.loop.turn(5)
    assert door.workers.attached == 64
    door.loop.turn(5)
    assert door.workers.attached == 100
    for client in clients:
        client.close()


def test_the_directory_of_the_examples_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that README's sockets lie in; any other has to be there."""
    monkeypatch.setattr(listeners, "OWN_DIRECTORY", str(tmp_path / "run"))
    [made] = listeners.bind(UnixAddress(str(tmp_path / "run" / "nbd.sock")), "listen_addr")
    made.sock.close()
    with pytest.raises(RuntimeFailure, match="make the directory first"):
        listeners.bind(UnixAddress(str(tmp_path / "other" / "nbd.sock")), "listen_addr")


def test_a_tcp_client_that_vanishes_is_noticed_within_minutes() -> None:
    """The kernel's own default is two hours, for which the client would keep its place."""
    (listener,) = listeners.bind(TcpAddress("127.0.0.1", 0), "listen_addr")
    with listener.sock, socket.create_connection(listener.sock.getsockname()):
        listener.sock.setblocking(True)
        connection, _ = listener.accept()
        with connection:

            def option(name: int) -> int:
                return connection.getsockopt(socket.IPPROTO_TCP, name)

            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            idle, interval, count = map(
                option, (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert 30 <= idle and idle + interval * count <= 300
            # Also with replies on their way; the kernel lets this one decide over the count of probes.
            assert option(socket.TCP_USER_TIMEOUT) == (idle + interval * count) * 1000


def test_uris_of_all_exports_as_far_as_a_log_line_holds_them(tmp_path: Path) -> None:
    """The first export's are told always."""
    (tcp,) = listeners.bind(TcpAddress("127.0.0.1", 0), "listen_addr")
    (unix,) = listeners.bind(UnixAddress(str(tmp_path / "s")), "listen_addr")
    with tcp.sock, unix.sock:
        told, left_out = listeners.uris([tcp, unix], ["a", "b"], secure=False)
        assert left_out == 0
        assert told == [each.uri(name, secure=False) for name in "ab" for each in (tcp, unix)]
        names = [f"export{number}" for number in range(64)]
        told, left_out = listeners.uris([tcp, unix], names, secure=False)
        assert len(told) + left_out == 128 and left_out and sum(map(len, told)) <= 2500
        told, left_out = listeners.uris([tcp, unix], ["n" * 4096, "b"], secure=False)
        assert (len(told), left_out) == (2, 2)
