"""``vramblk check`` tells what is there, what is missing and what to do, and leaves everything as it was."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vramblk.commands import check, probes
from vramblk.commands.probes import MISSING, OK, UNNEEDED, WARNING, Requirement
from vramblk.config.settings import load_settings
from vramblk.config.units import TcpAddress
from vramblk.errors import PreconditionError
from vramblk.memory import devices
from vramblk.memory.devices import DeviceInfo

ROOT = Path(__file__).resolve().parents[2]
_PR_CAPBSET_DROP = 24  # prctl.h


def examine(*argv: str, **environ: str) -> dict[str, Requirement]:
    return {found.name: found for found in check.examine(load_settings(argv, environ))}


@pytest.fixture
def device() -> Iterator[str]:
    """A file in RAM of 64 MiB, as a ``map:`` device."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        os.truncate(file.name, 64 << 20)
        yield f"map:{file.name}"


def as_child(*argv: str, unprivileged: bool = False, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""

    def drop() -> None:
        """Without a bounding set, exec gives root no capability; its own files it can still read."""
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
        libc = ctypes.CDLL(None)
        for capability in range(64):
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)

    clean = {name: value for name, value in os.environ.items() if not name.startswith("VRAMBLK_")}
    return subprocess.run(
        [sys.executable, "-m", "vramblk", "check", *argv], cwd=ROOT, env=clean | environ,
        capture_output=True, text=True, preexec_fn=drop if unprivileged else None,
    )  # fmt: skip


