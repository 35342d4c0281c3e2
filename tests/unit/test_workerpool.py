"""How many workers there are, how large their slabs, who takes a connection, and when a dead one comes back."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import struct
import time
from typing import Any

import numpy as np
import pytest

from tests.unit.sharedmemory import make_shared, rings, share
from vramblk.config.settings import Settings, load_settings
from vramblk.errors import ConfigError, PreconditionError, RuntimeFailure
from vramblk.serving.lanes import Lanes
from vramblk.shared.control import ControlWord
from vramblk.shared.window import ConnectionState, WindowLayout, Word
from vramblk.supervisor.children import Backoff, Child
from vramblk.supervisor.eventloop import EventLoop
from vramblk.supervisor.handoffs import Handoffs
from vramblk.supervisor.sizing import window_layouts
from vramblk.supervisor.slots import make_slots
from vramblk.supervisor.workerpool import WorkerPool
from vramblk.supervisor.workerprocesses import WorkerProcesses


def settings(*arguments: str) -> Settings:
    return load_settings(["--size", "64M", *arguments], {})


@pytest.mark.parametrize(("cores", "workers"), [(1, 2), (2, 2), (8, 4), (16, 8), (64, 8)])
def test_workers_follow_the_cores(monkeypatch: pytest.MonkeyPatch, cores: int, workers: int) -> None:
    """Half the cores, at least two so that one may die, at most eight."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert len(window_layouts(settings())[0]) == workers


def test_in_swap_mode_the_engine_serves() -> None:
    """One connection for the device, and two to look; with --workers one for each worker."""
    unix = ("--mode", "swap", "--listen-addr", "unix:/run/x")
    workers, local = window_layouts(settings(*unix))
    assert workers == [] and local is not None and local.lanes == 3
    lanes = Lanes(local.rx_bytes, local.tx_bytes, local.lanes)
    assert [lane.rx_bytes for lane in iter(lanes.take, None)] == [2 << 20, 1 << 20, 1 << 20]
    workers, local = window_layouts(settings(*unix, "--workers", "5"))
    assert [layout.lanes for layout in workers] == [1] * 5 and local is None


def test_the_engine_serves_the_first_local_client() -> None:
    """Where a Unix socket is served without TLS, and no number of workers is asked for."""
    both = ("--listen-addr", "unix:/run/x", "--listen-addr", "127.0.0.1:0")
    workers, local = window_layouts(settings(*both))
    assert workers and local is not None and local.lanes == 1
    for other in ((), (*both, "--workers", "2"), (*both, "--tls", "on", "--tls-certificates", "/tmp")):
        assert window_layouts(settings(*other))[1] is None


def test_too_few_workers_for_the_connections_is_exit_2() -> None:
    """The message names both ways out."""
    with pytest.raises(ConfigError, match=r"max_connections = 200 .*--workers 4"):
        window_layouts(settings("--workers", "1", "--max-connections", "200"))


UNIX = ("--listen-addr", "unix:/run/x")


def test_no_workers_is_for_unix_sockets() -> None:
    """The engine then serves all clients itself."""
    chosen = settings("--workers", "0", *UNIX)
    workers, local = window_layouts(chosen)
    assert workers == [] and local is not None
    lanes = Lanes(local.rx_bytes, local.tx_bytes, local.lanes)
    assert len(list(iter(lanes.take, None))) == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"workers = 0 \(flag --workers\).* listen_addr has 127.0.0.1:10809 \(default\).* --listen-addr unix:"),
        ((*UNIX, "--listen-addr", "[::1]:10809"), r"listen_addr has \[::1\]:10809 \(flag --listen-addr\)"),
        ((*UNIX, "--tls", "require", "--tls-certificates", "/tmp"), r"tls = require \(flag --tls\).* --tls off"),
        ((*UNIX, "--max-connections", "65"), r"max_connections = 65 \(flag --max-connections\).* --max-connections 64"),
    ],
)
def test_no_workers_refuses_what_needs_one(arguments: tuple[str, ...], message: str) -> None:
    """What comes from the network is parsed only where no memory of the device is mapped: exit 2."""
    with pytest.raises(ConfigError, match=message):
        window_layouts(settings("--workers", "0", *arguments))


