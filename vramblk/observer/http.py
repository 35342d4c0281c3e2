"""A small HTTP/1.1 server for GET and HEAD, which no client can hold up.

Each connection is one request, served by a thread of its own under deadlines for reading and for
writing. Each listener has places of its own; when they are full the oldest connection is closed,
so clients that connect and stay silent keep out nobody, and a crowd on TCP does not touch the
status socket. A response without an end has its place like any other. The
grammar is h11's; what is not plain GET or HEAD is refused.
"""

from __future__ import annotations

import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import h11

from ..system import logs
from . import threads

READ_TIMEOUT_S = 5.0
WRITE_TIMEOUT_S = 10.0
#: A longer head is refused, once the chunk that made it longer has been received.
HEAD_BYTES = 16 << 10
PLACES = 24
_CHUNK_BYTES = 4096
#: Connections taken at a time; the other listener, and the end of the server, have their turn in between.
_ACCEPTS = 16
#: Threads of one listener; a closed connection's may still wait for the engine's answer.
_MOST_THREADS = 4 * PLACES

_TARGET = re.compile(rb"/[\x21-\x7e]*")
_METHOD = re.compile(rb"[A-Z]{1,16}")
_VERSIONS = (b"1.1", b"1.0")


@dataclass(frozen=True)
class Request:
    """A request line and its fields.

    Attributes:
        path: decoded from nothing: only plain paths exist.
        query: what follows the question mark.
        headers: by lower-case name; of repeated fields the last.
        local: it came over a Unix socket.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    local: bool


@dataclass(frozen=True)
class Response:
    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Sent after the body, one by one, until the client leaves.
    pieces: Iterator[bytes] | None = None


class BadRequest(Exception):
    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


Handler = Callable[[Request], Response]


class _Connection:
    def __init__(self, sock: socket.socket, since: float) -> None:
        self.sock = sock
        self.since = since


class Listener:
    """One listening socket, Unix or TCP; ``accept`` is called when it is readable."""

    def __init__(self, sock: socket.socket, handler: Handler) -> None:
        self._sock = sock
        self._handler = handler
        self._local = sock.family == socket.AF_UNIX
        self._open: dict[int, _Connection] = {}
        self._lock = threading.Lock()
        self._threads = 0
        sock.setblocking(False)

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> None:
        """Take connections that wait, each in a thread of its own."""
        for _ in range(_ACCEPTS):
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                logs.limited(logs.get(), "observer_accept_failed", error=str(error))
                time.sleep(0.1)
                return
            if self._threads >= _MOST_THREADS:
                sock.close()
                continue
            sock.setblocking(True)
            self._make_room()
            connection = _Connection(sock, time.monotonic())
            self._open[id(connection)] = connection
            with self._lock:
                self._threads += 1
            try:
                threads.start(self._serve, "http", connection)
            except RuntimeError:
                self._forget(connection)

    def _make_room(self) -> None:
        while len(self._open) >= PLACES:
            try:
                oldest = min(list(self._open.values()), key=lambda connection: connection.since)
            except ValueError:
                return
            self._open.pop(id(oldest), None)
            try:
                oldest.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _forget(self, connection: _Connection) -> None:
        with self._lock:
            self._threads -= 1
        self._open.pop(id(connection), None)
        connection.sock.close()

    def _serve(self, connection: _Connection) -> None:
        try:
            self._exchange(connection.sock)
        except (OSError, TimeoutError):
            pass
        finally:
            self._forget(connection)

    def _exchange(self, sock: socket.socket) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        try:
            request = _read_request(http, sock, self._local)
        except BadRequest as error:
            response, method = plain(error.status, str(error)), "GET"
        else:
            if request is None:
                return
            method = request.method
            try:
                response = self._handler(request)
            except BadRequest as error:
                response = plain(error.status, str(error))
            except Exception:
                logs.limited(
                    logs.get(), "observer_request_failed", level="error", path=request.path, exc_info=True
                )
                response = plain(
                    HTTPStatus.INTERNAL_SERVER_ERROR, "the observer failed; see the server's log"
                )
        _send(sock, _encode(http, response, method))
        if response.pieces is not None and method != "HEAD":
            for piece in response.pieces:
                _send(sock, http.send(h11.Data(data=piece)) or b"")
        sock.shutdown(socket.SHUT_WR)
        # Closing with unread input would reset the connection and could take the response with it.
        sock.settimeout(0.5)
        for _ in range(8):
            if not sock.recv(HEAD_BYTES):
                return


def plain(status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """One line of text."""
    return Response(status, text.encode() + b"\n", headers=headers or {})


def _read_request(http: h11.Connection, sock: socket.socket, local: bool) -> Request | None:
    """The request, or None if the client left without one.

    Raises:
        BadRequest: with the status to answer.
    """
    deadline = time.monotonic() + READ_TIMEOUT_S
    while True:
        try:
            event = http.next_event()
        except h11.RemoteProtocolError as error:
            raise BadRequest(HTTPStatus(error.error_status_hint), f"not an HTTP request: {error}") from None
        if isinstance(event, h11.Request):
            return _plain_request(event, local)
        if event is not h11.NEED_DATA:
            return None
        left = deadline - time.monotonic()
        if left <= 0:
            raise BadRequest(HTTPStatus.REQUEST_TIMEOUT, "the request took too long")
        sock.settimeout(left)
        try:
            chunk = sock.recv(_CHUNK_BYTES)
        except TimeoutError:
            continue
        if not chunk:
            return None
        http.receive_data(chunk)


def _plain_request(event: h11.Request, local: bool) -> Request:
    """What h11 has parsed, if it is one of the requests that are served here.

    Raises:
        BadRequest: with the status to answer.
    """
    if event.http_version not in _VERSIONS:
        raise BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.1 or HTTP/1.0")
    if not _METHOD.fullmatch(event.method):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "not a method")
    if event.method not in (b"GET", b"HEAD"):
        raise BadRequest(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD: nothing here changes anything")
    if not _TARGET.fullmatch(event.target):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "not a path")
    headers = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
    path, _, query = event.target.decode("ascii").partition("?")
    return Request(event.method.decode("ascii"), path, query, headers, local)


def _encode(http: h11.Connection, response: Response, method: str) -> bytes:
    fields = {
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.body)),
        "Cache-Control": "no-store",
        "Connection": "close",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        **response.headers,
    }
    if response.pieces is not None:
        del fields["Content-Length"]
    if response.status is HTTPStatus.METHOD_NOT_ALLOWED:
        fields["Allow"] = "GET, HEAD"
    head = h11.Response(
        status_code=response.status.value,
        reason=response.status.phrase,
        headers=[(name.encode("ascii"), value.encode("latin-1")) for name, value in fields.items()],
    )
    encoded = http.send(head) or b""
    return encoded if method == "HEAD" else encoded + (http.send(h11.Data(data=response.body)) or b"")


def _send(sock: socket.socket, data: bytes) -> None:
    """Write all under one deadline; ``settimeout`` alone would begin anew with each piece.

    Raises:
        OSError: the client is gone or does not read.
    """
    deadline = time.monotonic() + WRITE_TIMEOUT_S
    sock.setblocking(False)
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[sock.send(rest) :]
        except BlockingIOError:
            left = deadline - time.monotonic()
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            if left <= 0 or not poll.poll(left * 1000):
                raise TimeoutError("the client does not read") from None
