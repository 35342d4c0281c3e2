"""The fio table: targets, ratios within the run, resuming, and what it refuses; fio is a script here."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench import curves, fio, goals, peers, procstat, report, results, rows, session  # noqa: E402
from bench import run as table  # noqa: E402

FAKE_FIO = """
import json, os, sys
if sys.argv[1] == "--version": print("fio-fake"); sys.exit()
if sys.argv[1] == "--enghelp": print("nbd"); sys.exit()
with open(os.environ["FAKE_LOG"], "a") as log: print(json.dumps(sys.argv[1:]), file=log)
if os.environ.get("FAKE_FAIL", "never") in " ".join(sys.argv): print("nbd: refused", file=sys.stderr); sys.exit(1)
side = lambda n: {"total_ios": n, "iops": n / 2, "bw_bytes": n * 2048, "clat_ns": {"mean": 5000.0,
    "percentile": {"50.000000": 4000, "99.000000": 9000, "99.900000": 20000}}}
names = [a[7:] for a in sys.argv if a.startswith("--name=")]
output = next(a[9:] for a in sys.argv if a.startswith("--output="))
with open(output, "w") as file:
    file.write("a warning\\n")
    json.dump({"jobs": [{"jobname": n, "error": 0, "read": side(1000), "write": side(0)} for n in names]}, file)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch) -> Path:
    """A fio that takes no time; gives the log of its command lines."""
    script, log = tmp_path / "fio.py", tmp_path / "fio.log"
    script.write_text(FAKE_FIO)
    log.touch()
    monkeypatch.setenv("FIO", f"env WRAPPED=1 {sys.executable} {script}")
    monkeypatch.setenv("FAKE_LOG", str(log))
    monkeypatch.setenv("NBDKIT", "/nonexistent/nbdkit")
    return log