@pytest.mark.parametrize("connections", [1, 3, 64, 500, 4096])
@pytest.mark.parametrize("workers", [None, "64"])
def test_every_connection_finds_a_lane(connections: int, workers: str | None) -> None:
    """The slab holds a lane for each connection that a worker may be handed."""
    arguments = ["--max-connections", str(connections), *(["--workers", workers] if workers else [])]
    chosen = settings(*arguments)
    workers, _ = window_layouts(chosen)
    lanes = Lanes(workers[0].rx_bytes, workers[0].tx_bytes, workers[0].lanes)
    assert len(workers) * len(list(iter(lanes.take, None))) >= connections


def test_backoff_grows_and_is_forgotten_after_a_good_life() -> None:
    """The first restart is at once; one that dies again and again waits longer, for ever."""
    backoff = Backoff(shortest_s=0.1, longest_s=0.5, good_life_s=1.0)
    assert [backoff.after(0.01) for _ in range(6)] == [0.0, 0.1, 0.2, 0.4, 0.5, 0.5]
    assert backoff.after(30.0) == 0.0


class Family:
    """Workers that are nothing but entries: forked, ready and dead when a test says so."""

    def __init__(self, *arguments: str, workers: int = 2, give_up_s: float = 5.0) -> None:
        self.shared = make_shared(settings(*arguments), workers, 1 << 16, 1 << 16)
        self.loop = EventLoop()
        self.retiring: list[int] = []
        slots = make_slots(self.shared)
        self.worker_pool = WorkerPool(self.shared, self.loop, slots, give_up_s=give_up_s)
        self.workers = WorkerProcesses(
            self.shared, self.loop, slots, self._launch,
            drain_window=self.retiring.append, pass_on=self.worker_pool.pass_on,
        )  # fmt: skip
        self.lines: dict[int, socket.socket] = {}
        self.refuse_to_fork = False
        self._pids = itertools.count(1000)

    def _launch(self, index: int, handoff: socket.socket) -> Child:
        if self.refuse_to_fork:
            raise BlockingIOError("no room for another process")
        self.lines[index] = handoff.dup()
        return Child(next(self._pids), "worker", -1)

    def start(self) -> Family:
        self.workers.start()
        for index in self.lines:
            self.be_ready(index)
        assert self.workers.ready
        return self

    def be_ready(self, index: int) -> None:
        self.shared.windows[index].store(Word.READY, 1)

    def die(self, index: int, status: int = signal.SIGKILL) -> None:
        child = self.worker_pool.slots[index].child
        assert child is not None
        child.status = status
        self.lines.pop(index).close()
        self.workers.died(child)

    def hand_over(self, number: int) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            return self.worker_pool.hand_over(connection, number, "tcp:a")

    def handed(self, index: int) -> list[int]:
        """Numbers of the connections that a worker has been given since the last call."""
        found = []
        self.lines[index].setblocking(False)
        while True:
            try:
                text, descriptors, _, _ = socket.recv_fds(self.lines[index], 4096, 1)
            except BlockingIOError:
                return found
            os.close(descriptors[0])
            found.append(json.loads(text)["id"])
            window = self.shared.windows[index]
            window.store(Word.HANDOFFS, window.load(Word.HANDOFFS) + 1)

    def wake(self, index: int) -> None:
        """A worker that was standing still reads its doorbell."""
        rings(self.shared.doorbells[index])

    def wait(self, seconds: float, *awake: int) -> list[int]:
        """Let time pass, in which these workers take what they are given; gives the numbers."""
        taken: list[int] = []

        def never() -> bool:
            for index in awake:
                taken.extend(self.handed(index))
            return False

        self.loop.until(never, seconds)
        return taken

    def garble(self, index: int, byte: int = 0xFF) -> None:
        """A faulty worker fills all that it shares but its slab."""
        window = self.shared.windows[index]
        window.whole[: window.layout.slab_offset] = byte

    def handoffs(self, index: int) -> Handoffs:
        handoffs = self.worker_pool.slots[index].handoffs
        assert handoffs is not None
        return handoffs

    def leave(self, index: int) -> None:
        """A client of this worker closes its connection."""
        window = self.shared.windows[index]
        window.store(Word.CLOSED, window.load(Word.CLOSED) + 1)