def test_values_are_shown_with_their_source_and_secrets_are_not(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    psk = tmp_path / "psk"
    psk.write_text("alice:0123456789abcdef0123456789abcdef\n")
    config = tmp_path / "c.yaml"
    config.write_text("workers: 3\n")
    argv = ["--device", device, "--size", "32M", "--config", str(config), "--listen-addr", "127.0.0.1:0"]
    settings = load_settings(argv, {"VRAMBLK_METRICS_TOKEN": "hunter2", "VRAMBLK_TLS": "off", "VRAMBLK_TLS_PSK": str(psk)})
    assert check.run(settings, json=True) == 0
    text = capsys.readouterr().out
    result = json.loads(text)
    shown = {row["name"]: (row["value"], row["source"]) for row in result["settings"]}
    assert shown["size"] == ("32M", "flag --size")
    assert shown["workers"] == ("3", f"{config} key workers")
    assert shown["metrics_token"] == ("(hidden)", "environment VRAMBLK_METRICS_TOKEN")
    assert shown["tls_psk"] == (str(psk), "environment VRAMBLK_TLS_PSK")
    assert shown["drain_timeout"] == ("5s", "default")
    assert "hunter2" not in text
    assert "0123456789abcdef" not in text
    assert result["ok"]
    check.run(settings, json=False)
    table = capsys.readouterr().out
    assert "hunter2" not in table
    assert all(name in table for name in shown)


def test_a_size_that_is_rounded_up_is_said(device: str) -> None:
    found = examine("--device", device, "--size", "5000", "--listen-addr", "127.0.0.1:0")
    assert found["size"].state == "ok"
    assert "5000 bytes" in found["size"].detail and "8K" in found["size"].detail
    assert "size" not in examine("--device", device, "--size", "8192", "--listen-addr", "127.0.0.1:0")


def test_exit_status_is_78_if_something_is_missing(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = load_settings(["--device", device, "--size", "65M", "--listen-addr", "127.0.0.1:0"], {})
    assert check.run(settings, json=True) == 78
    result = json.loads(capsys.readouterr().out)
    assert not result["ok"]
    (missing,) = [row for row in result["requirements"] if row["state"] == "missing"]
    assert missing["name"] == "device"
    assert "65 MiB" in missing["detail"]
    assert "64 MiB" in missing["detail"]
    assert missing["remedy"]


def test_every_missing_requirement_has_a_remedy_in_swap_mode(device: str) -> None:
    done = as_child("--mode", "swap", "--device", device, "--size", "max", "--json", unprivileged=True)
    assert done.returncode == 78, done.stderr
    found = {row["name"]: row for row in json.loads(done.stdout)["requirements"]}
    if os.geteuid() == 0:
        for name in ("mlock limit", "IO_FLUSHER", "oom score", "SCHED_FIFO"):
            assert found[name]["state"] == "missing"
    assert "127.0.0.1:10809" in found["Unix sockets"]["detail"]
    for row in found.values():
        assert row["remedy"] or row["state"] != "missing" or row["name"] == "device"


def test_scratch_mode_does_not_ask_for_what_only_swap_needs(device: str) -> None:
    done = as_child(
        "--device", device, "--size", "1M", "--listen-addr", "127.0.0.1:0", "--json", unprivileged=True
    )
    found = {row["name"]: row["state"] for row in json.loads(done.stdout)["requirements"]}
    assert found["mlock limit"] in ("ok", "warning")
    for name in ("IO_FLUSHER", "oom score", "SCHED_FIFO"):
        assert found[name] == "unneeded", "ok would claim that it is there"


def test_probes_leave_the_process_as_it_was() -> None:
    def state() -> tuple[str, int, int]:
        score = Path("/proc/self/oom_score_adj").read_text()
        return (
            score,
            os.sched_getscheduler(0),
            int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[6]),
        )

    before = state()
    assert {found.state for found in probes.of_the_kernel(load_settings(["--mode", "swap"], {}))} <= {
        OK,
        MISSING,
    }
    assert {found.state for found in probes.of_the_kernel(load_settings([], {}))} <= {OK, UNNEEDED, WARNING}
    assert state() == before


def test_what_can_bite_swap_is_a_warning() -> None:
    found = list(probes.hazards(load_settings(["--mode", "swap"], {})))
    assert [row.name for row in found] == ["min free", "swap max", "memory limit", "huge pages"]
    assert all(row.state == (WARNING if row.remedy else OK) for row in found)
    assert not list(probes.hazards(load_settings([], {})))


def test_stdout_carries_the_result_only(device: str) -> None:
    done = as_child(
        "--device", device, "--size", "1M", "--listen-addr", "127.0.0.1:0", "--json", VRAMBLK_SIZ="x"
    )
    result = json.loads(done.stdout)
    assert done.stderr == ""
    (warning,) = [row for row in result["requirements"] if row["name"] == "variable"]
    assert warning["state"] == "warning"
    assert "VRAMBLK_SIZE" in warning["remedy"]


def test_busy_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = TcpAddress("127.0.0.1", server.getsockname()[1])
        found = probes.port("port", "listen_addr", address)
        assert found.state == MISSING
        assert str(address) in found.detail
        assert "ss -ltnp" in found.remedy
    assert probes.port("port", "listen_addr", address).state == OK
    assert probes.port("port", "listen_addr", TcpAddress("192.0.2.1", 10809)).state == MISSING
    assert probes.port("port", "listen_addr", TcpAddress("no-such-host.invalid", 10809)).state == MISSING


def test_socket_paths(tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    assert probes.socket_path("socket", str(path), required=True).state == OK
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        live = probes.socket_path("socket", str(path), required=True)
        assert live.state == MISSING
        assert "answers" in live.detail
        assert probes.socket_path("socket", str(path), required=False).state == WARNING
    stale = probes.socket_path("socket", str(path), required=True)
    assert stale.state == OK
    assert "stale" in stale.detail
    assert path.exists()
    path.unlink()
    path.write_text("precious")
    assert probes.socket_path("socket", str(path), required=True).state == MISSING
    missing = probes.socket_path("socket", str(tmp_path / "none" / "s"), required=True)
    assert missing.remedy == f"mkdir -p {tmp_path / 'none'}"
    assert probes.socket_path("socket", str(path / "s"), required=True).state == MISSING


@pytest.mark.skipif(os.geteuid() != 0, reason="requires root")
def test_a_directory_that_only_root_can_make_is_made_with_sudo() -> None:
    """The remedy is one that this user can carry out."""

    def asked(path: str) -> str:
        script = (
            "import os; from vramblk.commands import probes; os.setgroups([]); os.setresgid(65534, 65534, 65534);"
            f"os.setresuid(65534, 65534, 65534); print(probes.socket_path('s', {path!r}, required=True).remedy)"
        )
        return subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert asked("/run/none/of/these/s") == "sudo install -d -o 65534 /run/none/of/these"
    assert asked("/dev/shm/none/s") == "mkdir -p /dev/shm/none"
    assert asked("/run/s") == "sudo chown 65534 /run"


def test_the_last_line_is_the_verdict(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    for size, expected in (
        ("65M", "the server would not start; missing: device"),
        ("64M", "the server would start"),
    ):
        check.run(load_settings(["--device", device, "--size", size, "--listen-addr", "127.0.0.1:0"], {}), json=False)
        assert capsys.readouterr().out.splitlines()[-1].startswith(expected)
    rows = [Requirement("a", OK, ""), Requirement("b", WARNING, ""), Requirement("c", UNNEEDED, "")]
    assert check.verdict(rows) == "the server would start, with warnings: b"
    assert check.verdict([*rows, rows[1]]) == "the server would start, with warnings: b"
    assert check.verdict(rows[:1]) == "the server would start"


@pytest.mark.skipif(os.geteuid() != 0, reason="requires root")
def test_socket_directory_of_somebody_else(tmp_path: Path, device: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o755)
    os.chown(folder, 65534, 65534)
    done = as_child(
        "--device", device, "--size", "1M", "--listen-addr", f"unix:{folder}/s", "--json", unprivileged=True
    )
    found = {row["name"]: row for row in json.loads(done.stdout)["requirements"]}
    assert found["socket directory"]["remedy"] == f"chown 0 {folder}"


def test_mapped_devices(tmp_path: Path, device: str) -> None:
    assert examine("--device", device, "--size", "max")["device"].state == OK
    assert "not needed" in examine("--device", device, "--size", "max")["loader"].detail
    assert examine("--device", f"map:{tmp_path}", "--size", "1M")["device"].state == MISSING
    assert examine("--device", f"map:{tmp_path}/none", "--size", "1M")["device"].state == MISSING
    assert examine("--device", "map:/dev/zero", "--size", "50%")["device"].state == MISSING
    assert examine("--device", "map:/dev/zero", "--size", "1M")["device"].state == OK


def test_tls_files_that_are_missing(tmp_path: Path, device: str) -> None:
    found = examine("--device", device, "--size", "1M", "--tls", "on", "--tls-certificates", str(tmp_path))[
        "tls"
    ]
    assert found.state == MISSING
    assert "server-cert.pem" in found.detail


def info(**changes: Any) -> DeviceInfo:
    gpu = DeviceInfo(0, 0, "CUDA", "H200", "GPU", "NVIDIA", "580", 64 << 30, 16 << 30, "0000:01:00.0", None)
    return dataclasses.replace(gpu, **changes)


CPU = info(platform_index=1, platform="PoCL", name="EPYC", type="CPU", memory_bytes=8 << 30, pci_address=None)


@pytest.mark.parametrize(
    ("found", "argv", "states"),
    [
        ([info()], ["--size", "2G"], {"device": OK, "memory": OK}),
        ([info()], ["--size", "max"], {"device": OK, "memory": OK}),
        ([info()], ["--size", "65G"], {"device": OK, "memory": MISSING}),
        ([info()], ["--device", "7"], {"device": MISSING}),
        ([CPU], [], {"device": MISSING}),
        ([CPU], ["--allow-cpu"], {"device": WARNING, "memory": OK}),
        ([CPU], ["--allow-cpu", "--mode", "swap"], {"device": MISSING}),
        ([CPU, info()], ["--mode", "swap"], {"device": OK}),
        ([], [], {"platforms": MISSING}),
    ],
)
def test_opencl_devices(
    found: list[DeviceInfo], argv: list[str], states: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "load_opencl", lambda: types.SimpleNamespace(VERSION_TEXT="1"))
    monkeypatch.setattr(devices, "discover", lambda: found)
    rows = examine(*argv)
    assert {name: rows[name].state for name in states} == states
    assert all(row.remedy for row in rows.values() if row.state == MISSING)


RUSTICL = info(platform="rusticl", name="Intel Arc", vendor="Intel")


@pytest.mark.parametrize(("found", "warned"), [(RUSTICL, True), (info(), False)])
def test_swap_on_rusticl_is_not_proven(
    found: DeviceInfo, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was seen to open files at each launch, which may wait for the swap that it serves; scratch mode may."""
    monkeypatch.setattr(devices, "load_opencl", lambda: types.SimpleNamespace(VERSION_TEXT="1"))
    monkeypatch.setattr(devices, "discover", lambda: [found])
    rows = examine("--mode", "swap", "--listen-addr", "unix:/tmp/socket")
    assert rows["device"].state == OK
    assert ("runtime" in rows) == warned
    if warned:
        assert rows["runtime"].state == WARNING
        assert "rusticl" in rows["runtime"].detail
    assert "runtime" not in examine()


def test_no_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PreconditionError("pyopencl cannot be loaded")

    monkeypatch.setattr(devices, "load_opencl", refuse)
    assert examine()["loader"].state == MISSING
