"""The compose files as both implementations render them. Needs docker-compose 1.29 and the Compose v2 plugin."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from . import docker
from .docker import REPOSITORY

pytestmark = pytest.mark.container

VENDORS = ("nvidia", "nvidia-runtime", "rocm", "intel")
OVERRIDES = (*VENDORS, "swap", "tls")
SETTINGS = {"VRAMBLK_RENDER_GID": "110", "VRAMBLK_VIDEO_GID": "44"}


@pytest.fixture(params=["docker-compose", "docker compose"])
def render(request: pytest.FixtureRequest, tmp_path: Path):
    command = docker.compose_command(request.param)

    def config(*overrides: str, dotenv: str = "", check: bool = True, **settings: str) -> Any:
        (tmp_path / ".env").write_text(dotenv)
        files = ["compose.yaml", *(f"compose.{name}.yaml" for name in overrides)]
        arguments = [part for name in files for part in ("-f", str(REPOSITORY / name))]
        done = docker.run(
            *command, "--project-directory", tmp_path, "-p", "x", *arguments, "config",
            env=SETTINGS | settings, check=check, cwd=tmp_path,
        )  # fmt: skip
        return yaml.safe_load(done.stdout)["services"]["vramblk"] if check else done

    return config


@pytest.mark.parametrize(
    "override", [(), *((name,) for name in OVERRIDES), ("nvidia", "swap"), ("rocm", "swap", "tls")]
)
def test_every_combination_is_accepted(render, override):
    assert render(*override)["image"] == "vramblk:latest"


def test_is_locked_down(render):
    service = render()
    assert service["cap_drop"] == ["ALL"]
    assert service["cap_add"] == ["IPC_LOCK", "KILL", "SETGID", "SETUID"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["restart"] == "unless-stopped"
    assert "/var/cache/vramblk:exec,mode=0700" in service["tmpfs"]
    assert service["healthcheck"]["test"] == ["CMD", "vramblk", "status", "--health"]
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    for unwanted in ("privileged", "pid", "ipc", "network_mode", "mem_limit"):
        assert unwanted not in service


def test_publishes_on_loopback_only(render):
    for port in render(VRAMBLK_NBD_PORT="20809")["ports"]:
        text = port if isinstance(port, str) else f"{port['host_ip']}:{port['published']}:{port['target']}"
        assert re.match(r"127\.0\.0\.1:(20809:10809|10810:10810)", text)


def test_mounts_the_socket_directory_and_joins_its_group(render):
    service = render(VRAMBLK_SOCKET_GID="1234", VRAMBLK_RUN_DIR="/srv/nbd")
    (volume,) = service["volumes"]
    text = volume if isinstance(volume, str) else f"{volume['source']}:{volume['target']}"
    assert text.startswith("/srv/nbd:/run/vramblk")
    assert service["group_add"] == ["1234"]
    assert service["environment"]["VRAMBLK_SOCKET_GID"] == "1234"


def test_settings_of_the_dotenv_file_reach_the_server(render):
    environment = render(dotenv="VRAMBLK_SIZE=3G\nVRAMBLK_LISTEN_ADDR=\n")["environment"]
    assert environment["VRAMBLK_SIZE"] == "3G"
    assert environment["VRAMBLK_LISTEN_ADDR"] == "", "the way to let a YAML file decide"
    assert environment["VRAMBLK_WORKERS"] is None, "an option that nobody set must stay unset"


@pytest.mark.parametrize("override", [(), *((name,) for name in OVERRIDES)])
def test_no_file_passes_on_an_empty_variable_by_itself(render, override):
    """An empty token, or TLS set to nothing, is an error of the server: only somebody who wrote it may cause it."""
    assert "" not in render(*override)["environment"].values()
    assert render("tls", VRAMBLK_TLS="")["environment"]["VRAMBLK_TLS"] == "require"


def test_what_the_image_listens_on_is_said_again(render):
    """A variable that is passed on without a value would take the image's away."""
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    environment = render()["environment"]
    for name in ("VRAMBLK_LISTEN_ADDR", "VRAMBLK_METRICS_ADDR"):
        assert f"{name}={environment[name]}" in dockerfile


