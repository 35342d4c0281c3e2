"""Which device an export gets, and what the user is told if there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyopencl as cl
import pytest

from vramblk.commands import check, devices
from vramblk.config.settings import load_settings
from vramblk.config.units import parse_size
from vramblk.errors import ConfigError, PreconditionError
from vramblk.memory import alldevices, open_memories, probing, systemram
from vramblk.memory.devices import CPU, GPU, DeviceInfo, choose, discover, normal_pci

GIB = 1 << 30


def device(platform: int, index: int, name: str, type: str = GPU, pci: str | None = None) -> DeviceInfo:
    return DeviceInfo(
        platform, index, f"platform {platform}", name, type, "vendor", "1.0", 8 * GIB, 2 * GIB, pci, None
    )


HOST = [
    device(0, 0, "pthread-cpu", CPU),
    device(1, 0, "NVIDIA H200", pci="0000:01:00.0"),
    device(1, 1, "NVIDIA H200", pci="0000:02:00.0"),
    device(2, 0, "gfx1100", pci="0000:0a:00.0"),
]


@pytest.mark.parametrize(
    ("platform", "name", "expected"),
    [
        (None, None, 1),
        (None, "0", 1),
        (None, "1", 2),
        (None, "h200", 1),
        (None, "gfx", 3),
        (None, "02:00.0", 2),
        (None, "0000:0A:00.0", 3),
        (2, None, 3),
        (2, "0", 3),
        (1, "1", 2),
    ],
)
def test_choice(platform: int | None, name: str | None, expected: int) -> None:
    """The first GPU of any platform, or what index, name or PCI address says."""
    assert choose(HOST, platform, name, allow_cpu=False) is HOST[expected]
    assert choose(HOST, platform, name, allow_cpu=True) is HOST[expected]


def test_cpu_only_where_allowed() -> None:
    """A CPU is never taken unasked, and only for want of a GPU."""
    for platform, name in ((0, None), (None, "pthread"), (0, "0")):
        with pytest.raises(PreconditionError, match="allow-cpu"):
            choose(HOST, platform, name, allow_cpu=False)
        assert choose(HOST, platform, name, allow_cpu=True) is HOST[0]
    with pytest.raises(PreconditionError, match="no GPU found"):
        choose(HOST[:1], None, None, allow_cpu=False)
    assert choose(HOST[:1], None, "0", allow_cpu=True) is HOST[0]


class MadeUp(SimpleNamespace):
    """A device as pyopencl shows one, in the fields that discovery reads."""

    def __init__(self, kind: int) -> None:
        super().__init__(
            type=kind, available=True, compiler_available=True, endian_little=True, max_parameter_size=4352,
            name="made up", vendor="vendor", driver_version="1.0", global_mem_size=8 * GIB,
            max_mem_alloc_size=2 * GIB, extensions="",
        )  # fmt: skip


@pytest.fixture
def made_up(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Discovery finds one device of the parameter's type."""
    platform = SimpleNamespace(name="platform 0", get_devices=lambda: [MadeUp(request.param)])
    monkeypatch.setattr(cl, "get_platforms", lambda: [platform])


IS_GPU, IS_CPU, IS_ACCELERATOR = cl.device_type.GPU, cl.device_type.CPU, cl.device_type.ACCELERATOR


@pytest.mark.parametrize(
    ("made_up", "type"),
    [
        (IS_GPU, GPU),
        (IS_GPU | cl.device_type.DEFAULT, GPU),
        (IS_GPU | IS_ACCELERATOR, GPU),
        (IS_CPU, CPU),
        (IS_ACCELERATOR, CPU),
        (IS_CPU | IS_ACCELERATOR, CPU),
        (IS_CPU | IS_GPU, CPU),
    ],
    indirect=["made_up"],
)
def test_what_is_no_gpu_counts_as_a_cpu(made_up: None, type: str) -> None:
    """Intel's FPGA emulator is an accelerator in system RAM; a device that claims to be both is a CPU."""
    assert [found.type for found in discover()] == [type]