def names_of(log: list[Any]) -> list[str]:
    return [event["event"] for event in log]


def test_connections_go_to_the_least_loaded() -> None:
    """A worker whose client has left gets the next one; attached counts who is still there."""
    family = Family().start()
    assert [family.hand_over(number) for number in range(4)] == [True] * 4
    assert (family.handed(0), family.handed(1)) == ([0, 2], [1, 3])
    family.leave(1)
    assert family.worker_pool.attached == 3
    assert family.hand_over(4)
    assert (family.handed(0), family.handed(1)) == ([], [4])


def test_the_engine_takes_the_first_local_client() -> None:
    """One that has begun goes to a worker, and back to the engine if none takes it. TCP never comes to the engine."""
    layout = WindowLayout(1 << 16, 1 << 16, 1)
    shared = share([layout], layout)
    loop = EventLoop()
    pool = WorkerPool(shared, loop, make_slots(shared))
    worker, engine = pool.slots
    for slot in pool.slots:
        slot.handoffs = Handoffs(slot.window, shared.doorbells[slot.window.index])
        slot.child = Child(1000, "any", -1)
        slot.window.store(Word.READY, 1)

    def attached() -> tuple[int, int]:
        return worker.attached, engine.attached

    with socket.socket(socket.AF_UNIX) as local, socket.socket() as remote:
        assert pool.hand_over(local, 1, "unix:1") and attached() == (0, 1)
        engine.window.store(Word.HANDOFFS, 1)
        pool.move(local.dup(), 1, "unix:1", {"export": 0})
        assert attached() == (1, 0), "it is counted at every moment, and once"
        assert not pool.has_room and not pool.hand_over(remote, 2, "tcp:2")
        assert pool.hand_over(local, 3, "unix:3") and attached() == (1, 1)
        engine.window.store(Word.HANDOFFS, 2)
        pool.move(local.dup(), 3, "unix:3", {"export": 0})
        assert attached() == (1, 1)
        assert not pool.hand_over(local, 4, "unix:4")
    for slot in pool.slots:
        assert slot.handoffs is not None
        slot.handoffs.close()
    loop.close()


def test_full_worker_pool_takes_nobody() -> None:
    """Each worker has room for its share of --max-connections."""
    family = Family("--max-connections", "4").start()
    assert [family.hand_over(number) for number in range(5)] == [True] * 4 + [False]
    assert not family.worker_pool.has_room
    family.leave(0)
    assert family.worker_pool.has_room


@pytest.mark.parametrize("mode", ["scratch", "swap"])
def test_an_unfinished_negotiation_makes_way(mode: str) -> None:
    """Once for one newcomer, told to the process that has it; a client that has negotiated stays."""
    swap = ("--mode", "swap", "--listen-addr", "unix:/x") if mode == "swap" else ("--max-connections", "1")
    family = Family(*swap, workers=1).start()
    window = family.shared.windows[0]

    def admit(number: int) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            return family.worker_pool.admit(connection, number, "unix:")

    def messages() -> list[dict[str, int]]:
        found = [json.loads(family.lines[0].recv(4096)) for _ in range(len(family.handoffs(0).untaken))]
        window.store(Word.HANDOFFS, window.load(Word.HANDOFFS) + len(found))
        return [{key: value for key, value in each.items() if key != "peer"} for each in found]

    assert admit(1) == "" and admit(2) == ""
    assert messages() == [{"id": 1}, {"id": 2, "instead_of": 1}], "one that is on its way makes way too"
    window.set_connection(0, 1, 5, 0, ConnectionState.NEGOTIATING, "")
    assert ("--workers" if mode == "swap" else "--max-connections") in admit(3), "it makes way for one only"
    family.leave(0)
    window.set_connection(0, 2, 6, 0, ConnectionState.TRANSMISSION, "")
    assert admit(4) and not messages()
    window.set_connection(0, 2, 6, 0, ConnectionState.NEGOTIATING, "")
    assert not admit(5) and messages() == [{"id": 5, "instead_of": 2}]


