"""The appliance at work. Needs Docker Engine, a Compose, nbdinfo, nbdcopy (libnbd-bin) and fio with its nbd engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..wire.rawclient import RawClient
from . import docker
from .docker import REPOSITORY, Project, eventually, requires_docker

pytestmark = [pytest.mark.container, requires_docker]

IPC_LOCK = 1 << 14
#: KILL, SETGID and SETUID.
OTHER_UIDS = 7 << 5
ESHUTDOWN = 108


def requires(*programs: str) -> pytest.MarkDecorator:
    missing = [name for name in programs if not shutil.which(name)]
    return pytest.mark.skipif(bool(missing), reason=f"requires {', '.join(missing)}")


@pytest.fixture(scope="module")
def served(image, tmp_path_factory) -> Iterator[Project]:
    """One running server for the tests that leave it as it was."""
    directory = tmp_path_factory.mktemp("served")
    one = Project("vramblktestserved", REPOSITORY, directory, command=docker.any_compose())
    one.seconds = one.start()  # type: ignore[attr-defined]
    yield one
    one.remove()


@contextmanager
def attached(project: Project) -> Iterator[RawClient]:
    """A client in the transmission phase, over the published port."""
    with RawClient(socket.create_connection(("127.0.0.1", project.nbd_port), 10)) as client:
        client.greet()
        client.negotiate("vram")
        yield client


def test_is_healthy_within_ten_seconds(served):
    assert served.seconds < docker.HEALTHY_WITHIN_S


@requires("nbdinfo")
@pytest.mark.parametrize("way", ["uri", "socket_uri"])
def test_is_reached_from_the_host(served, way):
    info = json.loads(docker.run("nbdinfo", "--json", getattr(served, way)).stdout)
    assert info["exports"][0]["export-size"] == 256 << 20


@requires("nbdcopy")
@pytest.mark.parametrize("way", ["uri", "socket_uri"])
def test_bytes_come_back_identical(served, way, tmp_path):
    (tmp_path / "in").write_bytes(os.urandom(32 << 20))
    docker.run("nbdcopy", tmp_path / "in", getattr(served, way))
    docker.run("nbdcopy", getattr(served, way), tmp_path / "out")
    assert (tmp_path / "out").read_bytes()[: 32 << 20] == (tmp_path / "in").read_bytes()


@requires("fio")
@pytest.mark.parametrize("way", ["uri", "socket_uri"])
def test_fio_verifies(served, way, tmp_path):
    docker.run(
        "fio", "--name=verify", "--ioengine=nbd", f"--uri={getattr(served, way)}", "--rw=randwrite", "--bsrange=512-256k",
        "--size=64M", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--output-format=terse",
        cwd=tmp_path,
    )  # fmt: skip


def test_health_metrics_and_status_page_answer_on_loopback(served):
    base = f"http://127.0.0.1:{served.metrics_port}"
    for path in ("/readyz", "/healthz"):
        with urllib.request.urlopen(base + path, timeout=10) as answer:
            assert answer.status == 200
    with urllib.request.urlopen(base + "/metrics", timeout=10) as answer:
        assert b"vramblk_export_size_bytes" in answer.read()


def test_who_can_write_is_warned_of_and_nothing_that_the_container_sets_itself(served):
    """Its ports are published on loopback: every account of the host can write. Nobody has typed --allow-cpu."""
    warnings = {each["code"]: each for each in json.loads(served.exec("vramblk", "status", "--json").stdout)["warnings"]}
    assert "metrics_exposed" not in warnings and "VRAMBLK_LISTEN_ADDR" in warnings["nbd_exposed"]["remedy"]
    assert "give the container a GPU" in warnings["system_ram"]["remedy"]
    assert "nbd_exposed" in served.logs()


def test_man_page_and_completions_are_in_the_image(served):
    done = served.exec("sh", "-c", "cd /opt/vramblk/share && ls man/man1 bash-completion/completions fish/*.d zsh/*")
    for name in ("vramblk.1", "vramblk", "vramblk.fish", "_vramblk"):
        assert name in done.stdout.split()


def test_no_process_has_more_rights_than_it_needs(served):
    """Root's uid and four capabilities for the supervisor, one for the engine; the others are not root."""
    show = "for p in /proc/[0-9]*; do cat $p/comm; grep -h -E '^(Cap|NoNewPrivs|Uid)' $p/status; echo; done"
    found = {}
    for process in served.exec("sh", "-c", show).stdout.split("\n\n"):
        name, _, status = process.strip().partition("\n")
        if name.startswith("vramblk-"):
            found[name] = dict(re.findall(r"^(\w+):\s+(\w+)", status, re.MULTILINE))
    assert {name: found[name]["Uid"] == "0" for name in found} == {
        "vramblk-supervi": True, "vramblk-engine": True, "vramblk-worker": False, "vramblk-observe": False,
    }  # fmt: skip
    allowed = {"vramblk-supervi": IPC_LOCK | OTHER_UIDS, "vramblk-observe": 0}
    for name, status in found.items():
        assert status["NoNewPrivs"] == "1"
        for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
            assert int(status[kind], 16) & ~allowed.get(name, IPC_LOCK) == 0, (name, kind)
    assert "uid_not_changed" not in served.logs()


