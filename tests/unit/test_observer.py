"""The observer over a real engine and hand-set counters: figures, health, pages, and clients that misbehave."""

from __future__ import annotations

import base64
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.unit.observed import SIZE, Observed
from tests.wire.harness import eventually
from vramblk.memory.base import DeviceError
from vramblk.observer import http, processes
from vramblk.observer.metriclist import METRICS
from vramblk.shared.control import ControlWord, State
from vramblk.shared.counters import FLUSH, READ, WRITE
from vramblk.shared.window import CONNECTIONS, SLOT_BYTES, ConnectionState, Word
from vramblk.system import logs

Make = Callable[..., Observed]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Observed] = []

    def start(*arguments: str, **keywords: int) -> Observed:
        directory = tmp_path / str(len(made))
        directory.mkdir()
        made.append(Observed(directory, *arguments, **keywords))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.fixture
def observed(make: Make) -> Observed:
    return make()


def count(
    observed: Observed, window: int, op: int, requests: int, size: int, elapsed_ns: int, export: int = 0
) -> None:
    """Do to the counters what a worker does."""
    counters = observed.shared.windows[window].counters
    counters.cells[counters.request_index(export, op)] += requests
    counters.cells[counters.bytes_index(export, op)] += requests * size
    counters.cells[counters.latency_index(op, elapsed_ns)] += requests
    counters.cells[counters.latency_sum_index(op)] += requests * elapsed_ns


# ---------------------------------------------------------------- figures


def test_counters_are_summed_over_windows(observed: Observed) -> None:
    """Figures are sums over all workers' windows and the canary is in none of them."""
    count(observed, 0, READ, 10, 4096, 30_000)
    count(observed, 1, READ, 5, 512, 70_000)
    count(observed, 1, FLUSH, 2, 0, 1_000_000)
    errors = observed.shared.windows[0].counters
    errors.cells[errors.error_index(0, WRITE, 28)] += 3
    assert observed.get("/healthz")[0] == 200
    metrics = observed.metrics()
    assert metrics['vramblk_requests_total{export="vram",op="read"}'] == 15
    assert metrics['vramblk_bytes_total{export="vram",op="read"}'] == 10 * 4096 + 5 * 512
    assert metrics['vramblk_requests_total{export="vram",op="flush"}'] == 2
    assert metrics['vramblk_request_errors_total{errno="ENOSPC",export="vram",op="write"}'] == 3
    assert metrics['vramblk_request_seconds_count{op="read"}'] == 15
    assert metrics['vramblk_request_seconds_sum{op="read"}'] == pytest.approx(10 * 30e-6 + 5 * 70e-6)
    assert metrics['vramblk_request_seconds_bucket{le="5e-05",op="read"}'] == 10
    assert metrics['vramblk_request_seconds_bucket{le="0.0001",op="read"}'] == 15
    assert metrics["vramblk_batch_requests_count"] >= 1
    assert metrics["vramblk_connections"] == 0


def test_counters_survive_a_worker(observed: Observed) -> None:
    """A window's counters go on when it gets another worker."""
    count(observed, 0, WRITE, 7, 4096, 10_000)
    observed.shared.windows[0].reset()
    assert observed.metrics()['vramblk_requests_total{export="vram",op="write"}'] == 7


def test_every_sample_is_of_a_listed_metric_and_every_steady_metric_is_there(observed: Observed) -> None:
    """/metrics and the table of metrics are the same list, with the same types and labels."""
    families = {family.name: family for family in parse_text(observed.get("/metrics")[1])}
    table = {info.name.removesuffix("_total"): info for info in METRICS}
    assert set(families) <= set(table)
    for name, info in table.items():
        if not info.when:
            assert name in families, name
        if name in families:
            assert families[name].type == info.kind
            for sample in families[name].samples:
                assert set(sample.labels) - {"le"} == set(info.labels), name


def test_openmetrics_on_request(observed: Observed) -> None:
    """A scraper that asks for OpenMetrics gets it, and it parses."""
    _, body, headers = observed.request(
        "GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")
    assert len(list(parse_openmetrics(body))) > 20
    _, _, headers = observed.request("GET", "/metrics")
    assert headers["Content-Type"].startswith("text/plain")