def test_a_newcomer_is_not_passed_on_beyond_the_limit() -> None:
    """Its worker stands still, so the negotiation that was to make way is still there."""
    family = Family("--max-connections", "3").start()
    for number in range(3):
        assert family.hand_over(number)
    family.handed(1)
    [negotiating] = family.handed(0)[:1]
    family.shared.windows[0].set_connection(0, negotiating, 0, 0, ConnectionState.NEGOTIATING, "")
    with socket.socket(socket.AF_UNIX) as connection:
        assert not family.worker_pool.admit(connection, 3, "unix:")
    assert family.wait(0.6, 1) == [] and family.worker_pool.attached == 3


def test_rows_of_closed_connections_take_no_place() -> None:
    """A faulty worker may keep them in its table for ever."""
    family = Family("--max-connections", "8", "--listen-addr", "127.0.0.1:10809").start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for number in range(1, 18):
            with socket.create_connection(listener.getsockname()), listener.accept()[0] as connection:
                refused = family.worker_pool.admit(connection, number, "tcp:a")
                assert (not refused) == (number <= 8 or number == 17), number
            for index in range(2):
                family.handed(index)
            if number <= 8:
                family.shared.windows[0].set_connection(number, number, 0, 0, ConnectionState.TRANSMISSION, "")
            if number == 16:
                for index in range(2):
                    family.shared.windows[index].store(Word.CLOSED, 4)


def test_worker_that_is_not_ready_gets_nobody() -> None:
    """Connections wait for a worker that can take them."""
    family = Family()
    family.workers.start()
    assert not family.workers.ready and not family.worker_pool.has_room and not family.hand_over(1)
    family.be_ready(1)
    assert family.hand_over(2) and family.handed(1) == [2]


def test_dead_worker_is_replaced_once_its_window_is_finished(log: list[Any]) -> None:
    """Not before the engine has finished what it had queued: its window must not change under the engine."""
    family = Family().start()
    assert family.hand_over(1) and family.handed(0) == [1]
    family.die(0)
    assert family.retiring == [0] and family.worker_pool.attached == 0
    family.loop.turn(0.01)
    assert 0 not in family.lines
    family.workers.window_drained(0)
    assert 0 in family.lines
    assert [event["event"] for event in log] == ["worker_died", "worker_restarted"]
    assert log[0]["signal"] == "SIGKILL" and log[0]["replaced"]
    assert (log[0]["child"], log[1]["child"]) == (1000, 1002), "pid is the supervisor's own"
    assert not family.shared.windows[0].load(Word.READY), "its window was made clean"


@pytest.mark.parametrize("state", [0, 1, 2, 7, (1 << 32) - 1])
@pytest.mark.parametrize("export", [0, 1, -1, -(1 << 31), (1 << 31) - 1])
def test_worker_with_a_garbled_table_is_replaced(log: list[Any], state: int, export: int) -> None:
    """Whatever its table says: the list of clients and the consequences of its death never raise."""
    family = Family().start()
    window = family.shared.windows[0]
    row = struct.pack(
        "<QqiIQQQ112s",
        (1 << 64) - 1,
        -(1 << 63),
        export,
        state,
        *[(1 << 64) - 1] * 3,
        b"\xff\xc3\n\x1b[2J" * 16,
    )
    begin = window.layout.slots_offset
    window.whole[begin : begin + len(row)] = np.frombuffer(row, np.uint8)
    clients = family.worker_pool.clients()
    assert len(clients) == (state in (1, 2)) and all(client.isprintable() for client in clients)
    family.die(0)
    family.workers.window_drained(0)
    assert family.loop.until(lambda: 0 in family.lines, 20)
    assert names_of(log) == ["worker_died", "worker_restarted"]


@pytest.mark.parametrize("byte", [0xFF, 0x80, 0x55])
def test_window_of_garbage_is_as_good_as_new_for_the_next_worker(log: list[Any], byte: int) -> None:
    """Its words are clean, its generation is the next, and its counters can be added to."""
    family = Family().start()
    for generation in (1, 2):
        family.garble(0, byte)
        assert family.worker_pool.attached == 0
        family.die(0)
        family.workers.window_drained(0)
        assert family.loop.until(lambda: 0 in family.lines, 20)
        window = family.shared.windows[0]
        assert window.load(Word.GENERATION) == generation
        assert not window.load(Word.READY) and not window.load(Word.CLOSED) and not family.worker_pool.clients()
        for index in range(len(window.counters.cells)):
            window.counters.cells[index] += 1 << 40
        family.be_ready(0)
    assert family.hand_over(1) and family.worker_pool.attached == 1


