"""--allocate attach: memory is held while an export has clients, and only then."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import rawclient as nbd
from .harness import Server, eventually

pytestmark = pytest.mark.wire
Start = Callable[..., Server]
MIB = 1 << 20
PROGRAM = (sys.executable, str(Path(__file__).with_name("holding_server.py")))
ATTACH = ("--allocate", "attach")
#: All clients served by the engine, and as it comes: the first local one by the engine, the others by workers.
WHO = ("0", "")


def of(workers: str) -> tuple[str, ...]:
    return ("--workers", workers) if workers else ()


@pytest.fixture(scope="module", params=WHO, ids=lambda workers: f"workers {workers or 'chosen'}")
def steered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two slices of 8 MiB that does as it is told; each test leaves it as it was."""
    directory = tmp_path_factory.mktemp("allocate")
    arguments = (*ATTACH, "--slices", "2", *of(request.param))
    with Server(directory, *arguments, size="16M", program=PROGRAM) as server:
        yield server


@pytest.fixture
def server(steered: Server) -> Iterator[Server]:
    """It, without orders, and at the end again without clients."""
    order(steered)
    (steered.directory / "steps").unlink(missing_ok=True)
    with steered._changed:
        steered.events.clear()
    yield steered
    order(steered)
    eventually(lambda: held(steered) == [False, False])
    eventually(lambda: named(steered, "export_held") == named(steered, "export_released"))
    assert not steered.find_event("internal_error") and not steered.find_event("device_error")
    assert steered.get("/healthz")[0] == 200


def named(server: Server, event: str) -> int:
    with server._changed:
        return sum(each.get("event") == event for each in server.events)


