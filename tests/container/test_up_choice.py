"""What `make up` chooses, writes and refuses, against a stand-in for docker. Needs a POSIX shell; no Docker."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import time
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
    'compose ps -a -q vramblk')
        [ ! -e "$TEST/ps-fails" ] || { cat "$TEST/ps-fails" >&2; exit 1; }
        cat "$TEST/container" 2>/dev/null || true ;;
    'compose build') [ ! -e "$TEST/build" ] || . "$TEST/build" ;;
    'compose up '*) echo container-id >"$TEST/container"; rm -f "$TEST/stopped" ;;
    'compose -f - config') [ ! -e "$TEST/compose" ] || exec $(cat "$TEST/compose") -f - config; exec python3 "$TEST/ask" ;;
    'compose config --hash'*) echo 'vramblk new-hash' ;;
    'compose config') printf 'services:\\n  vramblk:\\n    image: vramblk:latest\\n'; cat "$TEST/config" 2>/dev/null ;;
    'inspect --format {{.State.Status}} {{.RestartCount}} '*) cat "$TEST/state" 2>/dev/null || echo 'running 0' ;;
    'inspect --format {{.State.Status}} '*)
        if [ -e "$TEST/stopped" ]; then echo exited; elif ! [ -e "$TEST/silent" ]; then
            cat "$TEST/status-of-container" 2>/dev/null || echo running; fi ;;
    'ps -q --no-trunc --filter label=com.docker.compose.service=vramblk') cat "$TEST/servers" 2>/dev/null || true ;;
    *.Mounts*) echo /run/vramblk ;;
    *NetworkSettings.Ports*) cat "$TEST/ports" 2>/dev/null || printf '10809/tcp 10809\n10810/tcp 10810\n' ;;
    'inspect --format {{.Image}} '*) cat "$TEST/image" 2>/dev/null || echo image-id ;;
    'inspect --format {{index .Config.Labels'*) cat "$TEST/hash" 2>/dev/null || echo new-hash ;;
    'inspect --format {{range .Config.Env}}'*) cat "$TEST/env" 2>/dev/null || echo PATH=/bin ;;
    'image inspect --format {{.Id}} '*) echo image-id ;;
    'exec container-id vramblk status --json') cat "$TEST/status" 2>/dev/null || echo '{"connections": []}' ;;
    'exec container-id vramblk status --health') [ ! -e "$TEST/ill" ] || { cat "$TEST/ill"; exit 1; } ;;
    'exec -i container-id python'*) shift 4; exec python3 "$@" ;;
    'logs '*) [ -e "$TEST/wordless" ] || echo 'vramblk: no device; type this' ;;
esac
"""

# What Compose answers when it is asked for variables, with the simplest grammar of .env.
ASK = """import os, re, sys
lines = open(".env").read().splitlines() if os.path.exists(".env") else []
known = dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")
known = {name: value.strip("'\\"") for name, value in known.items()} | dict(os.environ)
for name in re.findall(r"\\$\\{(\\w+)-\\}", sys.stdin.read()):
    print(f"      {name}: '[{known.get(name, '')}]'")
"""

# Without the unit, unless a file of the test says otherwise.
SYSTEMCTL = """#!/bin/sh
echo "systemctl $*" >>"$TEST/calls"
case "$*" in
    'is-enabled --quiet vramblk-swap.service') [ -e "$TEST/unit-enabled" ] ;;
    'is-active --quiet vramblk-swap.service') [ -e "$TEST/unit-active" ] ;;
    'start vramblk-swap.service') [ ! -e "$TEST/unit-ill" ] && touch "$TEST/unit-active" ;;
    'stop vramblk-swap.service') [ ! -e "$TEST/unit-ill" ] && rm "$TEST/unit-active" ;;
    *) exit 99 ;;
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

    @property
    def temporary(self) -> Path:
        return self.directory / "tmp"

    def environment(self, **variables: str) -> dict[str, str]:
        return {
            "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}",
            "TEST": str(self.directory),
            "TMPDIR": str(self.temporary),
            "VRAMBLK_HOST_ROOT": str(self.root),
            **variables,
        }

    @property
    def up_sh(self) -> Path:
        return self.directory / "clone/deploy/up.sh"

    def run(self, command: str = "up", **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.up_sh, command],
            env=self.environment(**variables), capture_output=True, text=True, timeout=30,
        )  # fmt: skip

    def listens(self, address: str, port: int, table: str = "tcp") -> None:
        """Adds a listener to the host's table; `address` in the kernel's hexadecimal."""
        path = self.root / "proc/net" / table
        lines = path.read_text() if path.exists() else "  sl  local_address rem_address   st\n"
        self.write(
            f"host/proc/net/{table}", f"{lines}   0: {address}:{port:04X} {'0' * len(address)}:0000 0A 0:0\n"
        )

    def certificates(self, directory: str = "clone/tls") -> None:
        for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
            self.write(f"{directory}/{name}")

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
    shutil.copytree(REPOSITORY / "deploy/lib", tmp_path / "clone/deploy/lib")
    shutil.copy(REPOSITORY / "deploy/up.sh", tmp_path / "clone/deploy")
    (tmp_path / "clone/vramblk").mkdir()
    (tmp_path / "clone/vramblk/__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "host").mkdir()
    (tmp_path / "tmp").mkdir()
    made = Host(tmp_path)
    made.script("exit 1")
    made.program("docker", DOCKER)
    made.write("ask", ASK)
    made.program("id", "#!/bin/sh\necho 0\n")
    made.program("systemctl", SYSTEMCTL)
    made.program("nvidia-smi", "#!/bin/sh\nexit 9\n")
    return made


def test_without_a_gpu_it_serves_from_memory_and_says_so_loudly(host):
    done = host.run()
    assert done.returncode == 0, done.stderr
    assert host.dotenv == {"COMPOSE_FILE": "compose.yaml"}
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


def test_a_choice_that_was_deleted_is_made_anew_for_a_gpu_that_has_come(host):
    """With the runtimes of the first choice the image would lack the GPU's: each compose file names its own."""
    assert host.run().returncode == 0
    path = host.directory / "clone/.env"
    path.write_text(path.read_text().replace("\nCOMPOSE_FILE=compose.yaml\n", "\n"))
    host.write("host/dev/kfd")
    assert host.run().returncode == 0
    assert host.dotenv["COMPOSE_FILE"] == "compose.yaml:compose.rocm.yaml"
    assert "VRAMBLK_RUNTIMES" not in host.dotenv


def test_a_second_time_changes_nothing(host):
    host.run()
    before = (host.directory / "clone/.env").read_text()
    assert host.run().returncode == 0
    assert (host.directory / "clone/.env").read_text() == before


def test_tls_adds_its_file(host):
    host.certificates()
    assert host.run(VRAMBLK_TLS="require").returncode == 0
    assert host.dotenv["COMPOSE_FILE"] == "compose.yaml:compose.tls.yaml"


def test_swap_adds_its_file_last(host):
    host.write("host/dev/kfd")
    done = host.run(VRAMBLK_MODE="swap")
    assert done.returncode == 0, done.stderr
    assert host.dotenv["COMPOSE_FILE"] == "compose.yaml:compose.rocm.yaml:compose.swap.yaml"
    assert "vramblk-swap up" in done.stdout
    assert "make exporter, then http://127.0.0.1:10811/" in done.stdout, "there is no other way to its metrics"
    assert "http://127.0.0.1:2000/" in host.run(VRAMBLK_MODE="swap", VRAMBLK_EXPORTER_PORT="2000").stdout


@pytest.mark.parametrize("dotenv", ["VRAMBLK_MODE=swap\n", "COMPOSE_FILE=compose.yaml:compose.swap.yaml\n"])
def test_swap_is_refused_without_a_gpu(host, dotenv):
    host.write("clone/.env", dotenv)
    refused(host.run(), 78, "swap mode needs a GPU")
    assert (host.directory / "clone/.env").read_text() == dotenv
    assert "build" not in host.calls


def test_swap_mode_without_its_compose_file_is_refused(host):
    host.write("clone/.env", "VRAMBLK_MODE=swap\nCOMPOSE_FILE=compose.yaml:compose.nvidia.yaml\n")
    refused(
        host.run(),
        2,
        "VRAMBLK_MODE=swap, but COMPOSE_FILE=compose.yaml:compose.nvidia.yaml lacks compose.swap.yaml",
    )
    refused(host.run(SWAP="1"), 2, "SWAP=1, but COMPOSE_FILE")


@pytest.fixture
def real_compose(host: Host) -> Host:
    """A host where the real Compose is asked what .env means; no daemon is needed for that."""
    for command in ("docker compose", "docker-compose"):
        program = shutil.which(command.split()[0])
        if program is None:
            continue
        whole = [program, *command.split()[1:]]
        if subprocess.run([*whole, "version"], capture_output=True, check=False).returncode == 0:
            host.write("compose", " ".join(whole))
            return host
    pytest.skip("requires Docker Compose")


