"""The product with a safeguard taken away, so that a promise can be seen to depend on it. For tests only.

In a guest ``altered_server.py`` leaves safeguards out; among the other tests pytest does:

    python -m pytest -p tests.without --without NAME tests/...

whose tests must then fail: ``tests/unit/test_without.py`` sees to that. The names are those of
docs/design/swap-safety.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from vramblk.engine.executor import Executor
from vramblk.memory import mapped, patterns
from vramblk.memory.base import DeviceError
from vramblk.nbd.constants import Error
from vramblk.serving import replyqueue
from vramblk.supervisor import draining, logpipe
from vramblk.swap import safeguards

if TYPE_CHECKING:
    import pytest

#: See lib.sh of the guests.
_OF_THE_HOST = ("min_free", "swap_max", "no_timeout", "room", "stays", "checksums")
#: As the product's table calls those that are rows of it.
_ROWS = {"mlock": "memory_locked", "io_flusher": "io_flusher", "oom": "oom_score", "fifo": "realtime"}


def leave_out(names: Iterable[str]) -> None:
    """Take safeguards away from this process and those that it forks.

    Raises:
        KeyError: nothing here has that name.
    """
    for name in names:
        if name in _ROWS:
            _without_row(_ROWS[name])
        else:
            _BY_NAME[name]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without", action="append", default=[], metavar="NAME", help="leave a safeguard out")


def pytest_configure(config: pytest.Config) -> None:
    leave_out(config.getoption("--without"))


def _without_row(name: str) -> None:
    """Neither taken nor read back."""
    rest = tuple(each for each in safeguards.TABLE if each.name != name)
    if len(rest) == len(safeguards.TABLE):
        raise KeyError(name)
    safeguards.TABLE = rest


def _without_waiting_for_clients() -> None:
    """A server that ends when it is told to, as most do."""
    draining.Drain.over = property(lambda drain: True)  # type: ignore[assignment, method-assign]


def _without_copy_before_done() -> None:
    execute = Executor._execute

    def early(self: Executor, export: int, part: Any) -> None:
        for entry in part.entries:
            self._rings[entry.window].complete(entry.number + 1)
        execute(self, export, part)

    Executor._execute = early  # type: ignore[method-assign]


def _without_status_check() -> None:
    execute = Executor._execute

    def blind(self: Executor, export: int, part: Any) -> None:
        memory = self._memories[export]

        class Blind:
            def execute(self, batch: Any) -> None:
                try:
                    memory.execute(batch)
                except DeviceError:
                    pass

            def __getattr__(self, name: str) -> Any:
                return getattr(memory, name)

        self._memories = [*self._memories[:export], Blind(), *self._memories[export + 1 :]]  # type: ignore[list-item]
        try:
            execute(self, export, part)
        finally:
            self._memories = [*self._memories[:export], memory, *self._memories[export + 1 :]]

    Executor._execute = blind  # type: ignore[method-assign]


def _without_repeating_one_by_one() -> None:
    def fail_all(self: Executor, export: int, entries: Any) -> None:
        for entry in entries:
            self._refuse(entry.window, entry.number, entry.op, entry.first, entry.count, Error.EIO)

    Executor._isolate = fail_all  # type: ignore[method-assign]


def _without_proof() -> None:
    patterns.prove = mapped.prove = lambda memory, progress=None: None  # type: ignore[assignment]


def _without_zeroing() -> None:
    _without_proof()
    mapped.MappedMemory._zero = lambda self, offset, length: None  # type: ignore[method-assign]


def _with_logs_that_wait() -> None:
    make = logpipe.LogPipe.__init__

    def blocking(self: logpipe.LogPipe, *, verbose: bool) -> None:
        make(self, verbose=verbose)
        os.set_blocking(self.writer, True)

    logpipe.LogPipe.__init__ = blocking  # type: ignore[method-assign]


def _with_replies_that_wait() -> None:
    """A client that reads nothing holds whoever serves it up, as with a blocking socket."""
    flush = replyqueue.ReplyQueue.flush

    def patient(self: replyqueue.ReplyQueue) -> bool:
        self._sock.setblocking(True)
        try:
            return flush(self)
        finally:
            self._sock.setblocking(False)

    replyqueue.ReplyQueue.flush = patient  # type: ignore[method-assign]


_BY_NAME: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    **dict.fromkeys(_OF_THE_HOST, lambda: None),
    "drain": _without_waiting_for_clients,
    "copy_first": _without_copy_before_done,
    "status_check": _without_status_check,
    "one_by_one": _without_repeating_one_by_one,
    "proof": _without_proof,
    "zeroing": _without_zeroing,
    "dropped_lines": _with_logs_that_wait,
    "unread_replies": _with_replies_that_wait,
}

NAMES = frozenset(_BY_NAME) | frozenset(_ROWS)