def test_memory_is_locked(served):
    locked = served.exec("sh", "-c", "cat /proc/[0-9]*/status | grep VmLck").stdout
    assert max(map(int, re.findall(r"(\d+) kB", locked))) > 0


def test_the_supervisor_is_process_one_and_reaps(served):
    """In scratch mode; in swap mode it has to be another: tests/wire/test_process_one.py."""
    assert served.exec("cat", "/proc/1/comm").stdout.startswith("vramblk-superv")
    served.exec("sh", "-c", "(sleep 0.1 &) ; true")
    time.sleep(0.5)
    assert "Z" not in re.findall(
        r"^\d+ \(.*\) (\w)", served.exec("sh", "-c", "cat /proc/[0-9]*/stat").stdout, re.M
    )


def test_the_root_file_system_is_read_only(served):
    done = served.exec("sh", "-c", "touch /x /opt/vramblk/x /etc/x", check=False)
    assert done.returncode != 0
    assert done.stderr.count("Read-only file system") == 3
    assert (
        served.exec(
            "sh", "-c", "touch /tmp/x /var/cache/vramblk/x && rm /tmp/x /var/cache/vramblk/x"
        ).returncode
        == 0
    )


def test_sockets_are_for_owner_and_group_only(served):
    for name in ("nbd.sock", "status.sock"):
        assert (served.run_dir / name).stat().st_mode & 0o777 == 0o660, name


def test_only_loopback_is_published(served):
    ports = docker.inspect(served.container)["NetworkSettings"]["Ports"]
    assert {binding["HostIp"] for bindings in ports.values() for binding in bindings} == {"127.0.0.1"}


def test_logs_are_json_and_announce_ready(served):
    events = [json.loads(line) for line in served.logs().splitlines()]
    assert any(event["event"] == "ready" for event in events)


def test_the_socket_belongs_to_the_group_that_is_asked_for(project):
    one = project(settings={"VRAMBLK_SOCKET_GID": "4321"})
    one.start()
    assert (one.run_dir / "nbd.sock").stat().st_gid == 4321


def test_a_socket_directory_of_somebody_else_is_refused_with_the_command_that_mends_it(project):
    one = project()
    os.chown(one.run_dir, 1234, 1234)
    one.start(wait=False)
    eventually(lambda: docker.inspect(one.container)["State"]["ExitCode"] == 78)
    assert "chown" in one.logs().splitlines()[-1]


