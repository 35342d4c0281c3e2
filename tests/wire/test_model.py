"""Promise 19: random programs of requests over several connections against a bytearray, by Hypothesis.

Each program starts from a zeroed export. Connections speak simple, structured and extended
replies; all of them see one disk. Programs are the same in every run unless VRAMBLK_TEST_EXPLORE=1, which also looks
for the shortest one that fails (against a server that hangs that would take hours).
"""

from __future__ import annotations

import os
import random
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from . import rawclient as nbd
from .harness import Server

SIZE = 3 << 20
BLOCK = 4096
KINDS = (
    {},
    {"structured": True, "contexts": ("base:allocation",)},
    {"extended": True, "contexts": ("base:allocation",)},
    {"structured": True},
)

connections = strategies.integers(0, len(KINDS) - 1)
offsets = strategies.one_of(
    strategies.integers(0, SIZE - 1),
    strategies.integers(0, SIZE // BLOCK - 1).map(lambda block: block * BLOCK),
    strategies.integers(0, SIZE // 16 - 1).map(lambda unit: unit * 16),
)
lengths = strategies.one_of(
    strategies.integers(1, 300),
    strategies.integers(1, 200_000),
    strategies.integers(1, 40).map(lambda blocks: blocks * BLOCK),
    strategies.integers(1, 1000).map(lambda units: units * 16),
    strategies.just(SIZE),
)
seeds = strategies.integers(0, 1 << 32)
fua = strategies.sampled_from((0, nbd.FUA))


def clip(offset: int, length: int) -> int:
    return min(length, SIZE - offset)


class Disk(RuleBasedStateMachine):
    """The model is a bytearray; ``touched`` tells which blocks may be data."""

    server: ClassVar[Server]

    @initialize()
    def start(self) -> None:
        self.clients = [self.server.client(**kind) for kind in KINDS]
        self.model = bytearray(SIZE)
        assert self.clients[0].call(nbd.WRITE_ZEROES, 0, SIZE).error == 0

    def teardown(self) -> None:
        for client in getattr(self, "clients", ()):
            client.close()

    @rule(which=connections, offset=offsets, length=lengths, seed=seeds, flags=fua)
    def write(self, which: int, offset: int, length: int, seed: int, flags: int) -> None:
        data = random.Random(seed).randbytes(clip(offset, length))
        self.clients[which].write(offset, data, flags)
        self.model[offset : offset + len(data)] = data

    @rule(which=connections, offset=offsets, length=lengths)
    def read(self, which: int, offset: int, length: int) -> None:
        length = clip(offset, length)
        assert self.clients[which].read(offset, length) == self.model[offset : offset + length]

    @rule(
        which=connections, offset=offsets, length=lengths,
        flags=strategies.sets(strategies.sampled_from((nbd.FUA, nbd.NO_HOLE, nbd.FAST_ZERO))),
    )  # fmt: skip
    def write_zeroes(self, which: int, offset: int, length: int, flags: set[int]) -> None:
        length = clip(offset, length)
        assert self.clients[which].call(nbd.WRITE_ZEROES, offset, length, sum(flags)).error == 0
        self.model[offset : offset + length] = bytes(length)

    @rule(which=connections, offset=offsets, length=lengths, flags=fua)
    def trim(self, which: int, offset: int, length: int, flags: int) -> None:
        """Whole blocks read as zero afterwards; the ends may or may not."""
        length = clip(offset, length)
        client = self.clients[which]
        assert client.call(nbd.TRIM, offset, length, flags).error == 0
        first, last = -(-offset // BLOCK) * BLOCK, (offset + length) // BLOCK * BLOCK
        for start, end, whole in ((offset, min(first, offset + length), False), (first, last, True),
                                  (max(last, first, offset), offset + length, False)):  # fmt: skip
            if start < end:
                found = client.read(start, end - start)
                zeroes = bytes(end - start)
                assert found == zeroes or (not whole and found == self.model[start:end])
                self.model[start:end] = found

    @rule(which=connections)
    def flush(self, which: int) -> None:
        assert self.clients[which].call(nbd.FLUSH).error == 0

    @rule(which=connections, offset=offsets, length=lengths)
    def cache(self, which: int, offset: int, length: int) -> None:
        assert self.clients[which].call(nbd.CACHE, offset, clip(offset, length)).error == 0

    @rule(which=strategies.sampled_from((1, 2)), offset=offsets, length=lengths, one=strategies.booleans())
    def block_status(self, which: int, offset: int, length: int, one: bool) -> None:
        """What is called a hole reads as zero; extents stay within the request."""
        length = clip(offset, length)
        reply = self.clients[which].call(nbd.BLOCK_STATUS, offset, length, nbd.REQ_ONE if one else 0)
        assert reply.error == 0
        assert len(reply.extents) == 1 or not one
        assert sum(size for size, _ in reply.extents) == length or one or len(reply.extents) > 64
        position = offset
        for size, state in reply.extents:
            assert position + size <= offset + length
            assert not state & 3 or not any(self.model[position : position + size])
            position += size

    @rule(which=connections, seed=seeds, count=strategies.integers(2, 120), kind=strategies.integers(0, 2))
    def pipeline(self, which: int, seed: int, count: int, kind: int) -> None:
        """Many requests in flight on disjoint ranges, as one burst; then all of them as reads."""
        chance, client = random.Random(seed), self.clients[which]
        part = SIZE // count
        stream, ranges = b"", []
        for index in range(count):
            length = chance.randint(1, part) if kind == 0 else min(part, 4096) if kind == 1 else part // 16 * 16
            offset = index * part + (chance.randint(0, part - length) if kind == 0 else 0)
            if kind:
                offset = offset // 16 * 16
            ranges.append((offset, length))
            if chance.random() < 0.8:
                data = chance.randbytes(length)
                stream += client.encode(nbd.WRITE, offset, payload=data)[1]
            else:
                data = bytes(length)
                stream += client.encode(nbd.WRITE_ZEROES, offset, length)[1]
            self.model[offset : offset + length] = data
        assert not any(reply.error for reply in client.exchange(stream, count).values())
        reads = {client.submit(nbd.READ, offset, length): (offset, length) for offset, length in ranges[:40]}
        for cookie, reply in client.gather(list(reads)).items():
            offset, length = reads[cookie]
            assert reply.data == self.model[offset : offset + length]

    @rule(offset=offsets, length=lengths, seed=seeds, first=connections, second=connections)
    def one_writes_another_reads(self, offset: int, length: int, seed: int, first: int, second: int) -> None:
        self.write(first, offset, length, seed, 0)
        self.read(second, offset, length)

    @rule(which=connections, over=strategies.integers(1, 10_000))
    def beyond_the_end(self, which: int, over: int) -> None:
        client = self.clients[which]
        assert client.call(nbd.READ, SIZE - 1, 1 + over).error == nbd.EINVAL
        assert client.call(nbd.WRITE, SIZE - 1, payload=b"!" * (1 + over)).error == nbd.ENOSPC

    @rule(which=connections)
    def reconnect(self, which: int) -> None:
        self.clients[which].close()
        self.clients[which] = self.server.client(**KINDS[which])

    @invariant()
    def a_sample_agrees(self) -> None:
        if hasattr(self, "clients"):
            assert self.clients[0].read(SIZE // 2 - 100, 200) == self.model[SIZE // 2 - 100 : SIZE // 2 + 100]


@pytest.fixture(scope="module", params=("2", "0"))
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Served by workers, or by the engine itself."""
    with Server(tmp_path_factory.mktemp("model"), "--workers", request.param, size="3M") as server:
        yield server


def test_disk_behaves_like_a_bytearray(small: Server) -> None:
    """Whatever requests come, over whichever connection, the disk holds what a bytearray would."""
    Disk.server = small
    explore = os.environ.get("VRAMBLK_TEST_EXPLORE") == "1"
    run_state_machine_as_test(
        Disk,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            derandomize=not explore,
            phases=tuple(Phase) if explore else (Phase.generate,),
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
