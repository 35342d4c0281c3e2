"""A connection in transmission on its way to another process, as it stands in a handoff's message."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..nbd.events import Begin

#: Of what was received and not taken, bytes: a message holds it.
MOST_LEFTOVER_BYTES = 1024


def pack(begin: Begin) -> dict[str, Any]:
    """For ``json``; at most ``MOST_LEFTOVER_BYTES`` of leftover."""
    return asdict(begin) | {"leftover": begin.leftover.hex()}


def unpack(packed: dict[str, Any]) -> Begin:
    """What ``pack`` was given."""
    return Begin(**{**packed, "leftover": bytes.fromhex(packed["leftover"])})
