"""Process 1 of a container in swap mode, so that the supervisor is another process.

The kernel ends a process namespace with its first process (pid_namespaces(7)), and workers and engine have to
outlive their supervisor for as long as swap is live.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from ..swap import safeguards
from ..system import proc
from . import children

_FORWARDED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
_AWAITED = {*_FORWARDED, signal.SIGCHLD}


def run_as_init() -> None:
    """Fork, and return in the child, which becomes the supervisor; the caller's process never returns.

    That process hands the signals that it is sent on to the supervisor, reaps, and ends with the last process
    of the namespace, with the supervisor's exit status (128 and the number of the signal that killed it).
    After a clean end of the supervisor it ends at once: nothing is served any more, and an attacker in the
    observer may have left processes. Once the supervisor is gone otherwise, SIGQUIT ends the others, and
    nothing else does.

    To be called with little imported: what is loaded by then stays with process 1.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    supervisor = os.fork()
    if supervisor:
        os._exit(_stay(supervisor))
    os.setsid()  # or a terminal's Ctrl+C came twice
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stay(supervisor: int) -> int:
    """Exit status, once no other process is left."""
    with suppress(OSError):  # the supervisor takes the same, and refuses to start without
        proc.write_oom_score_adj(safeguards.OOM_SCORE_ADJ)
    status = None
    while True:
        number = signal.sigwait(_AWAITED)
        if number == signal.SIGCHLD:
            ended = dict(children.reap())
            if status is None and supervisor in ended:
                code = os.waitstatus_to_exitcode(ended[supervisor])
                status = code if code >= 0 else 128 - code
            if status == 0 or (status is not None and _is_alone()):
                return status
        elif status is None:
            os.kill(supervisor, number)
        elif number == signal.SIGQUIT:
            return status


def _is_alone() -> bool:
    """Whether neither children nor orphans are left."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False
