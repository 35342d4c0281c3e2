"""A worker's side of memory that is held while an export has clients, with a test in the place of the engine."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.sharedmemory import make_shared
from vramblk.config.settings import load_settings
from vramblk.shared.holds import HeldWords, HoldWords
from vramblk.worker.holds import Holds

MIB = 1 << 20


class Rig:
    def __init__(self, *argv: str) -> None:
        settings = load_settings(["--slices", "2", "--allocate", "attach", *argv], {})
        self.shared = make_shared(settings, 1, 2 << 20, 2 << 20)
        self.rung = 0
        submissions: Any = SimpleNamespace(ring=SimpleNamespace(wake=self._ring))
        self.holds = Holds(self.shared, self.shared.windows[0], submissions)
        self.engine = HoldWords(self.shared.windows[0], 2)
        self.held = HeldWords(self.shared.control)
        for export in (0, 1):
            self.held.set(export, False)
        table = [{"name": f"vram-{n}", "size_bytes": 8 * MIB, "device": "H", "pci_address": "0000:01:00.0"} for n in (0, 1)]
        self.shared.control.publish_export_table({"exports": table})

    def _ring(self) -> None:
        self.rung += 1

    def enter(self, slot: int, export: int) -> str | None:
        return self.holds.enter(slot, export, "test")


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_client_is_counted_once_and_waits(rig: Rig) -> None:
    assert rig.enter(0, 1) is None and rig.enter(0, 1) is None
    assert (rig.engine.users(), rig.engine.asked, rig.rung) == ([0, 1], 1, 1)


def test_held_and_known_is_enough(rig: Rig) -> None:
    """The answer to what others in this window want need not be waited for."""
    rig.enter(0, 0)
    rig.held.set(0, True)
    assert rig.enter(0, 0) is None, "it may be on its way to be freed"
    rig.engine.see(1)
    assert rig.enter(0, 0) == ""
    assert rig.engine.users() == [1, 0]


def test_memory_that_is_freed_as_the_client_asks(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held until the engine sees the client: what was read of it before says nothing."""
    rig.held.set(0, True)
    rig.enter(0, 0)

    def see_as_it_is_freed(_: HoldWords) -> int:
        rig.held.set(0, False)
        return 1

    monkeypatch.setattr(HoldWords, "seen", property(see_as_it_is_freed))
    assert rig.enter(0, 0) is None


def test_memory_that_comes_as_the_answer_is_read(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held and answered between two looks is no refusal."""
    rig.enter(0, 0)

    def answered(_: HoldWords) -> int:
        rig.held.set(0, True)
        return 1

    monkeypatch.setattr(HoldWords, "answered", property(answered))
    assert rig.enter(0, 0) == ""


def test_refused_is_counted_out(rig: Rig) -> None:
    rig.enter(0, 0)
    rig.engine.see(1)
    rig.held.set_missing(0, 3 * MIB)
    assert rig.enter(0, 0) is None
    rig.engine.answer(1)
    text = rig.enter(0, 0)
    assert text is not None and "3 MiB of the 8 MiB of export vram-0 are missing on H at 0000:01:00.0" in text
    assert (rig.engine.users(), rig.engine.asked) == ([0, 0], 2)
    rig.held.set_missing(0, 0)
    rig.enter(0, 0)
    rig.engine.see(3)
    rig.engine.answer(3)
    assert "failed its proof" in (rig.enter(0, 0) or "")


def test_choosing_again_and_leaving(rig: Rig) -> None:
    rig.enter(0, 0)
    rig.enter(1, 0)
    rig.enter(0, 1)
    assert rig.engine.users() == [1, 1]
    rig.holds.give_back(0)
    rig.holds.give_back(0)
    rig.holds.give_back(7)
    assert rig.engine.users() == [1, 0]


def test_an_export_that_is_always_held_asks_nobody() -> None:
    rig = Rig("--allocate", "start")
    assert rig.enter(0, 0) == "" and rig.rung == 0


@pytest.mark.parametrize("change", ["see", "answer", "held"])
def test_who_waits_is_woken_by_each_change(rig: Rig, change: str) -> None:
    negotiation: Any = object()
    rig.enter(0, 0)
    assert rig.holds.take_waiting() == [] and not rig.holds.changed
    rig.holds.wait(negotiation)
    rig.holds.wait(negotiation)
    assert not rig.holds.changed
    changes: dict[str, Callable[[], None]] = {
        "see": lambda: rig.engine.see(1),
        "answer": lambda: rig.engine.answer(1),
        "held": lambda: rig.held.set(0, True),
    }
    changes[change]()
    assert rig.holds.changed
    assert rig.holds.take_waiting() == [negotiation]
    assert not rig.holds.changed
