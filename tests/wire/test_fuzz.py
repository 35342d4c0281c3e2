"""Mutated negotiation and transmission bytes, the same 40,000 cases in every run.

The first export is the one that is abused; an honest client verifies the second all the while.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import rawclient as nbd
from .harness import Server, eventually

SEED = 20261124
NEGOTIATION_CASES = 20_000
TRANSMISSION_CASES = 20_000
WARM_UP_CASES = 2_000
#: Private memory that a process may gain over all cases after the warm-up, bytes.
GROWTH_BYTES = 12 << 20
#: A connection that has sent its last byte must be ended by the server within this time.
HANG_S = 20
EXPORTS = "exports:\n  - {name: abused, size: 8M}\n  - {name: honest, size: 8M}\n"

NUMBERS = (0, 1, 2, 3, 7, 0x7F, 0x80, 0xFF, 0x1000, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def negotiation_seeds() -> list[bytes]:
    """Well-formed negotiations, which the mutations start from."""
    flags, option = struct.pack(">I", 3), nbd.option_bytes
    contexts = nbd.context_payload("abused", "base:allocation", "base:")
    go = option(nbd.GO, nbd.info_payload("abused", (0, 1, 2, 3)))
    return [
        flags + option(nbd.EXPORT_NAME, b"abused"),
        flags + option(nbd.LIST) + option(nbd.ABORT),
        flags + option(nbd.STRUCTURED_REPLY) + option(nbd.SET_META_CONTEXT, contexts) + go,
        flags + option(nbd.EXTENDED_HEADERS) + option(nbd.LIST_META_CONTEXT, contexts) + go,
        flags + option(nbd.INFO, nbd.info_payload("", (0, 1, 2, 3))) + go,
        flags + option(nbd.STARTTLS) + b"\x16\x03\x01" + bytes(64),
        struct.pack(">I", 0) + option(nbd.EXPORT_NAME, b""),
        flags + option(77, b"unknown") + option(nbd.GO, nbd.info_payload("n" * 4096)),
    ]


def mutate(data: bytes, chance: random.Random) -> bytes:
    """One to four small damages."""
    buffer = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        kind = chance.randrange(7)
        at = chance.randrange(len(buffer)) if buffer else 0
        if kind == 0 and buffer:
            buffer[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and buffer:
            buffer[at] = chance.randrange(256)
        elif kind == 2:
            width = chance.choice((2, 4, 8))
            buffer[at : at + width] = (chance.choice(NUMBERS) & (1 << 8 * width) - 1).to_bytes(width, "big")
        elif kind == 3:
            del buffer[at : at + chance.randint(1, 16)]
        elif kind == 4:
            buffer[at:at] = chance.randbytes(chance.randint(1, 16))
        elif kind == 5:
            buffer[at:at] = buffer[at : at + chance.randint(1, 64)]
        else:
            del buffer[at:]
    return bytes(buffer)


def transmission_case(chance: random.Random, extended: bool) -> bytes:
    """One request, mostly plausible, then perhaps damaged."""
    command = chance.choice((0, 0, 1, 1, 1, 3, 4, 5, 6, 7, chance.randrange(65536)))
    flags = chance.choice((0, 0, 0, 1 << chance.randrange(16), chance.randrange(65536)))
    offset = chance.choice((0, 1, 4096, (8 << 20) - 512, 8 << 20, 1 << 63, (1 << 64) - 1, chance.randrange(8 << 20)))
    length = chance.choice((0, 1, 16, 512, 4096, 4097, 65536, chance.randrange(100_000), chance.choice(NUMBERS)))
    payload = bytes(min(length, 100_000)) if command == nbd.WRITE else b""
    if extended:
        flags |= nbd.PAYLOAD_LEN if command == nbd.WRITE and chance.random() < 0.9 else 0
        header = struct.pack(">IHHQQQ", nbd.EXTENDED_REQUEST_MAGIC, flags, command, chance.getrandbits(64), offset, length)
    else:
        header = struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, flags, command, chance.getrandbits(64), offset, length)
    return (mutate(header, chance) if chance.random() < 0.3 else header) + payload


class Attacker:
    """Sends cases and insists that every connection is ended in time.

    Attributes:
        answered: connections on which the server said more than its greeting.
        refused: connections that found no free place and were repeated.
    """

    def __init__(self, server: Server) -> None:
        self._path = str(server.unix_path)
        self._chance = random.Random(SEED)
        self._seeds = negotiation_seeds()
        self.refused = self.answered = 0

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(HANG_S)
        connection.connect(self._path)
        return connection

    def _case(self, data: bytes) -> None:
        """Play one connection; repeat it while all places for connections are taken."""
        deadline = time.monotonic() + HANG_S
        while not self._play(data):
            assert time.monotonic() < deadline, "no place becomes free"
            self.refused += 1

    def _play(self, data: bytes) -> bool:
        """Send as much as the server takes while its replies are read, then wait for its end.

        False if it closed without a greeting.
        """
        received = 0
        view = memoryview(data)
        deadline = time.monotonic() + HANG_S
        with self._connect() as connection:
            connection.setblocking(False)
            try:
                while view:
                    try:
                        view = view[connection.send(view) :]
                    except BlockingIOError:
                        pass
                    while True:
                        try:
                            count = len(connection.recv(1 << 18))
                        except BlockingIOError:
                            break
                        if not count:
                            return received > 0
                        received += count
                    assert time.monotonic() < deadline, "the server takes nothing more"
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(HANG_S)
                while count := len(connection.recv(1 << 18)):
                    received += count
            except ConnectionError:
                pass
        self.answered += received > 18
        return received > 0

    def negotiation(self, count: int) -> None:
        for _ in range(count):
            data = mutate(self._chance.choice(self._seeds), self._chance)
            self._case(data)

    def transmission(self, count: int) -> None:
        while count > 0:
            kind = self._chance.randrange(3)
            cases = [transmission_case(self._chance, kind == 2) for _ in range(self._chance.randint(1, 8))]
            count -= len(cases)
            opening = struct.pack(">I", 3)
            if kind:
                opening += nbd.option_bytes(nbd.EXTENDED_HEADERS if kind == 2 else nbd.STRUCTURED_REPLY)
                if self._chance.random() < 0.5:
                    opening += nbd.option_bytes(nbd.SET_META_CONTEXT, nbd.context_payload("abused", "base:allocation"))
            opening += nbd.option_bytes(nbd.GO, nbd.info_payload("abused"))
            self._case(opening + b"".join(cases))


class HonestClient(threading.Thread):
    """Writes and reads the second export until told to stop; keeps the first failure."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._client = server.client("honest", structured=True)
        self._stopping = threading.Event()
        self.failure: BaseException | None = None
        self.rounds = 0

    def run(self) -> None:
        chance, model = random.Random(1), bytearray(8 << 20)
        try:
            while not self._stopping.is_set():
                offset, length = chance.randrange(7 << 20), chance.randint(1, 20_000)
                data = chance.randbytes(length)
                self._client.write(offset, data)
                model[offset : offset + length] = data
                start = chance.randrange(7 << 20)
                assert self._client.read(start, 20_000) == model[start : start + 20_000]
                self.rounds += 1
                time.sleep(0.005)
        except BaseException as failure:
            self.failure = failure
        finally:
            self._client.close()

    def stop(self) -> None:
        self._stopping.set()
        self.join(30)


