"""Headers are laid when the engine is done: no byte is sent that the engine has overwritten and nobody has read."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.plain_memory import PlainMemory
from tests.unit.rig import FLUSH, READ, SIZE, WRITE, Rig
from vramblk.memory.base import Batch, DeviceError
from vramblk.nbd.constants import CommandFlag, Error
from vramblk.nbd.replies import ReplyFormat
from vramblk.nbd.transmission import Request
from vramblk.shared.descriptors import GATHER_JOINS

MakeRig = Callable[..., Rig]
FORMATS = {
    "simple": ReplyFormat(False, False),
    "structured": ReplyFormat(True, False),
    "extended": ReplyFormat(True, True),
}
BLOCK = 4096
ARENA = 1 << 20
#: Reads of these blocks fail, with all that their batch does.
BAD = range(100, 104)


def fail_bad_blocks(memory: PlainMemory, batch: Batch) -> None:
    """Fail a batch of reads after it has overwritten the slab, as a device may."""
    touched = [
        offset // BLOCK for run in batch.reads for offset, _, _ in memory.requests(run.window, run.first, run.count)
    ]
    touched += [copy.offset // BLOCK for copy in batch.copies_out]
    if any(block in BAD for block in touched):
        for run in batch.reads:
            memory._windows[run.window].slab[run.lo : run.hi] = 0xDD
        for copy in batch.copies_out:
            memory._windows[copy.window].slab[copy.lo : copy.hi] = 0xDD
        raise DeviceError(5, "these blocks cannot be read")


def packed(format: ReplyFormat, request: Request, payload: bytes) -> bytes:
    if format.extended:
        flags = request.flags | (CommandFlag.PAYLOAD_LEN if request.command == WRITE else 0)
        head = struct.pack(
            ">IHH8sQQ", 0x21E41C71, flags, request.command, request.cookie, request.offset, request.length
        )
    else:
        head = struct.pack(
            ">IHH8sQI", 0x25609513, 0, request.command, request.cookie, request.offset, request.length
        )
    return head + payload


def expected(format: ReplyFormat, request: Request, content: bytes) -> bytes:
    """The only right reply."""
    if request.command == WRITE:
        return format.done(request)
    if any(block in BAD for block in range(request.offset // BLOCK, (request.offset + request.length - 1) // BLOCK + 1)):
        return format.error(request, Error.EIO)
    header = format.read_header(request, request.offset, request.length, last=True)
    return header + content[request.offset : request.offset + request.length]


def finish(rig: Rig) -> bytes:
    """All replies; they are more than the socket holds."""
    found = b""
    for _ in range(20):
        rig.work()
        found += rig.replies()
    return found


def exchange(rig: Rig, format: ReplyFormat, seed: int, *, bad: bool) -> tuple[bytes, list[bytes]]:
    """Send a mixture in several pieces; what came back, and what each request has to be answered."""
    chosen = random.Random(seed)
    content = rig.memory.bytes.tobytes()
    answers, found = [], b""
    for group in range(6):
        stream = b""
        for number in range(chosen.choice((1, 2, 8, 30))):
            command = chosen.choice((READ, READ, WRITE))
            # Reads below, writes above: what is read does not change.
            block = chosen.randrange(0, 500) if command == READ else chosen.randrange(600, SIZE // BLOCK - 1)
            length = chosen.choice((512, 4096, BLOCK - 16))
            if command == READ and not bad and block in BAD:
                block = 0
            cookie = struct.pack(">HHI", seed, group, number)
            request = Request(command, 0, cookie, block * BLOCK, length, length if command == WRITE else 0)
            payload = chosen.randbytes(length) if command == WRITE else b""
            stream += packed(format, request, payload)
            answers.append(expected(format, request, content))
        rig.client.sendall(stream)
        rig.connection.pump()  # published, and not yet taken: several groups become one batch
        if chosen.random() < 0.3:
            found += finish(rig)
    return found + finish(rig), answers


@pytest.mark.parametrize("bad", [False, True], ids=["all good", "some bad"])
@pytest.mark.parametrize("name", FORMATS)
def test_each_reply_is_whole_whatever_the_engine_has_overwritten(make_rig: MakeRig, name: str, bad: bool) -> None:
    """Replies of runs, of lone requests and of failed ones, in all formats, over arena borders."""
    format = FORMATS[name]
    rig = make_rig(arena_bytes=ARENA, before=fail_bad_blocks, format=format)
    rig.memory.bytes[:] = memoryview(random.Random(7).randbytes(SIZE))
    rig.written.blocks[:] = 1
    joined = False
    execute = rig.memory.execute

    def watched(batch: Batch) -> None:
        nonlocal joined
        joined |= any(run.joins for run in batch.reads)
        execute(batch)

    rig.memory.execute = watched
    for seed in range(12):
        found, answers = exchange(rig, format, seed, bad=bad)
        for answer in sorted(answers, key=len, reverse=True):  # each is unique: it holds a cookie
            before, answer_found, behind = found.partition(answer)
            assert answer_found, f"round {seed}: no reply of {len(answer)} bytes as it has to be"
            found = before + behind
        assert not found, f"round {seed}: {len(found)} bytes more were sent"
    assert joined and not rig.connection.replies.broken


def test_nothing_is_sent_if_headers_cannot_be_laid(make_rig: MakeRig) -> None:
    """The connection is closed: what lies in its slab is not what it owes."""
    rig = make_rig()
    columns: Any = SimpleNamespace(lay_reads=rig.connection._writer.columns.lay_reads)  # and nothing else
    rig.connection._writer.columns = columns
    for number in range(3):
        rig.send(READ, number * BLOCK, BLOCK, cookie=number)
    rig.work()
    assert rig.replies() == b""
    assert rig.connection.replies.broken and rig.connection.finished


def test_a_run_that_was_refused_joins_nothing(make_rig: MakeRig) -> None:
    """What lies between the runs before and behind it may be a reply that was laid long ago."""
    rig = make_rig(lane_bytes=16 << 20)
    rig.memory.bytes[:] = 1
    stopped: list[int] = []
    add = rig.engine._add

    def fails_once(index: int, number: int, entry: tuple[int, ...]) -> bool:
        if number == 1 and not stopped:
            stopped.append(number)
            raise MemoryError
        return add(index, number, entry)

    rig.engine._add = fails_once  # type: ignore[method-assign]
    for run in range(3):
        for number in range(8):
            rig.send(READ, number * BLOCK, BLOCK, cookie=run * 8 + number)
        rig.connection.pump()
        if not run:
            rig.send(FLUSH, 0, 0, cookie=99)
            rig.connection.pump()
    entries = [rig.engine._rings[0].entry(number) for number in range(3)]
    assert [entry[-1] for entry in entries] == [0, 0, GATHER_JOINS]
    found = finish(rig)
    assert stopped
    header, data = 28, BLOCK
    behind = found[8 * (header + data) :]
    assert behind[:16] == ReplyFormat(True, False).done(Request(FLUSH, 0, struct.pack(">Q", 99), 0, 0, 0))
