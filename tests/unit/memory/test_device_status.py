"""Promises 11 and 12 on OpenCL: each call and each command that fails is an error of the request that needed it.

The calls of ``HotCalls`` are watched, and give a bad status where a test wants one; all else is PoCL's.
Needs the CPU OpenCL that the project's test extra brings.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from tests.unit.rig import READ, SIZE, WRITE, ZEROES, Rig
from vramblk.memory.base import Batch, DeviceError, Pattern, Zero
from vramblk.memory.devices import CPU, discover
from vramblk.memory.hotcalls import HotCalls, failed
from vramblk.memory.opencl import OpenCLMemory
from vramblk.memory.opendevice import OpenDevice

EIO, ENOMEM = 5, 12
#: Statuses of OpenCL: one that means ENOMEM, one that means EIO, and one after which the device is lost.
OUT_OF_RESOURCES, FAILED_IN_WAIT_LIST, DEVICE_FAULT = -5, -14, -9999

COMMANDS = {"write", "read", "launch"}
#: Whatever their status, what was queued is over, and the event is dropped.
AFTERWARDS = {"finish", "take_event_status"}
#: Command, length, and offsets of the requests: two become a run, one is copied by itself.
OPERATIONS = {
    "write run": (WRITE, 4096, (4096, 8192)),
    "read run": (READ, 4096, (4096, 8192)),
    "write": (WRITE, 100, (4097,)),
    "read": (READ, 100, (4097,)),
    "zero": (ZEROES, 4096, (4096,)),
}
#: With "events" PoCL counts as a runtime whose clFinish does not tell of a command that failed.
KINDS = ("plain", "checksums", "events", "checksums and events")


@dataclass
class Calls:
    """What is called of the runtime, and what fails of it.

    Attributes:
        made: names of the calls since the memory was last told to execute something, in order.
        bad: given the name of a call, its status; 0 for the runtime's own.
        before: called before each call.
    """

    made: list[str] = field(default_factory=list)
    bad: Callable[[str], int] = lambda name: 0
    before: Callable[[], object] = lambda: None

    def replace(self, hot: Any) -> None:
        for name in (*COMMANDS, *AFTERWARDS, "set_arg"):
            setattr(hot, name, self._watched(name, getattr(hot, name)))

    def fail(self, *names: str, status: int) -> None:
        """All calls of these names, from now on."""
        self.bad = lambda name: status if name in names else 0

    def fail_at(self, index: int, status: int) -> None:
        """The call at this place of ``made``, each time that something is executed."""
        self.bad = lambda _: status if len(self.made) == index else 0

    def mend(self) -> None:
        self.bad = lambda _: 0

    def _watched(self, name: str, call: Callable[..., int]) -> Callable[..., int]:
        def watched(*arguments: Any) -> int:
            self.before()
            bad = self.bad(name)
            self.made.append(name)
            if bad and name not in AFTERWARDS:
                return bad
            status = call(*arguments)
            return bad or status

        return watched


@dataclass
class Served:
    """A client, and the memory of an OpenCL device behind connection and engine."""

    rig: Rig
    device: OpenDevice
    calls: Calls

    def send(self, operation: str, byte: bytes = b"w") -> int:
        """The number of requests."""
        command, length, offsets = OPERATIONS[operation]
        if command == ZEROES:
            self.rig.written.blocks[:] = 1  # what is unwritten is not zeroed
        for offset in offsets:
            self.rig.send(command, offset, length, byte * length if command == WRITE else b"")
        return len(offsets)

    def ask(self, operation: str, byte: bytes = b"w") -> int:
        """The error number in the answer, which is the same for each request."""
        count = self.send(operation, byte)
        self.rig.work()
        answers = self.rig.answers()
        assert len(answers) == count
        (error,) = {error for _, error, _ in answers}
        return error

    def read(self, offset: int, length: int) -> bytes:
        self.rig.send(READ, offset, length)
        self.rig.work()
        return self.rig.replies()[28:]

    def counted(self, name: str) -> int:
        return self.rig.engine._counters.scalar(name)


Serve = Callable[[str], Served]


@pytest.fixture
def serve(make_rig: Callable[..., Rig]) -> Serve:
    def run(kind: str = "plain") -> Served:
        device = OpenDevice(next(each for each in discover() if each.type == CPU))
        device.keeps_events = "events" in kind
        calls = Calls()

        def open_memory(_: object) -> OpenCLMemory:
            return OpenCLMemory(device, [SIZE], verify_reads="checksums" in kind)

        served = Served(make_rig(open_memory=open_memory), device, calls)
        memory = served.rig.memory
        execute = memory.execute

        def execute_anew(batch: Batch) -> None:
            calls.made.clear()
            execute(batch)

        memory.execute = execute_anew
        calls.replace(device.hot)
        return served

    return run


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_acknowledged_before_copy_and_status_check(serve: Serve, kind: str, operation: str) -> None:
    """Promise 11: no entry is done at any call; nothing is queued behind the last clFinish; all events are asked."""
    served = serve(kind)
    seen: list[tuple[int, bytes]] = []
    done = served.rig.submissions.ring.done
    served.calls.before = lambda: seen.append((done(), served.rig.replies()))
    assert served.ask(operation) == 0
    assert set(seen) == {(0, b"")}
    assert done() == 1
    made = served.calls.made
    commands = sum(name in COMMANDS for name in made)
    assert commands and made.count("take_event_status") == (commands if "events" in kind else 0)
    behind = made[::-1].index("finish")
    assert set(made[len(made) - behind :]) == ({"take_event_status"} if "events" in kind else set())


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_call_that_fails_fails_the_request(serve: Serve, kind: str, operation: str) -> None:
    """Promise 12: whichever call it is, the answer is EIO; nothing stays queued, and the next request is served."""
    served = serve(kind)
    assert served.ask(operation) == 0
    made = tuple(served.calls.made)
    for index, name in enumerate(made):
        served.calls.fail_at(index, FAILED_IN_WAIT_LIST)
        assert served.ask(operation) == EIO, f"{name}, call {index} of {made}"
        assert "finish" in served.calls.made[index:]
        assert not served.device._events
        served.calls.mend()
        assert served.ask("write run", b"n") == 0
        assert served.read(4096, 4096) + served.read(8192, 4096) == b"n" * 8192
        assert served.ask(operation) == 0
    requests = len(OPERATIONS[operation][2])
    assert served.counted("device_errors") == (1 + requests) * len(made)  # of the batch, then of each alone
    assert not served.counted("device_lost")


@pytest.mark.parametrize("kind", KINDS)
def test_each_call_that_fails_once_fails_no_request_of_a_mixture(serve: Serve, kind: str) -> None:
    """Reads and writes of one batch, without checksums of one launch, are repeated request by request."""
    served = serve(kind)

    def ask(byte: bytes) -> None:
        for block in (4, 5):
            served.rig.send(WRITE, block * 4096, 4096, byte * 4096, cookie=block)
            served.rig.send(READ, (block - 3) * 4096, 4096, cookie=block - 3)

    ask(b"1")
    served.rig.work()
    assert len(served.rig.answers()) == 4
    made = tuple(served.calls.made)
    assert made.count("launch") == (4 if "checksums" in kind else 1)
    for index, name in enumerate(made):
        failing = [FAILED_IN_WAIT_LIST]
        served.calls.bad = lambda _, at=index, left=failing: left.pop() if left and len(served.calls.made) == at else 0
        byte = bytes([65 + index])
        ask(byte)
        served.rig.work()
        assert not failing
        assert {error for _, error, _ in served.rig.answers()} == {0}, f"{name}, call {index} of {made}"
        assert served.read(4 * 4096, 4096) + served.read(5 * 4096, 4096) == byte * 8192
    assert served.counted("device_errors") == len(made)


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        ("write run", "write"),
        ("write run", "launch"),
        ("read run", "set_arg"),
        ("read run", "read"),
        ("write", "write"),
        ("read", "read"),
        ("zero", "set_arg"),
        ("zero", "launch"),
        ("write", "finish"),
        ("read", "take_event_status"),
    ],
)
def test_a_fault_loses_the_device(serve: Serve, operation: str, name: str) -> None:
    """From then on every request is EIO, and nothing is called of the runtime, not even to free what it holds."""
    served = serve("events" if name == "take_event_status" else "plain")
    served.calls.fail(name, status=DEVICE_FAULT)
    assert served.ask(operation) == EIO
    assert (served.counted("device_errors"), served.counted("device_lost")) == (1, 1)
    served.calls.mend()
    served.calls.made.clear()
    assert [served.ask(each) for each in OPERATIONS] == [EIO] * len(OPERATIONS)
    handles = list(served.rig.memory._handles)
    served.rig.memory.close()
    assert served.calls.made == []
    assert [buffer.int_ptr for buffer in served.device._buffers[:1]] == handles


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", ("launch", "set_arg", "write", "read", "take_event_status"))
def test_want_of_resources_is_no_loss(serve: Serve, name: str, operation: str) -> None:
    """-5 of anything but clFinish: the device says that it has no room, the request ENOMEM, and the rest goes on."""
    served = serve("events")
    assert served.ask(operation) == 0
    needed = name in served.calls.made
    served.calls.fail(name, status=OUT_OF_RESOURCES)
    assert served.ask(operation) == (ENOMEM if needed else 0)
    served.calls.mend()
    assert served.ask(operation) == 0
    assert not served.counted("device_lost")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_queue_that_cannot_be_finished_is_lost(serve: Serve, operation: str) -> None:
    """A clFinish that fails twice: what is in flight may still write to the slab, so nothing more is sent."""
    served = serve("plain")
    served.calls.fail("finish", status=OUT_OF_RESOURCES)
    assert served.ask(operation) == EIO
    assert served.counted("device_lost") == 1
    served.calls.mend()
    served.calls.made.clear()
    assert served.ask(operation) == EIO
    served.rig.memory.close()
    assert served.calls.made == []


@pytest.mark.parametrize("name", ("launch", "finish", "take_event_status"))
def test_what_fails_once_is_repeated(serve: Serve, name: str) -> None:
    """The batch has failed, none of its requests does: they are all done again, since none was acknowledged."""
    served = serve("events")
    left = [OUT_OF_RESOURCES]
    served.calls.bad = lambda called: left.pop() if called == name and left else 0
    served.send("write run")
    served.send("zero")
    served.rig.work()
    assert [error for _, error, _ in served.rig.answers()] == [0, 0, 0]
    assert not left and served.counted("device_errors") == 1
    assert served.read(4096, 4096) + served.read(8192, 4096) == bytes(4096) + b"w" * 4096


def test_healthy_requests_of_the_same_batch_are_served(serve: Serve) -> None:
    """Promise 12: of copies to forty places one cannot be made; its neighbours are."""
    served = serve("plain")
    write = served.device.hot.write

    def broken(*arguments: Any) -> int:
        return FAILED_IN_WAIT_LIST if arguments[3] == 17 * 4096 + 1 else int(write(*arguments))

    served.device.hot.write = broken
    for number in range(40):
        served.rig.send(WRITE, number * 4096 + 1, 10, bytes([number]) * 10, cookie=number)
    while served.rig.connection.pump():
        pass
    served.rig.work()
    answers = {cookie: error for _, error, cookie in served.rig.answers()}
    assert answers == {number: EIO if number == 17 else 0 for number in range(40)}
    for number in range(40):
        assert served.read(number * 4096 + 1, 10) == bytes([0 if number == 17 else number]) * 10


def batch_that_zeroes() -> Batch:
    batch = Batch()
    batch.zeroes.append(Zero(0, 4096))
    return batch


@pytest.mark.parametrize(
    ("status", "errno", "lost"),
    [
        (OUT_OF_RESOURCES, ENOMEM, False),
        (-4, ENOMEM, False),
        (-6, ENOMEM, False),
        (FAILED_IN_WAIT_LIST, EIO, False),
        (-1000, EIO, False),
        (DEVICE_FAULT, EIO, True),
        (-2, EIO, True),
        (-36, EIO, True),
    ],
)
@pytest.mark.parametrize("name", ("launch", "take_event_status"))
def test_what_a_status_means(serve: Serve, name: str, status: int, errno: int, lost: bool) -> None:
    """The error says which call it was, has a number of the protocol, and tells whether the device will come back."""
    served = serve("events")
    served.calls.fail(name, status=status)
    with pytest.raises(DeviceError) as raised:
        served.rig.memory.execute(batch_that_zeroes())
    error = raised.value
    assert (error.errno, error.lost) == (errno, lost)
    assert error.detail == str(failed("clEnqueueNDRangeKernel" if name == "launch" else "a queued command", status))
    assert served.device._lost == lost


def test_a_size_that_cannot_be_allocated_is_named_for_people(serve: Serve) -> None:
    with pytest.raises(DeviceError, match=r"^allocating 1024 TiB: "):
        serve("plain").device.allocate(1 << 50)


def test_both_failures_are_told(serve: Serve) -> None:
    """A launch that failed, and a queue that then could not be finished: first the cause, then the loss."""
    served = serve("plain")
    served.calls.fail("launch", "finish", status=OUT_OF_RESOURCES)
    with pytest.raises(DeviceError) as raised:
        served.rig.memory.execute(batch_that_zeroes())
    error = raised.value
    assert (error.errno, error.lost) == (EIO, True)
    assert error.detail == "clEnqueueNDRangeKernel: CL_OUT_OF_RESOURCES; then clFinish: CL_OUT_OF_RESOURCES"


@pytest.mark.parametrize("kind", ("plain", "events"))
@pytest.mark.parametrize(
    ("job", "needed"),
    [
        ("fill", {"set_arg", "launch", "finish"}),
        ("mismatches", {"set_arg", "launch", "read", "finish"}),
        ("prove", {"set_arg", "launch", "read", "finish"}),
    ],
)
def test_a_proof_that_could_not_be_made_is_none(serve: Serve, kind: str, job: str, needed: set[str]) -> None:
    """Promise 14: what fails while memory is written or read back is an error, never a verdict that all is well."""
    if kind == "events":
        needed = needed | {"take_event_status"}
    for name in needed:
        served = serve(kind)
        memory = served.rig.memory
        run: Callable[[], object] = {
            "fill": partial(memory.fill, 0, SIZE, Pattern.ADDRESS),
            "mismatches": partial(memory.mismatches, 0, SIZE, Pattern.ZERO),
            "prove": memory.prove,
        }[job]
        run()
        assert set(served.calls.made) == needed
        served.calls.fail(name, status=FAILED_IN_WAIT_LIST)
        with pytest.raises(DeviceError):
            run()


@pytest.mark.parametrize(
    ("execution", "asked", "released", "expected"),
    [(0, 0, 0, 0), (-9999, 0, 0, -9999), (0, -5, 0, -5), (0, 0, -58, -58), (-14, 0, -58, -14)],
)
def test_the_status_of_an_event(
    monkeypatch: pytest.MonkeyPatch, execution: int, asked: int, released: int, expected: int
) -> None:
    """The command's own, or that of the call that asked for it; the event is dropped whatever it says."""
    hot = HotCalls()
    dropped = []

    def ask(event: int, parameter: int, size_bytes: int, into: Any, _: None) -> int:
        assert (event, parameter, size_bytes) == (77, 0x11D3, 4)
        ctypes.cast(into, ctypes.POINTER(ctypes.c_int32))[0] = execution
        return asked

    def release(event: int) -> int:
        dropped.append(event)
        return released

    monkeypatch.setattr(hot, "_event_info", ask)
    monkeypatch.setattr(hot, "_release_event", release)
    assert hot.take_event_status(77) == expected
    assert dropped == [77]