def test_settings_come_from_the_environment_a_file_and_yaml(project, tmp_path):
    (tmp_path / "config.yaml").write_text("max_connections: 7\nlisten_addr: [0.0.0.0:10809]\n")
    (tmp_path / "name").write_text("other\n")
    (tmp_path / "more.yaml").write_text(
        "services:\n  vramblk:\n    volumes:\n"
        f"      - {tmp_path}/config.yaml:/etc/vramblk.yaml:ro\n      - {tmp_path}/name:/etc/name:ro\n"
        "    environment:\n      - VRAMBLK_EXPORT_NAME_FILE=/etc/name\n"
    )
    one = project(
        files=[REPOSITORY / "compose.yaml", tmp_path / "more.yaml"],
        settings={"VRAMBLK_CONFIG": "/etc/vramblk.yaml", "VRAMBLK_LISTEN_ADDR": ""},
    )
    one.start()
    shown = json.loads(one.exec("vramblk", "status", "--json").stdout)
    assert shown["max_connections"] == 7
    assert [export["name"] for export in shown["exports"]] == ["other"]
    assert not (one.run_dir / "nbd.sock").exists(), "the YAML file listens on TCP only"
    checked = json.loads(one.exec("vramblk", "check", "--json", check=False).stdout)["settings"]
    sources = {setting["name"]: setting["source"] for setting in checked}
    assert "VRAMBLK_SIZE" in sources["size"]
    assert "/etc/vramblk.yaml" in sources["max_connections"]


def test_a_bad_setting_ends_with_one_line(project):
    one = project(settings={"VRAMBLK_SIZE": "potato"})
    one.start(wait=False)
    eventually(lambda: docker.inspect(one.container)["State"]["ExitCode"] == 2)
    assert "potato" in one.logs().splitlines()[-1]


def test_a_vendor_without_its_gpu_ends_with_the_remedy(project, tmp_path):
    (tmp_path / "vendor.yaml").write_text(
        "services:\n  vramblk:\n    restart: 'no'\n    environment:\n      - VRAMBLK_ALLOW_CPU=off\n"
        "      - OCL_ICD_VENDORS=/etc/OpenCL/vendors/nvidia.icd\n"
    )
    one = project(files=[REPOSITORY / "compose.yaml", tmp_path / "vendor.yaml"])
    one.start(wait=False)
    eventually(lambda: docker.inspect(one.container)["State"]["Status"] == "exited")
    assert docker.inspect(one.container)["State"]["ExitCode"] == 78
    assert "compose.nvidia.yaml" in one.logs().splitlines()[-1]


def test_stop_without_clients_is_quick_and_clean(project):
    one = project()
    one.start()
    began = time.monotonic()
    one.compose("stop")
    assert time.monotonic() - began < 8
    assert docker.inspect(one.container)["State"]["ExitCode"] == 0
    assert not list(one.run_dir.glob("*.sock")), "a clean stop removes the sockets"


def test_stop_with_a_client_drains(project):
    one = project(settings={"VRAMBLK_DRAIN_TIMEOUT": "4s"})
    one.start()
    with attached(one) as client:
        stop = subprocess.Popen(
            [*one.command, "stop"],
            env=docker.environment(one.env),
            cwd=one.directory,
            stderr=subprocess.DEVNULL,
        )
        began = time.monotonic()
        eventually(lambda: '"draining"' in one.logs() or "drain" in one.logs())
        client.submit(0, 0, 4096)
        assert client.wait().error == ESHUTDOWN
        assert stop.wait(60) == 0
        assert 2 < time.monotonic() - began < 12
    assert docker.inspect(one.container)["State"]["ExitCode"] == 0


def test_kill_with_a_client_leaves_nothing_that_stops_the_next_start(project):
    one = project()
    one.start()
    with attached(one):
        docker.run("docker", "kill", one.container)
        assert (one.run_dir / "nbd.sock").exists(), "killed, so the sockets stay"
    assert one.start() < docker.HEALTHY_WITHIN_S
    with attached(one) as client:
        client.submit(0, 0, 4096)
        assert client.wait().data == bytes(4096), "a new server is empty"


