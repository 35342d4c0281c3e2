"""Every socket that a server listens on, as one: bound together, announced, and removed together."""

from __future__ import annotations

from collections.abc import Iterator

from ..config.settings import Settings
from ..config.units import TcpAddress, UnixAddress
from ..errors import StartupError
from ..system import logs
from . import listeners
from .listeners import Listener


class ServerSockets:
    """Nothing before ``bind``.

    Attributes:
        nbd: what clients connect to.
        status: the status socket and the address of metrics, which are the observer's.
    """

    def __init__(self, settings: Settings) -> None:
        self.nbd: list[Listener] = []
        self.status: list[Listener] = []
        self._settings = settings
        self._files_removed = False

    def bind(self, group: int | None) -> None:
        """Listen on all that is set; without the status socket where that is only a default.

        Args:
            group: of the socket files, None for this process's own.

        Raises:
            StartupError: an address cannot be used. ``close`` removes what was bound before.
        """
        settings = self._settings
        for address in settings.listen_addr:
            self.nbd += listeners.bind(address, "listen_addr", group)
        path = settings.status_socket
        if path is not None:
            try:
                self.status += listeners.bind(UnixAddress(path), "status_socket", group)
            except StartupError as error:
                if settings.status_socket_given:
                    raise
                logs.get().warning("no_status_socket", detail=str(error))
        if settings.metrics_addr is not None:
            self.status += listeners.bind(settings.metrics_addr, "metrics_addr")

    def descriptors(self) -> list[int]:
        return [listener.sock.fileno() for listener in self]

    def files(self) -> dict[str, tuple[int, int]]:
        """Device and inode of each socket file, by its path."""
        return {
            listener.address.path: listener.file
            for listener in self
            if isinstance(listener.address, UnixAddress) and listener.file is not None
        }

    def announcement(self) -> dict[str, object]:
        """Where clients find the exports, and people the page: fields of the event ``ready``."""
        names = [export.name for export in self._settings.exports]
        uris, left_out = listeners.uris(self.nbd, names, secure=self._settings.tls == "require")
        told: dict[str, object] = {"uris": uris}
        if left_out:
            told["more_uris"] = left_out
        pages = [
            f"http://{listener.address}/"
            for listener in self.status
            if isinstance(listener.address, TcpAddress)
        ]
        if pages:
            told["page"] = pages[0]
        return told

    def remove_files(self) -> None:
        """Remove the files made here, if they still are. Only once: the next server's may look like them."""
        if not self._files_removed:
            self._files_removed = True
            for listener in self:
                listener.remove_file()

    def close(self) -> None:
        """Remove the files and close the sockets; may be called again."""
        self.remove_files()
        for listener in self:
            listener.sock.close()

    def __iter__(self) -> Iterator[Listener]:
        yield from self.nbd
        yield from self.status
