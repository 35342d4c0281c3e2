"""``vramblk bench``: what it measures, what it refuses, and that it writes only when told so."""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from vramblk import cli
from vramblk.commands import bench
from vramblk.commands.bench_client import Client, Measurement, parse_uri
from vramblk.config.settings import load_settings
from vramblk.errors import ConfigError, PreconditionError, RuntimeFailure

SIZE = 4 << 20
READ, WRITE, DISC = 0, 1, 2


class MemoryServer:
    """One export in a bytearray on a Unix socket; as little of NBD as this client asks for."""

    def __init__(
        self, path: Path, flags: int = 1, knows_go: bool = True, fail: int = 0, cut: bool = False,
        description: str = "", refusal: bytes = b"no such export",
    ) -> None:  # fmt: skip
        self.data = bytearray(SIZE)
        self.writes = 0
        self.uri = f"nbd+unix:///vram?socket={path}"
        self._flags, self._knows_go, self._fail, self._cut = flags, knows_go, fail, cut
        self._description, self._refusal = description.encode(), refusal
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(4)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                try:
                    if self._negotiate(connection, stream):
                        self._transmit(connection, stream)
                except (OSError, struct.error):
                    pass

    def _negotiate(self, connection, stream) -> bool:
        connection.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        stream.read(4)
        while True:
            _, option, length = struct.unpack(">8sII", stream.read(16))
            name = stream.read(length)

            def reply(kind: int, data: bytes = b"", to: int = option) -> None:
                connection.sendall(struct.pack(">QIII", 0x3E889045565A9, to, kind, len(data)) + data)

            if option == 1:
                connection.sendall(struct.pack(">QH", SIZE, self._flags))
                return True
            if option != 7 or not self._knows_go:
                reply(0x80000001)
            elif name[4 : 4 + struct.unpack(">I", name[:4])[0]] != b"vram":
                reply(0x80000006, self._refusal)
            else:
                reply(3, struct.pack(">HQH", 0, SIZE, self._flags))
                reply(3, struct.pack(">HIII", 3, 1, 4096, 32 << 20))
                if self._description:
                    reply(3, struct.pack(">H", 2) + self._description)
                reply(1)
                return True

    def _transmit(self, connection, stream) -> None:
        while True:
            magic, _, kind, cookie, offset, length = struct.unpack(">IHHQQI", stream.read(28))
            assert magic == 0x25609513
            assert kind == DISC or offset + length <= SIZE
            if kind == DISC or self._cut:
                return
            if kind == WRITE:
                self.data[offset : offset + length] = stream.read(length)
                self.writes += 1
            head = struct.pack(">IIQ", 0x67446698, self._fail, cookie)
            read = kind == READ and not self._fail
            connection.sendall(head + (self.data[offset : offset + length] if read else b""))


@pytest.fixture
def servers(tmp_path: Path) -> Iterator:
    started: list[MemoryServer] = []

    def start(**how) -> MemoryServer:
        started.append(MemoryServer(tmp_path / f"{len(started)}.sock", **how))
        return started[-1]

    yield start
    for server in started:
        server.close()


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    bench.add_arguments(parser)
    return parser.parse_args(["--seconds", "0.1", *words])


def run(*words: str) -> int:
    return bench.run(load_settings([], {}), arguments(*words))


def test_reads_only_unless_told_to_overwrite(servers, capsys) -> None:
    server = servers()
    assert run(server.uri, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["command"] for row in found["rows"]] == ["read"] * 4
    assert {(row["block_bytes"], row["depth"]) for row in found["rows"]} == {
        (4096, 1),
        (4096, 32),
        (1 << 20, 1),
        (1 << 20, 32),
    }
    assert server.writes == 0 and not any(server.data)


def test_overwrite_adds_the_write_rows(servers, capsys) -> None:
    server = servers()
    assert run(server.uri, "--json", "--overwrite") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["command"] for row in rows] == ["read"] * 4 + ["write"] * 4
    assert server.writes and any(server.data)
    for row in rows:
        assert row["iops"] > 0
        assert row["p50_us"] <= row["p99_us"] <= row["p99.9_us"]


def test_table_has_a_line_for_each_row(servers, capsys) -> None:
    assert run(servers().uri) == 0
    out = capsys.readouterr().out
    assert all(row.name in out for row in bench.READ_ROWS)
    assert "--overwrite" in out


def test_live_swap_is_never_overwritten(servers) -> None:
    server = servers()
    server.data[4086:4096] = b"SWAPSPACE2"
    with pytest.raises(PreconditionError, match="swapoff"):
        run(server.uri, "--overwrite")
    assert server.writes == 0


def test_read_only_export_is_not_written(servers) -> None:
    server = servers(flags=3)
    with pytest.raises(PreconditionError, match="read-only"):
        run(server.uri, "--overwrite")
    assert run(server.uri, "--json") == 0


def test_a_server_without_go_is_measured_too(servers) -> None:
    assert run(servers(knows_go=False).uri, "--json") == 0


