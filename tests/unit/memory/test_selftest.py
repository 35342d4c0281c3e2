"""The memory test finds what is bad, says where, and leaves the memory zeroed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.failing_memory import FailingMemory
from tests.unit.memory.contract import windows
from tests.unit.memory.stuck import Stuck
from vramblk.commands import selftest
from vramblk.config.settings import load_settings
from vramblk.config.units import parse_size
from vramblk.memory.base import Batch, Copy, DeviceError, Zero
from vramblk.memory.mapped import MappedMemory


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[MappedMemory]:
    path = tmp_path / "memory"
    path.write_bytes(b"x" * (1 << 20))
    found = MappedMemory(str(path), parse_size("max"), map_overwrite=True)
    yield found
    found.close()


def test_good_memory_passes(memory: MappedMemory) -> None:
    result = selftest.examine("vram", memory, 2)
    assert result.passed
    assert not any(memory._bytes)


def test_stuck_bit_is_found_once(memory: MappedMemory) -> None:
    """One bad bit is one range, its block, however many patterns trip over it."""
    result = selftest.examine("vram", Stuck(memory, 70_000), 1)
    assert not result.passed
    assert [(lo, hi) for lo, hi, _ in result.bad] == [(69632, 73728)]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0 and a JSON result; stdout holds nothing else."""
    path = tmp_path / "memory"
    path.write_bytes(b"x" * (1 << 20))
    settings = load_settings(["--device", f"map:{path}", "--size", "max", "--map-overwrite"], {})
    assert selftest.run(settings, 1, True) == 0
    result = json.loads(capsys.readouterr().out)["exports"][0]
    assert result["passed"]
    assert result["bad_ranges"] == []
    assert selftest.run(settings, 1, False) == 0
    assert "passed" in capsys.readouterr().out


def test_failing_memory(memory: MappedMemory) -> None:
    """The wrapper for other tests: fails every Nth time, in ranges, or for good; otherwise works."""
    ours = windows()
    memory.attach(ours)
    failing = FailingMemory(memory, ours)
    ours[0].slab[:16] = 9
    batch = Batch()
    batch.copies_in.append(Copy(0, 0, 16, 4096))
    failing.every = 2
    failing.execute(batch)
    with pytest.raises(DeviceError):
        failing.execute(batch)
    failing.every = 0
    failing.ranges = [(8192, 8193)]
    failing.execute(batch)
    batch.zeroes.append(Zero(8000, 200))
    with pytest.raises(DeviceError) as caught:
        failing.execute(batch)
    assert not caught.value.lost
    assert bytes(memory._bytes[4096:4112]) == bytes([9]) * 16
    failing.lost = True
    with pytest.raises(DeviceError) as caught:
        failing.execute(Batch())
    assert caught.value.lost
