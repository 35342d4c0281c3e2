"""What xe and i915 report of their clients, from files of the format of Documentation/gpu/drm-usage-stats."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from vramblk.observer import drmclients
from vramblk.observer.gpu import _intel

_RECORDED = Path(__file__).with_name("fdinfo")
_XE_BYTES, _I915_BYTES = 23992 << 10, 128 << 20


def _root(where: Path, processes: Iterable[Iterable[str]]) -> Path:
    """A /proc in which each process has these fdinfo texts on a DRM device, and a descriptor of another file."""
    for pid, texts in enumerate(processes, start=100):
        base = where / "proc" / str(pid)
        (base / "fd").mkdir(parents=True)
        (base / "fdinfo").mkdir()
        (base / "fd" / "0").symlink_to("/dev/null")
        for number, text in enumerate(texts, start=3):
            (base / "fd" / str(number)).symlink_to("/dev/dri/renderD128")
            (base / "fdinfo" / str(number)).write_text(text)
    (where / "proc" / "self" / "ns").mkdir(parents=True)
    (where / "proc" / "self" / "ns" / "pid").touch()
    (where / "proc" / "meminfo").touch()
    return where


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A place for a /proc that counts as the first pid namespace's."""
    (tmp_path / "pid").touch()
    monkeypatch.setattr(drmclients, "_FIRST_PID_NAMESPACE", -1)
    real = os.stat

    def stat(path: str | Path, **options: object) -> object:
        if str(path).endswith("ns/pid"):
            return type("Stat", (), {"st_ino": -1})
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(drmclients.os, "stat", stat)
    return tmp_path


@pytest.mark.parametrize(("driver", "expected"), [("xe", _XE_BYTES), ("i915", _I915_BYTES)])
def test_only_the_devices_own_regions_count(driver: str, expected: int) -> None:
    fields = drmclients.parse((_RECORDED / driver).read_text())
    assert fields["drm-driver"] == driver
    assert drmclients.resident_bytes(fields) == expected


def test_a_driver_that_reports_no_region_of_its_own_tells_nothing() -> None:
    """An integrated GPU has system RAM only; a value of a unit that is not known is no value."""
    assert drmclients.resident_bytes(drmclients.parse("drm-resident-system0:\t8 MiB\n")) is None
    assert drmclients.resident_bytes({"drm-resident-vram0": "3 pages"}) is None


def test_clients_are_added_up_and_each_counts_once(seen: Path) -> None:
    """Two descriptors may be one client's; another GPU's clients do not count."""
    xe = (_RECORDED / "xe").read_text()
    other = xe.replace("drm-client-id:\t3", "drm-client-id:\t4")
    elsewhere = xe.replace("0000:03:00.0", "0000:04:00.0")
    root = _root(seen, [[xe, xe], [other], [elsewhere], []])
    assert drmclients.used_bytes("0000:03:00.0", root) == 2 * _XE_BYTES
    assert drmclients.used_bytes("0000:05:00.0", root) is None


def test_absent_where_not_every_process_can_be_seen(seen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum without somebody's part would show memory as free that is not."""
    root = _root(seen, [[(_RECORDED / "xe").read_text()], [(_RECORDED / "xe").read_text()]])
    assert drmclients.used_bytes("0000:03:00.0", root) is not None
    real = os.listdir

    def listdir(path: str) -> list[str]:
        if "/101/" in path:
            raise PermissionError
        return real(path)

    monkeypatch.setattr(drmclients.os, "listdir", listdir)
    assert drmclients.used_bytes("0000:03:00.0", root) is None
    monkeypatch.undo()
    assert drmclients.used_bytes("0000:03:00.0", root) is None  # a pid namespace of a container


def test_reading_of_an_intel_gpu(seen: Path) -> None:
    """Used is what the clients have, the total is OpenCL's; a GPU of another driver is left to others."""
    root = _root(seen, [[(_RECORDED / "i915").read_text()]])
    base = seen / "sys" / "0000:03:00.0"
    base.mkdir(parents=True)
    assert _intel("0000:03:00.0", 1 << 30, seen / "sys", root) is None
    (base / "driver").symlink_to("/sys/bus/pci/drivers/i915")
    reading = _intel("0000:03:00.0", 1 << 30, seen / "sys", root)
    assert reading is not None
    assert (reading.memory_total_bytes, reading.memory_used_bytes) == (1 << 30, _I915_BYTES)
    assert reading.memory_free_bytes == (1 << 30) - _I915_BYTES
    without = _intel("0000:03:00.0", None, seen / "sys", root)
    assert without is not None and without.memory_free_bytes is None
