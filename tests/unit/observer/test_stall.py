"""A device that does not finish a batch is logged once, and once more when it goes on."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.unit.plain_memory import PlainMemory
from tests.unit.windows import BLOCK, Windows
from vramblk.memory.base import Batch
from vramblk.observer import stall
from vramblk.observer.stall import STALL_S, StallWatch
from vramblk.shared.context import Shared
from vramblk.shared.control import ControlWord


class Log:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def critical(self, event: str, **fields: Any) -> None:
        self.lines.append(("critical", event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append(("warning", event, fields))

    @property
    def events(self) -> list[str]:
        return [event for _, event, _ in self.lines]


class Watched:
    """A watch over words of the engine that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log = Log()
        monkeypatch.setattr(stall.logs, "get", lambda: self.log)
        self.shared: Shared = Windows(1).shared
        self.watch = StallWatch(self.shared)

    def executing(self, for_s: float, export: int = 0, progress: int = 0) -> None:
        control = self.shared.control
        control.store(ControlWord.ENGINE_PROGRESS, progress)
        control.store(ControlWord.ENGINE_SINCE_NS, max(1, time.monotonic_ns() - int(for_s * 1e9)))  # the machine may be younger
        control.store(ControlWord.ENGINE_EXPORT, export + 1)

    def idle(self) -> None:
        self.shared.control.store(ControlWord.ENGINE_EXPORT, 0)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_an_idle_engine_does_not_stand_still(watched: Watched) -> None:
    """However long ago its last batch began."""
    watched.executing(1000)
    watched.idle()
    watched.watch.look()
    assert watched.watch.describe() == "" and watched.log.lines == []


def test_a_batch_of_some_seconds_is_no_stall(watched: Watched) -> None:
    watched.executing(STALL_S - 1)
    watched.watch.look()
    assert watched.watch.describe() == "" and watched.log.lines == []


def test_a_stall_is_logged_once_with_what_to_do(watched: Watched) -> None:
    """Which export, for how long, and a remedy; described all the time."""
    watched.executing(STALL_S + 7)
    for _ in range(5):
        watched.watch.look()
        assert "export vram" in watched.watch.describe()
    assert watched.log.events == ["device_stalled"]
    level, _, fields = watched.log.lines[0]
    assert level == "critical" and fields["export"] == "vram"
    assert fields["for_s"] == pytest.approx(STALL_S + 7, abs=1)
    assert "dmesg" in fields["remedy"]


def test_the_end_of_a_stall_is_logged_once(watched: Watched) -> None:
    watched.executing(STALL_S + 1)
    watched.watch.look()
    watched.idle()
    for _ in range(3):
        watched.watch.look()
    assert watched.log.events == ["device_stalled", "device_resumed"]
    assert watched.watch.describe() == ""


def test_a_device_that_goes_on_with_a_new_batch_has_resumed(watched: Watched) -> None:
    """It need not be idle when somebody looks."""
    watched.executing(STALL_S + 1, progress=4)
    watched.watch.look()
    watched.executing(0.1, progress=5)
    watched.watch.look()
    assert watched.log.events == ["device_stalled", "device_resumed"]


def test_another_stall_is_logged_again(watched: Watched) -> None:
    """The next batch that does not end, whether or not anybody looked in between."""
    watched.executing(STALL_S + 1, progress=4)
    watched.watch.look()
    watched.executing(STALL_S + 2, progress=9)
    watched.watch.look()
    watched.watch.look()
    assert watched.log.events == ["device_stalled", "device_stalled"]


@pytest.mark.parametrize("number", [2, 1 << 32, (1 << 64) - 1])
def test_a_word_that_names_no_export_is_survived(watched: Watched, number: int) -> None:
    watched.executing(STALL_S + 1)
    watched.shared.control.store(ControlWord.ENGINE_EXPORT, number)
    watched.watch.look()
    assert watched.watch.describe() == "" and watched.log.lines == []


def test_what_the_engine_publishes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real engine: a stall while its memory works, none before and afterwards, failed or not."""
    log = Log()
    monkeypatch.setattr(stall.logs, "get", lambda: log)
    monkeypatch.setattr(stall, "STALL_S", 0.05)
    described: list[str] = []

    def hang(memory: PlainMemory, batch: Batch) -> None:
        time.sleep(0.1)
        watch.look()
        described.append(watch.describe())

    windows = Windows(1, before=hang)
    watch = StallWatch(windows.shared)
    watch.look()
    windows.read(0, 0, BLOCK)
    windows.run()
    watch.look()
    assert log.events == ["device_stalled", "device_resumed"]
    assert "export vram" in described[0] and watch.describe() == ""
