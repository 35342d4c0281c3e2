"""What ``--device map:/path`` may be, how large it is, and its one mapping.

Its content is going to be zeroed, so everything that could be somebody's data is refused.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config.units import Size, SizeKind, format_size
from ..errors import PreconditionError
from ..system import kernel, proc
from .base import MissingMemory

_UNIT = 4096
#: Of a file, given back or taken at once.
_STEP_BYTES = 32 << 20
_MEMORY_MAJOR = 1
#: /dev/mem, /dev/kmem, /dev/port: all of the machine, from address 0.
_WHOLE_MACHINE_MINORS = (1, 2, 4)
_RAM_FILE_SYSTEMS = ("tmpfs", "hugetlbfs", "ramfs")
#: Whose pages count towards the limit of a cgroup.
_CHARGED_FILE_SYSTEMS = ("tmpfs", "ramfs")
_PCI_RESOURCE = re.compile(r"resource\d+(_wc)?")
_PCI_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


@dataclass
class MapTarget:
    """A path mapped once, whole, from offset 0.

    Attributes:
        kind: "character device", "PCI BAR", "file" or "tmpfs file" and the like.
        size_bytes: of each export; the mapping may be longer than all of them.
        users: exports that lie here; with the last that closes, the mapping goes.
        is_file: it is made of memory that can be given back and taken again.
    """

    path: str
    kind: str
    pci_address: str | None
    size_bytes: int
    mapping: mmap.mmap
    descriptor: int
    users: int
    is_file: bool

    @property
    def in_ram(self) -> bool:
        """Whether its pages are system RAM that has to be taken anew once it was given back."""
        return self.is_file and proc.file_system(os.fstat(self.descriptor).st_dev) in _CHARGED_FILE_SYSTEMS

    def give_back(self, offset: int, length: int) -> bool:
        """Have the file system free the pages of a range, whose content becomes zero; False if they stay."""
        if not self.is_file:
            return False
        try:
            kernel.punch_hole(self.descriptor, offset, length)
        except OSError:  # ramfs, for one, cannot do it
            return False
        return True

    def reserve_again(self, offset: int, length: int) -> Iterator[None]:
        """Take again what was given back, in steps; what was taken stays on failure.

        Raises:
            MissingMemory: the file system has not enough.
        """
        for start, piece in self.steps(offset, length):
            try:
                os.posix_fallocate(self.descriptor, start, piece)
            except OSError as error:
                room = os.fstatvfs(self.descriptor)
                missing = max(offset + length - start - room.f_bavail * room.f_frsize, _UNIT)
                raise MissingMemory(f"map:{self.path}: {error.strerror}", missing) from None
            yield

    def steps(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The pieces (offset, length) in which a range of a file is given back and taken; none of a device.

        The kernel takes some tenths of a second for a GiB. A page of hugetlbfs is never cut.
        """
        if not self.is_file:
            return
        step = max(_STEP_BYTES, os.fstat(self.descriptor).st_blksize)
        end = offset + length
        while offset < end:
            piece = min(end - offset, step - offset % step)
            yield offset, piece
            offset += piece

    def close(self) -> None:
        """One of the exports needs it no more."""
        self.users -= 1
        if not self.users:
            self.mapping.close()
            os.close(self.descriptor)


def open_target(path: str, size: Size, *, map_overwrite: bool = False, slices: int = 1) -> MapTarget:
    """Check, measure, lock and map a path.

    Args:
        size: of each of so many ``slices``.

    Raises:
        PreconditionError: it is refused; says why, and what would show or change it.
    """
    kind = check_target(path, map_overwrite=map_overwrite)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise PreconditionError(
            f"map:{path} cannot be opened for writing: {error.strerror}; see ls -l {path}"
        ) from None
    try:
        _lock(path, descriptor)
        length = known_length(path, descriptor)
        size_bytes = export_size(path, length, size, slices)
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode) and kind != "PCI BAR"
        if is_file:
            _reserve(path, descriptor, size_bytes * slices)
        mapping = _map(path, descriptor, length or size_bytes * slices)
        if not length:
            _refuse_unless_reachable(path, mapping, size_bytes * slices)
    except BaseException:
        os.close(descriptor)
        raise
    return MapTarget(path, kind, _pci_address(path), size_bytes, mapping, descriptor, slices, is_file)


