"""The server whose engine finds that its own window does not reach the device. Run like ``vramblk``."""

from __future__ import annotations

import sys
from typing import Any

from vramblk import cli
from vramblk.engine import localclients
from vramblk.errors import RuntimeFailure


def fail(*_: Any) -> None:
    raise RuntimeFailure("bytes did not survive: injected")


if __name__ == "__main__":
    localclients.prove_window = fail
    sys.exit(cli.main(sys.argv[1:]))
