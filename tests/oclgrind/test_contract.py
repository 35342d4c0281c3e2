"""The contract of checksums on Oclgrind, which finds nothing meanwhile.

Needs Oclgrind, which ``setup.sh`` fetches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.unit.memory.checksumcontract import OPERATIONS, SPAN, ChecksumContract, Flippable, run_program
from vramblk.memory.devices import DeviceInfo

from .simulator import FEW_LANES, SIZES, simulation


@pytest.fixture(scope="module", params=SIZES)
def shared(
    request: pytest.FixtureRequest, info: DeviceInfo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Flippable]:
    """Of all tests together; what was found names the kernel and its line."""
    log = tmp_path_factory.mktemp("oclgrind") / "log"
    with simulation(info, SIZES[request.param], log, lanes=FEW_LANES) as made:
        yield made.flippable
        assert made.findings() == []


class TestChecksums(ChecksumContract):
    """Bits are flipped behind the memory's back."""

    @given(OPERATIONS)
    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_any_program_against_a_model(self, shared: Flippable, program: list[Any]) -> None:
        """With few programs, since one takes seconds; across the first arena's border."""
        run_program(shared, program, shared.rig.memory.arena_bytes - SPAN // 2)
