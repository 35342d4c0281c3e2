"""The server in swap mode on a machine that does not grant it, watched for what no process may do once it is settled.

    settled_server.py REPORT settled|unsettled|unsafe OPTIONS...

Each audit event of ``FORBIDDEN`` in a process of the data path that has settled is a line of the file REPORT.
"unsettled" leaves ``steadystate.settle`` out, which shows that the test can fail. "unsafe" leaves the reading back of
the threads' safeguards in, which this process has not taken.
"""

import os
import sys
from typing import Any

from vramblk import cli, steadystate, swapsafety

FORBIDDEN = (
    "import",
    "open",
    "os.fork",
    "os.exec",
    "subprocess.Popen",
    "_thread.start_new_thread",
    "mmap.__new__",
)

report = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
settle = steadystate.settle
watched: list[int] = []


def listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event in FORBIDDEN and watched == [os.getpid()]:
        os.write(report, f"{os.getpid()} {event} {arguments[:1]}\n".encode())


def settle_and_watch(*arguments: Any) -> None:
    if sys.argv[2] == "settled":
        settle(*arguments)
    watched[:] = [os.getpid()]


# What needs more than a test's rights, and a device: no promise of this test hangs on it.
swapsafety._safeguards = lambda settings: []
if sys.argv[2] != "unsafe":
    swapsafety.verify_threads = lambda pids: []
swapsafety.leave_data_path = lambda: None
lock = swapsafety.lock_memory
swapsafety.lock_memory = lambda settings, **_: lock(settings) if os.geteuid() == 0 else 0
steadystate.settle = settle_and_watch
sys.addaudithook(listen)
sys.exit(cli.main(sys.argv[3:]))
