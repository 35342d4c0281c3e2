"""Kernels that are wrong in one place are caught: what the other tests of this group do not find is not there.

Needs Oclgrind, which ``setup.sh`` fetches.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from vramblk.memory.base import ChecksumError
from vramblk.memory.devices import DeviceInfo

from . import uses
from .columns import column, launch
from .simulator import FEW_LANES, KERNELS, SIZES, Simulation, simulation


@dataclass
class Mutant:
    """What is changed; what shows it, and words of what Oclgrind finds."""

    old: str
    new: str
    use: Callable[[Simulation], object]
    found: tuple[str, ...]
    checksums: bool = False


def request(runs: str, *place: int) -> Callable[[Simulation], object]:
    """A run of one request; ``place`` is arena, length16, beyond16, beyond4."""
    return lambda made: launch(made.rig, runs, [column(made.rig, *place)])


def both(made: Simulation, *place: int) -> list[tuple[int, int, int]]:
    """A request of one kind that is right, and one of the other at this place."""
    return [(0, 1024, 2), column(made.rig, *place)]


def bad_blocks(made: Simulation) -> None:
    uses.bad_blocks(made.flippable)


#: The last arena's number, with 16 KiB of it.
LAST = 10
IN_ARENA = "    if (!in_arena(number, off16, length16, arena_bytes, size_bytes)) return;\n"
BOUND = "    if ((ulong)pos4 + length16 * 4 > staging4) return;\n"
#: With the line behind it, in which the two kernels differ.
GATHER_BOUND, SCATTER_BOUND = BOUND + "    const __global uint4 *arena;", BOUND + "    __global uint4 *arena;"
READS, WRITES = ("Invalid read", "Kernel: gather"), ("Invalid write", "Kernel: scatter")
REPLIES, PAYLOADS = ("Invalid write", "Kernel: gather"), ("Invalid read", "Kernel: scatter")
TOGETHER = "Kernel: exchange"
RACE, LOCAL_RACE = ("data race", "Kernel: checksum_"), ("data race", "local memory")
MUTANTS = {
    "reads beyond an arena": Mutant(
        "end <= arena_bytes &&", "end <= arena_bytes + 16 &&", request("reads", 0, 2, 1), READS
    ),
    "writes beyond an arena": Mutant(
        "end <= arena_bytes &&", "end <= arena_bytes + 16 &&", request("writes", 0, 2, 1), WRITES
    ),
    "reads beyond the last arena": Mutant(
        " && end <= size_bytes - first", "", request("reads", LAST, 2, 1), READS
    ),
    "checksums where no arena is": Mutant(
        "return first < size_bytes && ", "return ", lambda made: launch(made.rig, "reads", [(0, 1024, 1 | 11 << 16)]),
        ("Invalid read", "Kernel: checksum_runs"), checksums=True,
    ),
    "gather without in_arena": Mutant(
        IN_ARENA + GATHER_BOUND, GATHER_BOUND, request("reads", 0, 2, 100), READS
    ),
    "scatter without in_arena": Mutant(
        IN_ARENA + SCATTER_BOUND, SCATTER_BOUND, request("writes", 0, 2, 100), WRITES
    ),
    "checksums without in_arena": Mutant(
        "sane && length16 ?", "length16 ?", request("reads", 0, 256, 256),
        ("Invalid read", "Kernel: checksum_runs"), checksums=True,
    ),
    "replies beyond the staging buffer": Mutant(
        GATHER_BOUND, GATHER_BOUND.replace("staging4", "staging4 + 1"), request("reads", 0, 2, 0, 1), REPLIES
    ),
    "payloads beyond the staging buffer": Mutant(
        SCATTER_BOUND, SCATTER_BOUND.replace("staging4", "staging4 + 1"), request("writes", 0, 2, 0, 1), PAYLOADS
    ),
    "positions of 32 bits": Mutant(
        SCATTER_BOUND, SCATTER_BOUND.replace("(ulong)", ""), lambda made: launch(made.rig, "writes", [(0, 2**32 - 4, 2)]), PAYLOADS
    ),
    "exchange without in_arena": Mutant(
        "if (!sane || (ulong)", "if ((ulong)", lambda made: launch(made.rig, "reads writes", both(made, 0, 2, 100)),
        ("Invalid write", TOGETHER),
    ),
    "exchange beyond the staging buffer": Mutant(
        "if (!sane || (ulong)pos4 + length16 * 4 > staging4)", "if (!sane)",
        lambda made: launch(made.rig, "writes reads", both(made, 0, 2, 0, 1)), ("Invalid write", TOGETHER),
    ),
    "exchange with a write too many": Mutant(
        "request < table.writes", "request <= table.writes",
        lambda made: launch(made.rig, "writes reads", [(0, 1024, 2), (16, 2048, 2), (16, 3072, 2)]),
        ("data race", TOGETHER),
    ),
    "zero one byte more": Mutant(
        "for (ulong i = tail + LANE; i < start + length;", "for (ulong i = tail + LANE; i <= start + length;",
        lambda made: uses.zeroes(made.rig), ("Invalid write", "Kernel: zero"),
    ),
    "fill shifted": Mutant(
        "            arena[first16 + at] = expected4", "            arena[first16 + at + 1] = expected4",
        lambda made: uses.patterns(made.rig), ("Invalid write", "Kernel: fill"),
    ),
    "verify counts from 1": Mutant(
        "found[1 + block] = 1;", "found[(1 << 18) + 1 + block] = 1;",
        lambda made: uses.patterns(made.rig), ("Invalid write", "Kernel: verify"),
    ),
    "lanes that write the same": Mutant(
        "to[i] = from16[i];", "to[i / 2] = from16[i];", lambda made: uses.runs(made.rig), ("data race", "Kernel: scatter")
    ),
    "every bad block says where": Mutant(
        " && atomic_inc(found) == 0) {", ") {\n        atomic_inc(found);", bad_blocks, RACE, checksums=True
    ),
    "bad blocks counted without atomic_inc": Mutant(
        "atomic_inc(found) == 0", "found[0]++ == 0", bad_blocks, RACE, checksums=True
    ),
    "no barrier between two halves": Mutant(
        "        barrier(CLK_LOCAL_MEM_FENCE);\n        if (LANE + upper", "        if (LANE + upper",
        bad_blocks, LOCAL_RACE, checksums=True,
    ),
    "no barrier between two blocks": Mutant(
        "    barrier(CLK_LOCAL_MEM_FENCE); // lane 0", "    // lane 0", bad_blocks, LOCAL_RACE, checksums=True
    ),
    "one lane too many": Mutant(
        "if (LANE + upper < width)", "if (LANE + upper <= width)", bad_blocks,
        ("Invalid read", "local memory"), checksums=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_kernel_is_caught(info: DeviceInfo, tmp_path: Path, name: str) -> None:
    mutant = MUTANTS[name]
    source = KERNELS.read_text()
    assert source.count(mutant.old) == 1, "the kernels have changed: change the mutant"
    kernels = tmp_path / "kernels.cl"
    kernels.write_text(source.replace(mutant.old, mutant.new))
    with simulation(
        info, SIZES["256K"], tmp_path / "log", checksums=mutant.checksums, lanes=FEW_LANES, kernels=kernels
    ) as made:
        with suppress(AssertionError, ChecksumError):  # what it does may be seen to be wrong as well
            mutant.use(made)
        findings = made.findings()
    assert any(all(words in each for words in mutant.found) for each in findings), findings[:3]