@pytest.mark.parametrize(
    "dotenv",
    [
        "VRAMBLK_MODE=swap # tonight\n",
        "export VRAMBLK_MODE=swap\n",
        "VRAMBLK_MODE = swap\n",
        "  VRAMBLK_MODE=swap  \n",
        "VRAMBLK_MODE='swap' # quoted\n",
        'VRAMBLK_MODE="swap"\r\n',
        "MINE=swap\nVRAMBLK_MODE=${MINE}\n",
        "VRAMBLK_MODE=scratch\nVRAMBLK_MODE=swap\n",
    ],
)
def test_the_dotenv_file_means_what_compose_makes_of_it(real_compose, dotenv):
    """Swap mode that Compose sees is refused without a GPU, and gets its file with one."""
    real_compose.write("clone/.env", dotenv)
    refused(real_compose.run(), 78, "swap mode needs a GPU")
    real_compose.write("host/dev/kfd")
    done = real_compose.run()
    assert done.returncode == 0, done.stderr
    assert real_compose.dotenv["COMPOSE_FILE"] == "compose.yaml:compose.rocm.yaml:compose.swap.yaml"


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("VRAMBLK_EXPORT_NAME=a#b", "a#b"),
        ('VRAMBLK_EXPORT_NAME="it\'s $$5"', "it's $$5"),
        ("VRAMBLK_EXPORT_NAME='" + "long name " * 20 + "end'", "long name " * 20 + "end"),
        ("VRAMBLK_EXPORT_NAME=", "vram"),
        ("#VRAMBLK_EXPORT_NAME=x", "vram"),
    ],
)
def test_a_value_is_shown_as_compose_has_it(real_compose, line, value):
    real_compose.write("clone/.env", line + "\n")
    done = real_compose.run()
    assert done.returncode == 0, done.stderr
    assert f"nbd://127.0.0.1:10809/{value}\n" in done.stdout


def test_the_environment_is_stronger_than_the_dotenv_file_also_when_it_is_empty(real_compose):
    real_compose.write("clone/.env", "VRAMBLK_MODE=swap\nVRAMBLK_NBD_PORT=1000\n")
    done = real_compose.run(VRAMBLK_MODE="", VRAMBLK_NBD_PORT="")
    assert done.returncode == 0, done.stderr
    assert "nbd://127.0.0.1:10809/" in done.stdout


def test_a_name_that_is_not_asked_for_ends_it(host):
    """It would be taken for unset, whatever .env holds."""
    names = host.directory / "clone/deploy/lib/names.sh"
    text = names.read_text()
    assert text.count(" VRAMBLK_UP_TIMEOUT=120 ") == 1
    names.write_text(text.replace(" VRAMBLK_UP_TIMEOUT=120 ", " "))
    refused(host.run(), 1, "VRAMBLK_UP_TIMEOUT is not in deploy/lib/names.sh")


def test_the_image_of_another_service_is_not_the_servers(host):
    """A file of the user's own may bring services, and Compose lists them by name."""
    host.write("container", "container-id\n")
    images = DOCKER.replace(
        "'image inspect --format {{.Id}} '*) echo image-id ;;",
        "'image inspect --format {{.Id}} vramblk:latest') echo image-id ;;\n"
        "    'image inspect --format {{.Id}} '*) echo other-id ;;",
    ).replace("printf 'services:\\n  vramblk:", "printf 'services:\\n  a:\\n    image: other:1\\n  vramblk:")
    assert images.count("other") == 2
    host.program("docker", images)
    host.write("status", '{"connections": [], "exports": [{"written_bytes": 4096}]}')
    assert host.run().returncode == 0, "nothing has changed"


def test_a_dotenv_file_that_compose_refuses_ends_it(host):
    host.write("clone/.env", "VRAMBLK_MODE=swap\n")
    host.write("compose", f"sh {host.directory}/broken")
    host.write("broken", "echo .env:3: unexpected character >&2; exit 15")
    refused(host.run(), 2, "unexpected character")


GPU = "compose.yaml:compose.rocm.yaml"


@pytest.fixture
def gpu_host(host: Host) -> Host:
    """With a GPU, a scratch server that `up` has started, and a host script that succeeds."""
    host.write("host/dev/kfd")
    host.script("exit 0")
    assert host.run().returncode == 0
    assert host.dotenv["COMPOSE_FILE"] == GPU
    return host


def test_swap_1_after_a_plain_up_adds_its_file(gpu_host):
    others = {name: value for name, value in gpu_host.dotenv.items() if name != "COMPOSE_FILE"}
    done = gpu_host.run(SWAP="1")
    assert done.returncode == 0, done.stderr
    assert f"COMPOSE_FILE={GPU}:compose.swap.yaml   (written to .env)" in done.stdout
    assert gpu_host.dotenv == {**others, "COMPOSE_FILE": f"{GPU}:compose.swap.yaml"}
    assert (gpu_host.directory / "clone/.env").read_text().count("COMPOSE_FILE") == 2, "the line and its mark"
    assert gpu_host.calls.index("compose up -d") < gpu_host.calls.index("vramblk-swap up")


@pytest.mark.parametrize("sign", ["server", "records", "records of a stopped server"])
def test_a_plain_up_does_not_leave_swap_mode_while_it_lives(gpu_host, sign):
    assert gpu_host.run(SWAP="1").returncode == 0
    if sign == "server":
        gpu_host.write("env", "VRAMBLK_MODE=swap\n")
    else:
        gpu_host.write("host/run/vramblk-swap/records", "swapon /dev/nbd0\n")
    if "stopped" in sign:
        gpu_host.write("stopped")
    done = gpu_host.run()
    assert done.returncode == 0, done.stderr
    assert "swap mode stays" in done.stdout
    assert gpu_host.dotenv["COMPOSE_FILE"] == f"{GPU}:compose.swap.yaml"
    assert "sudo host/vramblk-swap up, status, down" in done.stdout


@pytest.mark.parametrize("container", ["removed", "stopped"])
def test_a_plain_up_after_swap_mode_gives_a_disk_again_and_says_so(gpu_host, container):
    assert gpu_host.run(SWAP="1").returncode == 0
    gpu_host.write("env", "VRAMBLK_MODE=swap\n")
    if container == "stopped":
        gpu_host.write("stopped")
    else:
        gpu_host.write("container", "")
    done = gpu_host.run()
    assert done.returncode == 0, done.stderr
    assert "swap mode ends" in done.stdout
    assert f"COMPOSE_FILE={GPU}   (written to .env)" in done.stdout
    assert gpu_host.dotenv["COMPOSE_FILE"] == GPU


def test_a_swap_server_stays_one_also_without_a_dotenv_file(gpu_host):
    (gpu_host.directory / "clone/.env").unlink()
    gpu_host.write("env", "VRAMBLK_MODE=swap\n")
    assert gpu_host.run().returncode == 0
    assert gpu_host.dotenv["COMPOSE_FILE"] == f"{GPU}:compose.swap.yaml"


def test_records_of_another_server_make_no_swap_server(host):
    """Of one outside Docker, beside which a scratch server is started."""
    host.write("host/dev/kfd")
    host.write("host/run/vramblk-swap/records", "swapon /dev/nbd0\n")
    assert host.run().returncode == 0
    assert host.dotenv["COMPOSE_FILE"] == GPU


def test_swap_mode_in_the_dotenv_file_stays(host):
    host.write("host/dev/kfd")
    host.write("clone/.env", "VRAMBLK_MODE=swap\n")
    for _ in range(2):
        assert host.run().returncode == 0
        host.write("container", "")
        assert host.dotenv["COMPOSE_FILE"] == f"{GPU}:compose.swap.yaml"


def test_an_edited_choice_is_the_users(gpu_host):
    path = gpu_host.directory / "clone/.env"
    edited = path.read_text().replace(f"\nCOMPOSE_FILE={GPU}", f"\nCOMPOSE_FILE={GPU}:compose.swap.yaml")
    path.write_text(edited)
    gpu_host.write("container", "")
    assert gpu_host.run().returncode == 0
    assert path.read_text() == edited
    path.write_text(edited.replace(":compose.swap.yaml", ":mine.yaml"))
    refused(gpu_host.run(SWAP="1"), 2, "add it there, or delete COMPOSE_FILE")


def test_a_choice_from_the_environment_is_the_users(gpu_host):
    before = gpu_host.dotenv
    refused(gpu_host.run(SWAP="1", COMPOSE_FILE=GPU), 2, "lacks compose.swap.yaml")
    assert gpu_host.dotenv == before


def test_what_is_refused_is_not_written(gpu_host):
    before = gpu_host.dotenv
    gpu_host.write("status", '{"connections": [1]}')
    gpu_host.write("hash", "old-hash\n")
    refused(gpu_host.run(SWAP="1"), 1, "clients are attached (1)")
    assert gpu_host.dotenv == before