def test_every_option_can_be_set():
    options = pytest.importorskip("vramblk.config.options")
    variables = pytest.importorskip("vramblk.config.variables")
    passed_on = set()
    for name in ("compose.yaml", "compose.tls.yaml"):
        text = (REPOSITORY / name).read_text()
        passed_on |= set(re.findall(r"^ +- (VRAMBLK_\w+)", text, re.MULTILINE))
    missing = {option.environment for option in options.OPTIONS} - passed_on
    assert missing <= {"VRAMBLK_TLS_PSK"}, "a pre-shared key needs a secret of its own: docs/guides/containers.md"
    unknown = {name for name in passed_on if not variables.is_known(name)}
    assert not unknown


def test_every_variable_of_the_files_is_known():
    variables = pytest.importorskip("vramblk.config.variables")
    used = set()
    for path in REPOSITORY.glob("compose*.yaml"):
        used |= set(re.findall(r"\$\{(VRAMBLK_\w+)", path.read_text()))
    assert used
    assert {name for name in used if not variables.is_known(name)} == set()


def test_alone_it_serves_from_the_cpu_and_with_a_vendor_never(render):
    assert render()["environment"]["VRAMBLK_ALLOW_CPU"] == "on"
    for vendor in VENDORS:
        assert render(vendor)["environment"]["VRAMBLK_ALLOW_CPU"] == "off"
    assert render("nvidia", VRAMBLK_ALLOW_CPU="on")["environment"]["VRAMBLK_ALLOW_CPU"] == "on"


@pytest.mark.parametrize(
    ("vendor", "icd"),
    [("nvidia", "nvidia"), ("nvidia-runtime", "nvidia"), ("rocm", "amdocl64"), ("intel", "rusticl")],
)
def test_a_vendor_loads_its_own_runtime_only(render, vendor, icd):
    assert render(vendor)["environment"]["OCL_ICD_VENDORS"] == f"/etc/OpenCL/vendors/{icd}.icd"


@pytest.mark.parametrize(
    ("vendor", "runtimes"),
    [("nvidia", "nvidia cpu"), ("nvidia-runtime", "nvidia cpu"), ("rocm", "amd intel cpu"), ("intel", "intel cpu")],
)
def test_a_vendors_file_builds_its_runtimes(render, vendor, runtimes):
    """The same as `make up`, not all, which would be two to four times as large."""
    build = render(vendor)["build"]
    assert build["args"]["RUNTIMES"] == runtimes
    assert build["context"]
    assert render(vendor, VRAMBLK_RUNTIMES="amd")["build"]["args"]["RUNTIMES"] == "amd"


def test_without_a_vendors_file_only_the_cpus_is_built(render):
    assert render()["build"]["args"]["RUNTIMES"] == "cpu"


