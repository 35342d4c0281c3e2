"""The kernels touch nothing but their buffers, and no two work-items race.

Needs Oclgrind, which ``setup.sh`` fetches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.memory.contract import Rig
from vramblk.memory.devices import DeviceInfo

from . import uses
from .columns import hostile, launch
from .simulator import EVERYTHING, SIZES, Simulation, simulation

#: In all, and for one launch.
HOSTILE, LAUNCH = 48_000 if EVERYTHING else 3_200, 200


@pytest.fixture(scope="module", params=SIZES)
def simulated(
    request: pytest.FixtureRequest, info: DeviceInfo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Simulation]:
    log = tmp_path_factory.mktemp("oclgrind") / "log"
    with simulation(info, SIZES[request.param], log) as made:
        assert made.findings() == []
        yield made


@pytest.mark.parametrize("use", [uses.runs, uses.zeroes, uses.patterns], ids=lambda use: use.__name__)
def test_plain_use(simulated: Simulation, use: Callable[[Rig], object]) -> None:
    use(simulated.rig)
    assert simulated.findings() == []


def test_several_bad_blocks_in_one_launch(simulated: Simulation) -> None:
    """Only the first to count says where: each word of what was found is written by one work-item."""
    uses.bad_blocks(simulated.flippable)
    assert simulated.findings() == []


def test_reads_and_writes_together(info: DeviceInfo, tmp_path: Path) -> None:
    with simulation(info, SIZES["340K"], tmp_path / "log", checksums=False) as made:
        uses.runs_together(made.rig)
        assert made.findings() == []


def test_several_groups_for_a_request(info: DeviceInfo, tmp_path: Path) -> None:
    with simulation(info, SIZES["256K"], tmp_path / "log", checksums=False) as made:
        uses.long_runs(made.rig)
        assert made.findings() == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("runs", ["reads", "writes", "reads writes", "writes reads"])
def test_hostile_columns(info: DeviceInfo, tmp_path: Path, size: str, runs: str) -> None:
    """No access outside a buffer. Requests of such a launch may overlap each other, so races are not looked for."""
    together = " " in runs  # which checksums prevent
    with simulation(info, SIZES[size], tmp_path / "log", checksums=not together, races=False) as made:
        for _ in range(HOSTILE // 8 // LAUNCH):
            launch(made.rig, runs, hostile(made.rig, LAUNCH))
            assert made.findings() == []
