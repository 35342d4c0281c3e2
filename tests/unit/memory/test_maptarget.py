"""What ``map:`` devices may be, and what is refused before anything is zeroed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vramblk.config.settings import ExportSettings
from vramblk.config.units import parse_size
from vramblk.errors import PreconditionError
from vramblk.memory import maptarget, open_memories
from vramblk.memory.base import Pattern
from vramblk.memory.mapped import MappedMemory

MIB = 1 << 20


@pytest.fixture
def in_ram() -> Iterator[Path]:
    """A file of 4 MiB on tmpfs, with content."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        path = Path(directory) / "memory"
        path.write_bytes(b"x" * (4 * MIB))
        yield path


def opened(path: Path | str, size: str, *, map_overwrite: bool = False) -> MappedMemory:
    return MappedMemory(str(path), parse_size(size), map_overwrite=map_overwrite)


@pytest.mark.parametrize(("size", "expected"), [("1M", MIB), ("50%", 2 * MIB), ("max", 4 * MIB)])
def test_size_is_of_the_file(in_ram: Path, size: str, expected: int) -> None:
    """Percent and max are of the file's length; the export is zeroed at start."""
    memory = opened(in_ram, size)
    assert memory.size_bytes == expected
    assert "tmpfs" in memory.description["device_type"]
    assert in_ram.read_bytes()[:expected] == bytes(expected)
    assert in_ram.read_bytes()[expected:] == b"x" * (4 * MIB - expected)
    memory.close()


def test_beyond_the_file(in_ram: Path) -> None:
    """A size beyond the file is refused, and its content stays."""
    with pytest.raises(PreconditionError, match="4 MiB"):
        opened(in_ram, "5M")
    assert in_ram.read_bytes() == b"x" * (4 * MIB)


@pytest.mark.parametrize(("size", "expected"), [("2M", MIB), ("max", 2 * MIB), ("50%", MIB)])
def test_slices_share_one_mapping(in_ram: Path, size: str, expected: int) -> None:
    """Each has its own part of the file; the mapping goes with the last of them."""
    exports = ExportSettings("vram", parse_size(size), None, f"map:{in_ram}", "scratch", False, slices=2).sliced()
    first, second = open_memories(exports, [], allow_cpu=False, map_overwrite=False)
    assert isinstance(first, MappedMemory) and isinstance(second, MappedMemory)
    assert first.size_bytes == second.size_bytes == expected
    second.fill(0, expected, Pattern.ADDRESS)
    assert in_ram.read_bytes()[:expected] == bytes(expected)
    assert second.mismatches(0, expected, Pattern.ADDRESS) == []
    copies = second.copies()
    assert copies is not None
    buffer = np.zeros(4096, np.uint8)
    assert copies.read(4096, 4096, buffer.ctypes.data) == 0
    assert bytes(buffer) == in_ram.read_bytes()[expected + 4096 : expected + 8192]
    first.close()
    assert second.mismatches(0, expected, Pattern.ADDRESS) == []
    second.close()
    assert second.target.mapping.closed


def test_slices_beyond_the_file(in_ram: Path) -> None:
    exports = ExportSettings("vram", parse_size("5M"), None, f"map:{in_ram}", "scratch", False, slices=2).sliced()
    with pytest.raises(PreconditionError, match="2 slices of"):
        open_memories(exports, [], allow_cpu=False, map_overwrite=False)
    assert in_ram.read_bytes() == b"x" * (4 * MIB)


def test_file_on_a_disk_needs_permission(tmp_path: Path) -> None:
    """A file that is no RAM is only overwritten if the user says so."""
    path = tmp_path / "data"
    path.write_bytes(b"precious" * 1024)
    with pytest.raises(PreconditionError, match="map-overwrite"):
        opened(path, "4K")
    assert path.read_bytes() == b"precious" * 1024
    opened(path, "4K", map_overwrite=True).close()
    assert path.read_bytes()[:4096] == bytes(4096)


def test_refused_paths(tmp_path: Path) -> None:
    """What does not exist, is a directory, empty, a block device or the whole machine is refused by name."""
    with pytest.raises(PreconditionError, match="No such file"):
        opened(tmp_path / "absent", "4K")
    with pytest.raises(PreconditionError, match="neither"):
        opened(tmp_path, "4K")
    (tmp_path / "empty").touch()
    with pytest.raises(PreconditionError, match="empty"):
        opened(tmp_path / "empty", "4K", map_overwrite=True)
    with pytest.raises(PreconditionError, match="sysfs"):
        opened("/sys/kernel/mm/transparent_hugepage/enabled", "4K", map_overwrite=True)


@pytest.mark.parametrize(
    ("kind", "major", "minor", "said"), [(0o060000, 7, 250, "block device"), (0o020000, 1, 1, "machine")]
)
def test_refused_devices(tmp_path: Path, kind: int, major: int, minor: int, said: str) -> None:
    path = tmp_path / "device"
    try:
        os.mknod(path, kind | 0o600, os.makedev(major, minor))
    except PermissionError:
        pytest.skip("making a device node needs CAP_MKNOD")
    with pytest.raises(PreconditionError, match=said):
        maptarget.check_target(str(path), map_overwrite=True)


def test_bound_driver(tmp_path: Path) -> None:
    """A BAR whose device has a driver is refused with the command that shows it; without one it is not."""
    address = "0000:01:00.0"
    maptarget.refuse_bound_driver("/x/resource1", tmp_path, address)
    (tmp_path / "drivers" / "nouveau").mkdir(parents=True)
    (tmp_path / "driver").symlink_to(tmp_path / "drivers" / "nouveau")
    with pytest.raises(PreconditionError, match=r"nouveau.*lspci -k -s 0000:01:00.0"):
        maptarget.refuse_bound_driver("/x/resource1", tmp_path, address)


def test_device_without_length() -> None:
    """Where the length cannot be asked for, percent and max mean nothing and bytes are taken."""
    for size in ("max", "50%"):
        with pytest.raises(PreconditionError, match="give it in bytes"):
            maptarget.export_size("/dev/mmapper", 0, parse_size(size))
    assert maptarget.export_size("/dev/mmapper", 0, parse_size("1M")) == MIB
    memory = opened("/dev/zero", "1M")
    memory.prove()
    memory.close()


def test_one_server_per_file(in_ram: Path) -> None:
    """A second export on the same file is refused while the first lives."""
    first = opened(in_ram, "max")
    with pytest.raises(PreconditionError, match="in use"):
        opened(in_ram, "max")
    first.close()
    opened(in_ram, "max").close()


def test_opencl_is_not_loaded(in_ram: Path) -> None:
    """Exports that are all mapped never load OpenCL."""
    code = (
        "import sys; from vramblk.memory import open_memories\n"
        "from vramblk.config.settings import ExportSettings; from vramblk.config.units import parse_size\n"
        f"e = ExportSettings('a', parse_size('max'), None, 'map:{in_ram}', 'scratch', False)\n"
        "(m,) = open_memories([e], (), allow_cpu=False, map_overwrite=False); m.prove(); m.close()\n"
        "assert 'pyopencl' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_swap_takes_no_cpu() -> None:
    """Swap on system RAM is refused even where a CPU is allowed."""
    export = ExportSettings("a", parse_size("4M"), None, "0", "swap", False)
    with pytest.raises(PreconditionError, match="swap mode"):
        open_memories([export], (), allow_cpu=True, map_overwrite=False)
