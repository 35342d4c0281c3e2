"""What the observer answers to which path, and to whom."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import re
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from importlib import resources
from urllib.parse import parse_qs

from ..config.settings import Settings
from . import flat
from .gpu import INTERVAL_S, GpuWatch
from .health import Health, HealthCheck
from .http import BadRequest, Request, Response, plain
from .metrics import Metrics
from .sampler import Sampler
from .status import StatusDocument
from .writtenbytes import Written

_OPEN_TO_ALL = ("/healthz", "/readyz")
_FOREIGN_NAME = (
    "without a token this address answers to IP addresses and localhost only; "
    "give the server --metrics-host for another name"
)
#: Of a query.
_MOST_FIELDS = 8
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?", re.ASCII)


class Pages:
    """Answers requests; used by every listener."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        document: StatusDocument,
        health_check: HealthCheck,
        sampler: Sampler,
        written: Written,
        gpus: GpuWatch,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._document = document
        self._health_check = health_check
        self._sampler = sampler
        self._written = written
        self._gpus = gpus
        self._page = load_page()
        self._routes: dict[str, Callable[[Request], Response]] = {
            "/": lambda _: self._page,
            "/metrics": self._answer_metrics,
            "/healthz": lambda _: _line(self._health_check.examine()),
            "/readyz": lambda _: _line(self._health_check.ready()),
            "/status.json": lambda _: _json(self._document.build()),
            "/status.env": lambda _: _text(flat.lines(self._document.build())),
            "/free": self._answer_free,
            "/history.json": self._answer_history,
            "/map.json": self._answer_map,
        }

    def __call__(self, request: Request) -> Response:
        """The response to a request."""
        if (refused := refusal(request, self._settings)) is not None:
            return refused
        route = self._routes.get(request.path)
        if route is None:
            return plain(HTTPStatus.NOT_FOUND, f"there are only {', '.join(self._routes)}")
        return route(request)

    def _answer_metrics(self, request: Request) -> Response:
        body, content_type = self._metrics.expose(request.headers.get("accept", ""))
        return Response(HTTPStatus.OK, body, content_type)

    def _answer_free(self, request: Request) -> Response:
        if not request.local:
            return plain(HTTPStatus.FORBIDDEN, "only on the status socket: it has no end")
        return Response(HTTPStatus.OK, b"", pieces=self._free_memory())

    def _free_memory(self) -> Iterator[bytes]:
        while True:
            yield flat.free_memory(self._gpus.readings()).encode()
            time.sleep(INTERVAL_S)

    def _answer_history(self, request: Request) -> Response:
        return _json(self._sampler.history(_number(request, "since")))

    def _answer_map(self, request: Request) -> Response:
        export = _number(request, "export")
        if export >= len(self._settings.exports):
            return plain(
                HTTPStatus.NOT_FOUND, f"there are {len(self._settings.exports)} exports, counted from 0"
            )
        return _json(self._written.cells(export, self._sampler))


def refusal(request: Request, settings: Settings) -> Response | None:
    """Why a request over TCP is not answered; None if it is, as everything over a Unix socket."""
    token = settings.metrics_token
    if request.local:
        return None
    if token is None:
        return None if _host_allowed(request, settings) else plain(HTTPStatus.FORBIDDEN, _FOREIGN_NAME)
    if request.path not in _OPEN_TO_ALL and not _token_given(request, token):
        return _unauthorized(request)
    return None


def _token_given(request: Request, wanted: str) -> bool:
    """Whether the request carries the token, as a bearer token or, for browsers, as a password."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    value = value.strip()
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode("latin-1").partition(":")[2]
        except (binascii.Error, ValueError):
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(value.encode("latin-1", "replace"), wanted.encode())


def load_page() -> Response:
    """The status page with a policy that allows exactly its own script and style."""
    text = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, content in _INLINE.findall(text):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    policy = (
        f"default-src 'none'; script-src {' '.join(hashes['script'])}; "
        f"style-src {' '.join(hashes['style'])}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Frame-Options": "DENY"}
    return Response(HTTPStatus.OK, text.encode(), "text/html; charset=utf-8", headers)


def _host_allowed(request: Request, settings: Settings) -> bool:
    """Whether a request without a token names its server as nobody else can.

    A foreign web page could have a name of its own resolved to this machine and read the answers (DNS
    rebinding). Browsers always send Host; a request without it is a program's.
    """
    given = request.headers.get("host")
    if given is None:
        return True
    match = _HOST.fullmatch(given)
    host = match[1].strip("[]").lower().removesuffix(".") if match else ""
    if host == "localhost" or host.endswith(".localhost") or host in settings.metrics_host:
        return True
    address = settings.metrics_addr
    return _is_address(host) or (address is not None and host == address.host.lower())


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _unauthorized(request: Request) -> Response:
    """A browser that opens the page is asked for a password; a program gets a bearer challenge."""
    challenge = 'Basic realm="vramblk: the token is the password", charset="UTF-8"'
    if request.path != "/":
        challenge = 'Bearer realm="vramblk"'
    return plain(HTTPStatus.UNAUTHORIZED, "the token is missing or wrong", {"WWW-Authenticate": challenge})


def _number(request: Request, name: str) -> int:
    try:
        fields = parse_qs(request.query, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise BadRequest(HTTPStatus.BAD_REQUEST, f"the query has more than {_MOST_FIELDS} fields") from None
    text = fields.get(name, ["0"])[-1]
    return int(text) if re.fullmatch(r"\d{1,12}", text, re.ASCII) else 0


def _line(health: Health) -> Response:
    return plain(HTTPStatus.OK if health.ok else HTTPStatus.SERVICE_UNAVAILABLE, health.text)


def _text(text: str) -> Response:
    return Response(HTTPStatus.OK, text.encode())


def _json(value: object) -> Response:
    body = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode()
    return Response(HTTPStatus.OK, body, "application/json")