@pytest.mark.parametrize("made_up", [cl.device_type.CUSTOM], indirect=True)
def test_a_custom_device_cannot_be_used(made_up: None) -> None:
    """It runs no kernels of ours, whatever is allowed."""
    with pytest.raises(PreconditionError, match="neither GPU, accelerator nor CPU"):
        choose(discover(), None, None, allow_cpu=True)


@pytest.mark.parametrize("made_up", [IS_ACCELERATOR, IS_CPU | IS_GPU], indirect=True)
def test_system_ram_is_never_served_as_a_gpu(made_up: None) -> None:
    """The server, the list of devices and the check agree on an accelerator, and on a CPU that claims to be a GPU."""
    (found,) = discover()
    for device in (None, "0", "made"):
        with pytest.raises(PreconditionError, match="allow-cpu"):
            choose([found], None, device, allow_cpu=False)
        assert choose([found, HOST[1]], None, None, allow_cpu=True) is HOST[1]
    assert devices.usability(found) == "with --allow-cpu (system RAM)"
    swap = "--mode", "swap", "--listen-addr", "unix:/tmp/socket"
    for options, state in (
        ((), check.MISSING),
        (("--allow-cpu",), check.WARNING),
        (("--allow-cpu", *swap), check.MISSING),
    ):
        settings = load_settings(options, {})
        assert [each.state for each in check.examine(settings) if each.name == "device"] == [state]
    with pytest.raises(PreconditionError, match="is system RAM, and swap mode needs a GPU"):
        open_memories(settings.exports, (), allow_cpu=True, map_overwrite=False)


