"""What can bite swap mode and cannot be refused is said, with the number that is wanted and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from vramblk.swap import hostmemory
from vramblk.swap.requirements import Precondition

MIB = 1 << 20


class Machine:
    """A machine of files: 16 GiB of RAM, cgroup version 2, everything as swap wants it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n")
        self.write("proc/sys/vm/min_free_kbytes", "262144\n")
        self.write("proc/self/cgroup", "0::/system.slice/server\n")
        self.write("sys/fs/cgroup/system.slice/server/memory.swap.max", "0\n")
        self.write("sys/fs/cgroup/system.slice/server/memory.max", "max\n")
        self.write("sys/fs/cgroup/system.slice/memory.max", "max\n")
        self.write("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n")
        self.write("proc/77/status", "Name:\tvramblk-worker\nTHP_enabled:\t0\n")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def bad(self, locked_bytes: int = 0) -> list[Precondition]:
        found = hostmemory.hazards(locked_bytes, [77], self.root)
        assert tuple(each.name for each in found) == hostmemory.HAZARDS
        assert all(bool(each.remedy) != each.ok for each in found)
        return [each for each in found if not each.ok]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_is_said_where_nothing_bites(machine: Machine) -> None:
    assert machine.bad() == []


def test_min_free_says_the_number_it_wants_and_why(machine: Machine) -> None:
    """Promise 5."""
    machine.write("proc/sys/vm/min_free_kbytes", "45056\n")
    (found,) = machine.bad(320 * MIB)
    assert found.name == "min_free"
    assert "is 45056, and 178012 is wanted" in found.detail
    assert "1 % of 16 GiB of RAM and 1/32 of 320 MiB locked" in found.detail and "sends" in found.detail
    assert "sysctl vm.min_free_kbytes=178012" in found.remedy and "vramblk-swap up" in found.remedy
    machine.write("proc/sys/vm/min_free_kbytes", "178012\n")
    assert machine.bad(320 * MIB) == []
    machine.write("proc/sys/vm/min_free_kbytes", "178011\n")
    assert machine.bad(320 * MIB) != []


@pytest.mark.parametrize("text", ("max", "1048576"))
def test_memory_swap_max_of_the_own_cgroup(machine: Machine, text: str) -> None:
    machine.write("sys/fs/cgroup/system.slice/server/memory.swap.max", f"{text}\n")
    (found,) = machine.bad()
    assert found.name == "swap_max" and f"is {text}, not 0" in found.detail
    machine.write("sys/fs/cgroup/system.slice/memory.swap.max", "0\n")
    assert machine.bad() == []  # what holds above holds below


@pytest.mark.parametrize("text", ("0::/\n", "4:memory:/x\n1:name=systemd:/\n", "0::/../elsewhere\n"))
def test_a_cgroup_without_swap_control_is_said(machine: Machine, text: str) -> None:
    machine.write("proc/self/cgroup", text)
    (found,) = machine.bad()
    assert found.name == "swap_max" and "has no memory.swap.max" in found.detail


def test_inside_a_container_the_own_cgroup_is_the_top(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/\n")
    machine.write("sys/fs/cgroup/memory.swap.max", "0\n")
    assert machine.bad() == []


@pytest.mark.parametrize(
    ("file", "limit"),
    [
        ("system.slice/server/memory.max", 512),
        ("system.slice/memory.max", 900),
        ("system.slice/server/memory.high", 300),
    ],
)
def test_a_memory_limit_is_said_wherever_it_is(machine: Machine, file: str, limit: int) -> None:
    machine.write(f"sys/fs/cgroup/{file}", f"{limit * MIB}\n")
    (found,) = machine.bad()
    assert found.name == "memory_limit" and f"is {limit} MiB" in found.detail and file in found.detail


def test_huge_pages_bite_where_a_process_gets_them(machine: Machine) -> None:
    machine.write("proc/77/status", "Name:\tvramblk-worker\nTHP_enabled:\t1\n")
    (found,) = machine.bad()
    assert found.name == "huge_pages" and "process 77" in found.detail
    machine.write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    assert machine.bad() == []
