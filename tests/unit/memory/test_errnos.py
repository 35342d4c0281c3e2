"""Errors of memories reach clients as they are: the system's numbers are the protocol's."""

from __future__ import annotations

import errno

from vramblk.nbd.constants import Error


def test_the_numbers_of_the_protocol_are_the_systems() -> None:
    """memory/ knows no NBD and fails with the system's errnos, which the engine hands on to clients."""
    failures = [error for error in Error if error is not Error.NONE]
    assert all(error == getattr(errno, error.name) for error in failures)
