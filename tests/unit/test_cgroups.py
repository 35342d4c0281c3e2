"""Memory limits of cgroups, version 1 and 2, from trees of files as they look on hosts and in containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from vramblk.errors import PreconditionError
from vramblk.memory import systemram
from vramblk.system import cgroups

MIB = 1 << 20
NONE_V1 = 9223372036854771712


class Tree:
    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, name: str, text: object) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def v2(self, directory: str, limit: object, used: int = 0, files: int = 0, **more: object) -> None:
        top = f"sys/fs/cgroup/{directory}".rstrip("/")
        self.write(f"{top}/memory.max", limit)
        self.write(f"{top}/memory.current", used)
        self.write(f"{top}/memory.stat", f"anon 1\nactive_file {files}\ninactive_file 0\nshmem 5")
        for name, value in more.items():
            self.write(f"{top}/memory.{name}", value)

    def v1(self, directory: str, limit: int, used: int = 0, files: int = 0, above: int = NONE_V1) -> None:
        top = f"sys/fs/cgroup/memory/{directory}".rstrip("/")
        self.write(f"{top}/memory.limit_in_bytes", limit)
        self.write(f"{top}/memory.usage_in_bytes", used)
        self.write(
            f"{top}/memory.stat",
            f"active_file 0\nhierarchical_memory_limit {above}\ntotal_active_file {files}\ntotal_inactive_file 0",
        )
        self.write(f"{top}/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3")

    def found(self) -> list[tuple[str, int, int]]:
        prefix = str(self.root / "sys/fs/cgroup") + "/"
        return [
            (str(each.file).removeprefix(prefix), each.limit_bytes, each.used_bytes)
            for each in cgroups.limits(self.root)
        ]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_without_a_limit_there_is_none(tree: Tree) -> None:
    assert tree.found() == []
    tree.write("proc/self/cgroup", "0::/a")
    tree.v2("a", "max")
    assert tree.found() == []
    tree.write("proc/self/cgroup", "5:cpu,memory:/a\n0::/")
    tree.v1("a", NONE_V1)
    assert tree.found() == []
    assert cgroups.tightest(tree.root) is None


def test_version_2_in_a_container_and_below_limits_of_others(tree: Tree) -> None:
    tree.write("proc/self/cgroup", "0::/")
    tree.v2("", 600 * MIB, used=30 * MIB, files=10 * MIB)
    assert tree.found() == [("memory.max", 600 * MIB, 20 * MIB)]
    tree.write("proc/self/cgroup", "0::/slice/unit")
    tree.v2("slice/unit", "max", high=900 * MIB)
    tree.v2("slice", 800 * MIB, used=700 * MIB)
    assert [file for file, _, _ in tree.found()] == [
        "slice/unit/memory.high",
        "slice/memory.max",
        "memory.max",
    ]
    tightest = cgroups.tightest(tree.root)
    assert tightest is not None and tightest.left_bytes == 100 * MIB


@pytest.mark.parametrize("path", ["/docker/0123", "/../other"])
def test_a_path_that_is_not_mounted_means_the_top(tree: Tree, path: str) -> None:
    tree.write("proc/self/cgroup", f"9:memory:{path}\n0::{path}")
    tree.v1("", 600 * MIB, used=8 * MIB, files=3 * MIB)
    tree.v2("", 700 * MIB)
    assert tree.found() == [
        ("memory.max", 700 * MIB, 0),
        ("memory/memory.limit_in_bytes", 600 * MIB, 5 * MIB),
    ]


def test_version_1_tells_limits_of_hidden_levels(tree: Tree) -> None:
    tree.write("proc/self/cgroup", "4:memory:/\n0::/")
    tree.v1("", NONE_V1, above=500 * MIB)
    assert tree.found() == [("memory/memory.stat", 500 * MIB, 0)]
    tree.v1("", 400 * MIB, above=400 * MIB)
    assert tree.found() == [("memory/memory.limit_in_bytes", 400 * MIB, 0)]


def test_kills(tree: Tree) -> None:
    assert cgroups.oom_kills(tree.root) == cgroups.machine_oom_kills(tree.root) == 0
    tree.write("proc/self/cgroup", "4:memory:/a\n0::/")
    tree.write("proc/vmstat", "nr_free_pages 5\noom_kill 7")
    tree.v1("a", NONE_V1)
    assert cgroups.oom_kills(tree.root) == 3
    assert cgroups.machine_oom_kills(tree.root) == 7
    tree.v2("", "max", events="low 0\noom 1\noom_kill 2\noom_group_kill 0")
    assert cgroups.oom_kills(tree.root) == 2


def test_an_export_in_system_ram_that_does_not_fit_is_refused(tree: Tree) -> None:
    """docker run --memory 600m IMAGE --allow-cpu --size 512M."""
    tree.write("proc/self/cgroup", "0::/")
    tree.v2("", 600 * MIB, used=20 * MIB)
    server = systemram.server_bytes([33 * MIB] * 2, opencl=True)
    with pytest.raises(PreconditionError) as caught:
        systemram.require_room(512 * MIB, server, tree.root)
    message = str(caught.value)
    least = (512 * MIB + server + 20 * MIB) // MIB
    for part in ("512 MiB", "memory.max", "600 MiB", "20 MiB", f"{least}M", "--memory", "MemoryMax", "--size"):
        assert part in message, part
    tree.v2("", least * MIB, used=20 * MIB)
    systemram.require_room(512 * MIB, server, tree.root)
    systemram.require_room(0, 1 << 50, tree.root)


def test_max_on_a_processor_leaves_room_for_the_server_within_the_limit(tree: Tree) -> None:
    tree.write("proc/self/cgroup", "4:memory:/\n0::/")
    tree.write("proc/meminfo", "MemAvailable: 16777216 kB")
    tree.v1("", 300 * MIB, used=20 * MIB)
    assert systemram.usable_bytes(64 << 30, 200 * MIB, tree.root) == 80 * MIB
    assert systemram.usable_bytes(64 << 30, 20 * MIB, tree.root) == 140 * MIB
    assert systemram.usable_bytes(64 << 30, 500 * MIB, tree.root) == 0
    assert systemram.available_bytes(tree.root) == 280 * MIB


def test_a_death_by_the_out_of_memory_killer_is_told_from_others(tree: Tree) -> None:
    tree.write("proc/self/cgroup", "0::/")
    tree.write("proc/vmstat", "oom_kill 7")
    tree.v2("", 600 * MIB, events="oom_kill 2")
    before = cgroups.Kills(tree.root)
    assert before.since() == ""
    tree.write("proc/vmstat", "oom_kill 8")
    assert "machine" in before.since()
    tree.v2("", 600 * MIB, events="oom_kill 3")
    said = before.since()
    assert "memory.max" in said and "600 MiB" in said and "raise" in said
    tree.v2("", "max", events="oom_kill 3")
    assert "cgroup" in before.since()