def test_nvidia_reserves_the_device(render):
    (device,) = render("nvidia")["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert device["count"] in (-1, "all")


@pytest.mark.parametrize("vendor", VENDORS)
def test_one_export_for_each_of_all_gpus(render, vendor):
    """The vendors' files pass every GPU in, and the server is told to use them all."""
    environment = render(vendor, dotenv="VRAMBLK_DEVICE=all\nVRAMBLK_SIZE=50%\n")["environment"]
    assert environment["VRAMBLK_DEVICE"] == "all"
    assert environment["VRAMBLK_SIZE"] == "50%"


def test_nvidia_for_the_old_runtime(render):
    service = render("nvidia-runtime")
    assert service["runtime"] == "nvidia"
    assert service["environment"]["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert "deploy" not in service


def test_rocm_passes_devices_and_numeric_groups(render):
    service = render("rocm", VRAMBLK_SOCKET_GID="7")
    devices = {text.split(":")[0] if isinstance(text, str) else text["source"] for text in service["devices"]}
    assert devices == {"/dev/kfd", "/dev/dri"}
    assert {int(group) for group in service["group_add"]} == {7, 44, 110}


def test_groups_with_the_same_number_are_accepted(render):
    service = render("rocm", VRAMBLK_SOCKET_GID="0", VRAMBLK_RENDER_GID="0", VRAMBLK_VIDEO_GID="0")
    assert {int(group) for group in service["group_add"]} == {0}


@pytest.mark.parametrize("vendor", ["rocm", "intel"])
def test_a_missing_group_number_is_named_with_the_command_that_tells_it(render, vendor):
    done = render(vendor, check=False, VRAMBLK_RENDER_GID="")
    assert done.returncode != 0
    assert "stat -c %g /dev/" in done.stderr


def test_intel_passes_the_render_nodes(render):
    service = render("intel")
    assert len(service["devices"]) == 1
    assert service["environment"]["RUSTICL_ENABLE"] == "iris"
    assert {int(group) for group in service["group_add"]} == {0, 110}


@pytest.mark.parametrize("vendor", VENDORS)
def test_swap_has_what_it_needs_and_nothing_that_harms_it(render, vendor):
    service = render(vendor, "swap")
    assert sorted(service["cap_add"]) == [
        "IPC_LOCK", "KILL", "SETGID", "SETUID", "SYS_NICE", "SYS_RESOURCE",
    ]  # fmt: skip
    assert service["oom_score_adj"] == -1000
    assert service["ulimits"]["memlock"] == {"soft": -1, "hard": -1}
    assert service["restart"] == "no"
    assert service["stop_grace_period"].startswith("24h")
    environment = service["environment"]
    assert environment["VRAMBLK_MODE"] == "swap"
    assert environment["VRAMBLK_LISTEN_ADDR"] == "unix:/run/vramblk/nbd.sock"
    assert environment["VRAMBLK_METRICS_ADDR"] == "off"
    assert environment["VRAMBLK_ALLOW_CPU"] == "off"
    assert service["network_mode"] == "none", "so that no port is published"
    assert "mem_limit" not in service
    assert "limits" not in service.get("deploy", {}).get("resources", {})
    assert service["healthcheck"]["interval"].startswith("10m")


def test_swap_cannot_be_weakened_by_settings(render):
    environment = render("nvidia", "swap", VRAMBLK_LISTEN_ADDR="0.0.0.0:1", VRAMBLK_ALLOW_CPU="on")[
        "environment"
    ]
    assert environment["VRAMBLK_LISTEN_ADDR"] == "unix:/run/vramblk/nbd.sock"
    assert environment["VRAMBLK_ALLOW_CPU"] == "off"


def test_tls_keys_are_secrets_named_by_path(render):
    service = render("tls")
    assert service["environment"]["VRAMBLK_TLS"] == "require"
    assert service["environment"]["VRAMBLK_TLS_CERTIFICATES"] == "/run/secrets/tls"
    targets = {secret["target"] for secret in service["secrets"]}
    assert targets == {f"/run/secrets/tls/{name}.pem" for name in ("ca-cert", "server-cert", "server-key")}


def test_no_file_uses_what_one_of_the_two_rejects():
    for path in REPOSITORY.glob("compose*.yaml"):
        content = yaml.safe_load(path.read_text())
        assert set(content) <= {"services", "secrets"}, path
        assert "gpus" not in content["services"]["vramblk"]


@pytest.mark.needs_sys_resource
def test_swap_settings_take_effect(project, image):
    if not _daemon_holds_sys_resource():
        pytest.skip("requires a Docker daemon with CAP_SYS_RESOURCE")
    one = project(files=[REPOSITORY / "compose.yaml", REPOSITORY / "compose.swap.yaml"])
    show = "grep -h . /proc/self/oom_score_adj; ulimit -l; ls /sys/class/net; grep CapEff /proc/self/status"
    done = one.compose("run", "--rm", "--no-deps", "--entrypoint", "sh", "vramblk", "-c", show)
    score, memlock, network, capabilities = done.stdout.split("\n")[:4]
    assert (score, memlock, network) == ("-1000", "unlimited", "lo")
    assert int(capabilities.split()[1], 16) == 7 << 5 | 1 << 14 | 1 << 23 | 1 << 24


def _daemon_holds_sys_resource() -> bool:
    if docker.missing():
        return False
    done = docker.run(
        "docker", "run", "--rm", "--oom-score-adj=-1000", "--ulimit", "memlock=-1", "--entrypoint", "true",
        docker.IMAGE, check=False,
    )  # fmt: skip
    return done.returncode == 0 and os.geteuid() == 0
