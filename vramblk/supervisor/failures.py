"""How a child reports why it failed: one message on the socket that it shares with the supervisor.

Only the supervisor writes to stderr, so what ends a child has to reach it.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ConfigError, PreconditionError, RuntimeFailure, StartupError

_KINDS: Mapping[int, type[StartupError]] = {
    error.exit_code: error for error in (RuntimeFailure, ConfigError, PreconditionError)
}


def reporting(line: socket.socket, body: Callable[[], int]) -> int:
    """Run a child's body; an exception that ends it is sent on ``line`` first."""
    try:
        return body()
    except StartupError as error:
        _report(line, error.exit_code, str(error))
        return error.exit_code
    except Exception as error:
        _report(line, RuntimeFailure.exit_code, f"{type(error).__name__}: {error}")
        raise


def _report(line: socket.socket, exit_code: int, message: str) -> None:
    try:
        line.send(json.dumps({"event": "failed", "exit_code": exit_code, "message": message}).encode())
    except OSError:
        pass  # the supervisor is gone


def parsed(text: bytes) -> dict[str, Any]:
    """A child's message.

    Raises:
        ValueError: it is none; the child may be faulty, so it may be anything.
    """
    try:
        message = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(message, dict):
        raise ValueError(f"{type(message).__name__} instead of an object")
    return message


def startup_error(message: Mapping[str, object]) -> StartupError:
    """The error that a child has reported as ``{"event": "failed", "exit_code": 78, "message": ...}``."""
    code = message.get("exit_code")
    kind = _KINDS.get(code, RuntimeFailure) if isinstance(code, int) else RuntimeFailure
    return kind(str(message.get("message")))