def test_state_metric_is_one_for_one_state(observed: Observed) -> None:
    for state in State:
        observed.control.store(ControlWord.STATE, state)
        found = {
            name: value for name, value in observed.metrics().items() if name.startswith("vramblk_state{")
        }
        assert len(found) == len(State)
        assert [name for name, value in found.items() if value] == [
            f'vramblk_state{{state="{state.name.lower()}"}}'
        ]


def test_written_bytes_and_map(observed: Observed) -> None:
    """Written bytes are counted at the scrape; one written block shows in its cell of the map."""
    blocks = observed.shared.written[0].blocks
    blocks[5:8] = 1
    assert observed.metrics()['vramblk_export_written_bytes{export="vram"}'] == 3 * 4096
    cells = observed.json("/map.json?export=0")
    assert cells["cell_bytes"] == SIZE / 512
    assert [index for index, percent in enumerate(cells["written_percent"]) if percent] == [0]
    assert len(cells["heat"]) == 512
    assert observed.get("/map.json?export=9")[0] == 404


@pytest.mark.parametrize("path", ["/map.json", "/history.json"])
def test_a_query_of_too_many_fields_is_a_bad_request(observed: Observed, path: str) -> None:
    """No traceback, and no error of the server's."""
    status, text = observed.get(f"{path}?{'a=1&' * 9}")
    assert (status, text) == (400, "the query has more than 8 fields\n")


def test_odd_names_of_exports_and_clients_cannot_break_the_exposition(make: Make) -> None:
    """Quotes, newlines and markup in names are escaped in both formats."""
    name = 'a"b\\c\n</script>é'
    observed = make("--export-name", name)
    window = observed.shared.windows[0]
    window.set_connection(0, 1, time.monotonic_ns(), 0, ConnectionState.TRANSMISSION, 'unix:"pid"\n')
    window.store(Word.CONNECTIONS, 1)
    families = {family.name: family for family in parse_text(observed.get("/metrics")[1])}
    assert families["vramblk_export_size_bytes"].samples[0].labels == {"export": name}
    assert families["vramblk_connection_requests"].samples[0].labels["client"] == 'unix:"pid"\n'
    assert observed.json("/status.json")["exports"][0]["name"] == name


