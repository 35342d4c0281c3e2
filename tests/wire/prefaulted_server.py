"""The server in swap mode on a machine that does not grant it, watched for what no process may do once it has taken its pages.

    prefaulted_server.py REPORT prefaulted|not_prefaulted|unsafe OPTIONS...

Each audit event of ``FORBIDDEN`` in a process of the data path that has prefaulted is a line of the file REPORT.
"not_prefaulted" leaves ``prefault.prefault`` out, which shows that the test can fail. "unsafe" leaves the reading back of
the threads' safeguards in, which this process has not taken.
"""

import os
import sys
from typing import Any

from vramblk import cli
from vramblk.swap import prefault, safeguards

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
prefault_pages = prefault.prefault
watched: list[int] = []


def listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event in FORBIDDEN and watched == [os.getpid()]:
        os.write(report, f"{os.getpid()} {event} {arguments[:1]}\n".encode())


def prefault_and_watch(*arguments: Any) -> None:
    if sys.argv[2] == "prefaulted":
        prefault_pages(*arguments)
    watched[:] = [os.getpid()]


# What needs more than a test's rights, and a device: no promise of this test hangs on it.
safeguards.TABLE = tuple(
    each if each.name == "memory_locked" and os.geteuid() == 0 else each._replace(take=lambda _: None, give_back=None)
    for each in safeguards.TABLE
    if sys.argv[2] == "unsafe" or each.of_thread is None
)
prefault.prefault = prefault_and_watch
sys.addaudithook(listen)
sys.exit(cli.main(sys.argv[3:]))