@pytest.fixture
def greeter(tmp_path: Path) -> Iterator[str]:
    """Something that greets like an NBD server; its URI."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "g.sock"))
    listener.listen(16)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.sendall(b"NBDMAGICIHAVEOPT\0\3")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"nbd+unix:///?socket={tmp_path}/g.sock"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def start(monkeypatch, command, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        return command.main()
    finally:
        signal.signal(signal.SIGTERM, handler)


def commands(log: Path) -> list[list[str]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def document(kind: str = "rows", **rates: dict[str, list[float]]) -> dict:
    """A result with samples of these rates: row name to server to repeats."""
    sample = {"mean_us": 1.0, "p50_us": 100.0, "p99_us": 300.0, "p999_us": 500.0, "cpu_s_per_million": 2.5}
    memory = {"locked_bytes": 1 << 20, "resident_bytes": 2 << 20, "proportional_bytes": 0}
    machine = dict.fromkeys(("cpu", "kernel", "system", "python", "fio", "nbdkit", "commit", "source"), "x")
    found = {
        "format": 1, "kind": kind, "created": "2026-11-24T00:00:00+00:00",
        "options": {"repeats": 3, "runtime_s": 2, "size_bytes": 1 << 30, "fill": True},
        "machine": machine | {"cores": 2, "memory_bytes": 1 << 34, "gpus": [], "opencl": [], "load": 0.1},
        "servers": {}, "rows": {},
    }  # fmt: skip
    for name, by_server in rates.items():
        samples = {
            server: [
                {"error": "lost"}
                if rate < 0
                else sample | memory | {"iops": rate, "bytes_per_s": rate * 4096}
                for rate in values
            ]
            for server, values in by_server.items()
        }
        found["servers"] |= {server: {"version": "1", "startup_s": 0.5} for server in by_server}
        found["rows"][name] = {"unit": "IOPS", "samples": samples}
    return found


def test_the_table_has_fourteen_rows_with_figures_and_factors() -> None:
    assert len(rows.ROWS) == 14 == len({row.name for row in rows.ROWS})
    assert all(row.c_figure and row.memory_figure for row in rows.ROWS)
    factors = {row.name: row.factor for row in rows.ROWS}
    assert {name for name, factor in factors.items() if factor == 1.0} == {
        "4k randread qd1",
        "4k randwrite qd1",
    }
    assert {name for name, factor in factors.items() if factor == 1.5} == {
        "4k randread qd32 x4",
        "4k randwrite qd32 x4",
        "4k 70/30 mix qd32 x4",
    }


def test_target_follows_the_socket_speed_of_the_machine() -> None:
    row = rows.BY_NAME["4k randread qd32"]
    assert row.target(row.memory_figure) == pytest.approx(1.25 * 164_022)
    assert row.target(row.memory_figure / 2) == pytest.approx(1.25 * 164_022 / 2)
    assert row.target(None) == pytest.approx(1.25 * 164_022)
    found = document(**{row.name: {"vramblk": [90.0], peers.MEMORY: [111_994 / 4]}})
    assert goals.target(found, row.name) == pytest.approx(1.25 * 164_022 / 4)


@pytest.mark.parametrize(
    ("text", "count"),
    [("table", 14), ("extra", 6), ("all", 20), ("4k randread qd1", 1), ("1m", 5), ("128k,32k", 3)],
)
def test_rows_are_chosen_by_part_or_whole_name(text: str, count: int) -> None:
    assert len(rows.choose(text)) == count


def test_unknown_row_is_named() -> None:
    with pytest.raises(ValueError, match="'9k'"):
        rows.choose("4k,9k")


def test_ratio_is_of_samples_taken_side_by_side() -> None:
    found = document(r={"vramblk": [10, 40, -1], "other": [5, 10, 10]})
    assert results.ratios(found, "r", "vramblk", "other") == (3.0, 2.0, 4.0)
    assert results.rates(found, "r", "vramblk") == (25, 10, 40)
    assert results.ratios(found, "r", "vramblk", "absent") is None


def test_sample_joins_both_sides_of_a_mix() -> None:
    def side(ios: int, mean: float, p99: float) -> dict:
        percentile = {"50.000000": 1000, "99.000000": p99, "99.900000": p99 * 2}
        return {
            "total_ios": ios,
            "iops": ios,
            "bw_bytes": ios * 10,
            "clat_ns": {"mean": mean, "percentile": percentile},
        }

    found = fio.sample({"error": 0, "read": side(300, 2000, 5000), "write": side(100, 6000, 9000)})
    assert (found["iops"], found["bytes_per_s"], found["requests"]) == (400, 4000, 400)
    assert (found["mean_us"], found["p99_us"], found["p999_us"]) == (3.0, 9.0, 18.0)
    with pytest.raises(fio.FioError, match="error 5"):
        fio.sample({"error": 5, "read": side(0, 0, 0), "write": side(0, 0, 0)})


def test_each_repeat_asks_every_server_in_turn(fake, greeter, tmp_path, monkeypatch, capsys) -> None:
    output = tmp_path / "r.json"
    words = [
        "--server-uri",
        greeter,
        "--uri",
        f"twin={greeter}&x=1",
        "--peers",
        "none",
        "--no-fill",
        "--output",
        str(output),
    ]
    assert (
        start(monkeypatch, table, *words, "--rows", "4k randread qd1,1m read qd8 x4", "--repeats", "2") == 0
    )
    asked = [
        ("x=1" in " ".join(words), next(word for word in words if word.startswith("--bs=")))
        for words in commands(fake)
    ]
    assert asked == [(False, "--bs=4k"), (True, "--bs=4k")] * 2 + [(False, "--bs=1m"), (True, "--bs=1m")] * 2
    found = json.loads(output.read_text())
    assert set(found["servers"]) == {"vramblk", "twin"}
    assert len(found["rows"]["4k randread qd1"]["samples"]["twin"]) == 2
    assert "1.00" in output.with_suffix(".md").read_text()
    assert "## Latency" in capsys.readouterr().out


def test_a_result_goes_on_where_it_ended(fake, greeter, tmp_path, monkeypatch) -> None:
    output = tmp_path / "r.json"
    words = [
        "--server-uri",
        greeter,
        "--peers",
        "none",
        "--no-fill",
        "--repeats",
        "1",
        "--output",
        str(output),
    ]
    assert start(monkeypatch, table, *words, "--rows", "4k randread qd1") == 0
    assert start(monkeypatch, table, *words, "--rows", "4k randread qd1,32k") == 0
    assert len(commands(fake)) == 2
    assert start(monkeypatch, table, *words, "--rows", "4k randread qd1,32k") == 0
    assert len(commands(fake)) == 2


def test_another_run_is_not_mixed_in(fake, greeter, tmp_path, monkeypatch, capsys) -> None:
    words = ["--server-uri", greeter, "--peers", "none", "--no-fill", "--rows", "4k randread qd1"]
    output = ["--output", str(tmp_path / "r.json")]
    assert start(monkeypatch, table, *words, *output, "--repeats", "1") == 0
    assert start(monkeypatch, table, *words, *output, "--repeats", "2") == 1
    assert "repeats 1, now 2" in capsys.readouterr().err


def test_servers_of_others_are_not_overwritten(fake, greeter, tmp_path, monkeypatch, capsys) -> None:
    output = ["--peers", "none", "--repeats", "1", "--output", str(tmp_path / "r.json")]
    for rows_of in ("4k randread qd1", "128k write"):
        extra = ["--no-fill"] if "write" in rows_of else []
        assert start(monkeypatch, table, "--server-uri", greeter, "--rows", rows_of, *extra, *output) == 1
        assert "--overwrite" in capsys.readouterr().err
    assert commands(fake) == []
    assert (
        start(monkeypatch, table, "--server-uri", greeter, "--rows", "128k write", "--overwrite", *output)
        == 0
    )
    assert "--rw=write" in commands(fake)[0]


def test_a_failed_sample_is_kept_with_its_reason(fake, greeter, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_FAIL", "--bs=32k")
    output = tmp_path / "r.json"
    words = [
        "--server-uri",
        greeter,
        "--peers",
        "none",
        "--no-fill",
        "--repeats",
        "1",
        "--output",
        str(output),
    ]
    assert start(monkeypatch, table, *words, "--rows", "32k,4k randread qd1") == 1
    found = json.loads(output.read_text())["rows"]
    assert "refused" in found["32k randread qd16 x4"]["samples"]["vramblk"][0]["error"]
    assert "error" not in found["4k randread qd1"]["samples"]["vramblk"][0]
    assert "failed" in output.with_suffix(".md").read_text()


def test_a_result_names_no_path_of_the_machine(fake, greeter, tmp_path, monkeypatch) -> None:
    output = tmp_path / "r.json"
    words = [
        "--server-uri",
        greeter,
        "--uri",
        greeter,
        "--peers",
        "none",
        "--no-fill",
        "--rows",
        "4k randread qd1",
    ]
    assert start(monkeypatch, table, *words, "--repeats", "1", "--output", str(output)) == 0
    assert str(tmp_path) not in output.read_text() and str(ROOT) not in output.read_text()


def test_fairness_holds_the_reader_against_itself(fake, greeter) -> None:
    found = fio.run_fairness(rows.BY_NAME[rows.FAIRNESS], greeter, 0.5, 64 << 20)
    assert found["slowdown"] == 1.0
    both = commands(fake)[1]
    assert {"--name=randread", "--name=write", "--offset=33554432"} <= set(both)


def test_goals_say_reached_missed_and_within_the_spread() -> None:
    found = document(
        **{
            "4k randread qd32": {
                "vramblk": [900, 1000, 1100],
                "sketch": [1000, 1000, 1000],
                "original": [10, 10, 10],
            },
            "4k randwrite qd32": {
                "vramblk": [90, 90, 120],
                "sketch": [100, 100, 100],
                "original": [10, 10, 10],
            },
        }
    )
    verdicts = {goal.what: (goal.reached, goal.within_spread) for goal in goals.check(found)}
    assert verdicts["4k randread qd32: against sketch"][0]
    assert verdicts["4k randwrite qd32: against sketch"] == (False, True)
    assert verdicts["4k randread qd32: against original"][0]
    assert not verdicts["4k randwrite qd32: against original"][0]
    assert verdicts["4k randread qd32: p99"][0]
    assert not verdicts["4k randread qd32: target"][0]


def test_quick_holds_a_cpu_against_nbdkit_only() -> None:
    found = document("quick", **{"4k randread qd32": {"vramblk": [45], peers.MEMORY: [100]}})
    assert [(goal.what, goal.reached) for goal in goals.check(found)] == [
        ("4k randread qd32: against nbdkit memory", True)
    ]


def test_quick_holds_a_server_without_workers_to_its_own_goal() -> None:
    """At depth 1 only that one has a goal, and a missing sample of another server does not hide it."""
    samples = {"vramblk": [-1], peers.DIRECT: [50], peers.MEMORY: [100]}
    found = document("quick", **{"4k randread qd1": samples, "4k randwrite qd1": samples | {peers.DIRECT: [70]}})
    assert [(goal.what, goal.reached) for goal in goals.check(found)] == [
        ("4k randread qd1: vramblk --workers 0 against nbdkit memory", False),
        ("4k randwrite qd1: vramblk --workers 0 against nbdkit memory", True),
    ]


def test_a_server_without_workers_has_memory_without_opencl(tmp_path) -> None:
    with session.plain_memory(1 << 20) as device:
        peer = peers.direct(1 << 20, tmp_path, device)
        assert Path(device.removeprefix("map:")).stat().st_size == 1 << 20
    assert peer.name == peers.DIRECT and peer.uri != peers.project(1 << 20, tmp_path).uri
    assert peer.command[-5:] == ["--workers", "0", "--device", device, "--map-overwrite"]


def test_as_many_requests_as_bytes(fake, greeter) -> None:
    fio.run_bytes(rows.BY_NAME["4k randread qd1"], greeter, 40 << 10, 64 << 20)
    [command] = commands(fake)
    assert {"--io_size=40960", "--bs=4k", "--iodepth=1"} <= set(command)
    assert not any(word.startswith(("--runtime", "--time_based")) for word in command)


def test_rates_are_drawn_with_every_server_and_both_units(tmp_path) -> None:
    """A server without a sample in a row has no bar there."""
    found = document(**{
        "4k randread qd32": {"vramblk": [900, 1000], peers.MEMORY: []}, "1m read qd8": {"vramblk": [9], peers.MEMORY: [8]},
    })  # fmt: skip
    found["rows"]["1m read qd8"]["unit"] = "MiB/s"
    (tmp_path / "r.json").write_text(json.dumps(found))
    # A process of its own, since matplotlib keeps fonts open.
    command = [sys.executable, ROOT / "bench/report.py", "--rates", tmp_path / "rates.svg", tmp_path / "r.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if not find_spec("matplotlib"):
        assert done.returncode == 1 and done.stderr.startswith("no plot: ") and "vramblk[bench]" in done.stderr
        return
    text = (tmp_path / "rates.svg").read_text()
    drawn = re.findall(r"<!-- (.+?) -->", text)
    assert {"vramblk", peers.MEMORY, "IOPS", "MiB/s"} <= set(drawn)


def test_markdown_and_plot_are_written_beside_the_json(tmp_path, capsys) -> None:
    found = document(**{"4k randread qd32": {"vramblk": [900, 1000], peers.MEMORY: [500, 400]}})
    names = {path.suffix for path in report.write(tmp_path / "r.json", found)}
    if find_spec("matplotlib"):
        assert names == {".md", ".png", ".svg"}
    else:
        assert names == {".md"}
        assert "vramblk[bench]" in capsys.readouterr().err
    text = (tmp_path / "r.md").read_text()
    assert "2.15 (1.80 to 2.50)" in text
    assert "| vramblk | 1 | 2 | 0 |" in text


def test_curve_has_a_row_for_each_point(fake, greeter, tmp_path, monkeypatch) -> None:
    output = tmp_path / "c.json"
    words = [
        "connections",
        "--points",
        "1,3",
        "--server-uri",
        greeter,
        "--overwrite",
        "--peers",
        "none",
        "--no-fill",
    ]
    assert start(monkeypatch, curves, *words, "--repeats", "1", "--output", str(output)) == 0
    jobs = {next(word for word in words if word.startswith("--numjobs")) for words in commands(fake)}
    assert jobs == {"--numjobs=1", "--numjobs=3"}
    assert re.search(r"^\| 3 \| 500 \|$", output.with_suffix(".md").read_text(), re.MULTILINE)


LISTING = """Available OpenCL Platforms and Devices:
Platform 0: Portable Computing Language
  No GPU devices found on this platform.