def test_the_users_lines_stay_around_a_changed_choice(host):
    host.write("host/dev/kfd")
    host.write("clone/.env", "# mine\nVRAMBLK_SIZE=1G\n\n")
    host.script("exit 0")
    assert host.run().returncode == 0
    with (host.directory / "clone/.env").open("a") as file:
        file.write("VRAMBLK_EXPORT_NAME='a b'  \n# the end")
    assert host.run(SWAP="1").returncode == 0
    text = (host.directory / "clone/.env").read_text()
    assert text.startswith("# mine\nVRAMBLK_SIZE=1G\n\nVRAMBLK_RENDER_GID=")
    assert "\nVRAMBLK_EXPORT_NAME='a b'  \n# the end\n" in text


def test_without_a_gpu_swap_1_says_that_first(host):
    assert host.run().returncode == 0
    before = host.dotenv
    refused(host.run(SWAP="1"), 78, "swap mode needs a GPU")
    host.write("clone/.env", "COMPOSE_FILE=compose.yaml:mine.yaml\n")
    refused(host.run(SWAP="1"), 78, "swap mode needs a GPU")
    assert before["COMPOSE_FILE"] == "compose.yaml"


def test_tls_after_a_plain_up_adds_its_file_and_stays_until_it_is_off(host):
    assert host.run().returncode == 0
    host.certificates()
    tls = "compose.yaml:compose.tls.yaml"
    for variables, files in (
        ({"VRAMBLK_TLS": "require"}, tls),
        ({}, tls),
        ({"VRAMBLK_TLS": "off"}, "compose.yaml"),
    ):
        done = host.run(**variables)
        assert done.returncode == 0, done.stderr
        assert host.dotenv["COMPOSE_FILE"] == files


def test_who_reaches_tcp_is_told_and_how_to_turn_it_off(host):
    """Unless clients prove who they are."""
    told = "every account of this machine can read and write the export on port 10809"
    off = "VRAMBLK_LISTEN_ADDR=unix:/run/vramblk/nbd.sock"
    done = host.run()
    assert told in done.stdout and f"to turn TCP off: {off} make up" in done.stdout
    done = host.run(VRAMBLK_LISTEN_ADDR="unix:/run/vramblk/nbd.sock")
    assert told not in done.stdout and "nbd://" not in done.stdout
    assert "nbdinfo 'nbd+unix:///vram?socket=/run/vramblk/nbd.sock'" in done.stdout
    assert told not in host.run().stdout, "it is written to .env"
    host.certificates()
    for verify, expected in (("off", True), ("on", False)):
        done = host.run(VRAMBLK_TLS="require", VRAMBLK_TLS_VERIFY_PEER=verify, VRAMBLK_LISTEN_ADDR="0.0.0.0:10809")
        assert (told in done.stdout) == expected


def test_recipes_with_tls_speak_tls(host):
    """A plaintext client is refused, so its recipe would be of no use."""
    host.certificates()
    done = host.run(VRAMBLK_TLS="require")
    directory = host.directory / "clone/tls"
    uri = f"nbds://localhost:10809/vram?tls-certificates={directory}"
    assert f"nbdinfo '{uri}'" in done.stdout
    assert f"-cacertfile {directory}/ca-cert.pem -tlshostname localhost" in done.stdout
    assert "nbd://" not in done.stdout and "-unix" not in done.stdout
    assert "client-cert.pem" not in done.stdout
    assert uri in host.run().stdout, "compose.tls.yaml is chosen still"
    host.write("clone/tls/client-cert.pem")
    done = host.run(VRAMBLK_TLS_VERIFY_PEER="on")
    assert f"-certfile {directory}/client-cert.pem -keyfile {directory}/client-key.pem" in done.stdout
    assert "clients need client-cert.pem" in done.stdout
    assert "nbd://127.0.0.1:10809/vram" in host.run(VRAMBLK_TLS="off").stdout


def test_recipes_name_the_export_as_the_server_does(host):
    """With --unique-names any other name is refused."""
    host.write("status", '{"connections": [], "exports": [{"name": "vram-1a2b3c4d", "written_bytes": 0}]}')
    done = host.run(VRAMBLK_UNIQUE_NAMES="on")
    assert "nbdinfo nbd://127.0.0.1:10809/vram-1a2b3c4d" in done.stdout
    assert "-N vram-1a2b3c4d -b" in done.stdout


def test_recipes_with_keys_of_the_users_file(host):
    host.write("clone/.env", "COMPOSE_FILE=compose.yaml:psk.yaml\nVRAMBLK_TLS=require\n")
    done = host.run()
    assert "nbdinfo nbds://localhost:10809/vram   (with your keys" in done.stdout
    assert "nbd://" not in done.stdout


@pytest.mark.parametrize("name", ["elsewhere", "with blanks # and more"])
def test_the_directory_of_the_certificates_is_remembered(host, name):
    """compose.tls.yaml stays chosen, so the next `make up` needs them too."""
    host.certificates(f"clone/{name}")
    assert host.run().returncode == 0
    before = (host.directory / "clone/.env").read_text()
    done = host.run(VRAMBLK_TLS="require", VRAMBLK_TLS_DIR=name)
    assert done.returncode == 0, done.stderr
    assert host.dotenv["VRAMBLK_TLS_DIR"].strip("'") == name
    assert host.dotenv["COMPOSE_FILE"] == "compose.yaml:compose.tls.yaml"
    after = (host.directory / "clone/.env").read_text()
    for _ in range(2):
        done = host.run()
        assert done.returncode == 0, done.stderr
        assert f"/{name}'" in done.stdout
    assert host.run(VRAMBLK_TLS_DIR="elsewhere" if name == "elsewhere" else f"./{name}").returncode == 0
    assert (host.directory / "clone/.env").read_text() == after, "what stands there is not changed"
    assert host.run(VRAMBLK_TLS="off").returncode == 0
    assert "compose.tls.yaml" not in (host.directory / "clone/.env").read_text()
    assert before.count("\n") + 1 == (host.directory / "clone/.env").read_text().count("\n")


def test_a_directory_of_certificates_alone_is_remembered_without_harm_to_the_choice(host):
    host.certificates()
    host.certificates("clone/elsewhere")
    assert host.run(VRAMBLK_TLS="require").returncode == 0
    before = (host.directory / "clone/.env").read_text()
    assert host.run(VRAMBLK_TLS_DIR="elsewhere").returncode == 0
    assert (host.directory / "clone/.env").read_text() == f"{before}VRAMBLK_TLS_DIR=elsewhere\n"


PROTECTIONS = {
    "VRAMBLK_CONFIG": "/etc/vramblk.yaml",
    "VRAMBLK_LISTEN_ADDR": "unix:/run/vramblk/nbd.sock",
    "VRAMBLK_METRICS_ADDR": "off",
    "VRAMBLK_METRICS_TOKEN_FILE": "/run/secrets/token",
    "VRAMBLK_READ_ONLY": "on",
    "VRAMBLK_UNIQUE_NAMES": "on",
    "VRAMBLK_VERIFY_READS": "on",
}


@pytest.mark.parametrize(("name", "value"), [*PROTECTIONS.items(), ("VRAMBLK_LISTEN_ADDR", "")])
def test_a_protection_that_was_typed_once_stays(host, name, value):
    """The next `make up` would serve more than this one, or to more people."""
    done = host.run(**{name: value})
    assert done.returncode == 0, done.stderr
    assert host.dotenv[name].strip("'") == value
    assert f"{name}=" in done.stdout and "(written to .env)" in done.stdout
    before = (host.directory / "clone/.env").read_text()
    assert host.run().returncode == 0
    assert host.run(**{name: "other"}).returncode == 0
    assert (host.directory / "clone/.env").read_text() == before, "what stands there is not changed"


@pytest.mark.parametrize("line", ["VRAMBLK_CONFIG=/a", "export VRAMBLK_CONFIG=/a", "  VRAMBLK_CONFIG = /a"])
def test_a_protection_of_the_dotenv_file_is_not_overridden_for_good(host, line):
    host.write("clone/.env", f"{line}\n")
    assert host.run(VRAMBLK_CONFIG="/b").returncode == 0
    assert (host.directory / "clone/.env").read_text().count("VRAMBLK_CONFIG") == 1


def test_what_is_no_protection_is_not_written(host):
    host.certificates()
    typed = {"VRAMBLK_SIZE": "1G", "VRAMBLK_READ_ONLY": "", "VRAMBLK_VERIFY_READS": "off", "VRAMBLK_TLS_DIR": "./tls"}
    assert host.run(**typed).returncode == 0
    assert set(host.dotenv) == {"COMPOSE_FILE"}
    done = host.run(VRAMBLK_CONFIG="/it's.yaml")
    assert done.returncode == 0 and "VRAMBLK_CONFIG is not remembered, because it holds a quote" in done.stdout
    assert "VRAMBLK_CONFIG" not in host.dotenv