def exports(server: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(server.get("/status.json")[1])["exports"]
    return found


def held(server: Server) -> list[bool]:
    return [export["held"] for export in exports(server)]


def refused(server: Server, name: str) -> str:
    """The text with which GO is refused."""
    with server.connect() as client:
        client.greet()
        (reply,) = client.go(name)
        assert reply.type == nbd.ERR_POLICY, reply
        return reply.data.decode()


def order(server: Server, **orders: Any) -> None:
    """By export, as ``holding_server.py`` says: ``_0={...}``."""
    path = server.directory / "orders.new"
    path.write_text(json.dumps({name.removeprefix("_"): value for name, value in orders.items()}))
    path.rename(server.directory / "orders.json")


def steps(server: Server) -> list[str]:
    path = server.directory / "steps"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def check_held_while_attached(server: Server) -> None:
    assert held(server) == [False, False]
    assert server.get("/healthz")[0] == 200
    with server.client("vram-1") as first:
        assert held(server) == [False, True]
        first.write(4096, b"data" * 1024)
        with server.client("vram-1") as second:
            assert second.read(4096, 4) == b"data"
        eventually(lambda: len(json.loads(server.get("/status.json")[1])["connections"]) == 1)
        assert first.read(4096, 4096) == b"data" * 1024
        assert exports(server)[1]["written_bytes"] == 4096
        assert server.metrics()['vramblk_export_held{export="vram-1"}'] == 1
    eventually(lambda: held(server) == [False, False])
    eventually(lambda: server.find_event("export_released"))
    assert exports(server)[1]["written_bytes"] == 0
    assert server.metrics()['vramblk_export_held{export="vram-1"}'] == 0
    with server.client("vram-1") as client:
        assert client.read(0, MIB) == bytes(MIB), "its contents are lost"
    eventually(lambda: named(server, "export_held") == 2)
    held_events = [event for event in server.events if event["event"] == "export_held"]
    assert [event["export"] for event in held_events] == ["vram-1", "vram-1"]
    assert server.find_event("export_released")["export"] == "vram-1"


def test_memory_is_held_while_a_client_is_attached(server: Server) -> None:
    check_held_while_attached(server)


def test_mapped_memory_is_zeroed_when_the_last_client_has_gone(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(b"x" * (16 * MIB))
    server = start(*ATTACH, "--slices", "2", "--device", f"map:{path}", "--map-overwrite", size="16M")
    check_held_while_attached(server)
    eventually(lambda: held(server) == [False, False])
    eventually(lambda: path.read_bytes() == bytes(16 * MIB))


def test_a_file_in_ram_gives_its_pages_back(start: Start) -> None:
    path = Path(f"/dev/shm/vramblk-test-{os.getpid()}")
    try:
        path.write_bytes(b"x" * (16 * MIB))
        server = start(*ATTACH, "--device", f"map:{path}", "--slices", "2", size="16M")
        eventually(lambda: path.stat().st_blocks == 0)
        with server.client("vram-1") as client:
            client.write(0, b"x")
            assert path.stat().st_blocks * 512 == 8 * MIB
        eventually(lambda: path.stat().st_blocks == 0)
    finally:
        path.unlink()


def test_list_and_info_allocate_nothing(server: Server) -> None:
    with server.connect() as client:
        client.greet()
        assert client.ask(nbd.LIST)[-1].type == nbd.ACK
        info = client.ask(nbd.INFO, nbd.info_payload("vram-0"))
        assert info[-1].type == nbd.ACK
        assert client.ask(nbd.STRUCTURED_REPLY)[-1].type == nbd.ACK
        assert client.ask(nbd.SET_META_CONTEXT, nbd.context_payload("vram-0", "base:allocation"))[-1].type == nbd.ACK
        assert held(server) == [False, False]
        assert not server.find_event("export_held")
        go = client.go("vram-0")
        assert [reply.data[:10] for reply in go[:1]] == [reply.data[:10] for reply in info[:1]], "GO is as INFO"
        assert held(server) == [True, False]


def test_export_name_has_the_memory_held_first(server: Server) -> None:
    with server.connect() as client:
        client.greet()
        client.send(nbd.option_bytes(nbd.EXPORT_NAME, b"vram-0"))
        assert len(client.receive(10)) == 10
        assert held(server) == [True, False]


def test_not_enough_memory_is_an_error_reply(server: Server) -> None:
    """It says how much is missing and where; log, status and page too. Other exports are not touched."""
    order(server, _0={"missing": 3 * MIB})
    with server.client("vram-1") as other:
        other.write(0, b"data")
        text = refused(server, "vram-0")
        assert "3 MiB of the 8 MiB of export vram-0 are missing on " in text
        assert exports(server)[0]["device"]["name"] in text
        with server.connect() as client:
            client.greet()
            client.send(nbd.option_bytes(nbd.EXPORT_NAME, b"vram-0"))
            assert client.at_end()
        with server.connect() as client:  # the same connection may have another export
            client.greet()
            assert client.go("vram-0")[-1].type == nbd.ERR_POLICY
            assert client.go("vram-1")[-1].type == nbd.ACK
        assert other.read(0, 4) == b"data"
        assert held(server) == [False, True]
        event = server.wait_event("export_not_held")
        assert (event["export"], event["missing_bytes"]) == ("vram-0", 3 * MIB)
        assert exports(server)[0]["missing_bytes"] == 3 * MIB
        warnings = json.loads(server.get("/status.json")[1])["warnings"]
        assert any(each["code"] == "memory_missing" and "3 MiB" in each["text"] for each in warnings)
        assert server.get("/healthz")[0] == 200, "the device is well"
        order(server)
        with server.client("vram-0") as client:
            client.write(0, b"x")
            assert exports(server)[0]["missing_bytes"] is None


def test_others_are_served_while_memory_is_taken(server: Server) -> None:
    with server.client("vram-0") as client:
        order(server, _1={"steps": 100, "step_s": 0.01, "release_steps": 20})
        with server.connect() as late:
            late.greet()
            late.send(nbd.option_bytes(nbd.GO, nbd.info_payload("vram-1")))
            eventually(lambda: steps(server))
            before = len(steps(server))
            for number in range(20):
                client.write(4096 * number, bytes([number]) * 4096)
                assert client.read(4096 * number, 4096) == bytes([number]) * 4096
            assert before < 100 and held(server) == [True, False]
            assert late.replies(nbd.GO)[-1].type == nbd.ACK
            assert held(server) == [True, True]
        eventually(lambda: "release 1" in steps(server))
        assert client.read(4096, 4096) == b"\1" * 4096
        assert held(server) == [True, False]


def test_a_client_that_leaves_while_its_memory_is_taken(server: Server) -> None:
    """Nothing stays allocated, and the next one is served at once, each time."""
    for _ in range(10):
        eventually(lambda: not held(server)[0])
        order(server, _0={"steps": 1000, "step_s": 0.01})
        (server.directory / "steps").unlink(missing_ok=True)
        with server.connect() as client:
            client.greet()
            client.send(nbd.option_bytes(nbd.GO, nbd.info_payload("")))
            eventually(lambda: steps(server))
        eventually(lambda: not json.loads(server.get("/status.json")[1])["connections"])
        count = len(steps(server))
        time.sleep(0.1)
        assert len(steps(server)) <= count + 1
        order(server)
        with server.client() as client:
            assert client.read(0, 4096) == bytes(4096)
    assert not server.find_event("engine_stalled")


@pytest.mark.parametrize("workers", WHO, ids=lambda workers: f"workers {workers or 'chosen'}")
def test_memory_that_cannot_be_freed_when_its_client_leaves(start: Start, workers: str) -> None:
    """The engine outlives what the device raises then, and its other clients do not notice."""
    server = start(*ATTACH, "--slices", "2", *of(workers), size="8M", program=PROGRAM)
    with server.client("vram-1") as other:
        other.write(0, b"stays" * 100)
        order(server, _0={"steps": 1000, "step_s": 0.01, "fails_to_drop": True})
        with server.connect() as client:
            client.greet()
            client.send(nbd.option_bytes(nbd.GO, nbd.info_payload("vram-0")))
            eventually(lambda: steps(server))
        server.wait_event("internal_error")
        assert other.read(0, 500) == b"stays" * 100
        order(server)
        with server.client("vram-0") as client:
            assert client.read(0, 4096) == bytes(4096)


def test_a_client_that_has_gone_while_it_waited_keeps_no_place(start: Start) -> None:
    """Not even one whose end the engine has not come to look at when the next one chooses the export."""
    one = ("--export-max-connections", "1")
    server = start(*ATTACH, *one, "--workers", "0", size="4M", program=PROGRAM)
    pause = server.directory / "pause"
    order(server, _0={"steps": 1000, "step_s": 0.01})
    with server.connect() as second:
        second.greet()
        second.ask(nbd.LIST)
        with server.connect() as first:
            first.greet()
            first.send(nbd.option_bytes(nbd.GO, nbd.info_payload("")))
            eventually(lambda: len(steps(server)) > 3)
            pause.touch()
            time.sleep(0.1)  # the engine does nothing else now
            order(server)
            second.send(nbd.option_bytes(nbd.LIST))  # it comes to the second client before the first one
        second.send(nbd.option_bytes(nbd.GO, nbd.info_payload("")))
        pause.unlink()
        second.replies(nbd.LIST)
        assert second.replies(nbd.GO)[-1].type == nbd.ACK


def test_a_client_that_comes_while_the_last_ones_memory_is_released(server: Server) -> None:
    """It waits until that is done, and finds nothing of what was there."""
    order(server, _0={"release_steps": 20, "step_s": 0.01})
    with server.client() as client:
        client.write(0, b"x" * MIB)
    eventually(lambda: steps(server))
    with server.client() as client:
        assert client.read(0, MIB) == bytes(MIB)
        assert len(steps(server)) == 20
        client.write(0, b"y")


def test_the_last_leaves_as_the_next_comes(server: Server) -> None:
    """Whichever is first: a client finds the whole of what was written last, or zeroes, and is served."""
    stop = time.monotonic() + 1.5
    failures: list[BaseException] = []

    def come_and_go(mark: int) -> None:
        try:
            while time.monotonic() < stop:
                with server.client() as client:
                    found = client.read(0, 65536)
                    assert found in (bytes(65536), found[:1] * 65536), "a mixture"
                    client.write(0, bytes([mark]) * 65536)
                    assert len(client.read(MIB, 4096)) == 4096
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=come_and_go, args=(mark,)) for mark in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_a_dead_workers_clients_hold_nothing(start: Start) -> None:
    server = start(*ATTACH, "--workers", "2")
    with server.client():
        assert held(server) == [True]
        for pid in server.named("worker"):
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: held(server) == [False])

    eventually(server.takes_a_client, 5)