Platform 1: NVIDIA CUDA
  Device 0: NVIDIA H200 (GPU) - Memory: 143771 MB
"""


def test_the_originals_platform_is_found_in_its_listing() -> None:
    assert peers.first_gpu(LISTING) == (1, 0)
    with pytest.raises(peers.PeerError, match="names no GPU"):
        peers.first_gpu(LISTING[: LISTING.index("Platform 1")])


def test_given_uris_have_names() -> None:
    assert peers.given("mine=nbd://h:1/x").name == "mine"
    assert peers.given("nbd+unix:///?socket=/run/a.sock").name == "a.sock"
    assert peers.given("nbd://h:1/x").name == "h:1"
    with pytest.raises(peers.PeerError, match="no NBD URI"):
        peers.given("/run/a.sock")


def test_cpu_time_of_grandchildren_counts_and_all_are_ended(tmp_path) -> None:
    burn = (
        "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass\ntime.sleep(60)"
    )
    script = f"exec setsid {shlex.quote(sys.executable)} -c {shlex.quote(burn)} & wait"
    peer = peers.Peer("burner", "", ["/bin/sh", "-c", script], log=tmp_path / "log")
    peer._process = subprocess.Popen(peer.command)
    before, deadline = procstat.cpu_seconds(peer._process.pid), time.monotonic() + 20
    while procstat.cpu_seconds(peer._process.pid) - before < 0.35 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert procstat.cpu_seconds(peer._process.pid) - before >= 0.35
    family = procstat.tree(peer._process.pid)
    assert len(family) >= 2 and family[0].pid == peer._process.pid
    assert procstat.memory(family[0].pid)["resident_bytes"] > 1 << 20
    peer.stop()
    time.sleep(0.1)
    assert not any(procstat.alive(process) for process in family)


def test_a_server_that_ends_at_start_says_its_last_words(tmp_path) -> None:
    peer = peers.Peer(
        "dead",
        "nbd+unix:///?socket=/nonexistent",
        ["/bin/sh", "-c", "echo no device; exit 78"],
        log=tmp_path / "log",
    )
    with pytest.raises(peers.PeerError, match="status 78: no device"):
        peer.start()


def test_two_servers_cannot_share_a_name(fake, greeter, tmp_path, monkeypatch, capsys) -> None:
    words = ["--server-uri", greeter, "--uri", greeter, "--uri", greeter, "--peers", "none", "--no-fill"]
    output = ["--output", str(tmp_path / "r.json")]
    assert start(monkeypatch, table, *words, "--rows", "4k randread qd1", *output) == 1
    assert "NAME=" in capsys.readouterr().err


def test_sizes() -> None:
    assert (session.size("2g"), session.size("512M"), session.size("1048576")) == (
        2 << 30,
        512 << 20,
        1 << 20,
    )
    for text in ("2x", "", "4k", "-1g"):
        with pytest.raises(session.argparse.ArgumentTypeError):
            session.size(text)


def test_the_tools_start_without_the_package_installed(tmp_path) -> None:
    for script in ("run.py", "curves.py", "instructions.py", "report.py"):
        ended = subprocess.run(
            [sys.executable, "-S", str(ROOT / "bench" / script), "--help"],
            capture_output=True, text=True, cwd=tmp_path, env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