@pytest.mark.parametrize("value", ["/a'b", "/a\\\\b", "/${HOME}/c", "/a $HOME", "/a\nVRAMBLK_SIZE=1G"])
def test_what_compose_would_read_otherwise_is_not_written(host, value):
    """docker-compose 1.29 replaces ${HOME} and halves backslashes between single quotes too."""
    done = host.run(VRAMBLK_CONFIG=value)
    assert done.returncode == 0 and "VRAMBLK_CONFIG is not remembered" in done.stdout
    assert set(host.dotenv) == {"COMPOSE_FILE"}


@pytest.mark.parametrize("line", ["VRAMBLK_LISTEN_ADDR=0.0.0.0:10809", "export VRAMBLK_LISTEN_ADDR = 0.0.0.0:10809"])
def test_a_protection_that_the_dotenv_file_contradicts_is_said_to_be_for_once(host, line):
    """The line may be one that an earlier `make up` wrote, and the next one goes by it again."""
    host.write("clone/.env", f"{line}\n")
    assert "VRAMBLK_LISTEN_ADDR=unix:/a holds for this run only" in host.run(VRAMBLK_LISTEN_ADDR="unix:/a").stdout
    assert "for this run only" not in host.run(VRAMBLK_LISTEN_ADDR="0.0.0.0:10809").stdout


def test_that_clients_need_a_certificate_is_remembered(host):
    host.certificates()
    assert host.run(VRAMBLK_TLS="require", VRAMBLK_TLS_VERIFY_PEER="on").returncode == 0
    assert host.dotenv["VRAMBLK_TLS_VERIFY_PEER"] == "on"
    assert "clients need client-cert.pem" in host.run().stdout


def test_a_demand_for_certificates_that_up_wrote_goes_with_tls(host):
    """Left behind, it would have the next `make up` refused."""
    host.certificates()
    assert host.run(VRAMBLK_TLS="require", VRAMBLK_TLS_VERIFY_PEER="on").returncode == 0
    path = host.directory / "clone/.env"
    written = path.read_text()
    assert host.run(VRAMBLK_TLS="off").returncode == 0
    assert path.read_text().endswith("COMPOSE_FILE=compose.yaml\n") and "PEER" not in path.read_text()
    done = host.run()
    assert done.returncode == 0, done.stderr
    path.write_text(written.replace("\nVRAMBLK_TLS_VERIFY_PEER=on", "\nVRAMBLK_TLS_VERIFY_PEER=yes"))
    assert host.run(VRAMBLK_TLS="off").returncode == 0
    assert host.dotenv["VRAMBLK_TLS_VERIFY_PEER"] == "yes", "an edited line is the user's"


def test_that_clients_need_a_certificate_is_not_ignored(host):
    """Without compose.tls.yaml nothing passes it on, and plaintext would be served."""
    refused(host.run(VRAMBLK_TLS_VERIFY_PEER="on"), 2, "VRAMBLK_TLS_VERIFY_PEER is set, but TLS is off")
    assert "build" not in host.calls
    assert host.run(VRAMBLK_TLS_VERIFY_PEER="off").returncode == 0
    assert host.run(VRAMBLK_TLS_VERIFY_PEER="on", VRAMBLK_TLS="off").returncode == 0, "that is clear enough"
    host.write("clone/.env", "COMPOSE_FILE=compose.yaml:mine.yaml\n")
    assert host.run(VRAMBLK_TLS_VERIFY_PEER="on").returncode == 0, "that file may pass it on"


def test_a_token_that_was_typed_once_is_missed(host):
    """It is a secret, so it is not written down; without it everybody could read the metrics."""
    done = host.run(VRAMBLK_METRICS_TOKEN="s3cret")
    assert done.returncode == 0, done.stderr
    text = (host.directory / "clone/.env").read_text()
    assert "s3cret" not in text + done.stdout
    refused(host.run(), 2, "VRAMBLK_METRICS_TOKEN was set at an earlier make up and is not set now")
    assert host.run(VRAMBLK_METRICS_TOKEN="s3cret").returncode == 0
    assert (host.directory / "clone/.env").read_text() == text
    host.write("clone/.env", f"{text}VRAMBLK_METRICS_TOKEN=s3cret\n")
    assert host.run().returncode == 0
    host.write("clone/.env", re.sub("^# .* token.*\n", "", text, flags=re.M))
    assert host.run().returncode == 0


def test_a_token_of_the_dotenv_file_needs_no_reminder(host):
    host.write("clone/.env", "VRAMBLK_METRICS_TOKEN=s3cret\n")
    assert host.run(VRAMBLK_METRICS_TOKEN="other").returncode == 0
    assert "token" not in (host.directory / "clone/.env").read_text()


def test_tls_stands_before_swap(gpu_host):
    gpu_host.certificates()
    assert gpu_host.run(SWAP="1").returncode == 0
    assert gpu_host.run(SWAP="1", VRAMBLK_TLS="on").returncode == 0
    assert gpu_host.dotenv["COMPOSE_FILE"] == f"{GPU}:compose.tls.yaml:compose.swap.yaml"


@pytest.mark.parametrize("dotenv", ["", "COMPOSE_FILE=compose.yaml:compose.tls.yaml\n"])
def test_tls_without_certificates_is_refused_before_anything_is_written(host, dotenv):
    host.write("clone/.env", dotenv)
    refused(host.run(VRAMBLK_TLS="require"), 78, "TLS requires ./tls/ca-cert.pem")
    host.certificates("clone/elsewhere")
    (host.directory / "clone/elsewhere/server-key.pem").unlink()
    done = host.run(VRAMBLK_TLS="require", VRAMBLK_TLS_DIR="elsewhere")
    refused(done, 78, "elsewhere/server-key.pem, which does not exist; VRAMBLK_TLS_DIR names the directory")
    assert "docs/guides/containers.md" in done.stderr
    assert (host.directory / "clone/.env").read_text() == dotenv
    assert "build" not in host.calls


def test_tls_without_its_file_is_refused_unless_a_file_of_the_users_may_bring_keys(host):
    host.certificates()
    host.write("clone/.env", "COMPOSE_FILE=compose.yaml:compose.nvidia.yaml\n")
    refused(
        host.run(VRAMBLK_TLS="on"),
        2,
        "VRAMBLK_TLS=on, but COMPOSE_FILE=compose.yaml:compose.nvidia.yaml lacks",
    )
    host.write("clone/.env", "COMPOSE_FILE=compose.yaml:psk.yaml\n")
    assert host.run(VRAMBLK_TLS="on").returncode == 0


ANY, LOOPBACK, ANY_6 = "0" * 8, "0100007F", "0" * 32


@pytest.mark.parametrize(
    ("address", "table"),
    [(ANY, "tcp"), (LOOPBACK, "tcp"), (ANY_6, "tcp6"), ("0000000000000000FFFF00000100007F", "tcp6")],
)
def test_a_taken_port_is_told_before_the_build(host, address, table):
    host.listens(address, 10809, table)
    refused(
        host.run(), 1,
        "port 10809 is taken; sudo ss -ltnp shows by whom, often it is make run; end it, or type: "
        "VRAMBLK_NBD_PORT=10819 make up",
    )  # fmt: skip
    assert "build" not in host.calls
    assert host.dotenv == {}
    assert host.run(VRAMBLK_NBD_PORT="10819").returncode == 0


def test_both_ports_are_told_at_once(host):
    host.listens(LOOPBACK, 10809)
    host.listens(LOOPBACK, 20810)
    host.write("clone/.env", "VRAMBLK_METRICS_PORT=20810\n")
    refused(host.run(), 1, "type: VRAMBLK_NBD_PORT=10819 VRAMBLK_METRICS_PORT=20820 make up")


def test_ports_that_are_free_elsewhere_or_not_published_do_not_matter(host):
    host.listens("0200007F", 10809)
    assert host.run(VRAMBLK_METRICS_PORT="20000-20010").returncode == 0
    host.listens(LOOPBACK, 10809)
    assert host.run().returncode == 0, "its own container has it"
    host.write("stopped")
    refused(host.run(), 1, "port 10809 is taken")
    host.write("clone/.env", "VRAMBLK_DEVICE=map:/dev/dax0.0\n")
    host.script("exit 0")
    assert host.run(SWAP="1").returncode == 0, "swap mode has no network"


def test_a_directory_of_sockets_that_another_project_has_is_told_before_the_build(host):
    """Its server would answer when this one is asked whether it is healthy."""
    host.write("servers", "other-id\n")
    refused(host.run(), 1, "the server of another project has its sockets in /run/vramblk")
    assert "build" not in host.calls and host.dotenv == {}
    assert host.run(VRAMBLK_RUN_DIR="/run/vramblk-2").returncode == 0
    host.write("servers", "container-id\n")
    assert host.run().returncode == 0, "its own container"


