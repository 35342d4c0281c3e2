"""Failures that end the program at start, each with the exit status the contract gives it.

Only ``cli.main`` turns one of these into a line on stderr and an exit status, so a process
that fails at start says exactly one thing.
"""

from __future__ import annotations


class StartupError(Exception):
    """The server cannot start or go on; ``str(error)`` is the one line for the user."""

    exit_code = 1


class ConfigError(StartupError):
    """A setting holds a bad value, or a file that it names is missing or unreadable."""

    exit_code = 2


class PreconditionError(StartupError):
    """The machine lacks a device, a permission or a capability; the message has the remedy."""

    exit_code = 78


class RuntimeFailure(StartupError):
    """An address is busy, a socket path unusable, or the engine is lost."""

    exit_code = 1
