"""Notices a device that stands still: a batch that does not end, such as a GPU that hangs in clFinish."""

from __future__ import annotations

import time

from ..shared.context import Shared
from ..shared.control import ControlWord
from ..system import logs

#: A batch takes milliseconds; the largest piece of one some seconds through the slowest mapping.
STALL_S = 5.0


class StallWatch:
    """Looks at what the engine publishes of the batch that it executes.

    ``look`` is to be called every second; ``describe`` answers at any time.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._logged: tuple[int, int] | None = None
        self._log = logs.get()

    def describe(self) -> str:
        """One line about a batch that has not ended for ``STALL_S``; empty if there is none."""
        found = self._stalled()
        if found is None:
            return ""
        export, _, seconds = found
        return (
            f"the device of export {export} has not finished a batch for {seconds:.0f} s; "
            "look at the kernel log (dmesg) for its driver"
        )

    def look(self) -> None:
        """Log the beginning and the end of a stall, once each."""
        found = self._stalled()
        if found is not None:
            export, since_ns, seconds = found
            batch = (self._shared.control.load(ControlWord.ENGINE_PROGRESS), since_ns)
            if batch != self._logged:
                self._logged = batch
                self._log.critical(
                    "device_stalled",
                    export=export,
                    for_s=round(seconds, 1),
                    remedy="look at the kernel log (dmesg) for the device's driver; requests wait until the "
                    "device answers; kill the engine only if it never will, since its data is lost then",
                )
        elif self._logged is not None:
            self._logged = None
            self._log.warning("device_resumed")

    def _stalled(self) -> tuple[str, int, float] | None:
        """Name of the export, start of its batch (monotonic ns), and for how many seconds it has run."""
        control = self._shared.control
        progress = control.load(ControlWord.ENGINE_PROGRESS)
        number, since_ns = control.load(ControlWord.ENGINE_EXPORT), control.load(ControlWord.ENGINE_SINCE_NS)
        seconds = (time.monotonic_ns() - since_ns) / 1e9
        exports = self._shared.settings.exports
        if not 0 < number <= len(exports) or seconds < STALL_S:
            return None
        if control.load(ControlWord.ENGINE_PROGRESS) != progress:
            return None  # another batch meanwhile
        return exports[number - 1].name, since_ns, seconds
