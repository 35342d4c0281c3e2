"""Asks the observer of a running server over its status socket, or over --metrics-addr if given."""

from __future__ import annotations

import http.client
import json as json_format
import socket
from collections.abc import Mapping
from typing import Any

from ..config.settings import Settings
from ..config.units import Address, UnixAddress
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
            if self._token:
                raise RuntimeFailure("the server refuses this token: give its own as --metrics-token")
            raise RuntimeFailure("the server asks for a token: give --metrics-token or VRAMBLK_METRICS_TOKEN")
        try:
            if code == 200:
                return json_format.loads(body)
        except ValueError:
            pass
        raise RuntimeFailure(f"the server's answer to {path} is not understood (HTTP status {code})")

    def _ask(self, place: Address, path: str) -> tuple[int, bytes]:
        headers = {}
        if self._token and not isinstance(place, UnixAddress):
            headers["Authorization"] = f"Bearer {self._token}"
        code, body, _ = ask(place, path, headers)
        return code, body


def ask(place: Address, path: str, headers: Mapping[str, str]) -> tuple[int, bytes, http.client.HTTPMessage]:
    """Status, body and header fields of the answer at one place.

    Raises:
        OSError, HTTPException: there is none within ``TIMEOUT_S``, or it is none of HTTP, or too long.
    """
    connection = http.client.HTTPConnection("localhost", timeout=TIMEOUT_S)
    try:
        if isinstance(place, UnixAddress):
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(TIMEOUT_S)
            connection.sock.connect(place.path)
        else:
            host = _ANY.get(place.host, place.host)
            connection.sock = socket.create_connection((host, place.port), TIMEOUT_S)
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        body = response.read(_MOST_BYTES + 1)
        if len(body) > _MOST_BYTES:
            raise http.client.HTTPException("the answer is too long")
        return response.status, body, response.headers
    finally:
        connection.close()


def _places(settings: Settings) -> list[Address]:
    """Where to ask: what a flag names and nothing else; otherwise the address, then the socket."""
    unix: list[Address] = [UnixAddress(settings.status_socket)] if settings.status_socket else []
    tcp: list[Address] = [settings.metrics_addr] if settings.metrics_addr else []
    given_by_flag = {name for name in ("metrics_addr", "status_socket") if _is_flag(settings.source_of(name))}
    if given_by_flag == {"status_socket"}:
        return unix
    if "metrics_addr" in given_by_flag:
        return tcp or unix
    return tcp + unix


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
    return f"{path}: {reason}{hint}"
