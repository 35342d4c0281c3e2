"""Listening sockets: bound once by the supervisor, and their files removed by it alone."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote

from ..config.units import Address, TcpAddress, UnixAddress
from ..errors import ConfigError, PreconditionError, RuntimeFailure

#: Where the defaults and the examples put sockets: the one directory that is made if it is missing.
OWN_DIRECTORY = "/run/vramblk"
GROUP_VARIABLE = "VRAMBLK_SOCKET_GID"

_BACKLOG = 128
_KEEPALIVE_IDLE_S, _KEEPALIVE_INTERVAL_S, _KEEPALIVE_PROBES = 60, 30, 8
#: A TCP client from which nothing has come for so long is gone. Also with replies on their way to it, which
#: includes a client that is stopped and does not read: so it is not shorter.
GONE_AFTER_S = _KEEPALIVE_IDLE_S + _KEEPALIVE_INTERVAL_S * _KEEPALIVE_PROBES
#: Of all URIs in one log line, which holds 4096 bytes; the first export's are always told.
_MOST_URI_BYTES = 2500
_SOCKET_MODE = 0o660
_PEER_CREDENTIALS = struct.Struct("iII")
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@dataclass(frozen=True)
class Listener:
    """One listening socket.

    Attributes:
        address: as it is bound, so with the port that the kernel chose for port 0.
        file: device and inode of the socket file, None for TCP.
    """

    sock: socket.socket
    address: Address
    file: tuple[int, int] | None = None

    def accept(self) -> tuple[socket.socket, str]:
        """The next connection and its peer: ``tcp:127.0.0.1:53422`` or ``unix:pid=123,uid=0``.

        Raises:
            BlockingIOError: there is none.
            OSError: as accept(2).
        """
        connection, _ = self.sock.accept()
        try:
            return connection, self._introduce(connection)
        except OSError:
            connection.close()  # it is gone already
            raise

    def _introduce(self, connection: socket.socket) -> str:
        if isinstance(self.address, UnixAddress):
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
            pid, uid, _ = _PEER_CREDENTIALS.unpack(raw)
            return f"unix:pid={pid},uid={uid}"
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _notice_when_gone(connection)
        host, port = connection.getpeername()[:2]
        return f"tcp:{TcpAddress(host, port)}"

    def uri(self, export: str, *, secure: bool) -> str:
        """The NBD URI of an export here; ``secure`` if plaintext is refused."""
        scheme, name = "nbds" if secure else "nbd", quote(export, safe="")
        if isinstance(self.address, TcpAddress):
            return f"{scheme}://{self.address}/{name}"
        return f"{scheme}+unix:///{name}?socket={quote(self.address.path)}"

    def remove_file(self) -> None:
        """Remove the socket file if it is still the one that was made here."""
        if isinstance(self.address, UnixAddress) and _identity(self.address.path) == self.file:
            os.unlink(self.address.path)


def _notice_when_gone(connection: socket.socket) -> None:
    """A client that loses its power or network leaves no word, and would keep its place for two hours."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S),
        (socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S),
        (socket.TCP_KEEPCNT, _KEEPALIVE_PROBES),
        (socket.TCP_USER_TIMEOUT, GONE_AFTER_S * 1000),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def uris(found: Sequence[Listener], exports: Sequence[str], *, secure: bool) -> tuple[list[str], int]:
    """The URIs of all exports at all listeners, as many as a log line holds, and how many are left out."""
    told: list[str] = []
    room = _MOST_URI_BYTES
    every = [listener.uri(export, secure=secure) for export in exports for listener in found]
    for uri in every:
        room -= len(uri)
        if room < 0 and len(told) >= len(found):
            break
        told.append(uri)
    return told, len(every) - len(told)


def socket_group(environ: Mapping[str, str]) -> int | None:
    """The group that Unix sockets belong to, None to leave it.

    Raises:
        ConfigError: not a number.
    """
    text = environ.get(GROUP_VARIABLE, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) >= (1 << 32) - 1:
        raise ConfigError(
            f"socket_gid = {text!r} (environment {GROUP_VARIABLE}): not a group; "
            "allowed: a number from 0 to 4294967294"
        )
    return int(text)


def bind(address: Address, setting: str, group: int | None = None) -> list[Listener]:
    """Listen on an address; a host name may stand for several.

    Args:
        setting: which one the address is from, for messages.
        group: owner group of a socket file.

    Raises:
        RuntimeFailure: the address is busy or unusable.
        PreconditionError: the group cannot be given, or root may not write to the directory.
    """
    if isinstance(address, UnixAddress):
        return [_bind_unix(address, setting, group)]
    return _bind_tcp(address, setting)