@pytest.mark.parametrize("closed", [1, 2, 3, 1 << 32, (1 << 64) - 1])
def test_attached_is_what_was_handed_over_at_most_and_never_less_than_nobody(closed: int) -> None:
    """A worker that says that it has closed more than it was given ends no drain late and makes no room."""
    family = Family("--max-connections", "4").start()
    assert [family.hand_over(number) for number in range(4)] == [True] * 4
    family.shared.windows[0].store(Word.CLOSED, closed)
    assert family.worker_pool.attached == 2 + max(0, 2 - closed)


def test_worker_that_cannot_count_is_the_last_to_get_a_connection() -> None:
    """It would seem to be without clients for ever, and draw all new ones."""
    family = Family("--max-connections", "4").start()
    family.shared.windows[0].store(Word.CLOSED, (1 << 64) - 1)
    assert [family.hand_over(number) for number in range(3)] == [True] * 3
    assert family.handed(1) == [0, 1] and family.handed(0) == [2]


def test_engine_says_of_a_window_what_cannot_be(log: list[Any]) -> None:
    """A window that there is not, or whose worker lives, is drained without effect."""
    family = Family().start()
    for index in (-1, 0, 1, 2, 1 << 70):
        family.workers.window_drained(index)
    assert family.workers.ready and not log


@pytest.mark.parametrize("text", [b"\xff", b"[]", b"7", b"[" * 60000, b'{"event": 1}', b"1" * 60000])
def test_last_word_of_a_worker_may_be_anything(log: list[Any], text: bytes) -> None:
    """Garbage on its socket is no reason for another error than that it died."""
    family = Family()
    family.workers.start()
    family.lines[0].send(text)
    with pytest.raises(RuntimeFailure):
        family.die(0)


