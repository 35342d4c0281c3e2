"""One round of the soak run: a server, its clients, the chaos, and the reckoning at the end."""

from __future__ import annotations

import random
import select
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..wire import rawclient as nbd
from ..wire.harness import Server
from .chaos import Chaos, Corruption
from .clients import CLIENTS, Client, Workload
from .connection import Connection, Pending, SoakFailure
from .faults import Faults, Word
from .model import BLOCK, Model
from .stamps import UNIT

MEMORIES = ("pocl", "map", "gpu")
#: Faults on purpose: those of ``server.py``, and of a mapped file whose blocks (stale) or halves of units (torn)
#: go back to what they were.
PLANTS = ("lose", "late", "blind", "stale", "torn")
_PLANTS_PPM = 2000
_ANSWER_S = 30.0
#: So long after the kill of a worker a connection may be closed by the server.
_KILLED_S = 5.0
_PIECE = 256 << 10
COMMANDS = ("READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES", "BLOCK_STATUS")
_COUNTED = ("requests", "deaths", "kills", "stops", "stalls", "injected failures")
_MOST_REPORTS = 3


@dataclass(frozen=True)
class Plan:
    """What a round does. ``checkout``: whose server runs. ``chaos``: kinds of it; see ``chaos.KINDS``."""

    seed: str
    seconds: float
    memory: str
    verify_reads: bool
    size_mib: int | None
    workers: int | None
    checkout: Path
    chaos: Sequence[str]
    plant: str | None = None
    keep_going: bool = False

    def describe(self) -> str:
        checks = "with" if self.verify_reads else "without"
        return f"seed {self.seed}, {self.seconds:.0f} s, {self.memory}, {checks} --verify-reads"


@dataclass
class Result:
    """What has happened; ``counts`` by name."""

    mismatches: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)

    def __iadd__(self, other: Result) -> Result:
        self.mismatches += other.mismatches
        self.seconds += other.seconds
        self.counts += other.counts
        return self

    def __str__(self) -> str:
        names = list(dict.fromkeys((*_COUNTED, *sorted(self.counts))))
        counts = ", ".join(f"{self.counts[name]} {name}" for name in names)
        rate = self.counts["requests"] / max(self.seconds, 0.001)
        return f"{self.mismatches} mismatches, {counts}; {rate:.0f} requests a second"