@pytest.mark.parametrize(
    ("platform", "name", "said"),
    [
        (7, None, "platform 7 does not exist.*NVIDIA H200"),
        (None, "9", "device '9' does not exist.*gfx1100"),
        (2, "h200", "on platform 2"),
        (None, "0000:33:00.0", "does not exist"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(platform: int | None, name: str, said: str) -> None:
    with pytest.raises(PreconditionError, match=said):
        choose(HOST, platform, name, allow_cpu=True)


def test_nothing_found_says_what_to_install() -> None:
    with pytest.raises(PreconditionError, match="install"):
        choose([], None, None, allow_cpu=True)


def test_ambiguous_and_broken() -> None:
    """A fragment of two names is refused; a device that cannot be used says why."""
    both = [device(0, 0, "Radeon A"), device(0, 1, "Radeon B")]
    with pytest.raises(PreconditionError, match="ambiguous"):
        choose(both, None, "radeon", allow_cpu=False)
    broken = replace(HOST[1], problem="it has no compiler for kernels")
    with pytest.raises(PreconditionError, match="no compiler"):
        choose([broken], None, None, allow_cpu=False)


def names_on_all(devices: list[DeviceInfo], *argv: str) -> list[tuple[str, int | None, str | None]]:
    settings = load_settings(["--device", "all", *argv], {})
    placed = settings.placed(alldevices.places(settings, devices))
    return [(each.name, each.platform, each.device) for each in placed.exports]


def test_all_devices() -> None:
    """One export on each GPU, of one platform if that is given; a CPU only where there is no GPU."""
    assert names_on_all(HOST) == [("vram-gpu0", 1, "0"), ("vram-gpu1", 1, "1"), ("vram-gpu2", 2, "0")]
    assert names_on_all(HOST, "--platform", "2", "--allow-cpu") == [("vram-gpu0", 2, "0")]
    assert names_on_all(HOST[:1], "--allow-cpu") == [("vram-cpu0", 0, "0")]
    with pytest.raises(PreconditionError, match="no GPU"):
        names_on_all(HOST[:1])
    sliced = names_on_all(HOST[:3], "--slices", "2")
    assert [name for name, _, _ in sliced] == ["vram-gpu0-0", "vram-gpu0-1", "vram-gpu1-0", "vram-gpu1-1"]


def test_all_devices_counts_a_gpu_once() -> None:
    """Two runtimes may offer the same GPU: the first of them serves it, even if the other could not."""
    twice = replace(HOST[3], platform_index=3, problem="it has no compiler for kernels")
    assert len(names_on_all([*HOST, twice])) == 3
    with pytest.raises(PreconditionError, match="no compiler"):
        names_on_all([*HOST, replace(twice, pci_address="0000:0b:00.0")])


def test_all_devices_may_be_too_many() -> None:
    with pytest.raises(ConfigError, match="66 exports"):
        names_on_all(HOST, "--slices", "22")


def test_pci() -> None:
    assert normal_pci("01:0A.3") == "0000:01:0a.3"
    with pytest.raises(ValueError):
        normal_pci("nonsense")


def test_shares() -> None:
    """Bytes stay, percent is of all, max takes what is left, together never more than there is."""
    sizes = [parse_size(text) for text in ("1G", "50%", "max", "max")]
    assert probing.share(sizes, lambda: 8 * GIB) == [GIB, 4 * GIB, 3 * GIB // 2, 3 * GIB // 2]
    assert probing.share([parse_size("3G")], lambda: 1 // 0) == [3 * GIB]
    slices = [parse_size("max").divided(3)] * 3
    assert probing.share([*slices, parse_size("max")], lambda: 6 * GIB) == [GIB, GIB, GIB, 3 * GIB]
    assert probing.share([parse_size("50%").divided(2)] * 2, lambda: 8 * GIB) == [2 * GIB, 2 * GIB]
    with pytest.raises(ValueError, match="sizes 60%, 60% are together more than the 1 GiB there are"):
        probing.share([parse_size("60%"), parse_size("60%")], lambda: GIB)
    with pytest.raises(ValueError):
        probing.share([parse_size("100%"), parse_size("max")], lambda: GIB)


def test_max_on_a_cpu_leaves_the_host_its_memory() -> None:
    """On a CPU device nothing is touched to find out: half of what the host has available."""
    usable = probing.usable_bytes(device(0, 0, "cpu", CPU))
    assert 0 < usable <= systemram.available_bytes() // 2


def _devices(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vramblk", "devices", *arguments],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_listing() -> None:
    """The table and its JSON show the CPU, and that it needs --allow-cpu."""
    table = _devices({})
    assert table.returncode == 0
    assert "--allow-cpu" in table.stdout
    rows = json.loads(_devices({}, "--json").stdout)["devices"]
    assert any(row["type"] == CPU and row["needs_allow_cpu"] for row in rows)
    assert all(row["memory_bytes"] >= row["largest_allocation_bytes"] > 0 for row in rows)


def test_listing_in_a_narrow_terminal() -> None:
    """At 80 columns each device is a paragraph: a table of ten columns would be broken within words."""
    shown = _devices({"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "80"}).stdout
    first = shown.split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in first] == [
        "platform", "device", "name", "type", "vendor", "driver", "memory", "largest", "pci", "usable",
    ]  # fmt: skip
    row = json.loads(_devices({}, "--json").stdout)["devices"][0]
    assert f"name      {row['name']}" in first and f"type      {row['type']}" in first
    wide = _devices({"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "220"}).stdout
    assert "largest" in wide.splitlines()[1]


def test_kernels_compile_without_a_writable_home(tmp_path: Path) -> None:
    """A cache directory that cannot be written does not matter: kernels go to a private one."""
    home = tmp_path / "file"
    home.write_text("no directory")
    found = subprocess.run(
        [sys.executable, "-m", "vramblk", "selftest", "--size", "4M", "--allow-cpu", "--json"],
        env={"HOME": str(home), "PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert (tmp_path / f"vramblk-cache-{os.geteuid()}").is_dir()