def test_worker_that_cannot_be_started_for_an_unforeseen_reason_is_tried_again(
    log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its window does not stay without a worker."""
    family = Family().start()
    family.die(0)
    family.loop.turn(0.01)
    with monkeypatch.context() as patch:
        patch.setattr(family.shared.windows[0], "reset", lambda: 1 / 0)
        family.workers.window_drained(0)
    assert names_of(log) == ["worker_died", "worker_not_started"]
    assert family.loop.until(lambda: 0 in family.lines, 20)


def test_worker_that_dies_again_and_again_comes_back_later_each_time(log: list[Any]) -> None:
    """The delays grow; the engine's word alone does not start it early."""
    family = Family().start()
    for _ in range(3):
        family.die(0)
        family.workers.window_drained(0)
        assert family.loop.until(lambda: 0 in family.lines, 20)
    delays = [event["restart_in_s"] for event in log if event["event"] == "worker_died"]
    assert delays == [0.0, 0.05, 0.1]
    family.die(0)
    family.workers.window_drained(0)
    assert 0 not in family.lines


def test_worker_whose_proof_fails_again_and_again_comes_back_later_each_time(
    log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its life was long, since the proof waits for the engine, but never good; the log tells why it has ended."""
    family = Family().start()
    now = time.monotonic
    later_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now() + later_s)
    for _ in range(4):
        family.lines[0].send(b'{"event": "failed", "exit_code": 1, "message": "window 0: no answer"}')
        family.die(0, 1 << 8)
        family.workers.window_drained(0)
        assert family.loop.until(lambda: 0 in family.lines, 20)
        later_s += 60.0
    died = [event for event in log if event["event"] == "worker_died"]
    assert [event["restart_in_s"] for event in died] == [0.0, 0.05, 0.1, 0.2]
    assert {(event["status"], event["detail"]) for event in died} == {(1, "window 0: no answer")}


def test_worker_that_cannot_be_forked_is_tried_again(log: list[Any]) -> None:
    """No room for a process is told, and is no end of the server."""
    family = Family().start()
    family.die(0)
    family.loop.turn(0.01)
    family.refuse_to_fork = True
    family.workers.window_drained(0)
    assert log[-1]["event"] == "worker_not_started"
    family.refuse_to_fork = False
    assert family.loop.until(lambda: 0 in family.lines, 20)


def test_dead_worker_in_swap_mode_is_not_replaced(log: list[Any]) -> None:
    """Its device is lost; it is counted, and the others go on."""
    family = Family("--mode", "swap", "--listen-addr", "unix:/run/x").start()
    family.die(0)
    assert family.retiring == [0], "what it had queued is finished before a later connection begins"
    family.workers.window_drained(0)
    family.wait(0.1)
    assert 0 not in family.lines
    assert log[-1]["log_level"] == "critical" and not log[-1]["replaced"]
    assert family.shared.control.load(ControlWord.WORKERS_LOST) == 1
    assert family.hand_over(1) and family.handed(1) == [1]


def test_worker_that_dies_while_it_starts_fails_the_start(log: list[Any]) -> None:
    """What it says itself comes before how it ended."""
    family = Family()
    family.workers.start()
    family.lines[1].send(b'{"event": "failed", "exit_code": 78, "message": "no lock"}')
    with pytest.raises(PreconditionError, match=r"^no lock$"):
        family.die(1, 78 << 8)
    with pytest.raises(RuntimeFailure, match="worker 0 died while it started: signal SIGKILL"):
        family.die(0)


def test_dismissed_workers_may_die(log: list[Any]) -> None:
    """Their sockets are at their end, and their ends are nothing to tell or to mend."""
    family = Family().start()
    family.workers.dismiss()
    assert family.lines[0].recv(1) == b""
    family.die(0, 0)
    family.die(1)
    family.loop.until(lambda: False, 0.05)
    assert not family.workers.alive and not family.lines and not log


def test_worker_with_a_corrupt_ring_is_killed_once(log: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given nothing more, and is replaced like any that has died; its successor is left alone."""
    killed: list[int] = []
    monkeypatch.setattr(Child, "kill", lambda child: killed.append(child.pid))
    family = Family().start()
    for index in (-1, 0, 2, 0, 1 << 70):
        family.workers.corrupt(index)
    assert killed == [1000] and names_of(log) == ["worker_killed"]
    assert (log[0]["worker"], log[0]["child"], log[0]["log_level"]) == (0, 1000, "error") and log[0]["reason"]
    assert family.hand_over(1) and family.handed(1) == [1]
    family.die(0)
    family.workers.corrupt(0)
    family.workers.window_drained(0)
    assert family.loop.until(lambda: 0 in family.lines, 20)
    family.be_ready(0)
    assert family.hand_over(2) and family.handed(0) == [2]
    assert names_of(log) == ["worker_killed", "worker_died", "worker_restarted"] and killed == [1000]


# Workers that stand still


def end_of(client: socket.socket) -> bool:
    """Whether a client's connection has been closed."""
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False


def connect(family: Family, number: int) -> socket.socket:
    """A client whose other end is handed over."""
    client, connection = socket.socketpair()
    with connection:
        assert family.worker_pool.hand_over(connection, number, f"tcp:{number}")
    return client


def test_worker_that_does_not_take_its_connection_is_passed_over(log: list[Any]) -> None:
    """It gets no other one, although it has the fewest, until it takes what it was given."""
    family = Family().start()
    assert family.hand_over(1) and family.hand_over(2)
    assert family.wait(0.08, 1) == [2]
    assert [family.hand_over(number) for number in (3, 4)] == [True, True]
    assert family.handed(1) == [3, 4] and family.handed(0) == [1]
    assert family.hand_over(5) and family.handed(0) == [5]
    assert family.worker_pool.attached == 5 and not log


def test_connection_that_is_not_taken_goes_to_another_worker(log: list[Any]) -> None:
    """That one serves the client; who stands still gets nothing more until it wakes, though it has no client."""
    family = Family("--max-connections", "6").start()
    with connect(family, 1) as client, connect(family, 2):
        assert family.wait(0.5, 1) == [2, 1]
        assert [slot.attached for slot in family.worker_pool.slots] == [0, 2]
        assert family.hand_over(3) and family.handed(1) == [3]
        assert not family.worker_pool.has_room and not family.hand_over(4), (
            "clients wait in the backlog for the other"
        )
        family.wake(0)
        assert family.worker_pool.has_room and family.hand_over(5) and family.handed(0) == [5]
        assert family.worker_pool.attached == 4 and not log
        assert end_of(client), "worker 1 of this test has closed its copy, and nobody else has one"


def test_worker_that_stands_still_is_told_once_and_again_when_it_goes_on(log: list[Any]) -> None:
    """After a second a warning with what waits and what was moved; after it has woken an info."""
    family = Family().start()
    assert family.hand_over(1)
    family.wait(2.5, 1)
    assert names_of(log) == ["worker_stalled"] and log[0]["log_level"] == "warning"
    assert (log[0]["worker"], log[0]["child"], log[0]["waiting"], log[0]["moved"]) == (0, 1000, 0, 1)
    assert 1 <= log[0]["stalled_s"] < 2
    family.wake(0)
    family.wait(0.6, 1)
    assert names_of(log) == ["worker_stalled", "worker_resumed"]
    assert (log[1]["worker"], log[1]["child"]) == (0, 1000) and log[1]["stalled_s"] > 2
    assert family.hand_over(3) and family.handed(0) == [3]


def test_connection_that_nobody_takes_is_closed(log: list[Any]) -> None:
    """All stand still: the client gets an end after some seconds and may try again; its place is free."""
    family = Family(give_up_s=0.6).start()
    clients = [connect(family, number) for number in (1, 2)]
    family.wait(0.4)
    assert not family.worker_pool.has_room and not any(map(end_of, clients)) and family.worker_pool.attached == 2
    family.wait(0.5)
    assert all(map(end_of, clients)) and family.worker_pool.attached == 0
    assert names_of(log) == ["connection_refused"] * 2 and "stands still" in log[0]["reason"]
    assert family.handed(0) == family.handed(1) == []
    family.wake(0)
    family.wake(1)
    assert family.worker_pool.has_room


def test_connection_of_swap_is_never_closed_for_waiting(log: list[Any]) -> None:
    """A device waits as long as it takes; it gets another worker as soon as there is one."""
    family = Family("--mode", "swap", "--listen-addr", "unix:/run/x", give_up_s=0.3).start()
    with connect(family, 1) as client:
        assert family.hand_over(2)
        assert family.wait(0.6, 1) == [2]
        assert not family.hand_over(3) and not end_of(client) and family.worker_pool.attached == 2
        family.leave(1)
        assert family.wait(0.5, 1) == [1]
        assert family.worker_pool.attached == 1 and "connection_refused" not in names_of(log)


def test_what_a_dead_worker_had_not_taken_goes_to_another(log: list[Any]) -> None:
    """Nobody has read from those connections. Without another worker they are closed."""
    family = Family().start()
    assert [family.hand_over(number) for number in (1, 2, 3)] == [True] * 3
    family.die(0)
    assert family.handed(1) == [2, 1, 3] and family.worker_pool.attached == 3
    with connect(family, 4) as client:
        family.die(1)
        assert end_of(client) and family.worker_pool.attached == 0
    assert names_of(log) == ["worker_died", "connection_refused", "worker_died"]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 1 << 63, (1 << 64) - 1])
def test_count_of_taken_connections_may_be_anything(log: list[Any], count: int) -> None:
    """A faulty worker counts wrong: nothing raises, and each connection is taken once by one that counts."""
    family = Family("--max-connections", "20").start()
    taken: list[int] = []
    for numbers in (range(4), range(4, 8)):
        for number in numbers:
            assert family.hand_over(number)
        family.shared.windows[0].store(Word.HANDOFFS, count)
        taken += family.wait(0.5, 1)
        family.shared.windows[0].store(Word.HANDOFFS, 0)
        assert family.worker_pool.attached == numbers[-1] + 1
    family.die(0)
    taken += family.wait(0.1, 1)
    assert sorted(taken) == list(range(8)) and family.worker_pool.attached == 8