def test_an_upgrade_replaces_the_container_and_serves_again(project, image, tmp_path):
    one = project()
    one.start()
    before = one.container
    (tmp_path / "Dockerfile").write_text(f"FROM {image}\nLABEL upgraded=yes\n")
    docker.run("docker", "build", "-q", "-t", "vramblk:upgraded", tmp_path, timeout=300)
    try:
        one.settings["VRAMBLK_IMAGE"] = "vramblk:upgraded"
        one.start()
        assert one.container != before
        with attached(one) as client:
            client.submit(0, 0, 512)
            assert client.wait().error == 0
    finally:
        one.remove()
        docker.run("docker", "image", "rm", "vramblk:upgraded", check=False)


def test_without_a_network_nothing_is_published_and_the_socket_serves(project, tmp_path):
    (tmp_path / "more.yaml").write_text(
        "services:\n  vramblk:\n    network_mode: none\n    environment:\n"
        "      - VRAMBLK_LISTEN_ADDR=unix:/run/vramblk/nbd.sock\n      - VRAMBLK_METRICS_ADDR=off\n"
    )
    one = project(files=[REPOSITORY / "compose.yaml", tmp_path / "more.yaml"])
    one.start()
    assert not docker.inspect(one.container)["NetworkSettings"]["Ports"]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", one.nbd_port), 2)
    if shutil.which("nbdinfo"):
        docker.run("nbdinfo", one.socket_uri)


@pytest.mark.parametrize("implementation", ["docker-compose", "docker compose"])
def test_the_exporter_shows_a_server_without_a_network_and_cannot_touch_it(project, tmp_path, implementation):
    """As for swap mode; whether monitoring comes or goes, the server's container stays the same."""
    (tmp_path / "more.yaml").write_text(
        "services:\n  vramblk:\n    network_mode: none\n    environment:\n"
        "      - VRAMBLK_LISTEN_ADDR=unix:/run/vramblk/nbd.sock\n      - VRAMBLK_METRICS_ADDR=off\n"
    )
    one = project(
        command=docker.compose_command(implementation),
        files=[REPOSITORY / "compose.yaml", tmp_path / "more.yaml"],
        settings={"VRAMBLK_SOCKET_GID": "4321", "VRAMBLK_EXPORTER_PORT": str(docker.free_port())},
    )
    one.start()
    before = docker.inspect(one.container)
    monitoring = [
        "-p", f"{one.name}-monitoring", "--project-directory", ".", "-f", "deploy/monitoring/compose.yaml",
    ]  # fmt: skip
    one.compose(*monitoring, "up", "-d", "exporter")
    try:
        url = f"http://127.0.0.1:{one.settings['VRAMBLK_EXPORTER_PORT']}/metrics"
        assert b'vramblk_state{state="ready"} 1' in eventually(lambda: read(url))
        exporter = one.compose(*monitoring, "ps", "-q", "exporter").stdout.strip()
        assert docker.run("docker", "exec", exporter, "id", "-u").stdout.strip() == "65534"
        refused = docker.run("docker", "exec", exporter, "touch", "/run/vramblk/x", check=False)
        assert "Read-only file system" in refused.stderr
    finally:
        one.compose(*monitoring, "down", "-t", "5")
    after = docker.inspect(one.container)
    assert (after["Id"], after["State"]["Pid"]) == (before["Id"], before["State"]["Pid"])


