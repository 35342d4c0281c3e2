"""With ``--verify-reads`` a device that fails now and then never makes good memory unreadable.

Single OpenCL calls fail, or a batch fails behind its writes; afterwards each sector must be readable and hold
what a write may have left there.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from . import rawclient as nbd
from .steering import Steered

MIB = 1 << 20
BLOCK, SECTOR = 4096, 512
REGION = 256 << 10
IN_FLIGHT = 24
MISMATCHES = "vramblk_checksum_mismatches_total"
OUT_OF_RESOURCES, MISALIGNED = -5, -13
#: A clFinish that fails while nothing else has failed is tried by itself: behind another failure it is a lost device.
QUEUED = ("write", "launch", "set_arg", "read")
CALLS = (*((name,) for name in QUEUED), QUEUED, ("finish",))


@pytest.fixture(params=(("opencl", "2"), ("mapped", "2"), ("mapped", "0")), ids=" ".join)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Steered]:
    yield from verifying(tmp_path, *request.param)


@pytest.fixture
def on_opencl(tmp_path: Path) -> Iterator[Steered]:
    yield from verifying(tmp_path, "opencl", "2")


@pytest.fixture(params=("2", "0"))
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Steered]:
    """On PoCL; clients are served by workers, or by the engine itself."""
    yield from verifying(tmp_path, "opencl", request.param)


def verifying(tmp_path: Path, memory: str, workers: str) -> Iterator[Steered]:
    """A server with checksums on PoCL or on a file of this directory."""
    arguments = ["--verify-reads", "--workers", workers]
    if memory == "mapped":
        file = tmp_path / "memory"
        with file.open("wb") as made:
            made.truncate(16 * MIB)
        arguments += ["--device", f"map:{file}", "--map-overwrite"]
    with Steered(tmp_path / "server", *arguments, size="16M") as running:
        yield running
        running.heal()


class Region:
    """Sectors of one client, each with the numbers that it may hold: of writes, 0 for zeroes."""

    def __init__(self, client: nbd.RawClient, start: int, seed: str) -> None:
        self.client = client
        self._start = start
        self._may_hold = [{0} for _ in range(REGION // SECTOR)]
        self._chance = random.Random(seed)
        self._number = 0
        self.errors = 0

    def round(self) -> None:
        """Requests for different sectors, sent together; each that succeeds is believed, each that fails may have been done."""
        sent = {}
        stream = b""
        for first, last in self._ranges():
            command = self._chance.choice((nbd.WRITE, nbd.WRITE, nbd.WRITE, nbd.READ, nbd.TRIM, nbd.WRITE_ZEROES))
            self._number += 1
            offset, length = self._start + first * SECTOR, (last - first) * SECTOR
            payload = struct.pack("<I", self._number) * (length // 4) if command == nbd.WRITE else None
            cookie, data = self.client.encode(command, offset, length, payload=payload)
            sent[cookie] = (command, first, last, self._number if command == nbd.WRITE else 0)
            stream += data
        replies = self.client.exchange(stream, len(sent))
        for cookie, (command, first, last, number) in sent.items():
            reply = replies[cookie]
            self.errors += bool(reply.error)
            if command == nbd.READ:
                if not reply.error:
                    self.compare(first, bytes(reply.data))
            else:
                for sector in range(first, last):
                    self._may_hold[sector] = {number} | (self._may_hold[sector] if reply.error else set())

    def _ranges(self) -> list[tuple[int, int]]:
        """Ranges of sectors, some of whole blocks and some not, that do not overlap."""
        found, at = [], 0
        while len(found) < IN_FLIGHT and at + 40 < len(self._may_hold):
            first = at + self._chance.choice((0, 0, 1, 3, 8))
            if self._chance.random() < 0.4:
                first = -(-first // 8) * 8
                last = first + 8
            else:
                last = first + self._chance.choice((1, 2, 5, 8, 11))
            found.append((first, last))
            at = last
        return found

    def compare(self, first: int, data: bytes) -> None:
        for sector in range(len(data) // SECTOR):
            part = data[sector * SECTOR : (sector + 1) * SECTOR]
            (number,) = struct.unpack_from("<I", part)
            may_hold = self._may_hold[first + sector]
            assert part == struct.pack("<I", number) * (SECTOR // 4), f"sector {first + sector} is torn"
            assert number in may_hold, f"sector {first + sector} holds {number}, not one of {sorted(may_hold)}"

    def read_all(self) -> list[int]:
        """Compare everything; the blocks that could not be read."""
        unreadable = []
        for block in range(REGION // BLOCK):
            reply = self.client.call(nbd.READ, self._start + block * BLOCK, BLOCK)
            if reply.error:
                unreadable.append(block)
            else:
                self.compare(block * (BLOCK // SECTOR), bytes(reply.data))
        return unreadable


def run_rounds(server: Steered, rounds: int, begin: Callable[[], None], seed: str) -> None:
    """Three clients write while the memory fails, then all must be well."""
    with ExitStack() as stack:
        clients = [stack.enter_context(server.client(structured=number == 1)) for number in range(3)]
        regions = [Region(client, 2 * number * MIB, f"{seed} {number}") for number, client in enumerate(clients)]
        for region in regions:
            region.round()
        begin()
        for _ in range(rounds):
            for region in regions:
                region.round()
        server.heal()
        lost = server.find_event("device_lost")
        assert lost is None, f"the injection goes too far: {lost}"
        assert sum(region.errors for region in regions), "nothing has failed: the test shows nothing"
        unreadable = [region.read_all() for region in regions]
        assert not any(unreadable), f"blocks that cannot be read: {unreadable}"
        # What was left may be written in part, too.
        for _ in range(2):
            for region in regions:
                before = region.errors
                region.round()
                assert region.errors == before
        assert server.metrics()[MISMATCHES] == 0
        assert server.find_event("checksum_mismatch") is None


@pytest.mark.parametrize(("rate", "rounds"), ((0.003, 40), (0.02, 15), (0.05, 10)))
def test_failing_calls_make_no_block_unreadable(served: Steered, rate: float, rounds: int) -> None:
    """After any OpenCL calls have failed every block reads as what a write may have left, and no mismatch is counted."""
    run_rounds(served, rounds, lambda: served.fail_calls(rate, OUT_OF_RESOURCES, 1, names=QUEUED), "rates")


@pytest.mark.parametrize("names", CALLS, ids=lambda names: names[0] if len(names) == 1 else "all")
def test_each_failing_call_makes_no_block_unreadable(on_opencl: Steered, names: tuple[str, ...]) -> None:
    """The same, whichever kind of call it is that fails."""
    run_rounds(on_opencl, 12, lambda: on_opencl.fail_calls(0.03, MISALIGNED, 2, names=names), "kinds")


@pytest.mark.parametrize("raw", (False, True), ids=("device error", "exception"))
def test_a_batch_that_fails_behind_its_writes_makes_no_block_unreadable(server: Steered, raw: bool) -> None:
    """A batch that fails or raises when some of it was written leaves blocks that can be read, on any memory."""

    def begin() -> None:
        server.fail("write", 64 << 10, 96 << 10, midway=True, raw=raw)

    run_rounds(server, 6, begin, "midway")