def test_refused_export_says_the_servers_words(servers) -> None:
    with pytest.raises(RuntimeFailure, match="no such export"):
        run(servers().uri.replace("/vram", "/other"))


def test_nothing_of_a_hostile_servers_words_reaches_the_terminal_as_a_command(servers, capsys) -> None:
    server = servers(refusal="no \x1b]0;sudo rm\x07\u009b\u202e\nsuch export".encode())
    assert cli.main(["bench", server.uri.replace("/vram", "/other")], {}) == 1
    line = capsys.readouterr().err
    assert "such export" in line and line.removesuffix("\n").isprintable()


def test_failed_request_is_one_line_with_the_reason(servers) -> None:
    with pytest.raises(RuntimeFailure, match=os.strerror(5)) as failure:
        run(servers(fail=5).uri)
    assert "\n" not in str(failure.value)


def test_server_that_closes_is_an_error_not_a_hang(servers) -> None:
    with pytest.raises(RuntimeFailure, match="closed"):
        run(servers(cut=True).uri)


def test_nobody_there_asks_whether_the_server_runs(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="is the server running"):
        run(f"nbd+unix:///?socket={tmp_path}/none.sock")


def test_measurement_counts_every_reply_once(servers) -> None:
    server = servers()
    passed: list[float] = []
    with Client(parse_uri(server.uri)) as client:
        found = client.measure(0.0, 4096, 7, 0.2, True, passed.append)
    assert len(found.latencies_ns) == server.writes
    assert passed[-1] == 0.2 and passed == sorted(passed)
    assert list(found.latencies_ns) == sorted(found.latencies_ns)


@pytest.mark.parametrize(("percent", "expected"), [(50, 5.0), (99, 10.0), (99.9, 10.0), (10, 1.0)])
def test_percentiles_are_of_the_nearest_rank(percent: float, expected: float) -> None:
    found = Measurement(1.0, 4096, array("Q", range(1000, 11000, 1000)))
    assert found.percentile_us(percent) == expected
    assert found.iops == 10
    assert found.bytes_per_s == 40960


@pytest.mark.parametrize(
    ("uri", "address", "export", "tls"),
    [
        ("nbd://localhost", ("localhost", 10809), "", False),
        ("nbd://[::1]:99/a%2Fb", ("::1", 99), "a/b", False),
        ("nbds://host/x", ("host", 10809), "x", True),
        ("nbd+unix:///vram?socket=/run/a.sock", "/run/a.sock", "vram", False),
        ("nbds+unix:///?socket=/a&tls-certificates=/c", "/a", "", True),
    ],
)
def test_uris(uri: str, address: object, export: str, tls: bool) -> None:
    target = parse_uri(uri)
    assert (target.address, target.export, target.tls) == (address, export, tls)


@pytest.mark.parametrize(
    "uri", ["", "http://x", "nbd://", "nbd+unix:///x", "nbd://h:99999", "vram", "nbd://h:x"]
)
def test_what_is_no_uri_is_refused_by_name(uri: str) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        parse_uri(uri)


@pytest.mark.parametrize(
    ("flags", "uri"),
    [
        ([], "nbd://127.0.0.1:10809/vram"),
        (["-l", "0.0.0.0:7"], "nbd://127.0.0.1:7/vram"),
        (["-l", "[::]:7", "-e", "a b"], "nbd://[::1]:7/a%20b"),
        (["-l", "unix:/x/y.sock"], "nbd+unix:///vram?socket=/x/y.sock"),
        (["--tls", "require", "--tls-certificates", "/c"], "nbds://127.0.0.1:10809/vram"),
    ],
)
def test_default_server_is_that_of_the_settings(flags: list[str], uri: str) -> None:
    target = bench.default_target(load_settings(flags, {}))
    assert target.uri == uri
    assert parse_uri(uri).address == target.address


@pytest.mark.parametrize("text", ["0", "-1", "x", "nan", "inf", "601"])
def test_seconds_out_of_range_are_refused(text: str, capsys) -> None:
    with pytest.raises(SystemExit):
        arguments("--seconds", text)
    assert text in capsys.readouterr().err


def test_a_profile_measures_no_server_that_is_already_there() -> None:
    with pytest.raises(ConfigError, match="server of its own"):
        run("--profile", "nbd://127.0.0.1:1")


def test_a_profile_writes_over_no_mapped_memory(tmp_path: Path) -> None:
    """A server on that memory may be running: sysfs knows no locks."""
    path = tmp_path / "bar"
    path.write_bytes(b"precious" * 512)
    settings = load_settings(["--device", f"map:{path}", "--map-overwrite"], {})
    with pytest.raises(PreconditionError, match=f"map:{path}"):
        bench.run(settings, arguments("--profile"))
    assert path.read_bytes() == b"precious" * 512


def test_client_learns_what_the_memory_is(servers) -> None:
    with Client(parse_uri(servers(description="memory of \x1b a test").uri)) as client:
        assert client.description == "memory of \N{REPLACEMENT CHARACTER} a test"
    with Client(parse_uri(servers().uri)) as client:
        assert client.description == ""