def test_the_exporter_asks_for_the_token_in_the_file(project, tmp_path):
    """Whatever .env holds for the server; without the file it ends and is not open."""
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    os.chown(token, 65534, -1)
    token.chmod(0o400)
    port = docker.free_port()
    one = project(settings={
        "VRAMBLK_EXPORTER_PORT": str(port), "VRAMBLK_MONITORING_TOKEN_PATH": str(token),
        "VRAMBLK_METRICS_TOKEN": "other", "VRAMBLK_METRICS_TOKEN_FILE": "",
    })  # fmt: skip
    one.start()
    monitoring = [
        "-p", f"{one.name}-monitoring", "--project-directory", ".", "-f", "deploy/monitoring/compose.yaml",
    ]  # fmt: skip
    with_token = [*monitoring, "-f", "deploy/monitoring/compose.token.yaml"]
    one.compose(*with_token, "up", "-d", "exporter")
    try:
        url = f"http://127.0.0.1:{port}/metrics"
        assert b"vramblk_state" in eventually(lambda: read(url, "s3cret"))
        assert read(url) == b"" == read(url, "other")
        one.settings |= {"VRAMBLK_METRICS_TOKEN": "", "VRAMBLK_METRICS_TOKEN_FILE": "/run/secrets/mine"}
        one.compose(*monitoring, "up", "-d", "exporter")
        reason = "VRAMBLK_METRICS_TOKEN_FILE=/run/secrets/mine: the file cannot be read"
        eventually(lambda: reason in one.compose(*monitoring, "logs", "exporter").stdout)
        assert read(url) == b""
    finally:
        one.compose(*with_token, "down", "-t", "5")


def read(url: str, token: str = "") -> bytes:
    """Empty if nothing answers, or refuses."""
    try:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read()
    except OSError:
        return b""


@pytest.mark.parametrize("implementation", ["docker-compose", "docker compose"])
def test_both_implementations_start_it_and_leave_nothing(project, implementation):
    one = project(command=docker.compose_command(implementation))
    assert one.start() < docker.HEALTHY_WITHIN_S
    assert one.clients() == 0
    one.compose("down")
    assert (
        docker.run("docker", "ps", "-aq", "--filter", f"label=com.docker.compose.project={one.name}").stdout
        == ""
    )
    assert docker.run("docker", "network", "ls", "-q", "--filter", f"name={one.name}").stdout == ""


@requires("certtool", "nbdinfo")
def test_tls_from_secrets(project, tmp_path):
    tls = tmp_path / "tls"
    make_certificates(tls)
    one = project(
        files=[REPOSITORY / "compose.yaml", REPOSITORY / "compose.tls.yaml"],
        settings={"VRAMBLK_TLS_DIR": str(tls)},
    )
    one.start()
    uri = f"nbds://127.0.0.1:{one.nbd_port}/vram?tls-certificates={tls}"
    assert docker.run("nbdinfo", "--size", uri).stdout.strip() == str(256 << 20)
    assert docker.run("nbdinfo", "--size", one.uri, check=False).returncode != 0, "plaintext is refused"
    key = "".join((tls / "server-key.pem").read_text().splitlines()[1:3])
    assert key not in one.logs()
    assert key not in one.exec("vramblk", "check", check=False).stdout
    assert key not in json.dumps(docker.inspect(one.container))


def make_certificates(directory: Path) -> None:
    directory.mkdir()

    def certtool(*arguments: str) -> None:
        subprocess.run(["certtool", *arguments], cwd=directory, check=True, capture_output=True)

    (directory / "ca.info").write_text("cn = test\nca\ncert_signing_key\n")
    (directory / "server.info").write_text(
        "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_server\nencryption_key\nsigning_key\n"
    )
    for name in ("ca", "server"):
        certtool("--generate-privkey", "--outfile", f"{name}-key.pem")
    certtool(
        "--generate-self-signed",
        "--load-privkey",
        "ca-key.pem",
        "--template",
        "ca.info",
        "--outfile",
        "ca-cert.pem",
    )
    certtool(
        "--generate-certificate", "--load-ca-certificate", "ca-cert.pem", "--load-ca-privkey", "ca-key.pem",
        "--load-privkey", "server-key.pem", "--template", "server.info", "--outfile", "server-cert.pem",
    )  # fmt: skip