def test_heat_is_where_the_requests_are(observed: Observed) -> None:
    """Runs of small requests and large copies warm their ranges, which cool down again."""
    from vramblk.observer.heat import CELLS, Heat
    from vramblk.shared.descriptors import Op
    from vramblk.shared.ring import SubmissionRing

    shared = observed.shared
    observed.stall.set()
    time.sleep(0.05)
    window = shared.windows[0]
    heat = Heat(shared.client_windows)
    ring = SubmissionRing(window, shared.engine_doorbell, shared.control)
    sizes = [(SIZE, SIZE // 4)]
    for column in range(8):  # in the third arena, from its start
        window.columns[:, column] = (column * 256, 0, 256 | 2 << 16)
    ring.push(Op.GATHER, 0, 0, 8, 0, 8 * 4096, 0, 0)
    ring.push(Op.COPY_IN, 0, 0, 1, 0, 1 << 19, SIZE - (1 << 19), 1 << 19)
    window.store(Word.TAIL, ring.tail)
    heat.sample(sizes)
    levels = heat.levels(0)
    assert [cell for cell, level in enumerate(levels) if level] == [CELLS // 2, CELLS - 4]
    assert max(levels) == 9
    for _ in range(200):
        heat.sample(sizes)
    assert heat.levels(0) == [0] * CELLS
    for column in range(8):
        window.columns[:3, column] = (0, 0, 0)
    window.store(Word.TAIL, 0)


def test_gpu_figures_of_amdgpu_and_absence(tmp_path: Path) -> None:
    """What sysfs tells is read in SI units; what it does not tell is absent, and so is a GPU of another driver."""
    from vramblk.observer.gpu import GpuWatch, _amd, canonical

    base = tmp_path / "0000:03:00.0"
    (base / "hwmon" / "hwmon4").mkdir(parents=True)
    assert _amd("0000:03:00.0", tmp_path) is None
    (base / "mem_info_vram_total").write_text("17163091968\n")
    (base / "mem_info_vram_used").write_text("1000000\n")
    (base / "hwmon" / "hwmon4" / "temp1_input").write_text("45000\n")
    (base / "hwmon" / "hwmon4" / "freq1_input").write_text("2450000000\n")
    reading = _amd("0000:03:00.0", tmp_path)
    assert reading is not None
    assert (reading.memory_total_bytes, reading.memory_used_bytes) == (17163091968, 1000000)
    assert reading.memory_free_bytes == 17163091968 - 1000000
    assert (reading.temperature_celsius, reading.power_watts, reading.utilization) == (45.0, None, None)
    assert reading.clocks == {"graphics": 2450000000}
    assert canonical("01:00.0") == "0000:01:00.0" and canonical("00000000:0A:00.0") == "0000:0a:00.0"
    assert canonical("../../etc") is None
    watch = GpuWatch()
    watch.watch({"not an address": 1})
    assert watch.readings() == []


def test_nvml_reads_what_the_driver_tells() -> None:
    """Values come in SI units; what this GPU or this driver does not tell is absent."""
    import pynvml

    from vramblk.observer.gpu import Nvml

    def refuse(*_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def handle_of(address: str) -> str:
        return "handle" if address == "0000:01:00.0" else refuse()

    clocks = {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}
    library = SimpleNamespace(
        NVMLError=pynvml.NVMLError, NVML_TEMPERATURE_GPU=pynvml.NVML_TEMPERATURE_GPU,
        **{name: getattr(pynvml, name) for name in ("NVML_CLOCK_GRAPHICS", "NVML_CLOCK_SM", "NVML_CLOCK_MEM")},
        nvmlDeviceGetHandleByPciBusId=handle_of,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(
            total=80 << 30, used=1 << 30, free=78 << 30
        ),
        nvmlDeviceGetUtilizationRates=refuse,
        nvmlDeviceGetTemperature=lambda handle, kind: 41,
        nvmlDeviceGetPowerUsage=lambda handle: 71500,
        nvmlDeviceGetClockInfo=lambda handle, kind: clocks[kind] if kind in clocks else refuse(),
    )  # fmt: skip
    nvml = Nvml(library)
    assert nvml.read("0000:02:00.0") is None
    reading = nvml.read("0000:01:00.0")
    assert reading is not None
    assert (reading.memory_total_bytes, reading.memory_used_bytes) == (80 << 30, 1 << 30)
    assert reading.memory_free_bytes == 78 << 30
    assert (reading.temperature_celsius, reading.power_watts, reading.utilization) == (41, 71.5, None)
    assert reading.clocks == {"sm": 1_980_000_000, "memory": 2_619_000_000}


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has NVIDIA's driver")
def test_without_a_driver_there_is_no_nvml() -> None:
    from vramblk.observer.gpu import Nvml

    assert Nvml.open() is None


# ---------------------------------------------------------------- health


def test_health_follows_the_engine(observed: Observed) -> None:
    """/healthz is 503 within three seconds while the engine does not answer, and 200 again after."""
    assert observed.get("/healthz")[0] == 200
    observed.stall.set()
    time.sleep(1.1)
    begun = time.monotonic()
    status, text = observed.get("/healthz")
    assert status == 503
    assert "not answered" in text and text.count("\n") == 1
    assert time.monotonic() - begun < 3
    assert observed.metrics()["vramblk_healthy"] == 0
    observed.stall.clear()
    time.sleep(1.1)
    assert observed.get("/healthz")[0] == 200


def test_canary_is_cached_for_a_second(observed: Observed) -> None:
    """Many askers at once cost one read through the engine."""
    executed = observed.memories[0].executed
    threads = [threading.Thread(target=observed.get, args=("/healthz",)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert observed.memories[0].executed - executed == 1


def test_health_reports_a_failing_device(observed: Observed) -> None:
    """A read that fails makes /healthz say so, and a lost device for good."""

    def fail(*_: object) -> None:
        raise DeviceError(5, "made up")

    observed.before = fail
    status, text = observed.get("/healthz")
    assert status == 503 and "EIO" in text
    observed.control.engine_counters.add("device_lost")
    status, text = observed.get("/healthz")
    assert status == 503 and "lost" in text
    codes = [warning["code"] for warning in observed.json("/status.json")["warnings"]]
    assert codes[0] == "device_lost"


def test_health_recovers_a_minute_after_a_device_error(
    observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One failed request is no lasting illness."""
    monkeypatch.setattr("vramblk.observer.sampler.ERROR_SPAN_S", 2.0)
    observed.control.engine_counters.add("device_errors")
    time.sleep(1.2)
    assert observed.get("/healthz")[0] == 503
    time.sleep(2.2)
    assert observed.get("/healthz")[0] == 200


def test_ready_only_in_state_ready(observed: Observed) -> None:
    for state in State:
        observed.control.store(ControlWord.STATE, state)
        assert observed.get("/readyz")[0] == (200 if state is State.READY else 503)


def test_dead_engine_is_neither_ready_nor_healthy(observed: Observed) -> None:
    """A zombie counts as dead."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    observed.control.store(ControlWord.ENGINE_PID, pid)
    try:
        assert observed.get("/readyz")[0] == 503
        assert "dead" in observed.get("/healthz")[1]
    finally:
        os.waitpid(pid, 0)


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_garbage_in_a_window_breaks_no_answer(
    make: Make, monkeypatch: pytest.MonkeyPatch, seed: int | None
) -> None:
    """A faulty worker may write anything: every page still answers, with what can be; no sample is lost."""
    faults: list[str] = []
    monkeypatch.setattr(logs, "limited", lambda _, event, **fields: faults.append(event))
    observed = make("--mode", "swap")
    observed.stall.set()  # what the engine makes of such a ring is its own matter
    time.sleep(0.05)
    window = observed.shared.windows[1]
    end = window.layout.slab_offset
    noise = np.random.default_rng(seed)
    before = len(observed.json("/history.json")["rows"])
    for _ in range(3):
        window.whole[:end] = 0xFF if seed is None else noise.integers(0, 256, end, np.uint8)
        if seed is not None:
            window.store(Word.WORKER_PID, os.getpid())
            for slot in range(CONNECTIONS):
                row = window.whole[window.layout.slots_offset + slot * SLOT_BYTES :]
                row[20] = slot % 5  # a state that is one, for most
                row[21:24] = 0
                row[48:60] = np.frombuffer("unix:pid=\N{SUPERSCRIPT TWO},".encode(), np.uint8)
        for path in ("/status.json", "/metrics", "/history.json", "/map.json"):
            assert observed.get(path)[0] == 200, path
        lines = [line for line in observed.get("/metrics")[1].splitlines() if line[0] != "#"]
        assert len(lines) == len({line.rpartition(" ")[0] for line in lines}), "each sample has its own labels"
        assert observed.get("/healthz")[0] in (200, 503)
        observed.control.store(ControlWord.WORKERS_LOST, 1)
        assert observed.json("/status.json")["workers"][1]["connections"] <= CONNECTIONS
    assert eventually(lambda: len(observed.json("/history.json")["rows"]) >= before + 2)
    assert not faults
    window.whole[:end] = 0


def test_lost_worker_in_swap_mode_is_named(make: Make) -> None:
    """In swap mode /healthz names the client whose worker has died, and the gauge excludes it."""
    observed = make("--mode", "swap")
    window = observed.shared.windows[0]
    window.set_connection(0, 4, time.monotonic_ns(), 0, ConnectionState.TRANSMISSION, "unix:pid=4711,uid=0")
    window.store(Word.CONNECTIONS, 1)
    window.store(Word.WORKER_PID, (1 << 22) + 1)
    observed.control.store(ControlWord.WORKERS_LOST, 1)
    status, text = observed.get("/healthz")
    assert status == 503 and "pid=4711" in text
    assert observed.metrics()["vramblk_connections"] == 0


# ---------------------------------------------------------------- status document


def test_status_document(observed: Observed) -> None:
    """What scripts rely on stands where docs/reference/status.md says."""
    count(observed, 0, READ, 10, 4096, 30_000)
    window = observed.shared.windows[1]
    window.set_connection(3, 77, time.monotonic_ns(), 0, ConnectionState.TRANSMISSION, "tcp:127.0.0.1:5")
    window.traffic(3)[0] = 9
    window.store(Word.CONNECTIONS, 1)
    document = observed.json("/status.json")
    assert (document["schema"], document["state"], document["mode"]) == (1, "ready", "scratch")
    assert document["pid"] == os.getpid()
    assert document["locked_bytes"] == 0
    (export,) = document["exports"]
    assert (export["name"], export["size_bytes"], export["requests"]["read"]) == ("vram", SIZE, 10)
    assert export["device"]["name"] == "a numpy array"
    (connection,) = document["connections"]
    assert (connection["id"], connection["peer"], connection["export"]) == (77, "tcp:127.0.0.1:5", "vram")
    assert connection["requests"] == 9
    assert document["swap_preconditions"] == []
    assert {"code", "severity", "text", "remedy"} == set(document["warnings"][0])
    observed.control.store(ControlWord.STATE, State.DRAINING)
    assert observed.json("/status.json")["drain"] is not None


def test_status_of_a_starting_server(observed: Observed) -> None:
    """Before the engine has published anything the document is whole, and metrics are too."""
    observed.control.store(ControlWord.STATE, State.STARTING)
    observed.control.store(ControlWord.READY_NS, 0)
    observed.control._length[0] = 0
    document = observed.json("/status.json")
    assert document["exports"] == [] and document["uptime_s"] is None and not document["healthy"]
    assert "vramblk_uptime_seconds" not in observed.metrics()


def test_swap_preconditions_are_read_back(make: Make) -> None:
    """Swap mode shows each precondition as it holds now; in this process none of the granted ones does."""
    observed = make("--mode", "swap", "--listen-addr", "127.0.0.1:10809")
    held = {each["name"]: each["ok"] for each in observed.json("/status.json")["swap_preconditions"]}
    assert set(held) == {
        "memory_locked",
        "io_flusher",
        "oom_score",
        "realtime",
        "unix_only",
        "device_memory",
        "min_free",
        "swap_max",
        "memory_limit",
        "huge_pages",
    }
    assert not held["unix_only"] and not held["realtime"] and held["device_memory"]
    assert observed.metrics()['vramblk_swap_precondition{name="unix_only"}'] == 0
    codes = {warning["code"] for warning in observed.json("/status.json")["warnings"]}
    assert "precondition_unix_only" in codes


def test_history_continues_where_it_was_left(observed: Observed) -> None:
    """/history.json gives rates per second, and with since only what is new."""
    time.sleep(1.2)
    count(observed, 0, READ, 1000, 4096, 30_000)
    time.sleep(1.5)
    history = observed.json("/history.json")
    rows = [dict(zip(history["columns"], row, strict=True)) for row in history["rows"]]
    assert sum(row["read_requests"] for row in rows) == pytest.approx(1000, rel=0.1)
    assert any(row["read_p50"] and 25e-6 <= row["read_p50"] <= 50e-6 for row in rows)
    later = observed.json(f"/history.json?since={history['next']}")
    assert len(later["rows"]) <= 1
    assert len(observed.json("/history.json?since=99999")["rows"]) >= len(rows)


# ---------------------------------------------------------------- HTTP


def raw(observed: Observed, text: bytes) -> bytes:
    with observed.connect() as sock:
        sock.sendall(text)
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    return answer


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /nothing HTTP/1.0\r\n\r\n", 404),
        (b"GET /../../etc/passwd HTTP/1.0\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 405),
        (b"DELETE / HTTP/1.0\r\n\r\n", 405),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"GET http://x/ HTTP/1.1\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx : y\r\n\r\n", 400),
        (b"\xff\xfe\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 30000 + b"\r\n\r\n", 431),
    ],
)
def test_strict_grammar(observed: Observed, text: bytes, status: int) -> None:
    """Plain GET and HEAD are served, everything else is refused with its own status."""
    answer = raw(observed, text)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    if text.startswith(b"HEAD"):
        assert answer.endswith(b"\r\n\r\n")


def test_silent_clients_hold_up_nobody(observed: Observed) -> None:
    """A hundred connections that say nothing, or never read, leave room for one that asks."""
    silent = [observed.connect(tcp=index % 2 == 0) for index in range(100)]
    try:
        for sock in silent[::3]:
            with suppress(ConnectionError):  # the oldest are closed when there are too many
                sock.sendall(b"GET /metrics HTTP/1.1\r\n")
        begun = time.monotonic()
        assert observed.get("/healthz")[0] == 200
        assert observed.get("/healthz", tcp=True)[0] == 200
        assert time.monotonic() - begun < 2
    finally:
        for sock in silent:
            sock.close()


def test_slow_sender_meets_one_deadline(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that trickle in do not extend the time for the whole head."""
    monkeypatch.setattr("vramblk.observer.http.READ_TIMEOUT_S", 0.5)
    with observed.connect() as sock:
        begun = time.monotonic()
        answer = b""
        while not answer:
            assert time.monotonic() - begun < 3
            sock.sendall(b"G")
            time.sleep(0.05)
            sock.settimeout(0.01)
            try:
                answer = sock.recv(100)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_token_guards_figures_on_tcp_only(make: Make) -> None:
    """The token opens everything on TCP, as bearer or as a browser's password; health needs none; the socket needs none."""
    observed = make("--metrics-token", "s3cret")

    def basic(password: str) -> str:
        return "Basic " + base64.b64encode(f"any:{password}".encode()).decode()

    for path in ("/", "/metrics", "/status.json", "/history.json", "/map.json", "/nothing"):
        assert observed.get(path, tcp=True)[0] == 401
        for wrong in (
            "Bearer wrong",
            "Bearer",
            "Bearer s3cret2",
            "Basic !!!",
            basic("wrong"),
            "Digest s3cret",
        ):
            assert observed.get(path, tcp=True, Authorization=wrong)[0] == 401
        for right in ("Bearer s3cret", "bearer  s3cret", basic("s3cret")):
            assert observed.get(path, tcp=True, Authorization=right)[0] in (200, 404)
        assert observed.get(path)[0] in (200, 404)
    for path in ("/healthz", "/readyz"):
        assert observed.get(path, tcp=True)[0] == 200
    assert "Basic" in observed.request("GET", "/", tcp=True)[2]["WWW-Authenticate"]
    assert (
        "s3cret" not in observed.get("/status.json")[1] + observed.get("/metrics")[1] + observed.get("/")[1]
    )


def test_foreign_host_names_are_refused(tmp_path: Path) -> None:
    """A web page that resolves its own name to this machine reads nothing, whatever address is listened on."""
    observed = Observed(
        tmp_path, "--metrics-addr", "gpuhost:10810", "--metrics-host", "Exporter", "--metrics-host", "b.example"
    )
    try:
        for host, status in (
            ("evil.example", 403),
            ("evil.example:10810", 403),
            ("127.0.0.1.evil.example", 403),
            ("xlocalhost", 403),
            ("a b", 403),
            ("", 403),
            ("localhost", 200),
            ("LOCALHOST.:10810", 200),
            ("page.localhost", 200),
            ("127.0.0.1:10810", 200),
            ("192.0.2.7:10810", 200),
            ("[::1]:1", 200),
            ("[2001:db8::7]", 200),
            ("gpuhost:10810", 200),
            ("exporter:10810", 200),
            ("B.example", 200),
        ):
            for path in ("/status.json", "/healthz", "/"):
                assert observed.get(path, tcp=True, Host=host)[0] == status, host
        assert b"--metrics-host" in observed.get("/", tcp=True, Host="evil.example")[1].encode()
    finally:
        observed.close()


def test_a_token_proves_more_than_a_name(tmp_path: Path) -> None:
    observed = Observed(tmp_path, "--metrics-token", "s3cret")
    try:
        fields = {"Host": "gpuhost:10810", "Authorization": "Bearer s3cret"}
        assert observed.get("/metrics", tcp=True, **fields)[0] == 200
        assert observed.get("/metrics", tcp=True, Host="gpuhost:10810")[0] == 401
    finally:
        observed.close()


def test_page_has_a_policy_and_reaches_for_nothing_outside(observed: Observed) -> None:
    """The page allows exactly its own script and style, by their hashes."""
    status, body, headers = observed.request("GET", "/")
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy.count("'sha256-") == 2
    assert headers["X-Content-Type-Options"] == "nosniff"
    for forbidden in ("http://", "https://", "@import", "innerHTML", "eval(", "onclick"):
        assert forbidden not in body.replace("http://www.w3.org/2000/svg", ""), forbidden


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("end", "status"), [(b"\x00", 400), (b" \x00 ", 400), (b"x \t", 200)])
def test_a_line_of_blanks_is_answered_at_once(observed: Observed, end: bytes, status: int) -> None:
    """Not after hours: the time that a header takes is in proportion to its length."""
    head = b"GET /healthz HTTP/1.0\r\nA:" + b" " * (http.HEAD_BYTES - 100) + end
    assert raw(observed, head + b"\r\n\r\n").startswith(f"HTTP/1.1 {status} ".encode())


def test_a_crowd_is_taken_in_parts(tmp_path: Path) -> None:
    """One call takes some of the connections that wait; the other listener has its turn before the rest."""
    path = str(tmp_path / "crowd")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(64)
        listener = http.Listener(server, lambda request: http.Response(HTTPStatus.OK, b""))
        clients = [socket.socket(socket.AF_UNIX) for _ in range(20)]
        for client in clients:
            client.connect(path)
        listener.accept()
        assert len(listener._open) == http._ACCEPTS < len(clients)
        listener.accept()
        assert len(listener._open) == len(clients)
        for client in clients:
            client.close()


# ---------------------------------------------------------------- log pump and end


def test_the_log_goes_on_after_a_full_disk(tmp_path: Path) -> None:
    """What could not be written is lost, what comes afterwards is not."""
    from vramblk.observer.logpump import LogPump

    reader, writer = os.pipe()
    target = os.open("/dev/full", os.O_WRONLY)
    pump = LogPump(reader, target)
    os.write(writer, b"lost\n")
    path = tmp_path / "log"
    time.sleep(0.3)
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, target)  # room again
    os.write(writer, b"kept\n")
    eventually(lambda: path.read_bytes() == b"kept\n")
    pump.close()
    for fd in (reader, writer, target, file):
        os.close(fd)


def test_log_pump(tmp_path: Path) -> None:
    """Lines arrive whole and in order; when the target breaks the pipe is still emptied."""
    from vramblk.observer.logpump import LogPump

    reader, writer = os.pipe()
    target, drain = socket.socketpair()
    pump = LogPump(reader, drain.fileno())
    text = b"".join(b"line %d\n" % number for number in range(5000))
    received = bytearray()

    def collect() -> None:
        while len(received) < len(text):
            received.extend(target.recv(65536))

    collector = threading.Thread(target=collect)
    collector.start()
    os.write(writer, text)
    collector.join(5)
    assert bytes(received) == text
    target.close()
    for _ in range(100):
        os.write(writer, b"x" * 4096)
    pump.close()
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    for fd in (reader, writer):
        os.close(fd)
    drain.close()


def test_observer_ends_with_the_supervisor(make: Make) -> None:
    """At the end of the supervisor's socket the observer returns 0, also with a client that is stuck."""
    observed = make()
    stuck = observed.connect()
    begun = time.monotonic()
    observed.supervisor.close()
    observed._threads[1].join(5)
    assert observed.status == [0] and time.monotonic() - begun < 4
    stuck.close()


def test_a_restarted_observer_waits_for_the_old_ones_read(observed: Observed) -> None:
    """A canary that died in flight does not confuse the next one."""
    from vramblk.observer.canary import Canary

    observed.stall.set()
    time.sleep(0.05)
    first = Canary(observed.shared)
    assert first.check().problem
    observed.stall.clear()
    second = Canary(observed.shared)
    assert not second.check().problem


def test_the_device_of_a_connection(tmp_path: Path) -> None:
    """nbd-client connects, forks and ends; the kernel names the child."""
    def attach(number: int, pid: int, *arguments: str) -> None:
        for name, text in ((f"sys/block/nbd{number}/pid", f"{pid}\n"), (f"proc/{pid}/cmdline", "\0".join(arguments))):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    attach(0, 862, "@bd-client", "-unix", "/run/nbd.sock", "/dev/nbd0", "")
    attach(1, 870, "@bd-client", "-unix", "/run/other.sock", "/dev/nbd1", "")
    attach(2, 881, "@bd-client", "-unix", "/run/vramblk-swap/private/nbd.sock", "/dev/nbd2", "")
    (tmp_path / "proc/850").mkdir()

    def found(pid: int) -> str | None:
        return processes.nbd_device_of(f"unix:pid={pid},uid=0", ["/run/nbd.sock"], tmp_path)

    assert found(862) == "/dev/nbd0", "-nofork"
    assert (found(861), found(880)) == ("/dev/nbd0", "/dev/nbd2")
    assert found(865) == "/dev/nbd2", "not the client of another server"
    (tmp_path / "proc/862/cmdline").unlink()
    assert found(861) == "/dev/nbd0", "lost: its client is gone"
    assert found(850) is None, "it lives and waits for nothing"
    assert (found(890), found(0)) == (None, None)
    assert processes.nbd_device_of("tcp:127.0.0.1:5", ["/run/nbd.sock"]) is None
