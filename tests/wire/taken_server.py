"""The server, whose workers and observer can be taken over. Run like ``vramblk``.

A process that has given up its rights runs the Python program in the variable ``TAKEN`` when it gets SIGUSR2.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

from vramblk import cli
from vramblk.system import privileges


def main() -> int:
    program = compile(os.environ["TAKEN"], "TAKEN", "exec")
    drop = privileges.drop

    def take_over(_: int, __: FrameType | None) -> None:
        exec(program, {"__name__": "taken"})

    def drop_and_listen(*arguments: Any, **options: Any) -> None:
        drop(*arguments, **options)
        signal.signal(signal.SIGUSR2, take_over)

    privileges.drop = drop_and_listen  # type: ignore[assignment]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