def _bind_tcp(address: TcpAddress, setting: str) -> list[Listener]:
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        raise RuntimeFailure(f"{setting} {address}: cannot be resolved: {error}") from error
    listeners: list[Listener] = []
    failure: OSError | None = None
    for family, place in dict.fromkeys((entry[0], entry[4]) for entry in found):
        try:
            listeners.append(_listen_tcp(family, place))
        except OSError as error:
            failure = error
            if error.errno not in _NO_SUCH_ADDRESS:
                break
    if failure and (not listeners or failure.errno not in _NO_SUCH_ADDRESS):
        for listener in listeners:
            listener.sock.close()
        raise RuntimeFailure(
            f"{setting} {address}: {failure.strerror}; {_advice(failure, address)}"
        ) from failure
    return listeners


def _listen_tcp(family: int, place: tuple[object, ...]) -> Listener:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(place)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
        host, port = sock.getsockname()[:2]
    except OSError:
        sock.close()
        raise
    return Listener(sock, TcpAddress(host, port))


def _advice(error: OSError, address: TcpAddress) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"`ss -ltnp 'sport = :{address.port}'` shows who listens there; end it or choose another port"
    if error.errno == errno.EACCES:
        return "choose a port above 1023"
    return "choose an address of this machine"


def makes_directory(path: str) -> bool:
    """Whether ``bind`` makes the directory of a socket's path if it is missing."""
    return os.path.dirname(path) == OWN_DIRECTORY and os.access(os.path.dirname(OWN_DIRECTORY), os.W_OK)


def command_for_directory(folder: str) -> str:
    """What this user can type to have a directory of his own at ``folder``."""
    parent = os.path.dirname(folder)
    while parent != "/" and not os.path.exists(parent):
        parent = os.path.dirname(parent)
    if os.access(parent, os.W_OK | os.X_OK):
        return f"mkdir -p {folder}"
    return f"sudo install -d -o {os.geteuid()} {folder}"


def _bind_unix(address: UnixAddress, setting: str, group: int | None) -> Listener:
    path = address.path
    if makes_directory(path):
        with suppress(OSError):  # bind says why
            os.makedirs(OWN_DIRECTORY, mode=0o755, exist_ok=True)
    _clear_the_way(path, setting)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o777 & ~_SOCKET_MODE)
    try:
        sock.bind(path)
    except OSError as error:
        sock.close()
        # A container's root without CAP_DAC_OVERRIDE lacks a permission that only the host can give.
        lacking = error.errno == errno.EACCES and os.geteuid() == 0
        failure = PreconditionError if lacking else RuntimeFailure
        raise failure(f"{setting} {address}: {error.strerror}; {_unix_advice(error, path)}") from error
    finally:
        os.umask(mask)
    listener = Listener(sock, address, _identity(path))
    try:
        if group is not None:
            _give_to_group(address, setting, group)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        listener.remove_file()
        raise
    return listener


def _give_to_group(address: UnixAddress, setting: str, group: int) -> None:
    try:
        os.chown(address.path, -1, group)
    except OSError as error:
        raise PreconditionError(
            f"{setting} {address}: group {group} ({GROUP_VARIABLE}) cannot be given: {error.strerror}; "
            "make the server a member of it (group_add of Compose) or grant CHOWN"
        ) from error


def _clear_the_way(path: str, setting: str) -> None:
    """Remove a socket file that nobody listens on.

    Raises:
        RuntimeFailure: somebody does, or it is something else.
    """
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return  # bind says what is wrong, if anything is
    if not stat.S_ISSOCK(mode):
        raise RuntimeFailure(
            f"{setting} unix:{path}: exists and is no socket; choose another path or move it away"
        )
    identity = _identity(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        result = probe.connect_ex(path)
    if result in (0, errno.EAGAIN, errno.EINPROGRESS):
        raise RuntimeFailure(
            f"{setting} unix:{path}: another server listens there; "
            "end it (`ss -lxp` shows who) or choose another path"
        )
    if result == errno.ENOENT:
        return
    if result != errno.ECONNREFUSED:
        raise RuntimeFailure(
            f"{setting} unix:{path}: {os.strerror(result)}; choose another path or remove the file"
        )
    try:
        if _identity(path) == identity:
            os.unlink(path)
    except OSError as error:
        raise RuntimeFailure(
            f"{setting} unix:{path}: nobody listens, but the old file stays: {error.strerror}"
        ) from error


def _unix_advice(error: OSError, path: str) -> str:
    folder = os.path.dirname(path)
    if error.errno == errno.ENOENT:
        return f"make the directory first: {command_for_directory(folder)}"
    if error.errno == errno.EACCES and os.geteuid() == 0:
        return f"{folder} must belong to root, type on the host: sudo chown root:root {folder}"
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"{folder} must be writable for this user"
    return "choose another path"


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