def check_target(path: str, *, map_overwrite: bool) -> str:
    """What a path is, for people; see ``MapTarget.kind``.

    Raises:
        PreconditionError: its content may not be zeroed, or it does not exist.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise PreconditionError(f"map:{path}: {error.strerror}; give the path of a device or file") from None
    mode = status.st_mode
    if stat.S_ISBLK(mode):
        raise PreconditionError(
            f"map:{path} is a block device, and its content would be zeroed; give a character device,"
            " a PCI BAR or a file"
        )
    if stat.S_ISCHR(mode):
        if os.major(status.st_rdev) == _MEMORY_MAJOR and os.minor(status.st_rdev) in _WHOLE_MACHINE_MINORS:
            raise PreconditionError(f"map:{path} is all of the machine's memory; give a device of its own")
        return "character device"
    if not stat.S_ISREG(mode):
        raise PreconditionError(f"map:{path} is neither a character device nor a file")
    file_system = proc.file_system(status.st_dev)
    if file_system == "sysfs":
        _check_bar(path)
        return "PCI BAR"
    if file_system in _RAM_FILE_SYSTEMS:
        return f"{file_system} file"
    if not map_overwrite:
        raise PreconditionError(
            f"map:{path} is a file on {file_system}, and its content would be zeroed; give a file on tmpfs or"
            " hugetlbfs, or --map-overwrite"
        )
    return "file"


def _check_bar(path: str) -> None:
    address = _pci_address(path)
    real = Path(os.path.realpath(path))
    if address is None or not _PCI_RESOURCE.fullmatch(real.name):
        raise PreconditionError(
            f"map:{path} is in sysfs, but no PCI BAR; give /sys/bus/pci/devices/ADDRESS/resourceN"
        )
    refuse_bound_driver(path, real.parent, address)


def refuse_bound_driver(path: str, device_directory: Path, address: str) -> None:
    """Refuse a BAR that a driver works with.

    Raises:
        PreconditionError: names the driver, and the command that shows it.
    """
    driver = device_directory / "driver"
    if driver.is_symlink() or driver.exists():
        name = os.path.basename(os.path.realpath(driver))
        raise PreconditionError(
            f"map:{path} belongs to PCI device {address}, which the driver {name} is using"
            f" (lspci -k -s {address} shows it); unbind it first:"
            f" echo {address} > /sys/bus/pci/devices/{address}/driver/unbind"
        )


def export_size(path: str, length: int, size: Size, slices: int = 1) -> int:
    """Bytes of each of so many exports on a target of ``length`` bytes, 0 where it has no length.

    Raises:
        PreconditionError: a share of an unknown length, or more than there is.
    """
    if not length:
        if size.kind is not SizeKind.BYTES:
            raise PreconditionError(
                f"map:{path} does not report its length, so size {size} cannot be computed; give it in bytes"
            )
        return int(size.amount)
    try:
        size_bytes = size.resolve(length)
        if size_bytes * slices > length:
            raise ValueError(f"{slices} slices of {format_size(size_bytes)} are more than that")
        return size_bytes
    except ValueError as error:
        raise PreconditionError(
            f"map:{path} is {format_size(length)} long: {error}; give a smaller size, or max"
        ) from None


def new_ram_bytes(path: str, size: Size, slices: int = 1) -> int:
    """System RAM that so many exports will take and their file does not hold yet; 0 unless it is on tmpfs.

    Raises:
        PreconditionError: the size is beyond the file.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or proc.file_system(status.st_dev) not in _CHARGED_FILE_SYSTEMS:
            return 0
    except OSError:
        return 0
    if not status.st_size:
        return 0
    return max(0, export_size(path, status.st_size, size, slices) * slices - status.st_blocks * 512)


def known_length(path: str, descriptor: int) -> int:
    """Length in bytes of a file, a BAR or a DAX device; 0 for devices that do not tell.

    Raises:
        PreconditionError: an empty file.
    """
    status = os.fstat(descriptor)
    if stat.S_ISCHR(status.st_mode):
        told = Path(f"/sys/dev/char/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}/size")
        try:
            return int(told.read_text())
        except (OSError, ValueError):
            return 0
    if not status.st_size:
        raise PreconditionError(
            f"map:{path} is empty; make it as long as the export (truncate -s SIZE {path})"
        )
    return status.st_size


def _lock(path: str, descriptor: int) -> None:
    """Two servers on one piece of memory would destroy each other's data."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PreconditionError(
            f"map:{path} is in use by another export or server (lsof {path} shows which)"
        ) from None
    except OSError:
        pass  # sysfs and some devices know no locks


def _reserve(path: str, descriptor: int, size_bytes: int) -> None:
    """A page that the file system cannot provide later would be a SIGBUS for the engine."""
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        raise PreconditionError(
            f"map:{path}: no room for {format_size(size_bytes)}: {error.strerror}; see df {path}"
        ) from None


def _map(path: str, descriptor: int, length: int) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, length, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, ValueError) as error:
        raise PreconditionError(
            f"map:{path}: {format_size(length)} cannot be mapped: {error}; the size must be within the"
            " device and a multiple of its alignment"
        ) from None


def _refuse_unless_reachable(path: str, mapping: mmap.mmap, size_bytes: int) -> None:
    """Touch the last page in a child: beyond the end of such a device lies SIGBUS, not an error."""
    child = os.fork()
    if child == 0:
        _ = mapping[size_bytes - 1]
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        mapping.close()
        raise PreconditionError(
            f"map:{path}: {format_size(size_bytes)} is beyond the end of the device; give a smaller size"
        )


def _pci_address(path: str) -> str | None:
    name = os.path.basename(os.path.dirname(os.path.realpath(path)))
    return name if _PCI_ADDRESS.fullmatch(name) else None
