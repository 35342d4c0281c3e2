"""The engine as the supervisor sees it: its start, its mail, its end, and whether that end was in order."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import RuntimeFailure, StartupError
from ..shared.context import Shared
from ..shared.control import ControlWord
from ..system import logs
from .children import Child
from .eventloop import EventLoop
from .failures import parsed, reporting, startup_error
from .handoffs import Handoffs
from .processtable import ProcessTable
from .slots import Slot

_KILL_GRACE_S = 1.0
_LONGEST_QUOTE = 200
#: What a size can be; a faulty engine sends anything.
_LARGEST = 1 << 62


class EngineProcess:
    """The engine. There is one in the life of a server, since the data dies with it.

    Args:
        body: what the engine runs, given its end of the mail socket.
        slot: of an engine that serves clients itself; ``start`` makes its handoff socket.
        lost: called when it has failed or died, whatever the supervisor is doing; may raise the error.
        window_drained: called with a window when the engine has finished what a dead worker had queued in it.
        corrupt: called with a window in whose ring the engine has found what no ring can hold.
        progress: called with what it is doing before it is ready, bytes done and bytes in all.
        moved: called with a connection that a worker had better serve, its number, peer and how it goes on.
            The first is None if this process has no descriptor left: the kernel has closed it then.
        tell_again_s: until a message is sent again for which it had no room.

    Attributes:
        ready: its memory is allocated, zeroed and proven, and it serves.
    """

    def __init__(
        self,
        shared: Shared,
        loop: EventLoop,
        processes: ProcessTable,
        body: Callable[[socket.socket], int],
        *,
        slot: Slot | None = None,
        lost: Callable[[StartupError], None],
        window_drained: Callable[[int], None],
        corrupt: Callable[[int], None],
        progress: Callable[[str, int, int], None],
        moved: Callable[[socket.socket | None, int, str, Mapping[str, Any]], None],
        tell_again_s: float = 0.1,
    ) -> None:
        self.ready = False
        self._shared = shared
        self._loop = loop
        self._processes = processes
        self._body = body
        self._slot = slot
        self._lost = lost
        self._window_drained = window_drained
        self._corrupt = corrupt
        self._progress = progress
        self._moved = moved
        self._tell_again_s = tell_again_s
        self._child: Child | None = None
        self._mail: socket.socket | None = None
        self._sent = 0
        self._told_to_stop = False
        self._nothing_to_tell = False
        self._log = logs.get()

    def start(self) -> None:
        """Fork it; ``ready`` is true when it serves."""
        counters = self._shared.control.engine_counters
        slot = self._slot
        if slot is not None:
            slot.handoffs = Handoffs(slot.window, self._shared.doorbells[slot.window.index])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._mail = ours
            self._child = self._processes.fork(
                "engine",
                lambda: reporting(theirs, lambda: self._body(theirs)),
                lambda: counters.add("dropped_log_lines"),
                self._ended,
                dies_with_parent=False,  # it zeroes its memory first
            )
        if slot is not None:
            slot.child = self._child
        ours.setblocking(False)
        self._loop.watch(ours.fileno(), self._read_mail)
        self._shared.control.store(ControlWord.ENGINE_PID, self._child.pid)

    @property
    def pid(self) -> int:
        return self._child.pid if self._child is not None else 0

    def descriptors(self) -> list[int]:
        """The supervisor's end of the mail, and both of the handoff socket, but for the engine's own."""
        found = [self._mail.fileno()] if self._mail is not None else []
        if self._slot is not None and self._slot.handoffs is not None:
            found.append(self._slot.handoffs.ours.fileno())
            if self._slot.child is not None:
                found.append(self._slot.handoffs.theirs.fileno())
        return found

    def drain_window(self, index: int) -> None:
        """Ask it to finish what the dead worker of a window had queued."""
        if not self._tell(event="drain_window", window=index):
            self._loop.after(("drain_window", index), self._tell_again_s, lambda: self.drain_window(index))

    def stop(self, grace_s: float) -> bool:
        """Have it zero its memory and end; False if it ended otherwise, before or now."""
        child = self._child
        if child is None:
            return True
        if child.alive:
            self._told_to_stop = True
            self._tell(event="stop")
            if not self._loop.until(lambda: not child.alive, grace_s):
                self._log.critical("engine_killed", after_s=grace_s)
                self.kill()
        return child.status == 0

    def kill(self) -> None:
        """End it at once, its memory as it is, and wait for that."""
        child = self._child
        if child is not None and child.alive:
            self._nothing_to_tell = True
            child.kill()
            self._loop.until(lambda: not child.alive, _KILL_GRACE_S)

    def _tell(self, **message: Any) -> bool:
        """Send a message; False if the engine, which lives, has to read others first."""
        if self._mail is None:
            return True
        try:
            self._mail.send(json.dumps(message).encode())
        except OSError as error:
            logs.limited(self._log, "engine_does_not_listen", level="error", detail=str(error))
            return not isinstance(error, BlockingIOError)
        self._sent += 1
        self._shared.control.store(ControlWord.ENGINE_MAIL, self._sent)
        self._shared.engine_doorbell.ring()
        return True

    def _read_mail(self) -> None:
        while self._mail is not None:
            descriptors: list[int] = []
            try:
                text, descriptors, _, _ = socket.recv_fds(self._mail, 65536, 1)
            except BlockingIOError:
                return
            except OSError:
                text = b""
            if descriptors:
                with socket.socket(fileno=descriptors[0]) as connection:
                    self._move(connection, text)
                continue
            if not text:
                self._loop.unwatch(self._mail.fileno())
                self._mail.close()
                self._mail = None
                return
            try:
                message = parsed(text)
            except ValueError as error:
                self._ignore(text, str(error))
                continue
            self._take(message, text)

    def _move(self, connection: socket.socket, text: bytes) -> None:
        """Pass a connection on; a faulty engine may send anything."""
        try:
            message = parsed(text)
        except ValueError as error:
            self._ignore(text, str(error))
            return
        match message:
            case {"event": "move", "id": int(number), "peer": str(peer), "begun": dict(begun)}:
                self._moved(connection, number, peer, begun)
            case _:
                self._ignore(text, "no connection to pass on")

    def _take(self, message: Mapping[str, Any], text: bytes) -> None:
        """Do what a message asks for; a faulty engine may send anything."""
        match message:
            case {"event": "ready"}:
                self.ready = True
            case {"event": "stopped"}:
                pass
            case {"event": "progress", "what": str(what), "done": int(done), "total": int(total)} if (
                0 <= done <= total < _LARGEST
            ):
                self._progress(what, done, total)
            case {"event": "window_drained", "window": int(window)}:
                self._window_drained(window)
            case {"event": "window_corrupt", "window": int(window)}:
                self._corrupt(window)
            case {"event": "move", "id": int(number), "peer": str(peer), "begun": dict(begun)}:
                self._moved(None, number, peer, begun)
            case {"event": "failed"}:
                error = startup_error(message)
                self._nothing_to_tell = True
                if self.ready:
                    self._log.critical("engine_died", **self._name(), detail=str(error))
                self._lost(error)
            case _:
                self._ignore(text, "no event that is known, with what belongs to it")

    def _ignore(self, text: bytes, reason: str) -> None:
        logs.limited(
            self._log, "mail_ignored", level="error", **self._name(),
            reason=reason, mail=text[:_LONGEST_QUOTE].decode("utf-8", "backslashreplace"),
        )  # fmt: skip

    def _ended(self, child: Child) -> None:
        self._read_mail()  # its last word says more than its status
        if self._nothing_to_tell or (self._told_to_stop and child.status == 0):
            return
        how = dict(child.how_it_ended())
        self._log.critical("engine_died", **self._name(), **how)
        remedy = how.pop("out_of_memory", "start the server again")
        text = " ".join(f"{key} {value}" for key, value in how.items())
        loss = "and with it the memory and all data in it" if self.ready else "before its memory was ready"
        self._lost(RuntimeFailure(f"the engine died ({text}), {loss}; {remedy}"))

    def _name(self) -> dict[str, Any]:
        return {"process": "vramblk-engine", "child": self.pid}
