"""The server with a memory, OpenCL calls and client sockets that do as a test says. Run like ``vramblk``.

The test gives its orders in files of the working directory, which ``steering.py`` writes:

``hold``         as long as it exists no batch is executed; ``held`` is made by the engine when it waits
``pace.json``    {"batch_s": seconds before each batch, "zeroed_s_per_mib": seconds for each MiB that a batch zeroes}
``faults.json``  as in ``faulty_server.py``; "exception" names a built-in exception to raise instead of a
                 DeviceError, "midway" lets the batch fail behind its copies_in, "raw" as what is raised there
``calls.json``   {"rate": share of OpenCL calls that fail, "status": theirs, "seed": number}
``executed``     a line for each batch: monotonic seconds, requests
``recv-NAME``, ``send-NAME``
                 the next call on a client's socket fails with this errno, or raises this built-in exception;
                 the file is gone when it has been obeyed. ``recv-NAME`` may hold bytes: only what contains them fails.
                 ``recv-NAME-always`` stays, and the file ``refused`` gets a byte for each failure.
"""

from __future__ import annotations

import builtins
import errno
import importlib.util
import json
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

# The directory of this script comes first in sys.path.
from faulty_server import FaultyMemory  # type: ignore[import-not-found]

from vramblk import cli, engine
from vramblk.memory.base import Batch, Copy, DeviceError
from vramblk.memory.hotcalls import HotCalls
from vramblk.supervisor import process as supervisor
from vramblk.system import calls

ORDERS = Path.cwd()
_NO_WINDOW = 1 << 20


class _Watched:
    """A JSON file, read again whenever it was replaced."""

    def __init__(self, name: str) -> None:
        self._path = ORDERS / name
        self._seen: tuple[int, int] | None = None
        self._value: Any = None

    def value(self) -> Any:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return None
        seen = status.st_ino, status.st_mtime_ns
        if seen != self._seen:
            self._seen, self._value = seen, json.loads(self._path.read_text())
        return self._value


