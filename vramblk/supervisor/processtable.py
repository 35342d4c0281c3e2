"""All children of the supervisor: forked with what each may keep, listened to, and reaped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from ..errors import StartupError
from ..system import logs
from . import children
from .children import Child
from .eventloop import EventLoop
from .logpipe import LogPipe

#: A dead child's pipe may be held open by a process of its own, and then has no end.
_LAST_READS = 16
#: Lines of a child's stderr that are logged in a period: a whole traceback, but no flood.
_LINES, _LINES_PERIOD_S = 200, 10.0


@dataclass(frozen=True)
class _Entry:
    child: Child
    ended: Callable[[Child], None]


class ProcessTable:
    """The living children by their process ids.

    Args:
        private: gives the supervisor's descriptors that are open now and no child's business.
    """

    def __init__(self, loop: EventLoop, pipe: LogPipe, private: Callable[[], Iterable[int]]) -> None:
        self._loop = loop
        self._pipe = pipe
        self._private = private
        self._entries: dict[int, _Entry] = {}
        self._log = logs.get()
        self._stderr_limiter = logs.Limiter(_LINES, _LINES_PERIOD_S)

    def fork(
        self,
        role: str,
        body: Callable[[], int],
        on_drop: Callable[[], None],
        ended: Callable[[Child], None],
        *,
        dies_with_parent: bool,
        keep: Iterable[int] = (),
        keeps_stdout: bool = False,
    ) -> Child:
        """Start a child; see ``children.fork``.

        Args:
            on_drop: called in the child for each line of its log that was dropped.
            ended: called when it has been reaped, with its status set.
            keep: private descriptors that this one needs.

        Raises:
            OSError: there is no room for another process.
        """
        close = {*self._private(), *(entry.child.stderr for entry in self._entries.values())} - set(keep)
        child = children.fork(
            role,
            body,
            self._pipe.channel(on_drop),
            close,
            dies_with_parent=dies_with_parent,
            keeps_stdout=keeps_stdout,
        )
        self._entries[child.pid] = _Entry(child, ended)
        with suppress(OSError):  # it runs, so it has to be known; what it prints is read at its end
            self._loop.watch(child.stderr, lambda: self._listen(child))
        return child

    def reap(self) -> None:
        """Take note of all children that have ended. What ``ended`` raises comes through in the end."""
        ended: list[_Entry] = []
        for pid, status in children.reap():
            entry = self._entries.pop(pid, None)
            if entry is None:
                self._log.debug("orphan_reaped", child=pid)
                continue
            # All of them before any consequence: that one's may be the end of the loop.
            entry.child.status = status
            ended.append(entry)
        errors: list[Exception] = []
        for entry in ended:
            for step in (self._hear_out, entry.ended):
                try:
                    step(entry.child)
                except Exception as error:
                    errors.append(error)
        if errors:  # one that ends the server before one that nobody foresaw
            raise min(errors, key=lambda error: not isinstance(error, StartupError))

    def _hear_out(self, child: Child) -> None:
        """Log what an ended child has printed last, and close its pipe."""
        try:
            for _ in range(_LAST_READS):
                if self._read_stderr(child):
                    break
        finally:
            self._loop.unwatch(child.stderr)
            os.close(child.stderr)

    def _listen(self, child: Child) -> None:
        if self._read_stderr(child):
            self._loop.unwatch(child.stderr)

    def _read_stderr(self, child: Child) -> bool:
        """Log what a child has printed; True at the end of its pipe."""
        lines, at_end = child.read_lines()
        for line in lines:
            fields = {"role": child.role, "child": child.pid, "line": line}
            self._stderr_limiter.log(self._log, "child_stderr", child.pid, "warning", fields)
        return at_end
