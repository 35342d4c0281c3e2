"""What `make up` chooses, writes and refuses, against a stand-in for docker. Needs a POSIX shell; no Docker."""

from __future__ import annotations

import os
import pty
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
    'compose ps -a -q vramblk') cat "$TEST/container" 2>/dev/null || true ;;
    'compose build') [ ! -e "$TEST/build" ] || . "$TEST/build" ;;
    'compose up '*) echo container-id >"$TEST/container"; rm -f "$TEST/stopped" ;;
    'compose config --hash'*) echo 'vramblk new-hash' ;;
    'compose config') printf 'services:\\n  vramblk:\\n    image: vramblk:latest\\n' ;;
    'inspect --format {{.State.Status}} {{.RestartCount}} '*) cat "$TEST/state" 2>/dev/null || echo 'running 0' ;;
    'inspect --format {{.State.Status}} '*)
        if [ -e "$TEST/stopped" ]; then echo exited; elif ! [ -e "$TEST/silent" ]; then echo running; fi ;;
    'inspect --format {{.Image}} '*) echo image-id ;;
    'inspect --format {{index .Config.Labels'*) cat "$TEST/hash" 2>/dev/null || echo new-hash ;;
    'inspect --format {{range .Config.Env}}'*) cat "$TEST/env" 2>/dev/null || true ;;
    'image inspect --format {{.Id}} '*) echo image-id ;;
    'exec container-id vramblk status --json') cat "$TEST/status" 2>/dev/null || echo '{"connections": []}' ;;
    'exec container-id vramblk status --health') [ ! -e "$TEST/ill" ] || { cat "$TEST/ill"; exit 1; } ;;
    'exec -i container-id python'*) shift 4; exec python3 "$@" ;;
    'logs '*) [ -e "$TEST/wordless" ] || echo 'vramblk: no device; type this' ;;
esac
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
    (tmp_path / "clone/deploy").mkdir(parents=True)
    shutil.copy(REPOSITORY / "deploy/up.sh", tmp_path / "clone/deploy")
    (tmp_path / "clone/vramblk").mkdir()
    (tmp_path / "clone/vramblk/__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "host").mkdir()
    (tmp_path / "tmp").mkdir()
    made = Host(tmp_path)
    made.script("exit 1")
    made.program("docker", DOCKER)
    made.program("id", "#!/bin/sh\necho 0\n")
    made.program("systemctl", SYSTEMCTL)
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
    host.certificates()
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
    refused(
        host.run(),
        2,
        "VRAMBLK_MODE=swap, but COMPOSE_FILE=compose.yaml:compose.nvidia.yaml lacks compose.swap.yaml",
    )
    refused(host.run(SWAP="1"), 2, "SWAP=1, but COMPOSE_FILE")


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
    assert text.startswith("# mine\nVRAMBLK_SIZE=1G\n\nVRAMBLK_RUNTIMES=amd intel cpu\n")
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


def test_tls_stands_before_swap(gpu_host):
    gpu_host.certificates()
    assert gpu_host.run(SWAP="1").returncode == 0
    assert gpu_host.run(SWAP="1", VRAMBLK_TLS="on").returncode == 0
    assert gpu_host.dotenv["COMPOSE_FILE"] == f"{GPU}:compose.tls.yaml:compose.swap.yaml"


@pytest.mark.parametrize("dotenv", ["", "COMPOSE_FILE=compose.yaml:compose.tls.yaml\n"])
def test_tls_without_certificates_is_refused_before_anything_is_written(host, dotenv):
    host.write("clone/.env", dotenv)
    refused(host.run(VRAMBLK_TLS="require"), 78, "TLS needs ./tls/ca-cert.pem")
    host.certificates("clone/elsewhere")
    (host.directory / "clone/elsewhere/server-key.pem").unlink()
    done = host.run(VRAMBLK_TLS="require", VRAMBLK_TLS_DIR="elsewhere")
    refused(done, 78, "elsewhere/server-key.pem, which is not there; VRAMBLK_TLS_DIR names the directory")
    assert "docs/container.md" in done.stderr
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


def test_a_build_that_fails_leaves_its_log(host):
    host.write("build", "seq -f 'line %g.' 100\nexit 1\n")
    done = host.run()
    (log,) = host.temporary.iterdir()
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "line 71."
    assert (
        done.stderr.splitlines()[-1]
        == f"vramblk: the image cannot be built; all that the builder said: {log}"
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
    refused(host.run(VRAMBLK_UP_TIMEOUT=value), 2, f"VRAMBLK_UP_TIMEOUT={value}: allowed is a whole number")


def test_a_server_is_stopped_with_a_reason_even_if_it_wrote_none(host):
    host.write("state", "exited 0\n")
    host.write("wordless")
    done = host.run()
    assert done.returncode == 1
    assert done.stderr.startswith("the server has written nothing; its container: exited 0\n")


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
    refused(host.run("up"), 1, "does not tell the state")
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


def test_an_unknown_command(host):
    refused(host.run("sideways"), 2, "usage")


def refused(done: subprocess.CompletedProcess[str], status: int, words: str) -> None:
    assert done.returncode == status, (done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr
