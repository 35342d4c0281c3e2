"""``vramblk relay``: metrics, health and page of another server, from its status socket to a TCP address.

For a swap server in a container, which has no network. The relay is a process of its own: it can only
read, and it may be slow or die without the server noticing.
"""

from __future__ import annotations

import http.client
import select
import signal
from http import HTTPStatus

from ..config.settings import Settings
from ..config.units import UnixAddress
from ..errors import ConfigError
from ..observer.http import Listener, Request, Response, plain
from ..observer.pages import refusal
from ..supervisor import listeners
from ..supervisor.signalpipe import SignalPipe
from .observerclient import ask, why

#: What a page needs besides its type and its body.
_PASSED_ON = ("Content-Security-Policy", "X-Frame-Options")


class Relay:
    """Answers requests with what the server behind a status socket answers.

    Args:
        settings: whom to answer, as with the server's own --metrics-addr.
    """

    def __init__(self, place: UnixAddress, settings: Settings) -> None:
        self._place = place
        self._settings = settings

    def __call__(self, request: Request) -> Response:
        """The response to a request; status 502 if the server does not answer."""
        if (refused := refusal(request, self._settings)) is not None:
            return refused
        path = f"{request.path}?{request.query}" if request.query else request.path
        try:
            status, body, headers = ask(self._place, path, {"Accept": request.headers.get("accept", "*/*")})
        except (OSError, http.client.HTTPException) as error:
            return plain(HTTPStatus.BAD_GATEWAY, f"no server answers: {why(self._place, error)}")
        passed_on = {name: headers[name] for name in _PASSED_ON if name in headers}
        return Response(HTTPStatus(status), body, headers.get("Content-Type", "text/plain"), passed_on)


def run(settings: Settings) -> int:
    """Listen on ``metrics_addr`` until SIGTERM or SIGINT; gives the exit status.

    Raises:
        ConfigError: there is no address to listen on, or no socket to ask.
        RuntimeFailure: the address is busy or unusable.
    """
    if settings.metrics_addr is None or settings.status_socket is None:
        raise ConfigError(
            "relay needs an address to listen on and the status socket of a server; type: "
            "vramblk relay --metrics-addr 127.0.0.1:10811 --status-socket /run/vramblk/status.sock"
        )
    answer = Relay(UnixAddress(settings.status_socket), settings)
    signals = SignalPipe((signal.SIGTERM, signal.SIGINT))
    by_fd = {
        bound.sock.fileno(): Listener(bound.sock, answer)
        for bound in listeners.bind(settings.metrics_addr, "metrics_addr")
    }
    poll = select.poll()
    for descriptor in (signals.descriptor, *by_fd):
        poll.register(descriptor, select.POLLIN)
    print(f"http://{settings.metrics_addr}/ shows {settings.status_socket}", flush=True)
    while not signals.read():
        for descriptor, _ in poll.poll():
            if descriptor in by_fd:
                by_fd[descriptor].accept()
    return 0
