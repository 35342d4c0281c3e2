"""Asks the observer of a running server over its status socket, or over --metrics-addr.

The token goes only to an address that was named on purpose. While the server is down, anybody on this machine
may listen on the port of its settings.
"""

from __future__ import annotations

import errno
import http.client
import json as json_format
import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..config.settings import Settings
from ..config.units import Address, UnixAddress, printable
from ..errors import RuntimeFailure
from ..system import proc

TIMEOUT_S = 10.0
_MOST_BYTES = 16 << 20
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class StatusServer:
    """The place where a server's observer answers."""

    def __init__(self, settings: Settings) -> None:
        self._places = _places(settings)
        self._token = settings.metrics_token
        self._shows_token = settings.status_socket is None or _is_flag(settings.source_of("metrics_addr"))
        if not self._places:
            raise RuntimeFailure(
                "there is nothing to ask: the status socket is off; give --status-socket or --metrics-addr"
            )

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a page.

        Raises:
            RuntimeFailure: no place answers; the text says why and what to try.
        """
        problems = []
        for place in self._places:
            try:
                return self._ask(place, path)
            except (OSError, http.client.HTTPException) as error:
                problems.append(why(place, error))
        raise RuntimeFailure("no server answers: " + "; ".join(problems))

    def json(self, path: str) -> Any:
        """A JSON page; errors as ``get``, and for a server that refuses."""
        code, body = self.get(path)
        if code == 401:
            if self._token and not self._shows_token:
                raise RuntimeFailure(
                    "the status socket does not answer, and only an address that a flag names gets the "
                    "token: use the status socket (try sudo), or give --metrics-addr"
                )
            if self._token:
                raise RuntimeFailure("the server refuses this token: give its own as --metrics-token")
            raise RuntimeFailure("the server asks for a token: give --metrics-token or VRAMBLK_METRICS_TOKEN")
        try:
            if code == 200:
                return json_format.loads(body)
        except (ValueError, RecursionError):
            pass
        raise RuntimeFailure(f"the server's answer to {path} is not understood (HTTP status {code})")

    def _ask(self, place: Address, path: str) -> tuple[int, bytes]:
        headers = {}
        if self._token and self._shows_token and not isinstance(place, UnixAddress):
            headers["Authorization"] = f"Bearer {self._token}"
        code, body, _ = ask(place, path, headers)
        return code, body


def printable_document(document: Any) -> Any:
    """A JSON document with all its texts and keys printable.

    Raises:
        RuntimeFailure: it is nested too deeply.
    """
    try:
        return _printable(document)
    except RecursionError as error:
        raise RuntimeFailure("the server's answer is not understood: it is nested too deeply") from error


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {printable(key): _printable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_printable(each) for each in value]
    return printable(value) if isinstance(value, str) else value


class _Socket(socket.socket):
    """Stops reading at ``deadline_s`` of the monotonic clock, however slowly bytes come in."""

    deadline_s = 0.0

    def recv_into(self, *arguments: Any) -> int:
        left_s = self.deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self.settimeout(left_s)
        return super().recv_into(*arguments)


def _connect(place: Address) -> _Socket:
    if not isinstance(place, UnixAddress):
        host = _ANY.get(place.host, place.host)
        return _Socket(fileno=socket.create_connection((host, place.port), TIMEOUT_S).detach())
    # Opened without following a link, which could lead to any other socket; then connected to as what it is.
    file = os.open(place.path, os.O_PATH | os.O_NOFOLLOW)
    sock = _Socket(socket.AF_UNIX)
    try:
        if stat.S_ISLNK(os.fstat(file).st_mode):
            raise OSError(errno.ELOOP, "is a symbolic link, which is not followed")
        sock.settimeout(TIMEOUT_S)
        sock.connect(f"/proc/self/fd/{file}")
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(file)
    return sock


def ask(place: Address, path: str, headers: Mapping[str, str]) -> tuple[int, bytes, http.client.HTTPMessage]:
    """Status, body and header fields of the answer at one place.

    Raises:
        OSError, HTTPException: there is none within ``TIMEOUT_S``, or it is none of HTTP, or too long.
    """
    connection = http.client.HTTPConnection("localhost", timeout=TIMEOUT_S)
    deadline_s = time.monotonic() + TIMEOUT_S
    try:
        connection.sock = sock = _connect(place)
        sock.deadline_s = deadline_s
        sock.settimeout(TIMEOUT_S)
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        body = response.read(_MOST_BYTES + 1)
        if len(body) > _MOST_BYTES:
            raise http.client.HTTPException("the answer is too long")
        return response.status, body, response.headers
    finally:
        connection.close()


def _places(settings: Settings) -> list[Address]:
    """Where to ask: what a flag names and nothing else; otherwise the socket, then the address."""
    unix: list[Address] = [UnixAddress(settings.status_socket)] if settings.status_socket else []
    tcp: list[Address] = [settings.metrics_addr] if settings.metrics_addr else []
    given_by_flag = {name for name in ("metrics_addr", "status_socket") if _is_flag(settings.source_of(name))}
    if given_by_flag == {"status_socket"}:
        return unix
    if "metrics_addr" in given_by_flag:
        return tcp or unix
    return unix + tcp


def _is_flag(source: str) -> bool:
    return source.startswith("flag ")


def why(place: Address, error: Exception) -> str:
    """Why a place gives no answer, and what to try."""
    reason = (
        error.strerror
        if isinstance(error, OSError) and error.strerror
        else str(error) or type(error).__name__
    )
    hint = ""
    if isinstance(error, PermissionError):
        hint = " (try sudo)"
    elif isinstance(error, FileNotFoundError):
        hint = " (is the server running? name its socket with --status-socket)"
        if running := ", ".join(map(str, proc.named("vramblk-supervisor"))):
            hint = (
                f" (a server runs as process {running}: name its socket with --status-socket; if the file "
                "was removed, only a restart makes it again)"
            )
    path = place.path if isinstance(place, UnixAddress) else place
    return f"{path}: {printable(reason)[:200]}{hint}"


@contextmanager
def understood() -> Iterator[None]:
    """Around what reads and draws a status document.

    Raises:
        RuntimeFailure: it is none.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RuntimeFailure(
            "the server's answer to /status.json is not understood: no status document"
        ) from error
