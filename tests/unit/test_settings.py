"""Where settings come from, which source wins, and what an error says."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tools.variables import FOREIGN_VARIABLES
from vramblk.config import variables
from vramblk.config.options import OPTIONS, Option
from vramblk.config.settings import ExportSettings, Override, Settings, load_settings
from vramblk.config.units import Size, SizeKind, TcpAddress, UnixAddress
from vramblk.errors import ConfigError

M = 1 << 20


def load(*argv: str, **environ: str) -> Settings:
    return load_settings(argv, environ)


def refused(*argv: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(argv, environ)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "vramblk.yaml"
        path.write_text(text)
        return str(path)

    return write


def size(mebibytes: int) -> Size:
    return Size(SizeKind.BYTES, Decimal(mebibytes * M))


def test_defaults_are_those_of_the_original() -> None:
    settings = load()
    assert settings.exports == (ExportSettings("vram", size(2048), None, None, "scratch", False),)
    assert settings.listen_addr == (TcpAddress("127.0.0.1", 10809),)
    assert settings.mode == "scratch"
    assert settings.drain_timeout_s == 5
    assert settings.max_connections == 64
    assert settings.workers is settings.metrics_addr is settings.metrics_token is None
    assert settings.tls == "off"
    assert not settings.status_socket_given
    assert {value.source for value in settings.values} == {"default"}
    assert [value.name for value in settings.values] == [option.name for option in OPTIONS]


def test_short_flags_of_the_original() -> None:
    settings = load("-s", "64M", "-d", "1", "-p", "2", "-l", "127.0.0.1:1", "-e", "gpu", "-v")
    assert settings.exports == (ExportSettings("gpu", size(64), 2, "1", "scratch", False),)
    assert settings.listen_addr == (TcpAddress("127.0.0.1", 1),)
    assert settings.verbose


def test_flag_over_environment_over_file_over_default(config: Callable[[str], str]) -> None:
    path = config("size: 1M\n")
    assert load().exports[0].size == size(2048)
    assert load("--config", path).exports[0].size == size(1)
    assert load("--config", path, VRAMBLK_SIZE="2M").exports[0].size == size(2)
    settings = load("--config", path, "--size", "3M", VRAMBLK_SIZE="2M")
    assert settings.exports[0].size == size(3)
    assert settings.source_of("size") == "flag --size"
    assert load("--config", path, VRAMBLK_SIZE="2M").source_of("size") == "environment VRAMBLK_SIZE"
    assert load("--config", path).source_of("size") == f"{path} key size"


def test_config_file_can_come_from_the_environment(config: Callable[[str], str]) -> None:
    assert load(VRAMBLK_CONFIG=config("workers: 3")).workers == 3


SAMPLES: dict[str, tuple[str, Any, str]] = {
    # option: a good value, what it becomes, a bad value
    "size": ("64M", size(64), "64X"),
    "export_name": ("gpu", "gpu", "x" * 4097),
    "slices": ("1", 1, "65"),
    "mode": ("swap", "swap", "fast"),
    "read_only": ("yes", True, "maybe"),
    "allocate": ("attach", "attach", "never"),
    "device": ("0000:01:00.0", "0000:01:00.0", "map:relative"),
    "platform": ("1", 1, "-1"),
    "allow_cpu": ("TRUE", True, "2"),
    "map_overwrite": ("1", True, "y"),
    "listen_addr": ("unix:/a", (UnixAddress("/a"),), "127.0.0.1"),
    "max_connections": ("7", 7, "0"),
    "export_max_connections": ("7", 7, "0"),
    "tls": ("off", "off", "sometimes"),
    "tls_certificates": ("/certificates", "/certificates", "a\0b"),
    "tls_psk": ("/psk", "/psk", "a\0b"),
    "tls_verify_peer": ("on", True, "required"),
    "workers": ("3", 3, "many"),
    "drain_timeout": ("500ms", 0.5, "soon"),
    "verify_reads": ("no", False, ""),
    "unique_names": ("on", True, "often"),
    "metrics_addr": ("127.0.0.1:10810", TcpAddress("127.0.0.1", 10810), "10810"),
    "metrics_host": ("GPU-1.example", ("gpu-1.example",), "gpu:10810"),
    "metrics_token": ("secret", "secret", "two words"),
    "status_socket": ("/run/s", "/run/s", "/" + "x" * 200),
    "config": ("", "", "/no/such/file"),
    "verbose": ("On", True, "very"),
}


def value_of(settings: Settings, option: Option) -> Any:
    if option.per_export:
        return getattr(settings.exports[0], option.entry_key)
    return getattr(settings, {"drain_timeout": "drain_timeout_s"}.get(option.name, option.name))


def test_every_option_has_a_sample() -> None:
    assert set(SAMPLES) == {option.name for option in OPTIONS}


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.name != "config"], ids=lambda option: option.name)
def test_every_option_from_each_source(option: Option, config: Callable[[str], str]) -> None:
    text, value, _ = SAMPLES[option.name]
    # Files for TLS are refused unless it is said what TLS is to be.
    beside = {"VRAMBLK_TLS": "off"} if option.name.startswith("tls_") else {}

    def found(*argv: str, **environment: str) -> Any:
        return value_of(load_settings(list(argv), beside | environment), option)

    assert found(**{option.environment: text}) == value
    assert found("--config", config(f"{option.name}: '{text}'")) == value
    assert found("--config", config(f"{option.name.replace('_', '-')}: {text}")) == value
    if option.boolean:
        assert found(option.flag) is True
        assert found("--no-" + option.flag[2:], **{option.environment: "on"}) is False
    else:
        assert found(option.flag, text) == value
        assert found(f"{option.flag}={text}") == value


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_bad_value_names_setting_source_value_and_what_is_allowed(
    option: Option, config: Callable[[str], str]
) -> None:
    bad = SAMPLES[option.name][2]
    messages = []
    if bad:
        messages.append((refused(**{option.environment: bad}), f"environment {option.environment}"))
    if not option.boolean:
        messages.append((refused(option.flag, bad), f"flag {option.flag}"))
    if option.name != "config" and "\0" not in bad:
        path = config(f"{option.name}: '{bad}'")
        messages.append((refused("--config", path), f"{path} key {option.name}"))
    for message, source in messages:
        assert message.startswith(f"{option.name} = ")
        assert f"({source})" in message
        assert option.allowed in message
        if option.secret:
            assert bad not in message
        else:
            assert repr(bad)[:50] in message


def test_overridden_values_are_checked_too(config: Callable[[str], str]) -> None:
    path = config("size: 3X")
    assert "environment VRAMBLK_SIZE" in refused("--size", "64M", VRAMBLK_SIZE="2X")
    assert f"{path} key size" in refused("--config", path, "--size", "64M")
    assert "'1X' (flag --size)" in refused("--size", "1X", "--size", "64M")
    assert "environment VRAMBLK_CONFIG" in refused("--config", path, VRAMBLK_CONFIG="/no/such")
    entries = config("exports: [{size: 3X}]")
    assert f"{entries} key exports[0].size" in refused("--config", entries, "--size", "64M")


def test_value_with_line_breaks_is_quoted_on_one_line() -> None:
    assert r"'1\n2\udcff'" in refused("--size", "1\n2\udcff")


def test_empty_variable_is_unset() -> None:
    settings = load(VRAMBLK_SIZE="", VRAMBLK_LISTEN_ADDR="", VRAMBLK_READ_ONLY="")
    assert {value.source for value in settings.values} == {"default"}


def test_listen_addresses_from_each_source(config: Callable[[str], str]) -> None:
    both = (TcpAddress("127.0.0.1", 1), UnixAddress("/a"))
    assert load("-l", "127.0.0.1:1", "--listen-addr", "unix:/a").listen_addr == both
    assert load(VRAMBLK_LISTEN_ADDR="127.0.0.1:1, unix:/a").listen_addr == both
    assert load("--config", config("listen_addr: ['127.0.0.1:1', 'unix:/a']")).listen_addr == both
    assert load("--config", config("listen-addr:\n - 127.0.0.1:1\n - unix:/a\n")).listen_addr == both
    assert load("--config", config("listen_addr: unix:/a")).listen_addr == both[1:]
    assert load("-l", "unix:/a", VRAMBLK_LISTEN_ADDR="127.0.0.1:1").listen_addr == both[1:]
    assert "''" in refused(VRAMBLK_LISTEN_ADDR="127.0.0.1:1,")
    assert load(*("-l", "unix:/a", "-l", "127.0.0.1:1")).unix_listeners == both[1:]
    assert load(*("-l", "unix:/a", "-l", "127.0.0.1:1")).tcp_listeners == both[:1]


def test_status_socket_off_given_and_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load("--status-socket", "off").status_socket is None
    given = load("--status-socket", "/s")
    assert (given.status_socket, given.status_socket_given) == ("/s", True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert load(XDG_RUNTIME_DIR="/run/user/7").status_socket == "/run/user/7/vramblk-status.sock"
    assert load().status_socket == "/run/user/1000/vramblk-status.sock"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert load(XDG_RUNTIME_DIR="/run/user/0").status_socket == "/run/vramblk/status.sock"


def test_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load("--tls", "on", "--tls-certificates", "pki", "--status-socket", "s.sock")
    assert settings.tls_certificates == str(tmp_path / "pki")
    assert settings.status_socket == str(tmp_path / "s.sock")


EXPORTS = """
mode: scratch
read_only: on
exports:
  - {name: fast, size: 64M, device: 0000:01:00.0, platform: 1}
  - {name: "zwei", size: 50%, device: map:/dev/dax0.0, mode: swap, read-only: no}