def private_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.fixture(params=("2", "0"))
def abused(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """Served by workers, or by the engine itself."""
    config = tmp_path / "exports.yaml"
    config.write_text(EXPORTS)
    with Server(tmp_path / "server", "--config", str(config), "--workers", request.param, size=None) as server:
        yield server


@pytest.mark.timeout(400)
def test_mutated_bytes_harm_nobody(abused: Server) -> None:
    """40,000 damaged negotiations and requests: none hangs, leaks or disturbs, no process dies."""
    honest = HonestClient(abused)
    honest.start()
    attacker = Attacker(abused)
    try:
        attacker.negotiation(WARM_UP_CASES // 2)
        attacker.transmission(WARM_UP_CASES // 2)
        processes = {abused.pid: "supervisor"} | abused.remember()
        memory = {pid: private_bytes(pid) for pid in processes}
        open_files = eventually(lambda: settled_descriptors(processes), 20)
        attacker.negotiation(NEGOTIATION_CASES - WARM_UP_CASES // 2)
        attacker.transmission(TRANSMISSION_CASES - WARM_UP_CASES // 2)
        assert {abused.pid: "supervisor"} | abused.remember() == processes, "a process died or was replaced"
        eventually(lambda: settled_descriptors(processes) == open_files, 20)
        for pid, name in processes.items():
            assert private_bytes(pid) - memory[pid] <= GROWTH_BYTES, name
    finally:
        honest.stop()
    assert honest.failure is None and honest.rounds > 100
    assert attacker.answered > 10_000
    assert not [event for event in abused.events if event.get("event") == "child_stderr"]


def settled_descriptors(processes: dict[int, str]) -> dict[int, int] | None:
    """Open descriptors by process, or None while they still change."""
    before = {pid: descriptors(pid) for pid in processes}
    time.sleep(0.5)
    return before if before == {pid: descriptors(pid) for pid in processes} else None
