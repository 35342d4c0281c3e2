"""Log lines are whole, of bounded length, on one line each, and never wait for anybody."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from vramblk.system import logs


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield ends
    for end in ends:
        os.close(end)
    structlog.reset_defaults()


def lines(fd: int) -> list[Any]:
    return [json.loads(line) for line in os.read(fd, 1 << 20).decode().splitlines()]


def test_event_carries_its_fields(pipe: tuple[int, int]) -> None:
    logs.configure(pipe[1], json=True, on_drop=pytest.fail, process="worker-1")
    logs.get().bind(client="tcp:127.0.0.1:5").warning("request_failed", offset=4096, length=512)
    (line,) = lines(pipe[0])
    assert line["timestamp"].endswith("Z")
    assert {key: line[key] for key in line if key != "timestamp"} == {
        "level": "warning", "event": "request_failed", "process": "worker-1", "pid": os.getpid(),
        "client": "tcp:127.0.0.1:5", "offset": 4096, "length": 512,
    }  # fmt: skip


def test_verbose_adds_debug_events(pipe: tuple[int, int]) -> None:
    for verbose in (False, True):
        logs.configure(pipe[1], json=True, on_drop=pytest.fail, verbose=verbose)
        logs.get().debug("detail", verbose=verbose)
    assert [line["verbose"] for line in lines(pipe[0])] == [True]


def test_full_pipe_drops_and_counts_but_never_cuts_a_line(pipe: tuple[int, int]) -> None:
    dropped = []
    logs.configure(pipe[1], json=True, on_drop=lambda: dropped.append(1))
    for number in range(2000):
        logs.get().info("line", number=number, filler="x" * 500)
    received = lines(pipe[0])
    assert dropped
    assert [line["number"] for line in received] == list(range(len(received)))
    assert len(received) + len(dropped) == 2000


def test_reader_that_is_gone_counts_as_dropped() -> None:
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    os.close(read_end)
    dropped = []
    logs.configure(write_end, json=True, on_drop=lambda: dropped.append(1))
    logs.get().info("line")
    os.close(write_end)
    structlog.reset_defaults()
    assert dropped == [1]


def test_exception_stays_on_one_line(pipe: tuple[int, int]) -> None:
    logs.configure(pipe[1], json=True, on_drop=pytest.fail)
    try:
        raise ValueError("broken\nhere")
    except ValueError:
        logs.get().exception("failed")
    (line,) = lines(pipe[0])
    assert line["level"] == "error"
    assert "ValueError: broken\nhere" in line["exception"]


def test_an_exception_is_told_without_opening_a_file(pipe: tuple[int, int]) -> None:
    """Lines of source would have to be read from a disk, for which the data path must not wait."""
    code = """
import os, sys
from vramblk.system import logs
logs.configure_direct(json=True)
opened = []
sys.addaudithook(lambda event, arguments: opened.append(event) if event in ("open", "import") else None)
def fail():
    raise ValueError("broken")
try:
    try:
        fail()
    except ValueError as error:
        raise KeyError("outer") from error
except KeyError:
    logs.get().critical("failed", exc_info=True)
print(opened)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line, opened = done.stdout.splitlines()
    assert opened == "[]"
    text = json.loads(line)["exception"]
    assert text.splitlines() == [
        "<string>:11 <module>", "<string>:8 fail", "ValueError: broken", "which led to", "<string>:13 <module>",
        "KeyError: 'outer'",
    ]  # fmt: skip


def test_the_server_loads_no_rich() -> None:
    """Which structlog would take along; 7 MiB in each process."""
    code = "import sys; import vramblk.supervisor.process; print('rich' in sys.modules); import rich; print(rich.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "rich"]


def test_direct_logging_writes_all_of_a_line(pipe: tuple[int, int]) -> None:
    logs.configure_direct("supervisor", json=True, fd=pipe[1])
    logs.get().info("ready", uris=["nbd://127.0.0.1:10809/vram"])
    assert lines(pipe[0])[0]["uris"] == ["nbd://127.0.0.1:10809/vram"]