"""


def test_several_exports(config: Callable[[str], str]) -> None:
    path = config(EXPORTS)
    settings = load("--config", path)
    assert settings.exports == (
        ExportSettings("fast", size(64), 1, "0000:01:00.0", "scratch", True),
        ExportSettings("zwei", Size(SizeKind.PERCENT, Decimal(50)), None, "map:/dev/dax0.0", "swap", False),
    )
    assert settings.mode == "swap"
    assert settings.exports[1].mapped_path == "/dev/dax0.0"
    assert settings.exports[0].mapped_path is None
    shown = {value.name: value for value in settings.values}
    assert shown["exports[0].device"].text == "0000:01:00.0"
    assert shown["exports[1].mode"].source == f"{path} key exports[1].mode"
    assert shown["exports[0].read_only"].source == f"{path} key read_only"
    assert "size" not in shown


def test_slices_are_exports_of_equal_size(config: Callable[[str], str]) -> None:
    """Their names are numbered from 0; one slice keeps the name; together they have the size that was given."""
    found = load("--slices", "3", "--size", "10M").exports
    assert [(each.name, each.slices, each.slice) for each in found] == [
        ("vram-0", 3, 0), ("vram-1", 3, 1), ("vram-2", 3, 2)
    ]  # fmt: skip
    (slice_size,) = {each.size for each in found}
    assert (10 << 20) <= 3 * slice_size.amount < (10 << 20) + 3 * 4096 and slice_size.amount % 4096 == 0
    assert [each.name for each in load("--slices", "1").exports] == ["vram"]
    path = config("exports: [{name: a, slices: 2, size: 50%}, {name: b, size: 1M}]")
    found = load("--config", path).exports
    assert [each.name for each in found] == ["a-0", "a-1", "b"]
    assert found[0].size.resolve(8 << 20) == 2 << 20
    assert str(found[0].size) == "50% / 2"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("exports: [{name: a, slices: 2}, {name: a-1}]", ["'a-1'", "exports[0] has the same name"]),
        ("exports: [{name: a, slices: 40}, {name: b, slices: 40}]", ["80 exports", "at most 64"]),
        (f"slices: 2\nexport_name: {'x' * 4095}", ["too long with the number of its slice"]),
    ],
)
def test_slices_that_cannot_be(text: str, parts: list[str], config: Callable[[str], str]) -> None:
    message = refused("--config", config(text))
    assert all(part in message for part in parts), message


def test_stronger_sources_override_entries(config: Callable[[str], str]) -> None:
    settings = load("--config", config(EXPORTS), "--size", "8M", VRAMBLK_DEVICE="1")
    assert [(export.size, export.device) for export in settings.exports] == [(size(8), "1")] * 2
    assert settings.source_of("exports[1].size") == "flag --size"


def test_what_is_overridden_in_several_exports_is_known(config: Callable[[str], str]) -> None:
    """--size over a file of exports makes all of them that size; nobody means that."""
    path = config(EXPORTS)
    settings = load("--config", path, "--size", "64M", VRAMBLK_READ_ONLY="on", VRAMBLK_PLATFORM="0")
    assert settings.overrides == (
        Override("size", "64M", "flag --size", ("zwei",)),
        Override("read_only", "on", "environment VRAMBLK_READ_ONLY", ("zwei",)),
        Override("platform", "0", "environment VRAMBLK_PLATFORM", ("fast",)),
    ), "what is the same, or a default of the file, is no loss"
    assert load("--config", path).overrides == ()
    assert load("--size", "64M").overrides == ()


def test_export_named_twice(config: Callable[[str], str]) -> None:
    path = config("exports: [{name: a}, {name: b}, {name: a}]")
    message = refused("--config", path)
    assert f"'a' ({path} key exports[2].name)" in message
    assert "exports[0]" in message
    assert "'vram'" in refused("--config", config("exports: [{size: 64M}, {size: 128M}]"))
    assert "flag --export-name" in refused("--config", config("exports: [{name: a}, {name: b}]"), "-e", "c")
    assert load("--config", config("exports: [{name: a}]"), "-e", "c").exports[0].name == "c"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("sise: 64M", ["'sise'", "line 1", "nearest is size"]),
        ("frobnicate: 1", ["'frobnicate' in", "line 1; allowed: size"]),
        ("\n\nexport-nam: x", ["'export-nam'", "line 3", "nearest is export_name"]),
        ("exports: [{siz: 1M}]", ["'siz'", "exports[0]", "nearest is size"]),
        ("exports: [{workers: 1}]", ["'workers'", "name, slices, mode"]),
        ("size: 1M\nsize: 2M", ["size occurs twice", "line 2"]),
        ("read_only: on\nread-only: off", ["read_only occurs twice"]),
        ("exports: []", ["exports"]),
        ("exports: {name: a}", ["exports", "not a list"]),
        ("exports: [a]", ["exports[0]", "not a mapping"]),
        ("- size", ["not a mapping"]),
        ("just words", ["not a mapping"]),
        ("size: [1M, 2M]", ["size", "not a single value"]),
        ("size: {a: b}", ["size", "not a single value"]),
        ("size:", ["size = ''"]),
        ("listen_addr: []", ["listen_addr", "not a list of values"]),
        ("listen_addr: [[a]]", ["listen_addr", "not a list of values"]),
        ("size: 'x", ["not YAML", "line 1"]),
        ("a: b: c", ["not YAML"]),
        ("size: !!python/name:os.system 1M\n? [a, b]\n: 1", ["unknown key '?'"]),
        ("size: 1M\n---\nsize: 2M", ["not YAML"]),
        ("size: *unknown", ["not YAML"]),
        ("config: other.yaml", ["config", "cannot name another"]),
        ("exports: &a [*a]", ["exports"]),
        ("exports: [" + "{}," * 65 + "]", ["65 exports", "at most 64"]),
    ],
)
def test_bad_file(text: str, parts: list[str], config: Callable[[str], str]) -> None:
    path = config(text)
    message = refused("--config", path)
    for part in [*parts, path]:
        assert part in message


def test_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"size: \xff\xfe\n")
    assert "not UTF-8" in refused("--config", str(path))
    path.write_bytes(b"size: \x00\n")
    assert "not YAML" in refused("--config", str(path))
    assert "is a directory" in refused("--config", str(tmp_path))


def test_empty_file_gives_nothing(config: Callable[[str], str]) -> None:
    assert load("--config", config("# nothing\n")).exports == load().exports


def test_unknown_variables_are_named_with_the_nearest() -> None:
    settings = load(VRAMBLK_SIZ="1", VRAMBLK_LISTEN_ADDRESS="1", OTHER="1")
    assert settings.unknown_variables == (
        ("VRAMBLK_LISTEN_ADDRESS", "VRAMBLK_LISTEN_ADDR"),
        ("VRAMBLK_SIZ", "VRAMBLK_SIZE"),
    )
    assert load(VRAMBLK_FROBNICATION="1").unknown_variables == (("VRAMBLK_FROBNICATION", ""),)


def test_variables_of_others_are_known() -> None:
    others = {
        *variables.OF_OTHERS,
        "VRAMBLK_TEST_ANYTHING",
        "VRAMBLK_PORT_10809_TCP_ADDR",
        "VRAMBLK_SERVICE_HOST",
    }
    assert load_settings([], dict.fromkeys(others, "x")).unknown_variables == ()


def test_variables_that_compose_files_and_scripts_use_are_known() -> None:
    root = Path(__file__).resolve().parents[2]
    files = [*root.glob("compose*.yaml"), root / "Dockerfile", *root.glob("host/*")]
    named = set()
    for path in files:
        if path.is_file():
            named |= set(re.findall(r"VRAMBLK_[A-Z_]*[A-Z]", path.read_text(errors="replace")))
    assert variables.unknown_variables(dict.fromkeys(named, "")) == []


def test_the_server_knows_the_names_of_all_that_others_read() -> None:
    """The documentation says what each is for, and the server warns of none of them."""
    assert {variable.name for variable in FOREIGN_VARIABLES} == variables.OF_OTHERS


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--tls", "on"], "--tls-certificates"),
        (["--tls", "require", "--tls-verify-peer"], "--tls-psk"),
        (["--tls", "on", "--tls-psk", "/p", "--tls-certificates", "/c"], "one of the two"),
        (["--tls", "on", "--tls-psk", "/p", "--tls-verify-peer"], "tls_verify_peer"),
        (["--tls-psk", "/p"], "TLS is off"),
        (["--tls-certificates", "/c"], "with --tls on or require"),
    ],
)
def test_tls_settings_that_do_not_fit(argv: list[str], part: str) -> None:
    assert part in refused(*argv)


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--sise", "1M"], "nearest is --size"),
        (["--siz", "1M"], "nearest is --size"),
        (["--size"], "expected one argument"),
        (["-z"], "'-z'"),
        (["word"], "'word'"),
        (["--read-only=maybe"], "--read-only"),
    ],
)
def test_bad_flags(argv: list[str], part: str) -> None:
    assert part in refused(*argv)


def test_secret_is_shown_nowhere() -> None:
    settings = load("--metrics-token", "hunter2")
    assert settings.metrics_token == "hunter2"
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in repr(settings.values)


def test_the_host_script_knows_every_option() -> None:
    """What it does not know it warns about, and the same file of settings is for both."""
    text = (Path(__file__).resolve().parents[2] / "host/lib/names.sh").read_text()
    (names,) = re.findall(r"^server_names='([^']+)'", text, re.MULTILINE)
    assert {f"VRAMBLK_{name}" for name in names.split()} == {option.environment for option in OPTIONS}
