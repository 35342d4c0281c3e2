"""What a ``Handshake`` gets about the exports, and the events that it returns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .constants import TransmissionFlag


class TlsPolicy(Enum):
    """NOTLS, SELECTIVETLS without a TLS-only export, FORCEDTLS. Section "TLS support"."""

    OFF = "off"
    ON = "on"
    REQUIRE = "require"


@dataclass(frozen=True)
class ExportInfo:
    """What negotiation tells about an export. Sizes are in bytes; strings obey "Conventions".

    default: the empty name may stand for it, if it is the first.
    multiple: it serves several connections at once.
    """

    name: str
    description: str
    size_bytes: int
    read_only: bool
    minimum_block: int = 1
    preferred_block: int = 4096
    maximum_payload: int = 32 << 20
    default: bool = True
    multiple: bool = True


@dataclass(frozen=True)
class Send:
    """Send these bytes. ``refusal`` is empty, or says for the log why they refuse an option."""

    data: bytes
    refusal: str = ""


@dataclass(frozen=True)
class StartTls:
    """Once all is sent, begin the TLS handshake as its server; then call ``tls_established``."""


@dataclass(frozen=True)
class Begin:
    """Transmission begins.

    export: index into the exports the handshake was given.
    structured: reply chunks were negotiated, structured or extended ones.
    extended: extended headers were negotiated.
    base_allocation: context ID of base:allocation if it was selected for this export, else None.
    leftover: bytes that came behind the last option: the start of transmission.
    """

    export: int
    structured: bool
    extended: bool
    base_allocation: int | None
    leftover: bytes


@dataclass(frozen=True)
class Close:
    """Send what is to be sent, then close the connection; ``reason`` is for the log.

    orderly: the client asked for it.
    """

    reason: str
    orderly: bool = False


Event = Send | StartTls | Begin | Close


def transmission_flags(export: ExportInfo) -> TransmissionFlag:
    """What transmission offers on an export to a client that negotiated reply chunks.

    Commands that would only be refused on a read-only export are not offered there.
    """
    flags = (
        TransmissionFlag.HAS_FLAGS
        | TransmissionFlag.SEND_FLUSH
        | TransmissionFlag.SEND_FUA
        | TransmissionFlag.SEND_DF
        | TransmissionFlag.SEND_CACHE
    )
    if export.multiple:
        flags |= TransmissionFlag.CAN_MULTI_CONN
    if export.read_only:
        return flags | TransmissionFlag.READ_ONLY
    return (
        flags
        | TransmissionFlag.SEND_TRIM
        | TransmissionFlag.SEND_WRITE_ZEROES
        | TransmissionFlag.SEND_FAST_ZERO
    )
