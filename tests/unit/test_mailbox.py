"""The engine's end of the mail: what it makes of a supervisor that does not listen, or is gone."""

from __future__ import annotations

import select
import socket

from tests.unit.sharedmemory import make_shared
from vramblk.config.settings import load_settings
from vramblk.engine.process import _Mailbox


def make() -> tuple[_Mailbox, socket.socket]:
    shared = make_shared(load_settings(["--allow-cpu", "--size", "1M"], {}), 1, 2 << 20, 2 << 20)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return _Mailbox(shared, theirs), ours


def readable(mailbox: _Mailbox) -> bool:
    poller = select.poll()
    poller.register(mailbox.descriptor, select.POLLIN)
    return bool(poller.poll(0))


def test_a_supervisor_that_reads_no_mail_is_not_gone() -> None:
    mailbox, ours = make()
    with ours:
        for _ in range(10_000):
            mailbox.answer(event="window_drained", window=0)
        assert mailbox.messages() == [] and not mailbox.orphaned


def test_a_supervisor_that_is_gone_does_not_keep_the_engine_awake() -> None:
    """Also if an answer finds that out first: a swap engine serves on, and must be able to sleep."""
    mailbox, ours = make()
    ours.close()
    mailbox.answer(event="window_corrupt", window=0)
    assert mailbox.messages() == [] and mailbox.orphaned
    assert not readable(mailbox)
