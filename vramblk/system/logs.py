"""Log lines that never hold anybody up: rendered by the process itself, written whole or dropped and counted.

A line of at most PIPE_BUF bytes enters a pipe whole or not at all (pipe(7)), so many processes share
one non-blocking pipe without a lock, and the observer alone meets a slow terminal or disk.
"""

from __future__ import annotations

import json as json_format
import os
import re
import select
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

# structlog imports rich wherever it finds it, for tracebacks that nobody here asks for: 7 MiB more in each
# process of the server, locked in swap mode.
_hidden = "rich" not in sys.modules
if _hidden:
    sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
    from structlog.typing import FilteringBoundLogger, WrappedLogger
finally:
    if _hidden:
        del sys.modules["rich"]

MAXIMUM_LINE_BYTES = min(4096, select.PIPE_BUF)

_DEBUG, _INFO = 10, 20
_LEADING = ("timestamp", "level", "event", "process", "pid")
_LEVEL_COLOURS = {"warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}
_PLAIN = "\x1b[0m"
#: The colours, and all other control characters but the end of a line.
_CONTROL = re.compile(rb"\x1b\[(?:0|31|33)m|[\x00-\x09\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")
#: Exceptions behind an exception that are logged too.
_MOST_CAUSES = 8


def stdout_is_terminal() -> bool:
    """Whether logs are for people; JSON otherwise."""
    try:
        return os.isatty(1)
    except OSError:
        return False


def without_control(lines: bytes) -> bytes:
    """What came through the pipe, without control characters: an attacker in a worker may write any."""
    return _CONTROL.sub(lambda found: found[0] if len(found[0]) > 2 else b"?", lines)


def configure(
    channel_fd: int, json: bool, on_drop: Callable[[], None], process: str = "vramblk", verbose: bool = False
) -> None:
    """Log to a non-blocking pipe; ``on_drop`` is called for each line that did not go in."""

    def write(line: bytes) -> None:
        try:
            os.write(channel_fd, line)
        except OSError:
            on_drop()

    _configure(write, json, process, verbose)


def configure_direct(
    process: str = "vramblk", verbose: bool = False, json: bool | None = None, fd: int = 1
) -> None:
    """Log to stdout, waiting for it: for a process outside the data path, or before there is one."""

    def write(line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(fd, rest) :]
        except OSError:
            return  # nobody reads any more, and there is no other place to say so

    _configure(write, not stdout_is_terminal() if json is None else json, process, verbose)


def get() -> FilteringBoundLogger:
    """A logger; events are snake_case names, everything else key=value. Bind it after ``configure``."""
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


def _configure(write: Callable[[bytes], None], json: bool, process: str, verbose: bool) -> None:
    identity = {"process": process, "pid": os.getpid()}
    render = render_json if json else render_text

    def identify(_: WrappedLogger, level: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        first = {"timestamp": _timestamp(), "level": level, "event": event.pop("event", "")}
        return {**first, **identity, **event}

    def finish(_: WrappedLogger, __: str, event: MutableMapping[str, Any]) -> bytes:
        return render(event)

    structlog.configure(
        processors=[_tell_exception, identify, finish],
        wrapper_class=structlog.make_filtering_bound_logger(_DEBUG if verbose else _INFO),
        logger_factory=lambda *_: _Writer(write),
        cache_logger_on_first_use=False,
    )
    _timestamp()  # the C library reads the time zone's file at the first call


class _Writer:
    """The logger under structlog's wrapper: every level is one write."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def msg(self, line: bytes) -> None:
        self._write(line)

    debug = info = warning = warn = error = exception = critical = fatal = log = msg


def _tell_exception(_: WrappedLogger, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """``exc_info`` as text, without lines of source: they would have to be read from a disk."""
    given = event.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else sys.exception() if given else None
    if error is not None:
        event["exception"] = "".join(_told(error, _MOST_CAUSES))
    return event


def _told(error: BaseException, most: int) -> Iterator[str]:
    """What caused it first."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and most:
        yield from _told(cause, most - 1)
        yield "\nwhich led to\n"
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        yield f"{code.co_filename}:{line} {code.co_name}\n"
    yield f"{type(error).__name__}: {error}"


def _timestamp() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"


def render_json(event: Mapping[str, Any]) -> bytes:
    """One line of JSON in ASCII; if it is too long, its longest texts are cut until it fits."""
    line = _json(event)
    cut = MAXIMUM_LINE_BYTES // 4
    while len(line) > MAXIMUM_LINE_BYTES and cut >= 16:
        shorter = {key: _cut(value, cut) for key, value in event.items()}
        line = _json({**shorter, "truncated": True})
        cut //= 2
    if len(line) > MAXIMUM_LINE_BYTES:
        head = {key: _cut(event[key], 64) for key in _LEADING if key in event}
        line = _json({**head, "truncated": True})
    return line


def _json(event: Mapping[str, Any]) -> bytes:
    return json_format.dumps(event, default=str, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def _cut(value: Any, characters: int) -> Any:
    if isinstance(value, (int, float, bool)) or value is None:
        return value
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= characters else text[:characters] + "..."


def render_text(event: Mapping[str, Any]) -> bytes:
    """One line for people: time, level, event, key=value. Control characters are escaped."""
    level = str(event.get("level", ""))
    colour = _LEVEL_COLOURS.get(level, "")
    clock = str(event.get("timestamp", ""))[11:19]
    words = [f"{clock} {colour}{level:<7} {_PLAIN if colour else ''}{_text(event.get('event', ''))}"]
    words += [f"{key}={_text(value)}" for key, value in event.items() if key not in _LEADING]
    words.append(f"({event.get('process', '')})")
    line = " ".join(words).encode(errors="backslashreplace")
    if len(line) >= MAXIMUM_LINE_BYTES:
        line = line[: MAXIMUM_LINE_BYTES - 4].decode(errors="ignore").encode() + b"..."
    return line + b"\n"


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    plain = text.isprintable() and text and not any(character in text for character in ' "=')
    return text if plain else json_format.dumps(text, ensure_ascii=not text.isprintable())


@dataclass
class _Repeats:
    log: FilteringBoundLogger
    event: str
    level: str
    since_s: float
    count: int = 0


class Limiter:
    """Lets the first events of a kind through in each period and sums up the others.

    Attributes:
        first: events let through in a period.
        period_s: length of a period, which begins with its first event.
        kinds: kinds remembered at once; beyond it the oldest is summed up early.
    """

    def __init__(
        self,
        first: int = 5,
        period_s: float = 60.0,
        kinds: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first = first
        self._period_s = period_s
        self._kinds = kinds
        self._clock = clock
        self._repeats: dict[tuple[str, Hashable], _Repeats] = {}  # oldest period first

    def log(
        self, log: FilteringBoundLogger, event: str, key: Hashable, level: str, fields: Mapping[str, Any]
    ) -> None:
        now_s = self._clock()
        self._sum_up(now_s)
        kind = (event, key)
        if kind not in self._repeats:
            self._repeats[kind] = _Repeats(log, event, level, now_s)
        repeats = self._repeats[kind]
        repeats.count += 1
        repeats.log = log
        if repeats.count <= self._first:
            getattr(log, level)(event, **fields)

    def _sum_up(self, now_s: float) -> None:
        while self._repeats:
            kind, oldest = next(iter(self._repeats.items()))
            if now_s - oldest.since_s < self._period_s and len(self._repeats) < self._kinds:
                return
            del self._repeats[kind]
            if oldest.count > self._first:
                getattr(oldest.log, oldest.level)(
                    "events_suppressed", of=oldest.event, count=oldest.count - self._first,
                    seconds=round(now_s - oldest.since_s, 1),
                )  # fmt: skip


#: Of this process.
limiter = Limiter()


def limited(
    log: FilteringBoundLogger, event: str, *, key: Hashable = None, level: str = "warning", **fields: Any
) -> None:
    """Log an event that can repeat without end; ``key`` separates kinds and must not come from a client."""
    limiter.log(log, event, key, level, fields)
