"""What `make up` chooses, writes and refuses, against a stand-in for docker. Needs a POSIX shell; no Docker."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from .docker import REPOSITORY

pytestmark = pytest.mark.container

# Answers as a daemon on which everything succeeds, unless a file of the test says otherwise.
DOCKER = """#!/bin/sh
echo "docker $*" >>"$TEST/calls"
case "$*" in
    'info '*) cat "$TEST/runtimes" 2>/dev/null || echo '{"runc":{}}' ;;
    'compose ps -q vramblk') cat "$TEST/container" 2>/dev/null || true ;;
    'compose up '*) echo container-id >"$TEST/container" ;;
    'compose config --hash'*) echo 'vramblk new-hash' ;;
    'compose config') printf 'services:\\n  vramblk:\\n    image: vramblk:latest\\n' ;;
    'inspect --format {{.State.Status}} {{.RestartCount}} '*) cat "$TEST/state" 2>/dev/null || echo 'running 0' ;;
    'inspect --format {{.State.Status}} '*) [ -e "$TEST/silent" ] || echo running ;;
    'inspect --format {{.Image}} '*) echo image-id ;;
    'inspect --format {{index .Config.Labels'*) cat "$TEST/hash" 2>/dev/null || echo new-hash ;;
    'inspect --format {{range .Config.Env}}'*) cat "$TEST/env" 2>/dev/null || true ;;
    'image inspect --format {{.Id}} '*) echo image-id ;;
    'exec container-id vramblk status --json') cat "$TEST/status" 2>/dev/null || echo '{"connections": []}' ;;
    'exec -i container-id python'*) shift 4; exec python3 "$@" ;;
    'logs '*) echo 'vramblk: no device; type this' ;;
