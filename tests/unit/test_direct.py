"""The short path of a client that the engine serves itself, compiled and as plain Python."""

from __future__ import annotations

import random
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import vramblk.engine.direct
from tests.unit.sharedmemory import make_shared
from tests.unit.uncompiled import load
from vramblk.config.settings import load_settings
from vramblk.memory.base import DeviceError
from vramblk.memory.copies import OUTSIDE, Copies, MappedCopies
from vramblk.nbd.replies import ReplyFormat
from vramblk.serving.lanes import SMALLEST, Lanes
from vramblk.serving.tally import Tally
from vramblk.shared.control import ControlWord, State
from vramblk.shared.counters import READ, WRITE

SIZE, ARENA = 1 << 20, 1 << 18
KINDS = {
    "simple": ReplyFormat(False, False),
    "structured": ReplyFormat(True, False),
    "extended": ReplyFormat(True, True),
}
NBD_READ, NBD_WRITE, NBD_DISC, NBD_FLUSH, NBD_TRIM = range(5)
FUA, DF, PAYLOAD_LEN = 1, 4, 32


class Short:
    """A client's socket and the short path behind it, on an array; ``copies`` may be replaced before use."""

    def __init__(
        self,
        module: ModuleType,
        format: ReplyFormat,
        copies: Callable[[Short], Copies] | None = None,
        *,
        read_only: bool = False,
        lane_bytes: int = 2 << 20,
        piece_bytes: int = 1 << 16,
    ) -> None:
        self.format = format
        self.client, self.server = socket.socketpair()
        self.client.settimeout(5)
        self.server.setblocking(False)
        self.shared = shared = make_shared(load_settings(["--size", "1M"], {}), 0, lane_bytes, lane_bytes)
        assert shared.local is not None
        self.window = window = shared.local
        lane = Lanes(lane_bytes, lane_bytes, 1).take()
        assert lane is not None
        self.lane = lane
        self.memory = np.zeros(SIZE, np.uint8)
        self.blocks = np.zeros(SIZE // 4096, np.uint8)
        self.copies = copies(self) if copies is not None else self.mapped()
        self.counters = window.counters
        cells = shared.control.engine_counters.cells
        self.path = module.DirectPath(
            self.server.fileno(), window, lane, 0, format, self.copies, self.blocks.data,
            Tally(self.counters, window.traffic(lane.slot), 0), shared.control,
            memoryview(bytearray(8 * len(cells))).cast("q"), read_only=read_only, drains=True,
            piece_bytes=piece_bytes,
        )  # fmt: skip
        self._cookie = 0

    def mapped(self) -> Copies:
        return MappedCopies(SIZE, ARENA, [self.memory.ctypes.data], lambda status: DeviceError(5, str(status)))

    def close(self) -> None:
        self.client.close()
        self.server.close()

    def encode(self, command: int, offset: int, length: int, payload: bytes = b"", flags: int = 0) -> bytes:
        self._cookie += 1
        if self.format.extended:
            flags |= PAYLOAD_LEN if payload else 0
            header = struct.pack(">IHHQQQ", 0x21E41C71, flags, command, self._cookie, offset, length)
        else:
            header = struct.pack(">IHHQQI", 0x25609513, flags, command, self._cookie, offset, length)
        return header + payload

    def reply(self, cookie: int, offset: int, data: bytes | None) -> bytes:
        """What a request is answered with; None: it brings no data."""
        format = self.format
        if format.extended:
            if data is None:
                return struct.pack(">IHHQQQ", 0x6E8A278C, 1, 0, cookie, offset, 0)
            head = struct.pack(">IHHQQQQ", 0x6E8A278C, 1, 1, cookie, offset, len(data) + 8, offset)
            return head + data
        if format.structured and data is not None:
            return struct.pack(">IHHQIQ", 0x668E33EF, 1, 1, cookie, len(data) + 8, offset) + data
        return struct.pack(">IIQ", 0x67446698, 0, cookie) + (data or b"")

    def go(self) -> int:
        done: int = self.path.go()
        assert self.shared.control.load(ControlWord.ENGINE_EXPORT) == 0
        return done

    def received(self, length: int) -> bytes:
        return self.client.recv(length, socket.MSG_WAITALL)

    def nothing_is_sent(self) -> bool:
        self.client.setblocking(False)
        try:
            return not self.client.recv(1)
        except BlockingIOError:
            return True
        finally:
            self.client.settimeout(5)

    def counted(self, op: int) -> tuple[int, int]:
        cells = self.counters.cells
        latency = sum(self.counters.latency(op))
        requests = cells[self.counters.request_index(0, op)]
        assert latency == requests
        return requests, cells[self.counters.bytes_index(0, op)]


@pytest.fixture(params=("imported", "plain"))
def module(request: pytest.FixtureRequest) -> ModuleType:
    return vramblk.engine.direct if request.param == "imported" else load("vramblk.engine.direct")


@pytest.fixture
def make(module: ModuleType) -> Iterator[Callable[..., Short]]:
    opened: list[Short] = []

    def maker(kind: str = "simple", *arguments: Any, **options: Any) -> Short:
        opened.append(Short(module, KINDS[kind], *arguments, **options))
        return opened[-1]

    yield maker
    for each in opened:
        each.close()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", KINDS)
def test_it_does_what_a_bytearray_does(make: Callable[..., Short], kind: str, seed: int) -> None:
    """Requests of any alignment, overlapping, cut anywhere on their way: data, replies, marks and sums agree."""
    chance = random.Random(seed)
    short = make(kind)
    model, marks = bytearray(SIZE), bytearray(SIZE // 4096)
    stream, expected = b"", b""
    sums = {READ: [0, 0], WRITE: [0, 0]}
    for number in range(1, 301):
        # Most of them close together, so that they overlap.
        length = chance.choice((1, 7, 16, 512, 4096, 4097, chance.randrange(1, 1 << 16)))
        near = chance.choice((0, ARENA - length, ARENA, SIZE - length))
        offset = min(near + chance.choice((0, 0, 3, chance.randrange(8192))), SIZE - length)
        if offset // ARENA != (offset + length - 1) // ARENA:
            offset = offset // ARENA * ARENA
        flags = chance.choice((0, FUA))
        if chance.random() < 0.5:
            stream += short.encode(NBD_READ, offset, length, flags=flags)
            expected += short.reply(number, offset, bytes(model[offset : offset + length]))
            op = READ
        else:
            data = chance.randbytes(length)
            stream += short.encode(NBD_WRITE, offset, length, data, flags)
            model[offset : offset + length] = data
            for block in range(offset // 4096, (offset + length - 1) // 4096 + 1):
                marks[block] = 1
            expected += short.reply(number, offset, None)
            op = WRITE
        sums[op][0] += 1
        sums[op][1] += length
    got, done, rest = b"", 0, memoryview(stream)
    short.client.setblocking(False)
    while done < 300:
        if rest:
            try:
                rest = rest[short.client.send(rest[: chance.randrange(1, 1 << chance.randrange(1, 19))]) :]
            except BlockingIOError:
                pass
        done += short.go()
        assert not (short.path.left or short.path.failed or short.path.ended or short.path.error)
        while short.path.unsent != short.path.end or len(got) < len(expected):
            try:
                got += short.client.recv(1 << 20)
            except BlockingIOError:
                if short.path.unsent == short.path.end:
                    break
                sent = short.server.send(short.window.slab_view[short.path.unsent : short.path.end])
                short.path.unsent += sent
    while len(got) < len(expected):
        got += short.client.recv(1 << 20)
    assert got == expected
    assert short.memory.tobytes() == model
    assert short.blocks.tobytes() == marks
    for op, (count, amount) in sums.items():
        requests, payload = short.counted(op)
        assert requests <= count and payload <= amount
    batch_requests = short.shared.control.engine_counters.scalar("batch_requests")
    assert batch_requests == 300


def test_requests_and_bytes_are_counted(make: Callable[..., Short]) -> None:
    """As a worker counts them: requests, payload, latency; the go is a batch of the engine's."""
    short = make()
    short.client.sendall(short.encode(NBD_WRITE, 5, 9, b"123456789") + 2 * short.encode(NBD_READ, 4096, 100))
    assert short.go() == 3
    assert short.counted(READ) == (2, 200)
    assert short.counted(WRITE) == (1, 9)
    engine = short.shared.control.engine_counters
    assert (engine.scalar("batches"), engine.scalar("batch_requests")) == (1, 3)
    assert engine.batches()[2] == 1, "two to four requests"
    assert short.window.traffic(0).tolist() == [3, 3 * 28 + 9, 3 * 16 + 200]


LEFT = {
    "a command without data": (NBD_FLUSH, 0, 0, b"", 0),
    "the end": (NBD_DISC, 0, 0, b"", 0),
    "no length": (NBD_READ, 0, 0, b"", 0),
    "a write of nothing": (NBD_WRITE, 0, 0, b"", 0),
    "behind the end": (NBD_READ, SIZE - 1, 2, b"", 0),
    "far behind the end": (NBD_READ, (1 << 64) - 1, 2, b"", 0),
    "a write behind the end": (NBD_WRITE, SIZE, 1, b"x", 0),
    "two arenas": (NBD_READ, ARENA - 1, 2, b"", 0),
    "longer than a piece": (NBD_READ, 0, (1 << 16) + 1, b"", 0),
    "the longest": (NBD_READ, 0, (1 << 32) - 1, b"", 0),
    "an unknown flag": (NBD_READ, 0, 1, b"", 1 << 9),
    "an unknown flag of a write": (NBD_WRITE, 0, 1, b"x", DF),
    "an unknown command": (77, 0, 1, b"", 0),
}


@pytest.mark.parametrize("what", LEFT)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_plain_is_left(make: Callable[..., Short], kind: str, what: str) -> None:
    """The requests before it are answered; it stays at the front of the lane, and nothing behind it is taken."""
    short = make(kind)
    odd = short.encode(*LEFT[what])
    first = short.encode(NBD_WRITE, 7, 3, b"abc")
    short.client.sendall(first + odd + first)
    assert short.go() == 1
    path = short.path
    assert path.left and not path.failed
    lane = short.window.slab_view[short.lane.rx :]
    assert lane[path.position : path.have] == odd + first
    assert short.received(short.format.done_bytes) == short.reply(2, 7, None)
    assert short.nothing_is_sent()
    assert short.memory[:16].tobytes() == b"\0" * 7 + b"abc" + b"\0" * 6


@pytest.mark.parametrize("kind", KINDS)
def test_flags_that_change_nothing_are_plain(make: Callable[..., Short], kind: str) -> None:
    """FUA always, and DF where replies are structured."""
    short = make(kind)
    structured = kind != "simple"
    short.client.sendall(short.encode(NBD_READ, 0, 1, flags=FUA | (DF if structured else 0)))
    assert short.go() == 1 and not short.path.left
    short.client.sendall(short.encode(NBD_READ, 0, 1, flags=DF))
    assert short.go() == structured and short.path.left != structured


def test_a_wrong_magic_is_left(make: Callable[..., Short]) -> None:
    """The general code closes such a connection."""
    short = make()
    short.client.sendall(bytes(28))
    assert short.go() == 0 and short.path.left


def test_read_only_and_draining(make: Callable[..., Short]) -> None:
    """Both refuse, which the general code does."""
    short = make(read_only=True)
    short.client.sendall(short.encode(NBD_READ, 0, 4) + short.encode(NBD_WRITE, 0, 4, b"abcd"))
    assert short.go() == 1 and short.path.left
    assert not short.memory.any() and not short.blocks.any()
    short = make()
    short.shared.control.store(ControlWord.STATE, State.DRAINING)
    short.client.sendall(short.encode(NBD_READ, 0, 4))
    assert short.go() == 0 and short.path.left


class Failing(Copies):
    """``queued`` copies that fail from the so-manieth on, or at their finish."""

    def __init__(self, inner: Copies, at: int, queued: bool) -> None:
        Copies.__init__(self, SIZE, ARENA, [], inner.failure)
        self.queued = queued
        self.inner, self.at = inner, at
        self.begun = self.finished = 0

    def read(self, offset: int, length: int, address: int) -> int:
        self.begun += 1
        return -5 if self.begun == self.at else self.inner.read(offset, length, address)

    def write(self, offset: int, length: int, address: int) -> int:
        self.begun += 1
        return -5 if self.begun == self.at else self.inner.write(offset, length, address)

    def finish(self) -> int:
        self.finished += 1
        return -36 if not self.at else 0


@pytest.mark.parametrize("queued", (False, True))
@pytest.mark.parametrize("at", (0, 1, 2, 3))
def test_a_failed_copy_leaves_the_whole_go(make: Callable[..., Short], at: int, queued: bool) -> None:
    """Nothing was answered or counted, nothing is in flight, and every request is there again in its order."""
    short = make("simple", lambda short: Failing(short.mapped(), at, queued))
    stream = short.encode(NBD_WRITE, 0, 5, b"first") + short.encode(NBD_READ, 0, 5)
    stream += short.encode(NBD_WRITE, 9000, 3, b"odd")
    short.client.sendall(stream)
    assert short.go() == 0
    path = short.path
    assert path.failed == (-36 if not at else -5) and path.unsent == path.end
    assert short.copies.finished == 1  # type: ignore[attr-defined]
    assert short.window.slab_view[short.lane.rx :][path.position : path.have] == stream
    assert short.nothing_is_sent()
    assert short.counted(READ) == short.counted(WRITE) == (0, 0)
    assert short.blocks[0] == 1, "marked before it was written"
    assert short.shared.control.engine_counters.scalar("batches") == 0


def test_a_failed_go_can_be_repeated(make: Callable[..., Short]) -> None:
    """A write that overlaps an earlier read is not begun with it: the repeated read would see its data."""
    short = make("simple", lambda short: Failing(short.mapped(), 0, True))
    beside, over = short.encode(NBD_WRITE, 96, 4, b"next"), short.encode(NBD_WRITE, 99, 4, b"over")
    short.client.sendall(short.encode(NBD_READ, 100, 8) + beside + over)
    assert short.go() == 0 and short.path.failed
    assert short.memory[96:108].tobytes() == b"next" + bytes(8)
    short.copies.at = -1  # type: ignore[attr-defined]
    assert short.go() == 2 and short.path.again
    assert short.go() == 1
    assert short.memory[96:108].tobytes() == b"nexover" + bytes(5)
    assert short.received(3 * 16 + 8)[16:24] == bytes(8)


def test_an_exception_leaves_nothing_in_flight(make: Callable[..., Short]) -> None:
    """The caller closes the connection; until then no copy may touch its lane any more."""

    class Raising(Failing):
        def read(self, offset: int, length: int, address: int) -> int:
            raise ZeroDivisionError

    short = make("simple", lambda short: Raising(short.mapped(), 9, True))
    short.client.sendall(short.encode(NBD_READ, 0, 5))
    with pytest.raises(ZeroDivisionError):
        short.path.go()
    short.path.abandon()
    assert short.copies.finished == 1  # type: ignore[attr-defined]
    assert short.shared.control.load(ControlWord.ENGINE_EXPORT) == 0


@pytest.mark.parametrize(("length", "requests"), [(512, 64), (1 << 16, 32)])
def test_a_go_is_bounded(make: Callable[..., Short], length: int, requests: int) -> None:
    """In requests and in bytes; what is left comes next."""
    short = make(lane_bytes=8 << 20)
    short.client.sendall(b"".join(short.encode(NBD_READ, 0, length) for _ in range(100)))
    short.server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    assert short.go() == requests and short.path.again


def test_replies_that_find_no_room_in_the_lane_come_next(make: Callable[..., Short]) -> None:
    """The transmit lane bounds a go, too."""
    short = make(lane_bytes=SMALLEST)
    short.client.sendall(b"".join(short.encode(NBD_READ, 0, 1 << 16) for _ in range(6)))
    assert short.go() == 4 and short.path.again
    assert short.go() == 2 or short.path.unsent != short.path.end


def test_a_socket_that_takes_no_more(make: Callable[..., Short]) -> None:
    """What it has not taken is named, and not counted yet."""
    short = make()
    short.server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    short.client.sendall(b"".join(short.encode(NBD_READ, 0, 1 << 16) for _ in range(3)))
    assert short.go() == 3
    path = short.path
    assert short.lane.tx <= path.unsent < path.end == short.lane.tx + 3 * (16 + (1 << 16))
    assert (path.reads, path.read_bytes) == (3, 3 << 16)
    assert short.counted(READ) == (0, 0)


def test_a_client_that_has_closed(make: Callable[..., Short]) -> None:
    """Its last requests are answered first."""
    short = make()
    short.client.sendall(short.encode(NBD_WRITE, 0, 1, b"x") + b"half a header")
    short.client.shutdown(socket.SHUT_WR)
    assert short.go() == 1
    if not short.path.ended:
        assert short.go() == 0
    assert short.path.ended and short.memory[0] == ord("x")


def test_lingering_ends_when_somebody_else_has_an_event(make: Callable[..., Short]) -> None:
    """Until then, or until its time is over, the client is served as often as it asks."""
    short = make()
    other, theirs = socket.socketpair()
    with other, theirs, select.epoll() as epoll:
        for each in (short.server, theirs):
            epoll.register(each.fileno(), select.EPOLLIN)
        short.client.sendall(short.encode(NBD_READ, 0, 4))
        assert short.path.linger(epoll, epoll.fileno(), 20, 0, True) == 1
        other.send(b"x")
        short.client.sendall(short.encode(NBD_READ, 0, 4))
        for spin_ns in (0, 10**12):
            assert short.path.linger(epoll, epoll.fileno(), -1, spin_ns, True) <= 1
        short.client.sendall(short.encode(NBD_FLUSH, 0, 0))
        short.path.linger(epoll, epoll.fileno(), -1, 0, True)
        assert short.path.left


def test_no_time_is_counted_twice_as_busy(make: Callable[..., Short]) -> None:
    """Requests that a go has left had come before it ended."""

    class Slow(Failing):
        def finish(self) -> int:
            time.sleep(0.01)
            return 0

    short = make("simple", lambda short: Slow(short.mapped(), -1, True))
    short.client.sendall(b"".join(short.encode(NBD_READ, 0, 4) for _ in range(4 * 64)))
    with select.epoll() as epoll:
        epoll.register(short.server.fileno(), select.EPOLLIN)
        begun_ns = time.monotonic_ns()
        assert short.path.linger(epoll, epoll.fileno(), 20, 0, True) == 4 * 64
        elapsed_ns = time.monotonic_ns() - begun_ns
    assert 40_000_000 < short.shared.control.engine_counters.scalar("busy_ns") < elapsed_ns


def test_copies_stay_within_one_arena() -> None:
    """What does not lie in one touches nothing."""
    memory, slab = np.zeros(SIZE, np.uint8), np.ones(SIZE, np.uint8)
    copies = MappedCopies(SIZE, ARENA, [memory.ctypes.data], lambda status: DeviceError(5, str(status)))
    for offset, length in ((SIZE, 1), (SIZE - 1, 2), (ARENA - 1, 2), (0, 0), (0, SIZE), ((1 << 64) - 1, 1)):
        assert copies.write(offset, length, slab.ctypes.data) == OUTSIDE
        assert copies.read(offset, length, slab.ctypes.data) == OUTSIDE
    assert not memory.any() and slab.all()
    assert copies.write(ARENA - 1, 1, slab.ctypes.data) == 0
    assert memory.nonzero()[0].tolist() == [ARENA - 1]