def soak(plan: Plan, directory: Path) -> Result:
    """Run a round.

    Raises:
        SoakFailure: anything that must not be, but a wrong value.
    """
    chance = random.Random(plan.seed)
    size = (plan.size_mib or chance.choice((8, 16, 32, 64))) << 20
    faults = Faults(directory / "faults")
    mapped = Path("/dev/shm") / f"{directory.name}.map"
    server = _server(plan, directory, size, mapped)
    try:
        server.wait_ready()
        work = Workload(size, chance)
        corruption = None
        if plan.plant in ("stale", "torn"):
            offsets = [block * BLOCK for block in dict.fromkeys(work.hot)]
            corruption = Corruption(mapped, offsets, BLOCK if plan.plant == "stale" else UNIT // 2, chance)
        faults[Word.PLANTS] = _PLANTS_PPM if plan.plant in ("lose", "late") else 0
        result = _Round(plan, server, faults, Model(size), work, chance).run(corruption)
        if not result.mismatches:
            server.stop()
            left = server.leftovers()
            if left:
                raise SoakFailure(f"processes are left: {left}")
        return result
    except (SoakFailure, AssertionError) as failure:
        raise SoakFailure(f"{failure}\nthe server's last lines:\n{last_lines(server)}") from failure
    finally:
        server.kill()
        mapped.unlink(missing_ok=True)


def last_lines(server: Server, count: int = 12) -> str:
    return "".join(f"  {line}" for line in server.raw_lines[-count:])


def _server(plan: Plan, directory: Path, size: int, mapped: Path) -> Server:
    arguments = [] if plan.workers is None else ["--workers", str(plan.workers)]
    if plan.memory == "map":
        with mapped.open("wb") as file:
            file.truncate(size)
        arguments += ["--device", f"map:{mapped}"]
    if plan.verify_reads:
        arguments.append("--verify-reads")
    environment = {
        "PYTHONPATH": str(plan.checkout),
        "SOAK_FAULTS": str(directory / "faults"),
        "SOAK_SEED": plan.seed,
    }
    if plan.plant:
        environment["SOAK_PLANT"] = plan.plant
    program = (sys.executable, str(Path(__file__).with_name("server.py")))
    return Server(
        directory / "server",
        *arguments,
        tcp=plan.workers != 0,
        size=f"{size >> 20}M",
        program=program,
        environment=environment,
    )


def describe(pending: Pending) -> str:
    command = next(name for name in COMMANDS if getattr(nbd, name) == pending.command)
    return f"{command} of {pending.length} bytes at {pending.offset:#x}"


class _Round:
    def __init__(
        self, plan: Plan, server: Server, faults: Faults, model: Model, work: Workload, chance: random.Random
    ) -> None:
        self._plan, self._server, self._faults, self._model = plan, server, faults, model
        self._addresses: dict[str, Path | tuple[str, int]] = {
            "unix": server.unix_path, "tcp": ("127.0.0.1", server.port) if plan.workers != 0 else server.unix_path
        }  # fmt: skip
        self._clients = [
            Client(number, self._addresses, model, work, random.Random(chance.random()))
            for number in range(len(CLIENTS))
        ]
        self._chaos = Chaos(server, faults, self._clients, random.Random(chance.random()), plan.chaos)
        self._reported = 0

    def run(self, corruption: Corruption | None) -> Result:
        started = time.monotonic()
        until = started + self._plan.seconds
        checked = started
        while time.monotonic() < until and not self._over():
            self._chaos.step()
            if corruption is not None:
                corruption.step()
            self._turn()
            if time.monotonic() - checked > 0.1:
                checked = time.monotonic()
                self._check()
        seconds = time.monotonic() - started
        self._chaos.cease()
        if not self._over():
            self._settle()
        for client in self._clients:
            client.leave()
        if not self._over():
            self._read_back()
        counts = sum((client.counts for client in self._clients), self._chaos.counts)
        counts["injected failures"] = self._faults[Word.FAILED]
        counts["moves"] = sum(event.get("event") == "client_moved" for event in self._server.events)
        counts["seconds slept"] = self._faults[Word.SLEPT_MS] // 1000
        return Result(len(self._model.violations), seconds, counts)

    def _over(self) -> bool:
        """Reports what is new; whether the round ends because of it."""
        violations = self._model.violations
        for text in violations[self._reported : _MOST_REPORTS]:
            print(f"MISMATCH: {text}", flush=True)
        self._reported = len(violations)
        return bool(violations) and not self._plan.keep_going

    def _turn(self) -> None:
        """Let each client send, wait for replies, take them."""
        for client in self._clients:
            client.work()
        for connection, events in self._wait():
            if events & ~select.POLLOUT:
                connection.receive()
            elif events & select.POLLOUT:
                connection.flush()

    def _wait(self) -> list[tuple[Connection, int]]:
        poll = select.poll()
        here = {}
        for client in self._clients:
            for connection in client.connections():
                if not connection.ended:
                    here[connection.fileno()] = connection
                    poll.register(
                        connection.fileno(), select.POLLIN | (select.POLLOUT if connection.out else 0)
                    )
        return [(here[number], events) for number, events in poll.poll(5)]

    def _limit_s(self) -> float:
        return _ANSWER_S + self._faults[Word.SLEPT_MS] / 1000 + self._chaos.stopped_s

    def _check(self) -> None:
        if self._server.process.poll() is not None:
            raise SoakFailure(f"the server has ended with status {self._server.process.poll()}")
        lost_device = self._server.find_event("device_lost")
        if lost_device is not None:
            raise SoakFailure(f"the server takes its device for lost: {lost_device['detail']}")
        now = time.monotonic()
        for client in self._clients:
            client.check_answers(self._limit_s())
            lost, client.lost = client.lost, []
            for at_s, connection in lost:
                if not self._had_reason(at_s, connection):
                    raise SoakFailure(
                        f"{connection.name} was closed by the server {now - at_s:.1f} s ago, "
                        f"{len(connection.pending)} requests unanswered"
                    )
            for pending in client.failed:
                if pending.submitted_s > self._chaos.calm_since_s:
                    raise SoakFailure(
                        f"{describe(pending)} failed with errno {pending.error}, and no call was made to fail"
                    )
            client.failed.clear()

    def _had_reason(self, at_s: float, connection: Connection) -> bool:
        if at_s - self._chaos.killed_s < _KILLED_S:
            return True
        # A piece of a read has failed when its simple reply had begun.
        return connection.replies == "simple" and self._faults[Word.FAILED] > 0

    def _settle(self) -> None:
        """Everything that is in flight is answered."""
        deadline = time.monotonic() + _ANSWER_S
        while any([not client.finish() for client in self._clients]):  # noqa: C419  # each must be asked
            self._turn()
            if time.monotonic() > deadline:
                for client in self._clients:
                    client.check_answers(0)
                raise SoakFailure(f"not everything is answered {_ANSWER_S:.0f} s after the chaos has ceased")

    def _read_back(self) -> None:
        """Every block can be read, and holds what it may."""
        failed: list[Pending] = []

        def completed(pending: Pending) -> None:
            if pending.error:
                failed.append(pending)

        connection = Connection(
            self._addresses["unix"], "extended", self._model, "the last reader", completed
        )
        deadline = time.monotonic() + _ANSWER_S
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        offset = 0
        while not connection.ready or connection.pending or offset < self._model.size_bytes:
            while connection.ready and offset < self._model.size_bytes and len(connection.pending) < 8:
                connection.submit(nbd.READ, offset, min(_PIECE, self._model.size_bytes - offset))
                offset += _PIECE
            connection.flush()
            poll.poll(100)
            connection.receive()
            if connection.ended or time.monotonic() > deadline:
                raise SoakFailure(f"the last reader has got no further than {offset:#x}")
        connection.close()
        self._over()
        if failed:
            raise SoakFailure(
                f"{len(failed)} reads of {_PIECE} bytes failed, and no call was made to fail; {describe(failed[0])}"
            )
