"""Mesa's rusticl as the image has it for Intel and AMD, on its driver for processors, llvmpipe.

Needs Docker Engine, a Compose, nbdcopy (libnbd-bin) and fio with its nbd engine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from . import docker
from .docker import REPOSITORY, Project, requires_docker
from .test_image import locked_down, run
from .test_serving import requires

pytestmark = [pytest.mark.container, requires_docker]

LLVMPIPE = (*locked_down(), "-e", "RUSTICL_ENABLE=llvmpipe")
#: Bytes of private memory that a kernel takes for each work-item.
PRIVATE = """
import json
import pyopencl
from vramblk.memory.devices import discover
from vramblk.memory.opendevice import OpenDevice
(info,) = discover()
program = OpenDevice(info).program
size = pyopencl.kernel_work_group_info.PRIVATE_MEM_SIZE
kernels = {each.function_name: each.get_work_group_info(size, info.handle) for each in program.all_kernels()}
print(json.dumps(kernels))
"""


@pytest.fixture(scope="module")
def served(rusticl_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A running server of 256 MiB that verifies its reads."""
    more = tmp_path_factory.mktemp("rusticl") / "more.yaml"
    more.write_text("services:\n  vramblk:\n    environment:\n      - RUSTICL_ENABLE=llvmpipe\n")
    one = Project(
        "vramblktestrusticl",
        REPOSITORY,
        tmp_path_factory.mktemp("run"),
        files=[REPOSITORY / "compose.yaml", more],
        command=docker.any_compose(),
        settings={"VRAMBLK_IMAGE": rusticl_image, "VRAMBLK_VERIFY_READS": "on"},
    )
    one.start()
    yield one
    one.remove()


def test_the_device_is_there_and_counts_as_a_cpu(rusticl_image):
    (device,) = json.loads(run(rusticl_image, "devices", "--json", options=LLVMPIPE).stdout)["devices"]
    assert (device["platform"], device["type"], device["needs_allow_cpu"]) == ("rusticl", "CPU", True)


def test_without_its_variable_the_message_names_it(rusticl_image):
    """On a host, that is: the image has a message of its own, that no GPU was passed in."""
    host = "env", "-u", "NVIDIA_DRIVER_CAPABILITIES", "vramblk"
    done = run(rusticl_image, "-c", f"exec {' '.join(host)}", options=locked_down(), entrypoint="sh", check=False)
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    assert "set RUSTICL_ENABLE=iris" in done.stderr


def test_the_selftest_passes(rusticl_image):
    done = run(rusticl_image, "selftest", "--allow-cpu", "--size", "64M", options=LLVMPIPE)
    assert "passed" in done.stdout


def test_no_kernel_copies_its_table(rusticl_image):
    """rusticl gives each work-item a copy of an argument that is indexed in more than one block of the kernel."""
    kernels = json.loads(run(rusticl_image, "-c", PRIVATE, options=LLVMPIPE, entrypoint="python3.13").stdout)
    assert {"gather", "scatter", "exchange", "checksum_runs", "zero"} <= set(kernels)
    assert max(kernels.values()) < 128, kernels


@requires("nbdcopy")
def test_bytes_come_back_identical(served, tmp_path):
    (tmp_path / "in").write_bytes(os.urandom(32 << 20))
    docker.run("nbdcopy", tmp_path / "in", served.uri)
    docker.run("nbdcopy", served.socket_uri, tmp_path / "out")
    assert (tmp_path / "out").read_bytes()[: 32 << 20] == (tmp_path / "in").read_bytes()


@requires("fio")
def test_fio_verifies(served, tmp_path):
    docker.run(
        "fio", "--name=verify", "--ioengine=nbd", f"--uri={served.socket_uri}", "--rw=randwrite", "--bsrange=512-256k",
        "--size=32M", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--output-format=terse",
        cwd=tmp_path,
    )  # fmt: skip