def test_direct_logging_survives_a_closed_stdout() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    logs.configure_direct(json=True, fd=write_end)
    logs.get().info("ready")
    os.close(write_end)
    structlog.reset_defaults()


texts = (
    st.text(max_size=60)
    | st.text(min_size=3000, max_size=3100)
    | st.text(alphabet='é\n\x1b "', max_size=2000)
)
values = (
    texts | st.integers() | st.booleans() | st.none() | st.lists(texts, max_size=3) | st.binary(max_size=50)
)


@given(texts, st.dictionaries(st.sampled_from("abcdefgh"), values))
def test_any_event_is_one_valid_line(event: str, fields: dict[str, Any]) -> None:
    whole = {
        "timestamp": "2026-01-01T00:00:00.000Z",
        "level": "info",
        "event": event,
        "process": "p",
        "pid": 1,
        **fields,
    }
    line = logs.render_json(whole)
    assert len(line) <= select.PIPE_BUF
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    parsed = json.loads(line)
    assert parsed["level"] == "info"
    assert parsed["event"][:10] == event[:10]
    text = logs.render_text(whole)
    assert len(text) <= select.PIPE_BUF
    assert text.count(b"\n") == 1
    assert b"\x1b" not in text
    text.decode()


def test_too_many_fields_leave_the_event() -> None:
    line = logs.render_json({"level": "info", "event": "wide", **{f"key{n}": n for n in range(2000)}})
    assert json.loads(line) == {"level": "info", "event": "wide", "truncated": True}


def test_line_for_people() -> None:
    event = {
        "timestamp": "2026-01-01T12:34:56.789Z",
        "level": "info",
        "event": "ready",
        "process": "supervisor",
    }
    line = logs.render_text({**event, "pid": 7, "uri": "nbd://x", "note": "two words", "empty": ""})
    assert line == b'12:34:56 info    ready uri=nbd://x note="two words" empty="" (supervisor)\n'


class Recorder:
    """Stands for a logger."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, Any]]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.calls.append(("warning", event, fields))

    def error(self, event: str, **fields: Any) -> None:
        self.calls.append(("error", event, fields))


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_repeats_are_let_through_a_few_times_and_then_summed_up() -> None:
    clock, log = Clock(), Recorder()
    limiter = logs.Limiter(first=3, period_s=60, clock=clock)
    for number in range(10):
        limiter.log(log, "bad", None, "warning", {"number": number})  # type: ignore[arg-type]
    assert [fields for _, _, fields in log.calls] == [{"number": 0}, {"number": 1}, {"number": 2}]
    clock.now_s = 61
    limiter.log(log, "other", None, "error", {})  # type: ignore[arg-type]
    assert log.calls[3:] == [
        ("warning", "events_suppressed", {"of": "bad", "count": 7, "seconds": 61.0}),
        ("error", "other", {}),
    ]
    limiter.log(log, "bad", None, "warning", {"number": 10})  # type: ignore[arg-type]
    assert log.calls[-1] == ("warning", "bad", {"number": 10})


def test_kinds_are_told_apart_and_bounded() -> None:
    clock, log = Clock(), Recorder()
    limiter = logs.Limiter(first=1, period_s=60, kinds=4, clock=clock)
    for number in range(100):
        for _ in range(2):
            limiter.log(log, "bad", number, "warning", {"key": number})  # type: ignore[arg-type]
    assert len([call for call in log.calls if call[1] == "bad"]) == 100
    assert len([call for call in log.calls if call[1] == "events_suppressed"]) >= 90
    assert len(limiter._repeats) <= 4


def test_limited_uses_the_process_wide_limiter(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "limiter", logs.Limiter(first=2))
    logs.configure(pipe[1], json=True, on_drop=pytest.fail)
    for number in range(5):
        logs.limited(logs.get(), "negotiation_failed", client=f"tcp:{number}", reason="x")
    assert [line["client"] for line in lines(pipe[0])] == ["tcp:0", "tcp:1"]
