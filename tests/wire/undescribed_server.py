"""The server with a supervisor that cannot say who is attached nor how a worker has ended. Run like ``vramblk``."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from vramblk import cli
from vramblk.supervisor.children import Child
from vramblk.supervisor.workerpool import WorkerPool

how_it_ended = Child.how_it_ended


def describe_no_worker(child: Child) -> Mapping[str, object]:
    if child.role == "worker":
        raise ValueError("injected")
    return how_it_ended(child)


def describe_nobody(_: WorkerPool) -> list[str]:
    raise ValueError("injected")


if __name__ == "__main__":
    Child.how_it_ended = describe_no_worker  # type: ignore[method-assign]
    WorkerPool.clients = describe_nobody  # type: ignore[method-assign]
    sys.exit(cli.main(sys.argv[1:]))
