"""Connections on their way to one worker: sent, not taken yet, and taken back if it stands still.

Both ends of the socket stay open here. A message that the worker has not received can so be received here
instead, and the one that receives it first has the connection alone: nothing can be served twice.

New TLS files travel the same way, but neither side counts them, and they are never taken back: they are sent
again, and before any connection that follows.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from ..shared.doorbell import DoorbellPipe
from ..shared.window import Window, Word

_LONGEST_MESSAGE = 4096
_DESCRIPTOR = struct.Struct("i")
_CONTROL_BYTES = socket.CMSG_LEN(_DESCRIPTOR.size)
_AT_ONCE = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC


class Handoff(NamedTuple):
    """One connection that was sent.

    Attributes:
        sent_s: when, monotonic seconds.
        begun: how it goes on, of one that the engine has served until now; see ``shared.moves``.
        instead_of: the unfinished negotiation that makes way for it.
    """

    number: int
    peer: str
    sent_s: float
    begun: Mapping[str, Any] | None = None
    instead_of: int | None = None


class Handoffs:
    """What one worker is given.

    Args:
        window: the worker's, in which it counts the messages that it has taken.
        doorbell: of that window, which a worker that is awake reads.

    Attributes:
        ours: the end over which is sent, non-blocking; the worker reports here why it has failed.
        theirs: the worker's end.
        sent: connections sent and not taken back.
        moved: connections taken back since the worker has begun to stand still.
        given_away: connections that the engine has taken and given away again.
    """

    def __init__(self, window: Window, doorbell: DoorbellPipe) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        self.sent = 0
        self.moved = 0
        self.given_away = 0
        self._window = window
        self._doorbell = doorbell
        self._taken = 0
        self._waiting: deque[Handoff] = deque()
        self._tls_files = b""
        self._tls_due = False
        self._still_since_s: float | None = None

    def send(
        self,
        connection: socket.socket,
        number: int,
        peer: str,
        now_s: float,
        begun: Mapping[str, Any] | None = None,
        instead_of: int | None = None,
    ) -> bool:
        """Give the worker a connection; False if it has no room for the message, or is gone.

        Args:
            instead_of: a connection of this worker that is closed first if it still negotiates; otherwise the
                new one is closed.
        """
        if not self._send_tls_files():
            return False
        optional = {"begun": begun, "instead_of": instead_of}
        given = {name: value for name, value in optional.items() if value is not None}
        message = {"id": number, "peer": peer} | given
        try:
            socket.send_fds(self.ours, [json.dumps(message).encode()], [connection.fileno()])
        except OSError:
            return False
        self.sent += 1
        self._waiting.append(Handoff(number, peer, now_s, begun, instead_of))
        return True

    def renew_tls(self, packed: bytes) -> bool:
        """Give the worker new TLS files; False if it gets them later, and no connection before that."""
        self._tls_files = packed
        self._tls_due = True
        return self._send_tls_files()

    @property
    def untaken(self) -> list[Handoff]:
        """Connections that the worker has not taken yet, the oldest first."""
        self._note_taken()
        return list(self._waiting)

    @property
    def waiting(self) -> int:
        """Connections that the worker has not taken yet."""
        self._note_taken()
        return len(self._waiting)

    def oldest_s(self, now_s: float) -> float:
        """How long the first of those has been waiting, 0 without any."""
        self._note_taken()
        return now_s - self._waiting[0].sent_s if self._waiting else 0.0

    def still_s(self, now_s: float) -> float:
        """How long the worker has been standing still, 0 if it has taken all that it was given.

        A worker from which connections were taken back has nothing more to take, but a doorbell to read.
        """
        if self._still_since_s is not None and not self._doorbell_rings():
            self._still_since_s, self.moved = None, 0
        return now_s - self._still_since_s if self._still_since_s is not None else self.oldest_s(now_s)

    def take_back(self) -> tuple[Handoff, socket.socket | None] | None:
        """The connection that has been waiting longest; None if the worker has received all of them.

        The socket is None if this process has no descriptor left for it: the connection is closed then.
        """
        try:
            while (found := self._receive()) is not None and "id" not in found[0]:
                self._tls_due |= "tls" in found[0]
                if found[1] is not None:
                    os.close(found[1])
        finally:
            self._send_tls_files()
        if found is None:
            return None
        message, descriptor = found
        taken = next((each for each in self._waiting if each.number == message["id"]), None)
        self.sent -= 1
        if taken is not None:
            self._waiting.remove(taken)
        else:  # the worker had counted it, but has not taken it
            self._taken -= 1
            taken = Handoff(
                message["id"], message["peer"], 0.0, message.get("begun"), message.get("instead_of")
            )
        return taken, socket.socket(fileno=descriptor) if descriptor is not None else None

    def stand_still(self, since_s: float) -> None:
        """Note that a connection was taken back from the worker because it has stood still since then."""
        self.moved += 1
        if self._still_since_s is None:
            self._still_since_s = since_s
            self._doorbell.ring()

    def shut(self) -> None:
        """Close the sending side: the worker sees that nothing more will come."""
        with suppress(OSError):
            self.ours.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()

    def _receive(self) -> tuple[dict[str, Any], int | None] | None:
        """The first message that the worker has not received, and its descriptor.

        Only this process sends, but a faulty worker may have set its end to cut messages short, which
        gives an empty one, or to bring more than descriptors, which leaves these no room.
        """
        try:
            # Not socket.recv_fds, which drops its flags and would wait.
            text, control, _, _ = self.theirs.recvmsg(_LONGEST_MESSAGE, _CONTROL_BYTES, _AT_ONCE)
        except OSError:
            return None
        if not text:  # shut: nothing is on its way any more
            return None
        rights = [data for _, kind, data in control if kind == socket.SCM_RIGHTS]
        descriptor = _DESCRIPTOR.unpack(rights[0])[0] if rights else None
        try:
            return json.loads(text), descriptor
        except ValueError:
            return {}, descriptor

    def _send_tls_files(self) -> bool:
        """Send the TLS files that the worker is still to get; False if they cannot be sent now."""
        if not self._tls_due:
            return True
        try:
            descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
        except OSError:
            return False
        try:
            os.write(descriptor, self._tls_files)
            message = json.dumps({"tls": len(self._tls_files)}).encode()
            socket.send_fds(self.ours, [message], [descriptor])
        except OSError:
            return False
        finally:
            os.close(descriptor)
        self._tls_due = False
        return True

    def _note_taken(self) -> None:
        """Forget what the worker has taken. It may count wrong: never more than was sent, and never back."""
        while self._waiting and self._taken < min(self._window.load(Word.HANDOFFS), self.sent):
            self._taken += 1
            self._waiting.popleft()

    def _doorbell_rings(self) -> bool:
        poller = select.poll()
        poller.register(self._doorbell.reader, select.POLLIN)
        return bool(poller.poll(0))
