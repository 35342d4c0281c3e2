"""The TLS files of a running server: read at start and at SIGHUP, and looked at each day for their end."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..config.settings import Settings
from ..errors import StartupError
from ..shared.control import Control, ControlWord
from ..system import logs
from ..system.certificate import as_date
from ..system.tls import TlsFiles, read_files
from .eventloop import EventLoop

_TIMER = "certificate"
_DAY_S = 86400.0


class Certificates:
    """The files that workers serve with.

    Args:
        files: as they were read at start.
        tell: gives new files, packed, to every worker that runs; returns the workers that get them later.

    Attributes:
        files: what a worker is to serve with that is forked now; None with TLS off.
    """

    def __init__(
        self,
        settings: Settings,
        files: TlsFiles | None,
        control: Control,
        loop: EventLoop,
        tell: Callable[[bytes], list[int]],
    ) -> None:
        self.files = files
        self._settings = settings
        self._control = control
        self._loop = loop
        self._tell = tell
        self._told_what_hangup_does = False
        self._log = logs.get()

    def watch(self) -> None:
        """Publish when the certificate ends, and look at it each day from now on."""
        self._look(first=True)

    def renew(self) -> None:
        """At SIGHUP: read the files again for new handshakes; bad ones are refused and the old ones kept."""
        if not self._told_what_hangup_does:
            self._told_what_hangup_does = True
            if self.files is None:
                self._log.info("signal_ignored", signal="SIGHUP", reason="settings are read only at start")
            else:
                self._log.info("settings_kept", detail="SIGHUP reads the TLS files; all else needs a restart")
        if self.files is None:
            return
        try:
            files = read_files(self._settings)
        except StartupError as error:
            self._log.error("tls_refused", detail=str(error), effect="the old TLS files stay in use")
            return
        assert files is not None
        self.files = files
        untold = self._tell(files.pack())
        until = {"expires": files.validity.until_s} if files.validity else {}
        self._log.info("tls_renewed", files=files.where, **until)
        if untold:
            effect = "they get no connection until they have the new files"
            self._log.error("tls_not_renewed", workers=untold, effect=effect)
        self._look(first=True)

    def _look(self, first: bool = False) -> None:
        """Log a warning if one is due.

        Args:
            first: the certificate has just been read, so its end is logged in any case.
        """
        validity = self.files.validity if self.files else None
        self._control.store(ControlWord.CERTIFICATE_UNTIL_S, int(validity.until_s) if validity else 0)
        if validity is None:
            return
        if warning := validity.warning():
            self._log.warning(
                "certificate_expires",
                detail=warning,
                seconds_left=int(validity.until_s - time.time()),
                remedy="replace the file and send SIGHUP to the server",
            )
        elif first:
            days_left = round((validity.until_s - time.time()) / _DAY_S, 1)
            self._log.info(
                "certificate_valid", file=validity.file, until=as_date(validity.until_s), days_left=days_left
            )
        self._loop.after(_TIMER, _DAY_S, self._look)