def test_a_build_that_fails_leaves_its_log(host):
    host.write("build", "seq -f 'line %g.' 100\nexit 1\n")
    done = host.run()
    (log,) = host.temporary.iterdir()
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "line 71."
    assert (
        done.stderr.splitlines()[-1]
        == f"vramblk: the image cannot be built; the builder's whole output: {log}"
    )
    assert len(log.read_text().splitlines()) == 100
    assert host.dotenv == {}


def test_nothing_temporary_is_left(host):
    assert host.run().returncode == 0
    host.program("docker", DOCKER.replace("'compose up '*) ", "'compose up '*) echo why; exit 1;"))
    done = host.run(VRAMBLK_SIZE="1G")
    assert done.returncode == 1 and "why\n" in done.stderr
    assert list(host.temporary.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_build_leaves_nothing(host, number, status):
    host.write("build", 'touch "$TEST/building"\nsleep 20\n')
    with subprocess.Popen(
        [host.up_sh, "up"], env=host.environment(), start_new_session=True,
        # A shell cannot trap what was ignored when it started, as for jobs in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 20
        while not (host.directory / "building").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, number)  # as a terminal does
        assert process.wait(20) == status
    assert list(host.temporary.iterdir()) == []
    assert host.dotenv == {}


def test_on_a_terminal_the_build_shows_its_last_line(host):
    host.write("build", "echo 'Step 3/30 : RUN apt-get'\nsleep 3\n")
    ours, its = pty.openpty()
    with subprocess.Popen(
        [host.up_sh, "up"],
        env=host.environment(),
        stdout=its,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        assert process.wait(30) == 0
        os.close(its)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "\r\x1b[K  Step 3/30 : RUN apt-get" in shown
    assert "Step" not in shown.partition("\r\x1b[K  COMPOSE_FILE=compose.yaml")[2], "the line is wiped away"
    assert "\x1b" not in host.run().stdout


def test_a_server_that_is_slow_to_start_is_left_running(host):
    host.write("ill", "vramblk: starting\n")
    done = host.run(VRAMBLK_UP_TIMEOUT="1")
    assert done.returncode == 1
    assert done.stderr == (
        "vramblk: starting\n"
        "vramblk: the server is still starting after 1 s and is left running; see make logs; to wait longer: "
        "VRAMBLK_UP_TIMEOUT=65 make up\n"
    )
    assert "compose stop" not in host.calls
    host.write("host/dev/kfd")
    (host.directory / "clone/.env").unlink()
    assert "VRAMBLK_UP_TIMEOUT=65 make up SWAP=1" in host.run(VRAMBLK_UP_TIMEOUT="1", SWAP="1").stderr


@pytest.mark.parametrize("value", ["long", "1.5", "-1", "010"])
def test_a_bad_time_to_wait(host, value):
    refused(host.run(VRAMBLK_UP_TIMEOUT=value), 2, f"VRAMBLK_UP_TIMEOUT={value}; allowed: a whole number of seconds, such as 120")


def test_a_server_is_stopped_with_a_reason_even_if_it_wrote_none(host):
    host.write("state", "exited 0\n")
    host.write("wordless")
    done = host.run()
    assert done.returncode == 1
    assert done.stderr.startswith("the server has logged nothing; state and restarts of its container: exited 0\n")


def test_a_healthy_server_that_was_once_restarted_is_not_stopped(host):
    host.write("container", "container-id\n")
    host.write("state", "running 1\n")
    assert host.run().returncode == 0
    assert "compose stop" not in host.calls


def test_the_warning_is_a_box(host):
    lines = [line for line in host.run().stdout.splitlines() if line.startswith("**")]
    assert len(lines) == 4
    assert {(len(line), line[-2:]) for line in lines} == {(79, "**")}


def test_status_and_logs_without_a_container(host):
    refused(host.run("status"), 1, "the server is not running; type: make up")
    refused(host.run("logs"), 1, "there is no container, so there is no log; type: make up")
    assert "compose logs" not in host.calls


def test_status_of_a_stopped_container(host):
    host.write("container", "container-id\n")
    host.write("stopped")
    refused(host.run("status"), 1, "the server is not running, its container is exited; make logs shows why")
    assert host.run("logs").returncode == 0
    assert "compose logs --tail=200 --follow" in host.calls


def test_the_container_of_compose_run_is_not_the_servers(host):
    host.write("container", "one-off-id\ncontainer-id\n")
    host.program(
        "docker",
        DOCKER.replace("    'inspect ", "    *'oneoff\"}} one-off-id') echo True ;;\n    'inspect ", 1),
    )
    assert host.run("status").returncode == 0
    assert "docker exec container-id vramblk status\n" in host.calls


def test_an_outdated_container_with_clients_is_not_replaced(host):
    host.write("container", "container-id\n")
    host.write("hash", "old-hash\n")
    host.write("status", '{"connections": [1, 2, 3]}')
    refused(host.run(), 1, "clients are attached (3)")
    assert "compose up" not in host.calls


# As the two implementations quote, among what does not count.
CONFIG = """    environment:
      VRAMBLK_ALLOW_CPU: 'on'
      VRAMBLK_EXPORT_NAME: "a b"
      VRAMBLK_METRICS_TOKEN: newsecret
      VRAMBLK_SIZE: null
    ports:
    - VRAMBLK_NO: variable
  other:
    environment:
      VRAMBLK_SIZE: 9G
"""
BEFORE = (
    "PATH=/bin\nVRAMBLK_ALLOW_CPU=on\nVRAMBLK_EXPORT_NAME=a b\nVRAMBLK_METRICS_TOKEN=oldsecret\nVRAMBLK_SIZE=8G\n"
)


@pytest.fixture
def changed(host: Host) -> Host:
    """A server runs that was started with VRAMBLK_SIZE=8G, which nobody types now."""
    host.write("container", "container-id\n")
    host.write("hash", "old-hash\n")
    host.write("config", CONFIG)
    host.write("env", BEFORE)
    return host


def test_a_server_that_holds_data_is_not_replaced_and_the_change_is_named(changed):
    """`VRAMBLK_SIZE=8G make up`, then `make up`: the export would be smaller and empty."""
    changed.write("status", '{"connections": [], "exports": [{"written_bytes": 0}, {"written_bytes": 13958643712}]}')
    done = changed.run()
    refused(
        done, 1,
        "the running server holds 13 GiB of data, which its replacement loses "
        "(VRAMBLK_METRICS_TOKEN, VRAMBLK_SIZE: 8G becomes unset); to keep it, undo the change; "
        "to lose it: make up FORCE=1\n",
    )  # fmt: skip
    assert "secret" not in done.stdout + done.stderr
    assert "compose up" not in changed.calls
    assert changed.dotenv == {}
    assert changed.run(FORCE="1").returncode == 0
    assert "compose up -d --no-build" in changed.calls


def test_a_new_image_counts_as_a_change(changed):
    changed.write("image", "old-image-id\n")
    changed.write("env", BEFORE.replace("8G\n", "").replace("VRAMBLK_SIZE=", "").replace("old", "new"))
    changed.write("status", '{"connections": [], "exports": [{"written_bytes": 4096}]}')
    refused(changed.run(), 1, "holds 4 KiB of data, which its replacement loses (another image)")


def test_a_change_of_ports_is_named(changed):
    """`VRAMBLK_NBD_PORT=10819 make up`, as a refusal advises, then `make up`."""
    changed.write("ports", "10809/tcp 10819\n10810/tcp 10810\n")
    changed.write("config", "")
    changed.write("env", "PATH=/bin\n")
    changed.write("status", '{"connections": [], "exports": [{"written_bytes": 4096}]}')
    refused(changed.run(), 1, "(VRAMBLK_NBD_PORT: 10819 becomes 10809)")


def test_a_port_that_the_replacement_wants_and_another_has_is_told_before_the_build(changed):
    """The container would be gone before Docker finds it out."""
    changed.write("ports", "10809/tcp 10819\n10810/tcp 10810\n")
    changed.listens(LOOPBACK, 10809)
    changed.listens(LOOPBACK, 10810)
    refused(changed.run(), 1, "port 10809 is taken; ")
    assert "compose up" not in changed.calls and "build" not in changed.calls
    assert changed.run(VRAMBLK_NBD_PORT="10819").returncode == 0
    changed.write("ports", "")
    assert changed.run().returncode == 0, "it may be in the host's network"


def test_a_change_without_a_variable_is_named_too(changed):
    changed.write("config", "")
    changed.write("env", "PATH=/bin\n")
    changed.write("status", '{"connections": [], "exports": [{"written_bytes": 4096}]}')
    refused(changed.run(), 1, "(the compose files have changed)")


def test_an_empty_server_is_replaced_and_the_change_is_named(changed):
    changed.write("status", '{"connections": [], "exports": [{"written_bytes": 0}]}')
    done = changed.run()
    assert done.returncode == 0, done.stderr
    assert "the container is replaced: VRAMBLK_METRICS_TOKEN, VRAMBLK_SIZE: 8G becomes unset\n" in done.stdout


def test_a_server_that_does_not_answer_is_not_replaced(changed):
    changed.write("status", "no answer")
    refused(changed.run(), 1, "does not answer, so it may hold data")
    assert changed.run(FORCE="1").returncode == 0


def test_down_does_not_lose_data_unless_forced(changed):
    changed.write("status", '{"connections": [], "exports": [{"written_bytes": 0}, {"written_bytes": 8192}]}')
    done = changed.run("down")
    refused(
        done, 1,
        "the running server holds 8 KiB of data, which ends with it; stopping refused; copy it first (nbdcopy); "
        "to lose it: make down FORCE=1\n",
    )  # fmt: skip
    assert "compose down" not in changed.calls
    refused(changed.run("down", FORCE="yes"), 2, "FORCE=yes; allowed: 1, 0 or nothing")
    assert changed.run("down", FORCE="1").returncode == 0
    assert "compose down" in changed.calls


@pytest.mark.parametrize("status", ['{"connections": [], "exports": [{"written_bytes": 0}]}', '{"connections": []}'])
def test_down_stops_an_empty_server_or_one_that_is_starting(changed, status):
    changed.write("status", status)
    assert changed.run("down").returncode == 0


@pytest.mark.parametrize("state", ["running", "paused"])
def test_down_does_not_stop_a_server_that_does_not_answer(changed, state):
    """It may hold data. A paused container answers nothing, and its memory is there."""
    changed.write("status", "no answer")
    changed.write("status-of-container", f"{state}\n")
    refused(changed.run("down"), 1, "does not answer, so it may hold data; stopping refused")
    assert "compose down" not in changed.calls
    assert changed.run("down", FORCE="1").returncode == 0


@pytest.mark.parametrize("state", ["created", "exited", "dead", "restarting"])
def test_down_removes_a_container_without_a_process(changed, state):
    """As of a server that Docker starts again and again: there is no memory, so nothing is lost."""
    changed.write("status", "no answer")
    changed.write("status-of-container", f"{state}\n")
    assert changed.run("down").returncode == 0


def test_down_gives_a_server_time_to_answer_or_to_end(changed):
    """It was just started: then it answers, or it fails and there is nothing to lose."""
    def asked(does: str) -> None:
        asks = "    'exec container-id vramblk status --json') "
        assert asks in DOCKER
        changed.program("docker", DOCKER.replace(asks, f"{asks}{does} ;;\n    'never') ", 1))

    answer = """[ ! -e "$TEST/asked" ] || cat "$TEST/status"; touch "$TEST/asked\""""
    asked(answer)
    changed.write("status", '{"connections": [], "exports": [{"written_bytes": 4096}]}')
    refused(changed.run("down"), 1, "holds 4 KiB of data")
    (changed.directory / "asked").unlink()
    changed.write("status", '{"connections": [], "exports": [{"written_bytes": 0}]}')
    assert changed.run("down").returncode == 0
    asked('touch "$TEST/stopped"')
    assert changed.run("down").returncode == 0


def test_what_lay_on_a_swap_device_is_no_data(changed):
    changed.write("env", "VRAMBLK_MODE=swap\n")
    changed.write("status", '{"connections": [], "exports": [{"written_bytes": 8192}]}')
    assert changed.run("down").returncode == 0


def test_a_paused_container_is_not_replaced(changed):
    changed.write("status", "no answer")
    changed.write("status-of-container", "paused\n")
    refused(changed.run(), 1, "does not answer, so it may hold data")
    assert "compose up" not in changed.calls


@pytest.mark.parametrize("command", ["up", "down"])
def test_clients_are_cut_off_by_force_only(changed, command):
    changed.write("status", '{"connections": [1, 2]}')
    refused(changed.run(command), 1, "clients are attached (2); ")
    assert "compose down" not in changed.calls and "compose up" not in changed.calls
    assert f"make {command} FORCE=1" in changed.run(command).stderr
    assert changed.run(command, FORCE="1").returncode == 0
    assert f"compose {command} " in changed.calls


@pytest.mark.parametrize("command", ["up", "down"])
def test_force_does_not_touch_live_swap(changed, command):
    changed.write("host/dev/kfd")
    changed.write("env", "VRAMBLK_MODE=swap\n")
    changed.write("status", '{"connections": [1]}')
    refused(changed.run(command, FORCE="1", VRAMBLK_MODE="swap"), 1, "swap")
    assert "compose down" not in changed.calls and "compose up" not in changed.calls


def test_force_with_another_value_is_refused(changed):
    refused(changed.run(FORCE="yes"), 2, "FORCE=yes; allowed: 1, 0 or nothing")


@pytest.mark.parametrize("status", ['{"connections": []}', "no answer"])
@pytest.mark.parametrize("state", ["running 1", "paused 0"])
def test_a_server_that_was_there_and_is_ill_is_not_stopped_by_up(host, state, status):
    """Whether it answers or not, it may hold data."""
    host.write("container", "container-id\n")
    host.write("state", f"{state}\n")
    host.write("status", status)
    host.write("ill", "the canary is late\n")
    done = host.run()
    assert done.returncode == 1 and "may hold data, so it is left alone" in done.stderr
    assert "compose stop" not in host.calls


def test_options_of_the_server_are_not_ignored(host):
    refused(host.run(ARGS="--size 1G"), 2, "make up takes no options of the server; set a variable")
    assert host.dotenv == {}


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


def test_swap_1_starts_the_enabled_unit_once_swap_is_on(gpu_host):
    """Only an active unit takes swap off before dockerd stops."""
    assert gpu_host.run(SWAP="1").returncode == 0
    assert "systemctl start" not in gpu_host.calls, "it is not installed"
    gpu_host.write("unit-enabled")
    done = gpu_host.run(SWAP="1")
    assert done.returncode == 0 and "+ systemctl start vramblk-swap.service\n" in done.stdout
    assert gpu_host.calls.index("vramblk-swap up") < gpu_host.calls.index("systemctl start")
    assert gpu_host.run(SWAP="1").returncode == 0
    assert gpu_host.calls.count("systemctl start") == 1, "it is active"
    assert gpu_host.run().returncode == 0
    assert gpu_host.calls.count("systemctl start") == 1


def test_a_unit_that_does_not_start_is_said(gpu_host):
    gpu_host.write("unit-enabled")
    gpu_host.write("unit-ill")
    refused(gpu_host.run(SWAP="1"), 1, "swap is on, but vramblk-swap.service does not start")
    gpu_host.script("exit 1")
    refused(gpu_host.run(SWAP="1"), 1, "swap is not on")
    assert gpu_host.calls.count("systemctl start") == 1, "only where swap is on"


def test_down_stops_the_unit_between_swap_and_the_container(host):
    host.write("host/run/vramblk-swap/records", "swapon /dev/nbd0\n")
    host.write("unit-active")
    refused(host.run("down"), 1, "swap cannot be taken off")
    assert "systemctl stop" not in host.calls, "it still has swap to take off"
    host.script("exit 0")
    host.write("unit-ill")
    refused(host.run("down"), 1, "swap is off, but vramblk-swap.service does not stop")
    assert "compose down" not in host.calls
    (host.directory / "unit-ill").unlink()
    assert host.run("down").returncode == 0
    assert host.calls.rindex("vramblk-swap down") < host.calls.rindex("systemctl stop")
    assert host.calls.rindex("systemctl stop") < host.calls.index("compose down")
    assert host.run("down").returncode == 0
    assert host.calls.count("systemctl stop") == 2, "it is not active any more"


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
    lines = [line for line in host.calls.splitlines() if not line.startswith("systemctl")]
    assert lines[-3:] == [
        "VRAMBLK_EXPORT_NAME=fast one", "VRAMBLK_NBD_SOCKET=/srv/run/nbd.sock",
        "VRAMBLK_STATUS_SOCKET=/srv/run/status.sock",
    ]  # fmt: skip


def test_a_swap_server_that_was_there_before_is_never_stopped_by_up(host):
    """Unhealthy, or Compose fails: its swap may be live, and Docker would kill it after the grace period."""
    host.write("host/dev/kfd")
    host.write("container", "container-id\n")
    host.write("env", "VRAMBLK_MODE=swap\n")
    host.write("state", "running 1\n")
    host.write("ill", "vramblk: degraded\n")
    done = host.run(VRAMBLK_MODE="swap")
    assert done.returncode == 1 and "left alone" in done.stderr
    assert "compose stop" not in host.calls
    host.program("docker", DOCKER.replace("'compose up '*) ", "'compose up '*) exit 1;"))
    refused(host.run(VRAMBLK_MODE="swap"), 1, "left alone")
    assert "compose stop" not in host.calls


@pytest.mark.parametrize("command", ["up", "down", "status", "logs"])
def test_a_compose_that_fails_is_not_taken_for_a_host_without_a_server(changed, command):
    """The next command may work again, and would end a server with data."""
    changed.write("ps-fails", "first line\nHTTP request took too long\n")
    refused(changed.run(command, FORCE="1"), 1, "does not list the server's container, so nothing is touched: HTTP request")
    for ends in ("compose up", "compose down", "compose stop", "compose logs"):
        assert ends not in changed.calls


def test_a_service_without_a_container_may_be_unknown_to_compose(host):
    """Compose v2.0 to v2.5."""
    host.write("ps-fails", "no such service: vramblk\n")
    refused(host.run("status"), 1, "the server is not running; type: make up")
    assert host.run("down").returncode == 0


def test_a_compose_that_fails_after_up_stops_nothing(changed):
    changed.program("docker", DOCKER.replace("'compose up '*) ", "'compose up '*) touch \"$TEST/ps-fails\"; exit 1;"))
    done = changed.run(FORCE="1")
    assert done.returncode == 1 and "does not list the server's container" in done.stderr
    assert "compose stop" not in changed.calls


@pytest.mark.parametrize("command", ["up", "down"])
def test_a_container_whose_mode_is_not_told_is_not_taken_for_a_scratch_server(changed, command):
    """FORCE=1 gives up data and clients, never live swap."""
    changed.write("env", "")
    changed.write("status", '{"connections": [1]}')
    refused(changed.run(command, FORCE="1"), 1, "docker does not report the container's mode")
    assert "compose down" not in changed.calls and "compose up" not in changed.calls


@pytest.mark.parametrize(("answer", "env"), [("", ""), ("container-id\n", "VRAMBLK_MODE=swap\n")])
def test_down_believes_the_hosts_records_before_docker(host, answer, env):
    """Docker that gives no answer, as where memory is short, is not taken for a server without swap."""
    host.write("container", answer)
    host.write("env", env)
    host.write("host/run/vramblk-swap/records", "swapon /dev/nbd0\n")
    refused(host.run("down"), 1, "swap cannot be taken off")
    assert "compose down" not in host.calls
    host.script("exit 0")
    assert host.run("down").returncode == 0
    assert host.calls.index("vramblk-swap down") < host.calls.index("compose down")


def test_down_of_a_scratch_server_leaves_the_swap_of_another_server_alone(host):
    """Of one outside Docker, or of another project: taking it off could leave the machine without memory."""
    host.write("container", "container-id\n")
    host.write("host/run/vramblk-swap/records", "swapon /dev/nbd0\n")
    host.write("status", '{"mode": "scratch", "connections": [], "exports": []}')
    done = host.run("down")
    assert done.returncode == 0, done.stderr
    assert "this container does not serve it, so it stays on" in done.stdout
    assert "vramblk-swap down" not in host.calls and "compose down" in host.calls


@pytest.mark.parametrize("command", ["up", "down"])
def test_swap_mode_of_a_yaml_file_is_swap_mode(changed, command):
    """FORCE=1 would end the server under live swap."""
    changed.write("host/dev/kfd")
    changed.write("env", "VRAMBLK_CONFIG=/etc/vramblk.yaml\n")
    changed.write("status", '{"mode": "swap", "connections": [1]}')
    refused(changed.run(command, FORCE="1"), 1, "swap")
    assert "compose down" not in changed.calls and "compose up" not in changed.calls
    changed.write("status", '{"mode": "scratch", "connections": [1]}')
    assert changed.run(command, FORCE="1").returncode == 0


def test_down_takes_swap_off_where_the_mode_is_not_told(host):
    host.write("container", "container-id\n")
    host.write("env", "")
    host.write("status", '{"mode": "scratch", "connections": [], "exports": []}')
    host.write("host/run/vramblk-swap/records", "swapon /dev/nbd0\n")
    refused(host.run("down"), 1, "swap cannot be taken off")
    host.write("env", "PATH=/bin\n")
    host.write("ps-fails", "no answer\n")
    refused(host.run("down"), 1, "swap cannot be taken off")


def test_down_stops_no_container_whose_state_is_not_told(host):
    host.write("container", "container-id\n")
    host.write("silent")
    refused(host.run("down"), 1, "does not report the container's state")
    assert "compose down" not in host.calls
    refused(host.run("up"), 1, "does not report the container's state")
    assert "compose up" not in host.calls


def test_a_server_that_ends_is_stopped_and_its_last_line_shown(host):
    host.write("state", "restarting 1\n")
    done = host.run()
    assert done.returncode == 1
    assert "vramblk: no device; type this\n" in done.stderr
    assert "docker compose stop" in host.calls


def test_without_compose_it_names_the_package(host):
    host.program("docker", DOCKER.replace("case", '[ "$1" != compose ] || exit 1\ncase', 1))
    host.program("docker-compose", '#!/bin/sh\n[ "$1" != ps ] || echo container-id\n')
    done = host.run("logs")
    assert done.returncode == 0, done.stderr


def test_a_daemon_that_does_not_answer(host):
    host.program("docker", "#!/bin/sh\nexit 1\n")
    refused(host.run(), 78, "systemctl start docker")


MONITORING = "--project-directory . -f deploy/monitoring/compose.yaml"


def test_monitoring_is_a_project_of_its_own(host):
    """Named apart from the server's, whatever files and project the host has chosen."""
    host.write("clone/.env", "COMPOSE_FILE=compose.yaml:mine.yaml\nCOMPOSE_PROJECT_NAME=mine\n")
    done = host.run("monitoring", VRAMBLK_EXPORTER_PORT="20811")
    assert done.returncode == 0, done.stderr
    assert f"docker compose -p mine-monitoring {MONITORING} up -d\n" in host.calls
    assert "http://127.0.0.1:20811/" in done.stdout and "http://127.0.0.1:9090/" in done.stdout
    done = host.run("exporter")
    assert f"docker compose -p mine-monitoring {MONITORING} up -d exporter\n" in host.calls
    assert "http://127.0.0.1:10811/" in done.stdout and "Grafana" not in done.stdout
    assert host.run("monitoring-down").returncode == 0
    assert f"docker compose -p mine-monitoring {MONITORING} down\n" in host.calls
    touching = [line for line in host.calls.splitlines() if "compose" in line and MONITORING not in line]
    reading = ("compose version", "compose -f - config", "compose ps -a -q vramblk")
    assert all(line.endswith(reading) for line in touching), touching


TOKEN = "-f deploy/monitoring/compose.token.yaml"


def test_monitoring_with_a_token_in_a_file(host):
    """Named once, the file is used until the variable is taken out of .env."""
    host.write("clone/token", "s3cret\n")
    host.write("clone/.env", "VRAMBLK_METRICS_TOKEN_FILE=/run/secrets/mine\n")
    done = host.run("monitoring", VRAMBLK_MONITORING_TOKEN_PATH="token")
    assert done.returncode == 0, done.stderr
    assert host.dotenv["VRAMBLK_MONITORING_TOKEN_PATH"] == "token"
    assert host.run("exporter").returncode == 0
    assert host.run("monitoring-down").returncode == 0
    for command in ("up -d", "up -d exporter", "down"):
        assert f" {MONITORING} {TOKEN} {command}\n" in host.calls
    (host.directory / "clone/token").unlink()
    refused(host.run("monitoring"), 78, "VRAMBLK_MONITORING_TOKEN_PATH=token is no file")


def test_monitoring_is_not_open_beside_a_server_that_asks_for_a_token(host):
    def open_up(*services: str) -> bool:
        return f" {MONITORING} up -d{''.join(' ' + each for each in services)}\n" in host.calls

    file, text = {"VRAMBLK_METRICS_TOKEN_FILE": "/run/secrets/mine"}, {"VRAMBLK_METRICS_TOKEN": "s3cret"}
    for command in ("monitoring", "exporter"):
        done = host.run(command, **file)
        refused(done, 2, "VRAMBLK_METRICS_TOKEN_FILE is a path in the server's container")
        assert f"VRAMBLK_MONITORING_TOKEN_PATH=FILE make {command}\n" in done.stderr
    done = host.run("monitoring", **text)
    refused(done, 2, "VRAMBLK_METRICS_TOKEN is set, and Prometheus takes a token only from a file")
    assert "s3cret" not in done.stderr and not open_up() and not open_up("exporter")
    assert host.run("exporter", **text).returncode == 0
    assert open_up("exporter"), "Compose passes the variable on"
    refused(host.run("exporter"), 2, "VRAMBLK_METRICS_TOKEN was set at an earlier make up and is not set now")


@pytest.mark.parametrize("variable", ["VRAMBLK_METRICS_TOKEN=s3cret", "VRAMBLK_METRICS_TOKEN_FILE=/run/secrets/mine"])
@pytest.mark.parametrize("command", ["monitoring", "exporter"])
def test_monitoring_sees_a_token_that_a_file_of_the_users_gives_to_the_server(host, command, variable):
    """docs/guides/containers.md recommends such a file, and .env knows nothing of it."""
    host.write("container", "container-id\n")
    host.write("env", f"PATH=/bin\n{variable}\n")
    done = host.run(command)
    refused(done, 2, "the server's container asks for a token that neither .env nor the environment holds; write it")
    assert "s3cret" not in done.stdout + done.stderr and " up -d" not in host.calls
    host.write("clone/token", "s3cret\n")
    assert host.run(command, VRAMBLK_MONITORING_TOKEN_PATH="token").returncode == 0


@pytest.mark.parametrize("env", ["PATH=/bin\n", "VRAMBLK_METRICS_TOKEN=\n"])
def test_monitoring_needs_no_token_beside_a_server_without_one(host, env):
    host.write("container", "container-id\n")
    host.write("env", env)
    assert host.run("monitoring").returncode == 0


def test_a_swap_server_needs_no_token_for_metrics_that_nobody_can_reach(gpu_host):
    assert gpu_host.run("exporter", VRAMBLK_METRICS_TOKEN="s3cret").returncode == 0
    assert gpu_host.run(SWAP="1").returncode == 0


def test_monitoring_wants_the_image_that_up_builds(host):
    host.program("docker", DOCKER.replace("'image inspect --format {{.Id}} '*) ", "'image inspect '*) exit 1;"))
    refused(host.run("monitoring"), 1, "there is no image vramblk:latest, which reads the metrics; type: make up")


def test_down_leaves_the_directory_that_an_exporter_looks_into(host):
    host.write("run/.keep")
    (host.directory / "run/.keep").unlink()
    settings = {"VRAMBLK_RUN_DIR": str(host.directory / "run")}
    watching = f"'compose -p vramblk-monitoring {MONITORING} ps -q exporter') echo exporter-id ;;\n    'logs '"
    host.program("docker", DOCKER.replace("'logs '", watching))
    assert host.run("down", **settings).returncode == 0
    assert (host.directory / "run").is_dir()
    host.program("docker", DOCKER)
    assert host.run("down", **settings).returncode == 0
    assert not (host.directory / "run").exists()


def test_an_unknown_command(host):
    refused(host.run("sideways"), 2, "usage")


def refused(done: subprocess.CompletedProcess[str], status: int, words: str) -> None:
    assert done.returncode == status, (done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr


# A container that is compromised answers what it likes.

#: A window's title, 8-bit CSI, a line that starts anew.
EVIL = "\\033]0;sudo rm\\007\\233 31m\\r+ sudo rm\\177"


def hostile(host: Host, command: str, body: str) -> None:
    """`body` is what the container does in place of `command`."""
    host.program("docker", DOCKER.replace('case "$*" in\n', f'case "$*" in\n    {command}) {body} ;;\n', 1))


def harmless(done: subprocess.CompletedProcess[str]) -> None:
    for text in (done.stdout, done.stderr):
        assert re.fullmatch(r"[\n -~]*", text), text
        assert len(text) < 2 << 20


@pytest.mark.parametrize("text", [f"1{EVIL} 2", "0 0x", "-1 0", "0 " + "9" * 500])
def test_what_a_container_holds_is_two_numbers_or_no_answer(changed, text):
    hostile(changed, "'exec -i container-id python'*", f"printf '{text}\\n'")
    for command in ("up", "down"):
        done = changed.run(command)
        harmless(done)
        refused(done, 1, "the running server does not answer")
    assert "compose down" not in changed.calls and "compose up" not in changed.calls


@pytest.mark.parametrize("command", ["'exec container-id vramblk status --json'", "'exec -i container-id python'*"])
def test_an_answer_without_end_is_none(changed, command):
    hostile(changed, command, "exec yes 0")
    refused(changed.run("down"), 1, "the running server does not answer")


def test_an_answer_that_never_comes_is_none(changed):
    """Without waiting for it: the stand-in for timeout has it run out at once."""
    changed.program(
        "timeout",
        '#!/bin/sh\nwhile :; do case $1 in docker) break ;; 1) exit 0 ;; esac; shift; done\n'
        'case $* in "docker exec "*) exit 124 ;; esac\nexec "$@"\n',
    )
    hostile(changed, "'exec '*", "exec sleep 1000")
    refused(changed.run("down"), 1, "the running server does not answer")
    done = changed.run("status")
    assert done.returncode == 124
    changed.write("hash", "new-hash\n")
    (changed.directory / "config").unlink()
    changed.write("env", "PATH=/bin\n")
    done = changed.run(VRAMBLK_UP_TIMEOUT="1")
    assert done.returncode == 1 and "still starting after 1 s" in done.stderr


@pytest.mark.parametrize("name", ["$(rm)", "-x", "a b", "a\nb", "a\x1b]0;b", "a" * 5000])
def test_a_recipe_names_only_an_export_with_a_plain_name(host, name):
    """Users copy it to a root shell."""
    host.write("status", json.dumps({"connections": [], "exports": [{"name": name, "written_bytes": 0}]}))
    done = host.run()
    harmless(done)
    assert "rm" not in done.stdout and len(done.stdout) < 10_000
    if "\n" not in name and len(name) < 1000:
        assert "nbdinfo nbd://127.0.0.1:10809/vram\n" in done.stdout


def test_status_logs_and_reasons_are_printed_without_what_a_terminal_obeys(host):
    host.write("container", "container-id\n")
    for command, pattern in (("status", "'exec container-id vramblk status'"), ("logs", "'compose logs '*")):
        hostile(host, pattern, f"printf 'out{EVIL}\\n'; printf 'error{EVIL}\\n' >&2; exit 7")
        done = host.run(command)
        harmless(done)
        assert done.returncode == 7 and "out?]0;" in done.stdout and "error?]0;" in done.stdout
    hostile(host, "'exec container-id vramblk status'", "exec yes x")
    harmless(host.run("status"))
    host.write("container", "")
    hostile(host, "'exec container-id vramblk status --health'", f"printf 'h{EVIL}\\n'; exit 1")
    done = host.run(VRAMBLK_UP_TIMEOUT="1")
    harmless(done)
    assert done.stderr.startswith("h?]0;sudo rm") and "still starting" in done.stderr
    host.write("state", "exited 0\n")
    hostile(host, "'logs '*", f"printf 'l{EVIL}\\n'")
    done = host.run()
    harmless(done)
    assert done.stderr.startswith("l?]0;sudo rm") and "does not become healthy" in done.stderr


def test_status_has_the_exit_status_of_the_server(host):
    host.write("container", "container-id\n")
    hostile(host, "'exec container-id vramblk status'", "echo fine")
    done = host.run("status")
    assert done.returncode == 0 and done.stdout.endswith("fine\n")


# The base image

DIGEST = "debian@sha256:" + "0" * 64
OF_A_REGISTRY = DOCKER.replace(
    "'image inspect --format {{.Id}} '*)",
    f"'image inspect --format {{{{range .RepoDigests'*) echo {DIGEST} ;;\n    'image inspect --format {{{{.Id}}}} '*)",
)
BUILD = 'echo "built from ${VRAMBLK_BASE:-the default} with digest ${VRAMBLK_BASE_DIGEST:-none}" >>"$TEST/calls"'


def test_a_base_of_a_registry_is_named_by_its_digest(host):
    host.program("docker", OF_A_REGISTRY)
    host.write("build", BUILD)
    done = host.run()
    assert done.returncode == 0, done.stderr
    assert f"built from {DIGEST} with digest {DIGEST.partition('@')[2]}" in host.calls
    assert DIGEST in done.stdout


def test_a_base_that_was_made_here_has_no_digest(host):
    host.write("build", BUILD)
    assert host.run().returncode == 0
    assert "built from the default with digest none" in host.calls


def test_another_base_is_not_made_in_place_of_a_digest(host):
    """A pinned base that no registry has: the fallback would be another image."""
    host.program("docker", DOCKER.replace("'info '*)", "'image inspect '*|'pull '*) exit 1 ;;\n    'info '*)", 1))
    host.write("clone/deploy/make-base.sh", '#!/bin/sh\necho "make-base $*" >>"$TEST/calls"\n')
    (host.directory / "clone/deploy/make-base.sh").chmod(0o755)
    host.write("clone/.env", f"VRAMBLK_BASE={DIGEST}")
    refused(host.run(), 1, f"{DIGEST} cannot be pulled")
    assert "make-base" not in host.calls