class SteeredMemory(FaultyMemory):
    """A memory that waits, dawdles and raises as the files say, and is otherwise the one inside it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._pace = _Watched("pace.json")
        self._log = (ORDERS / "executed").open("a", buffering=1)

    def execute(self, batch: Batch) -> None:
        self._log.write(f"{time.monotonic()} {len(list(self._requests(batch)))}\n")
        self._dawdle(batch)
        super().execute(batch)

    def finish_copies(self, count: int) -> None:
        self._log.write(f"{time.monotonic()} {count}\n")
        self._dawdle(Batch())

    def _dawdle(self, batch: Batch) -> None:
        while os.path.exists(ORDERS / "hold"):
            (ORDERS / "held").touch()
            time.sleep(0.005)
        pace = self._pace.value()
        if not pace:
            return
        zeroed_mib = sum(zero.length for zero in batch.zeroes) / (1 << 20)
        until = time.monotonic() + pace.get("batch_s", 0) + pace.get("zeroed_s_per_mib", 0) * zeroed_mib
        while (left := until - time.monotonic()) > 0 and self._pace.value() is pace:
            time.sleep(min(left, 0.05))

    def _check(self, requests: list[tuple[str, int, int]]) -> None:
        for fault in self._faults:
            for op, offset, length in requests:
                if op != fault["op"] or offset >= fault["hi"] or offset + length <= fault["lo"]:
                    continue
                if fault.get("midway"):
                    raise _Midway(offset, fault.get("raw", False))
                if "exception" in fault:
                    raise getattr(builtins, fault["exception"])("injected into execute")
        super()._check([] if any("exception" in fault for fault in self._faults) else requests)


class _Midway(Exception):
    pass


class MidwayMemory(SteeredMemory):
    """Lets a batch fail in the midst of its work: behind its writes comes a copy from a window that is none."""

    def execute(self, batch: Batch) -> None:
        try:
            super().execute(batch)
        except _Midway as fault:
            batch.copies_in.append(Copy(_NO_WINDOW, 0, 16, fault.args[0] & ~15))
            try:
                self._inner.execute(batch)
            except DeviceError:
                raise
            except Exception as error:
                if fault.args[1]:
                    raise
                raise DeviceError(5, f"injected: {error!r}") from None
            finally:
                batch.copies_in.pop()
            raise AssertionError("a copy from no window was executed") from None


def open_steered(exports: Any, windows: Sequence[Any], **options: Any) -> list[SteeredMemory]:
    from vramblk.memory import open_memories

    return [MidwayMemory(memory, windows) for memory in open_memories(exports, windows, **options)]


def _fail_calls() -> None:
    """Let a share of the OpenCL calls return a status without doing anything.

    clFinish does its work before it fails, and never fails twice in a row: that would be a lost device.
    """
    orders = _Watched("calls.json")
    make = HotCalls.__init__
    chance = random.Random()
    seeded: list[Any] = []
    finishes_failed = [0]

    def failing(name: str, call: Callable[..., int]) -> Callable[..., int]:
        def attempt(*arguments: Any) -> int:
            wanted = orders.value()
            if not wanted:
                return call(*arguments)
            if seeded != [wanted]:
                seeded[:] = [wanted]
                chance.seed(wanted["seed"])
            fails = name in wanted.get("names", (name,)) and chance.random() < wanted["rate"]
            if name != "finish":
                finishes_failed[0] |= fails
                return wanted["status"] if fails else call(*arguments)
            status = call(*arguments)
            fails = fails and not finishes_failed[0]
            finishes_failed[0] = fails
            return status or (wanted["status"] if fails else 0)

        return attempt

    def initialize(self: Any) -> None:
        make(self)
        for name in ("set_arg", "launch", "read", "write", "finish"):
            setattr(self, name, failing(name, getattr(self, name)))

    HotCalls.__init__ = initialize  # type: ignore[method-assign]


def _orders(call: str) -> list[str]:
    return [name for name in os.listdir(ORDERS) if name.startswith(f"{call}-")]


def _obey(orders: list[str], call: str, data: bytes | None) -> None:
    """Fail as the first of these orders says that is meant for what was received; None: it is not known yet."""
    for name in orders:
        path = ORDERS / name
        try:
            mark = path.read_bytes()
            if bool(mark) != (data is not None) or (data is not None and mark not in data):
                continue
            if not name.endswith("-always"):
                path.unlink()
        except FileNotFoundError:
            continue
        with (ORDERS / "refused").open("a") as refused:
            refused.write(".")
        what = name.split("-")[1]
        if what in errno.__dict__:
            number = getattr(errno, what)
            raise OSError(number, os.strerror(number))
        raise getattr(builtins, what)(f"injected into {call}")


def _steer_the_short_path() -> None:
    """Run it from its source: compiled, it calls the kernel without Python."""
    name = "vramblk.engine.direct"
    path = Path(str(engine.__file__)).with_name("direct.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    receive, send = calls.receive, calls.send

    def steered_receive(descriptor: int, buffer: memoryview, at: int, count: int) -> int:
        try:
            _obey(_orders("recv"), "recv", None)
            got = receive(descriptor, buffer, at, count)
            _obey(_orders("recv"), "recv", buffer[at : at + max(0, got)].tobytes())
        except OSError as error:
            return -(error.errno or 1)
        return got

    def steered_send(descriptor: int, buffer: memoryview, at: int, count: int) -> int:
        try:
            _obey(_orders("send"), "send", None)
        except OSError as error:
            return -(error.errno or 1)
        return send(descriptor, buffer, at, count)

    calls.receive, calls.send = steered_receive, steered_send


class SteeredSocket(socket.socket):
    """A socket whose calls fail as the files say if it is a client's connection."""

    def recv_into(self, *arguments: Any, **more: Any) -> int:
        self._fail("recv")
        count = super().recv_into(*arguments, **more)
        self._fail("recv", memoryview(arguments[0])[:count].tobytes())
        return count

    def recv(self, *arguments: Any, **more: Any) -> bytes:
        self._fail("recv")
        data = super().recv(*arguments, **more)
        self._fail("recv", data)
        return data

    def send(self, *arguments: Any, **more: Any) -> int:
        self._fail("send")
        return super().send(*arguments, **more)

    def sendmsg(self, buffers: Iterable[Any], *arguments: Any, **more: Any) -> int:
        self._fail("send")
        return super().sendmsg(buffers, *arguments, **more)

    def _fail(self, call: str, data: bytes | None = None) -> None:
        orders = _orders(call)
        if orders and self._is_clients():
            _obey(orders, call, data)

    def _is_clients(self) -> bool:
        if self.type != socket.SOCK_STREAM:
            return False
        return self.family == socket.AF_INET or str(self.getsockname()).endswith("/nbd.sock")


def main() -> int:
    (ORDERS / "faults.json").write_text("[]")
    serve = supervisor.serve
    supervisor.serve = lambda settings: serve(settings, open_memories=open_steered)  # type: ignore[assignment]
    socket.socket = SteeredSocket  # type: ignore[misc]
    _fail_calls()
    if "STEERED_DIRECT" in os.environ:
        _steer_the_short_path()
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