esac
"""


@dataclass
class Host:
    """A clone of the project, a host root and a docker, all made up."""

    directory: Path

    @property
    def root(self) -> Path:
        return self.directory / "host"

    def write(self, name: str, text: str = "") -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def program(self, name: str, text: str = "#!/bin/sh\n") -> None:
        self.write(f"bin/{name}", text)
        (self.directory / "bin" / name).chmod(0o755)

    def script(self, body: str) -> None:
        """What host/vramblk-swap does; it writes its arguments to the calls first."""
        self.write("clone/host/vramblk-swap", f'#!/bin/sh\necho "vramblk-swap $*" >>"$TEST/calls"\n{body}\n')
        (self.directory / "clone/host/vramblk-swap").chmod(0o755)

    def run(self, command: str = "up", **variables: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.directory / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            [self.directory / "clone/deploy/up.sh", command],
            env={"PATH": path, "TEST": str(self.directory), "VRAMBLK_HOST_ROOT": str(self.root), **variables},
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip

    @property
    def dotenv(self) -> dict[str, str]:
        path = self.directory / "clone/.env"
        lines = path.read_text().splitlines() if path.exists() else []
        return dict(line.split("=", 1) for line in lines if "=" in line)

    @property
    def calls(self) -> str:
        return (self.directory / "calls").read_text()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "clone/deploy").mkdir(parents=True)
    shutil.copy(REPOSITORY / "deploy/up.sh", tmp_path / "clone/deploy")
    (tmp_path / "clone/vramblk").mkdir()
    (tmp_path / "clone/vramblk/__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "host").mkdir()
    made = Host(tmp_path)
    made.script("exit 1")
    made.program("docker", DOCKER)
    made.program("id", "#!/bin/sh\necho 0\n")
    made.program("nvidia-smi", "#!/bin/sh\nexit 9\n")
    return made


def test_without_a_gpu_it_serves_from_memory_and_says_so_loudly(host):
    done = host.run()
    assert done.returncode == 0, done.stderr
    assert host.dotenv == {"COMPOSE_FILE": "compose.yaml", "VRAMBLK_RUNTIMES": "cpu"}
    assert "WARNING: no GPU is used" in done.stdout
    assert "nbdinfo nbd://127.0.0.1:10809/vram" in done.stdout
    assert "COMPOSE_FILE=compose.yaml   (written to .env)" in done.stdout


@pytest.mark.parametrize("sign", ["device node", "nvidia-smi"])
def test_nvidia_with_the_toolkit(host, sign):
    if sign == "device node":
        host.write("host/dev/nvidiactl")
    else:
        host.program("nvidia-smi")
    host.program("nvidia-container-runtime-hook")
    done = host.run()
    assert done.returncode == 0, done.stderr
    assert host.dotenv == {
        "COMPOSE_FILE": "compose.yaml:compose.nvidia.yaml",
        "VRAMBLK_RUNTIMES": "nvidia cpu",
    }
    assert "WARNING" not in done.stdout


def test_nvidia_with_the_old_runtime(host):
    host.write("host/dev/nvidiactl")
    host.write("runtimes", '{"nvidia":{"path":"nvidia-container-runtime"},"runc":{}}')
    assert host.run().returncode == 0
    assert host.dotenv["COMPOSE_FILE"] == "compose.yaml:compose.nvidia-runtime.yaml"


def test_nvidia_that_docker_cannot_pass_on(host):
    host.write("host/dev/nvidiactl")
    if shutil.which("nvidia-container-runtime-hook"):
        pytest.skip("requires a host without nvidia-container-runtime-hook")
    refused(host.run(), 78, "nvidia-container-toolkit")
    assert host.dotenv == {}


def test_amd_with_the_groups_of_its_device_files(host):
    host.write("host/dev/kfd")
    host.write("host/dev/dri/card0")
    os.chown(host.root / "dev/kfd", -1, os.getgid())
    assert host.run().returncode == 0
    assert host.dotenv == {
        "COMPOSE_FILE": "compose.yaml:compose.rocm.yaml",
        "VRAMBLK_RUNTIMES": "amd intel cpu",
        "VRAMBLK_RENDER_GID": str((host.root / "dev/kfd").stat().st_gid),
        "VRAMBLK_VIDEO_GID": str((host.root / "dev/dri/card0").stat().st_gid),
    }


@pytest.mark.parametrize(("vendor", "driver"), [("0x8086", "iris"), ("0x1002", "radeonsi")])
def test_a_render_node_without_kfd_goes_through_rusticl(host, vendor, driver):
    host.write("host/sys/class/drm/renderD128/device/vendor", vendor + "\n")
    host.write("host/dev/dri/renderD128")
    assert host.run().returncode == 0
    assert host.dotenv["COMPOSE_FILE"] == "compose.yaml:compose.intel.yaml"
    assert host.dotenv["RUSTICL_ENABLE"] == driver
    assert host.dotenv["VRAMBLK_RENDER_GID"] == str((host.root / "dev/dri/renderD128").stat().st_gid)


def test_a_choice_in_the_dotenv_file_is_shown_and_kept(host):
    host.write("clone/.env", "VRAMBLK_SIZE=1G\nCOMPOSE_FILE='compose.yaml:mine.yaml'")
    host.write("host/dev/kfd")
    done = host.run()
    assert done.returncode == 0
    assert (
        host.directory / "clone/.env"
    ).read_text() == "VRAMBLK_SIZE=1G\nCOMPOSE_FILE='compose.yaml:mine.yaml'"
    assert "COMPOSE_FILE=compose.yaml:mine.yaml   (as set already" in done.stdout


def test_a_dotenv_file_without_final_newline_is_added_to(host):
    host.write("clone/.env", "VRAMBLK_SIZE=1G")
    assert host.run().returncode == 0
    assert host.dotenv["VRAMBLK_SIZE"] == "1G"
    assert host.dotenv["COMPOSE_FILE"] == "compose.yaml"


def test_a_second_time_changes_nothing(host):
    host.run()
    before = (host.directory / "clone/.env").read_text()
    assert host.run().returncode == 0
    assert (host.directory / "clone/.env").read_text() == before


def test_tls_adds_its_file(host):
    assert host.run(VRAMBLK_TLS="require").returncode == 0
    assert host.dotenv["COMPOSE_FILE"] == "compose.yaml:compose.tls.yaml"


def test_swap_adds_its_file_last(host):
    host.write("host/dev/kfd")
    done = host.run(VRAMBLK_MODE="swap")
    assert done.returncode == 0, done.stderr
    assert host.dotenv["COMPOSE_FILE"] == "compose.yaml:compose.rocm.yaml:compose.swap.yaml"
    assert "vramblk-swap up" in done.stdout


@pytest.mark.parametrize("dotenv", ["VRAMBLK_MODE=swap\n", "COMPOSE_FILE=compose.yaml:compose.swap.yaml\n"])
def test_swap_is_refused_without_a_gpu(host, dotenv):
    host.write("clone/.env", dotenv)
    refused(host.run(), 78, "swap mode needs a GPU")
    assert (host.directory / "clone/.env").read_text() == dotenv
    assert "build" not in host.calls


def test_swap_mode_without_its_compose_file_is_refused(host):
    host.write("clone/.env", "VRAMBLK_MODE=swap\nCOMPOSE_FILE=compose.yaml:compose.nvidia.yaml\n")
    refused(host.run(), 2, "compose.swap.yaml")


def test_an_outdated_container_with_clients_is_not_replaced(host):
    host.write("container", "container-id\n")
    host.write("hash", "old-hash\n")
    host.write("status", '{"connections": [1, 2, 3]}')
    refused(host.run(), 1, "clients are attached (3)")
    assert "compose up" not in host.calls


def test_an_outdated_container_without_clients_is_replaced(host):
    host.write("container", "container-id\n")
    host.write("hash", "old-hash\n")
    assert host.run().returncode == 0
    assert "compose up -d --no-build" in host.calls


def test_an_unchanged_container_is_left_alone_whoever_is_attached(host):
    host.write("container", "container-id\n")
    host.write("status", '{"connections": [1, 2, 3]}')
    assert host.run().returncode == 0


@pytest.mark.parametrize("command", ["up", "down"])
@pytest.mark.parametrize("status", ['{"connections": [1]}', "no answer"])
def test_a_swap_server_with_clients_or_without_an_answer_is_left_alone(host, command, status):
    host.write("host/dev/kfd")
    host.write("container", "container-id\n")
    host.write("hash", "old-hash\n")
    host.write("env", "VRAMBLK_MODE=swap\n")
    host.write("status", status)
    refused(host.run(command, VRAMBLK_MODE="swap"), 1, "vramblk-swap")
    assert "compose up" not in host.calls
    assert "compose down" not in host.calls


def test_swap_1_starts_the_server_and_then_swap(host):
    host.write("host/dev/kfd")
    host.script("exit 0")
    done = host.run(SWAP="1")
    assert done.returncode == 0, done.stderr
    assert host.dotenv["COMPOSE_FILE"].endswith("compose.swap.yaml")
    assert host.calls.index("compose up -d") < host.calls.index("vramblk-swap up")


def test_mapped_memory_is_not_called_the_hosts(host):
    """No GPU, but a PCI BAR or the like: swap is allowed, and the warning about main memory would be wrong."""
    host.script("exit 0")
    host.write("clone/.env", "VRAMBLK_DEVICE=map:/dev/dax0.0\n")
    done = host.run(SWAP="1")
    assert done.returncode == 0
    assert "no GPU is used" not in done.stdout


def test_swap_1_says_when_only_swap_fails(host):
    host.write("host/dev/kfd")
    refused(host.run(SWAP="1"), 1, "swap is not on")


def test_swap_with_another_value_is_refused(host):
    refused(host.run(SWAP="yes"), 2, "SWAP=yes")


def test_swap_1_without_a_gpu_starts_nothing(host):
    refused(host.run(SWAP="1"), 78, "swap mode needs a GPU")
    assert "compose up" not in host.calls


def test_down_takes_swap_off_first(host):
    host.write("container", "container-id\n")
    host.write("env", "VRAMBLK_MODE=swap\n")
    host.write("status", '{"connections": [1]}')
    host.script("""echo '{"connections": []}' >"$TEST/status" """)
    done = host.run("down")
    assert done.returncode == 0, done.stderr
    assert host.calls.index("vramblk-swap down") < host.calls.index("compose down")


def test_down_leaves_the_container_alone_if_swap_stays_on(host):
    host.write("container", "container-id\n")
    host.write("env", "VRAMBLK_MODE=swap\n")
    host.write("status", '{"connections": [1]}')
    refused(host.run("down"), 1, "swap cannot be taken off")
    host.script("exit 0")  # says that it worked, but a client is still there
    refused(host.run("down"), 1, "clients are attached (1)")
    assert "compose down" not in host.calls


def test_the_host_script_is_told_what_is_not_as_usual(host):
    host.write("host/dev/kfd")
    host.write("clone/.env", "VRAMBLK_RUN_DIR=/srv/run\nVRAMBLK_EXPORT_NAME=fast one\n")
    host.script('env | grep -E "^VRAMBLK_(NBD_SOCKET|STATUS_SOCKET|EXPORT_NAME)=" | sort >>"$TEST/calls"')
    assert host.run(SWAP="1").returncode == 0
    assert host.calls.splitlines()[-3:] == [
        "VRAMBLK_EXPORT_NAME=fast one", "VRAMBLK_NBD_SOCKET=/srv/run/nbd.sock",
        "VRAMBLK_STATUS_SOCKET=/srv/run/status.sock",
    ]  # fmt: skip


def test_a_swap_server_that_was_there_before_is_never_stopped_by_up(host):
    """Unhealthy, or Compose fails: its swap may be live, and Docker would kill it after the grace period."""
    host.write("host/dev/kfd")
    host.write("container", "container-id\n")
    host.write("env", "VRAMBLK_MODE=swap\n")
    host.write("state", "running 1\n")
    done = host.run(VRAMBLK_MODE="swap")
    assert done.returncode == 1 and "left alone" in done.stderr
    assert "compose stop" not in host.calls
    host.program("docker", DOCKER.replace("'compose up '*) ", "'compose up '*) exit 1;"))
    refused(host.run(VRAMBLK_MODE="swap"), 1, "left alone")
    assert "compose stop" not in host.calls


@pytest.mark.parametrize("answer", ["", "container-id\n"])
def test_down_believes_the_hosts_records_before_docker(host, answer):
    """Docker that gives no answer, as where memory is short, is not taken for a server without swap."""
    host.write("container", answer)
    host.write("host/run/vramblk-swap/records", "swapon /dev/nbd0\n")
    refused(host.run("down"), 1, "swap cannot be taken off")
    assert "compose down" not in host.calls
    host.script("exit 0")
    assert host.run("down").returncode == 0
    assert host.calls.index("vramblk-swap down") < host.calls.index("compose down")


def test_down_stops_no_container_whose_state_is_not_told(host):
    host.write("container", "container-id\n")
    host.write("silent")
    refused(host.run("down"), 1, "does not tell the state")
    assert "compose down" not in host.calls


def test_a_server_that_ends_is_stopped_and_its_last_line_shown(host):
    host.write("state", "restarting 1\n")
    done = host.run()
    assert done.returncode == 1
    assert "vramblk: no device; type this\n" in done.stderr
    assert "docker compose stop" in host.calls


def test_without_compose_it_names_the_package(host):
    host.program("docker", DOCKER.replace("case", '[ "$1" != compose ] || exit 1\ncase', 1))
    host.program("docker-compose", "#!/bin/sh\nexit 0\n")
    done = host.run("logs")
    assert done.returncode == 0, done.stderr


def test_a_daemon_that_does_not_answer(host):
    host.program("docker", "#!/bin/sh\nexit 1\n")
    refused(host.run(), 78, "systemctl start docker")


def test_an_unknown_command(host):
    refused(host.run("sideways"), 2, "usage")


def refused(done: subprocess.CompletedProcess[str], status: int, words: str) -> None:
    assert done.returncode == status, (done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr
