"""The one line that says why a container sees no GPU. Needs no Docker."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

passthrough = pytest.importorskip("vramblk.memory.passthrough")
pytestmark = pytest.mark.container

IN_IMAGE = {"NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}


def touch(path: Path, mode: int = 0o666) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    path.chmod(mode)


@pytest.mark.parametrize(
    ("icd", "file"),
    [("nvidia", "compose.nvidia.yaml"), ("amdocl64", "compose.rocm.yaml"), ("rusticl", "compose.intel.yaml")],
)
def test_no_gpu_passed_in_names_the_vendors_file(tmp_path, icd, file):
    line = passthrough.unmet_requirement(tmp_path, {**IN_IMAGE, "OCL_ICD_VENDORS": f"/etc/OpenCL/vendors/{icd}.icd"})
    assert "was given no GPU" in line
    assert file in line


def test_no_gpu_passed_in_without_a_vendor_names_all(tmp_path):
    line = passthrough.unmet_requirement(tmp_path, IN_IMAGE)
    assert "compose.nvidia.yaml" in line
    assert "VRAMBLK_ALLOW_CPU=on" in line


def test_the_driver_without_its_library(tmp_path):
    touch(tmp_path / "dev/nvidiactl")
    line = passthrough.unmet_requirement(tmp_path, IN_IMAGE, loadable=lambda name: False)
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in line


def test_the_driver_with_its_library_is_no_obstacle(tmp_path):
    touch(tmp_path / "dev/nvidiactl")
    assert passthrough.unmet_requirement(tmp_path, IN_IMAGE, loadable=lambda name: True) is None


def test_an_image_that_was_built_for_another_vendor(tmp_path):
    """As by plain compose.yaml, and then started with a vendor's file without --build."""
    touch(tmp_path / "dev/kfd")
    environment = {**IN_IMAGE, "OCL_ICD_VENDORS": "/etc/OpenCL/vendors/amdocl64.icd"}
    line = passthrough.unmet_requirement(tmp_path, environment)
    assert "built without the runtime of amdocl64.icd; build it with compose.rocm.yaml" in line
    touch(tmp_path / "etc/OpenCL/vendors/amdocl64.icd")
    assert passthrough.unmet_requirement(tmp_path, environment) is None


@pytest.mark.parametrize("node", ["dev/kfd", "dev/dri/renderD128"])
def test_a_device_file_that_cannot_be_opened_names_its_group(tmp_path, node, monkeypatch):
    touch(tmp_path / node)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    line = passthrough.unmet_requirement(tmp_path, {})
    assert line.startswith(f"/{node} cannot be opened")
    assert f"VRAMBLK_RENDER_GID={os.getgid()}" in line


def test_a_device_file_that_can_be_opened_is_no_obstacle(tmp_path):
    touch(tmp_path / "dev/kfd")
    assert passthrough.unmet_requirement(tmp_path, IN_IMAGE) is None


def test_on_a_host_it_keeps_silent(tmp_path):
    assert passthrough.unmet_requirement(tmp_path, {}) is None


@pytest.mark.parametrize("vendors", [{}, {"OCL_ICD_VENDORS": "/etc/OpenCL/vendors/rusticl.icd"}])
def test_rusticl_without_its_variable_names_it(tmp_path, vendors):
    """Installed on a host and with a GPU there, it offers no device until it is told which driver to use."""
    touch(tmp_path / "etc/OpenCL/vendors/rusticl.icd")
    assert "RUSTICL_ENABLE=iris" in passthrough.unmet_requirement(tmp_path, vendors)
    assert "RUSTICL_ENABLE" not in (passthrough.unmet_requirement(tmp_path, vendors, any_device=True) or "")
    touch(tmp_path / "dev/dri/renderD128")
    for any_device in (False, True):
        assert "RUSTICL_ENABLE=iris" in passthrough.unmet_requirement(tmp_path, vendors, any_device=any_device)
        told = {**vendors, "RUSTICL_ENABLE": "iris"}
        assert passthrough.unmet_requirement(tmp_path, told, any_device=any_device) is None


def test_another_runtime_needs_no_variable_of_rusticls(tmp_path):
    touch(tmp_path / "etc/OpenCL/vendors/rusticl.icd")
    touch(tmp_path / "dev/dri/renderD128")
    assert passthrough.unmet_requirement(tmp_path, {"OCL_ICD_VENDORS": "/etc/OpenCL/vendors/amdocl64.icd"}) is None


def test_a_container_without_a_gpu_is_told_so_first(tmp_path):
    touch(tmp_path / "etc/OpenCL/vendors/rusticl.icd")
    assert "was given no GPU" in passthrough.unmet_requirement(tmp_path, IN_IMAGE)


def test_every_line_is_one_line(tmp_path):
    touch(tmp_path / "dev/nvidiactl")
    assert "\n" not in passthrough.unmet_requirement(tmp_path, IN_IMAGE, loadable=lambda name: False)
