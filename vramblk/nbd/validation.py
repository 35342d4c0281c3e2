"""Whether a request of the transmission phase is allowed, sans I/O."""

from __future__ import annotations

from .constants import Command, CommandFlag, Error
from .transmission import Request

#: Payloads up to this are accepted (the advertised maximum is 32 MiB), bytes.
LARGEST_PAYLOAD = 64 << 20

#: Plain integers: flag enumerations cost microseconds where every request passes.
_READ, _WRITE = int(Command.READ), int(Command.WRITE)
_PAYLOAD_LEN, _DF = int(CommandFlag.PAYLOAD_LEN), int(CommandFlag.DF)
_FLAGS_ALLOWED = {
    int(command): int(flags)
    for command, flags in {
        Command.READ: CommandFlag.FUA | CommandFlag.DF,
        Command.WRITE: CommandFlag.FUA,
        Command.FLUSH: CommandFlag.FUA,
        Command.TRIM: CommandFlag.FUA,
        Command.CACHE: CommandFlag.FUA,
        Command.WRITE_ZEROES: CommandFlag.FUA | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
        Command.BLOCK_STATUS: CommandFlag.FUA | CommandFlag.REQ_ONE,
    }.items()
}
_CHANGING = frozenset(map(int, (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES)))
_NEEDING_SPACE = frozenset(map(int, (Command.WRITE, Command.WRITE_ZEROES)))
_FLUSH, _BLOCK_STATUS = int(Command.FLUSH), int(Command.BLOCK_STATUS)


def validate(
    request: Request,
    *,
    size_bytes: int,
    read_only: bool,
    structured: bool,
    extended: bool,
    base_allocation: bool,
) -> Error | None:
    """The one place that decides whether a request is allowed; None if it is.

    Source: "Transmission phase", "Request types" and "Command flags" of the NBD specification.
    """
    command, flags, _, offset, length, _ = request
    allowed = _FLAGS_ALLOWED.get(command)
    if allowed is None:
        return Error.EINVAL
    if flags:
        if extended and command == _WRITE:
            # Required by the specification, but qemu (seen with 10.0) writes without it.
            flags &= ~_PAYLOAD_LEN
        if flags & ~allowed or (flags & _DF and not structured):
            return Error.EINVAL
    if read_only and command in _CHANGING:
        return Error.EPERM
    if command == _FLUSH:
        return None
    if offset + length > size_bytes:
        return Error.ENOSPC if command in _NEEDING_SPACE else Error.EINVAL
    if command == _BLOCK_STATUS:
        return None if base_allocation and length else Error.EINVAL
    if length > LARGEST_PAYLOAD:
        if command == _WRITE:
            return Error.EINVAL
        if command == _READ:
            return Error.EOVERFLOW if flags & _DF else Error.EINVAL
    return None
