"""What a worker is given: new TLS files among connections that are taken back, and connections that have begun."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from vramblk.nbd.events import Begin
from vramblk.shared import moves
from vramblk.shared.doorbell import make_doorbell_pipe
from vramblk.shared.window import WindowLayout, make_windows
from vramblk.supervisor.handoffs import Handoffs


@pytest.fixture
def handoffs() -> Iterator[Handoffs]:
    [window] = make_windows([WindowLayout(4096, 4096, 1)])
    doorbell = make_doorbell_pipe()
    found = Handoffs(window, doorbell)
    yield found
    found.close()
    for end in doorbell:
        os.close(end)


def give(handoffs: Handoffs, number: int) -> bool:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        return handoffs.send(ours, number, f"peer {number}", 0.0)


def received(handoffs: Handoffs) -> list[dict[str, object]]:
    """What the worker would get, with the content of TLS files in the place of their length."""
    messages = []
    handoffs.theirs.setblocking(False)
    while True:
        try:
            text, fds, _, _ = socket.recv_fds(handoffs.theirs, 4096, 1)
        except BlockingIOError:
            return messages
        message = json.loads(text)
        if "tls" in message:
            message["tls"] = os.pread(fds[0], message["tls"], 0)
        messages.append(message)
        os.close(fds[0])


def test_tls_files_are_no_connection(handoffs: Handoffs) -> None:
    assert handoffs.renew_tls(b"new")
    assert handoffs.sent == handoffs.waiting == 0
    assert handoffs.take_back() is None
    assert received(handoffs) == [{"tls": b"new"}]


def test_connections_are_taken_back_and_tls_files_stay(handoffs: Handoffs) -> None:
    give(handoffs, 1)
    handoffs.renew_tls(b"old")
    handoffs.renew_tls(b"new")
    give(handoffs, 2)
    taken = []
    while (found := handoffs.take_back()) is not None:
        handoff, sock = found
        assert sock is not None
        sock.close()
        taken.append(handoff.number)
    assert taken == [1, 2]
    assert handoffs.sent == handoffs.waiting == 0
    assert received(handoffs) == [{"tls": b"new"}]


def test_no_connection_is_given_before_the_files(handoffs: Handoffs) -> None:
    number = 0
    while give(handoffs, number):
        number += 1
    assert not handoffs.renew_tls(b"new")
    assert len(received(handoffs)) == number
    assert give(handoffs, number)
    assert [set(message) for message in received(handoffs)] == [{"tls"}, {"id", "peer"}]


def test_a_connection_that_has_begun_is_taken_back_as_such(handoffs: Handoffs) -> None:
    """So that the next worker goes on where the last one would have."""
    begun = {"export": 0, "leftover": "ff"}
    with socket.socket() as connection:
        assert handoffs.send(connection, 1, "a", 0.0, begun)
        taken = handoffs.take_back()
    assert taken is not None and taken[1] is not None
    taken[1].close()
    assert taken[0].begun == begun and handoffs.take_back() is None


def test_how_a_connection_goes_on_travels_as_text() -> None:
    begin = Begin(3, True, False, 7, bytes(range(256)))
    assert moves.unpack(json.loads(json.dumps(moves.pack(begin)))) == begin


#: "ret 1" of a classic BPF program: only the first byte of each message is received.
CUT = struct.pack("HBBI", 6, 0, 0, 1)
SO_ATTACH_FILTER = 26


def cut_messages(sock: socket.socket) -> None:
    program = ctypes.create_string_buffer(CUT)
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


def bring_credentials(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


@pytest.mark.parametrize("spoil", (cut_messages, bring_credentials))
def test_worker_that_has_spoiled_its_socket_is_survived(
    handoffs: Handoffs, spoil: Callable[[socket.socket], None]
) -> None:
    """Its clients are closed: no descriptor stays, and none is taken for one that is not."""
    before = os.listdir("/proc/self/fd")
    spoil(handoffs.theirs)
    for number in range(2):
        assert give(handoffs, number)
    taken = list(iter(handoffs.take_back, None))
    assert all(connection is None for _, connection in taken)
    assert len(taken) == (0 if spoil is cut_messages else 2)
    assert os.listdir("/proc/self/fd") == before