def test_a_local_client_keeps_its_memory_however_deep_it_asks(server: Server) -> None:
    """One that would be given to a worker elsewhere stays, since nobody counts it on the way."""
    with server.client() as client:
        client.write(0, b"z" * 4096)
        for _ in range(40):
            cookies = [client.submit(nbd.READ, 0, 4096) for _ in range(32)]
            replies = client.gather(cookies)
            assert all(reply.error == 0 and reply.data == b"z" * 4096 for reply in replies.values())
        assert held(server) == [True, False]
    assert not server.find_event("client_moved")


@pytest.mark.parametrize(
    ("where", "workers"),
    [("free", "1"), ("taking", "1"), ("taking", "0"), ("held", "1"), ("releasing", "1"), ("releasing", "0")],
)
def test_stop_in_every_state(start: Start, where: str, workers: str) -> None:
    """SIGTERM ends the server in order; whoever waits for memory is not kept, whoever has it is drained."""
    server = start(*ATTACH, "--drain-timeout", "300ms", *of(workers), size="4M", program=PROGRAM)
    client: nbd.RawClient | None = None
    if where == "taking":
        order(server, _0={"steps": 300, "step_s": 0.01})
        client = server.connect()
        client.greet()
        client.send(nbd.option_bytes(nbd.GO, nbd.info_payload("")))
        eventually(lambda: "take 0" in steps(server))
    elif where == "held":
        client = server.client()
        client.write(0, b"x")
    elif where == "releasing":
        order(server, _0={"release_steps": 30, "step_s": 0.01})
        server.client().close()
        eventually(lambda: "release 0" in steps(server))
    begun = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begun < 10
    if client is not None:
        client.close()


def test_what_follows_go_in_the_same_packet_waits_too(server: Server) -> None:
    """A client may send its first requests behind GO; they are executed once the memory is there."""
    order(server, _0={"steps": 10, "step_s": 0.01})
    with server.connect() as client:
        client.greet()
        read = b"\x25\x60\x95\x13" + bytes(4) + (7).to_bytes(8, "big") + bytes(8) + (512).to_bytes(4, "big")
        client.send(nbd.option_bytes(nbd.GO, nbd.info_payload("")) + read)
        assert client.replies(nbd.GO)[-1].type == nbd.ACK
        assert client.receive(16 + 512)[8:16] == (7).to_bytes(8, "big")
