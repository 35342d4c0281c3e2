"""VRAMBLK_X_FILE: the value of an option from a file, or an error. Never as if nothing had been asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vramblk import cli
from vramblk.config.options import OPTIONS, Option
from vramblk.config.settings import Settings, load_settings
from vramblk.errors import ConfigError

VALUES = {
    "size": "64M", "export_name": "a b $(x) é", "mode": "swap", "device": "map:/dev/x", "platform": "1",
    "listen_addr": "127.0.0.1:1,unix:/x", "max_connections": "3", "tls": "off", "workers": "3",
    "export_max_connections": "2", "slices": "3", "allocate": "attach",
    "drain_timeout": "3s", "metrics_addr": "127.0.0.1:10810", "metrics_token": "hunter2", "metrics_host": "a,b",
    "tls_verify_peer": "off",
}  # fmt: skip
PLAIN = [option for option in OPTIONS if not option.path]
PATHS = [option for option in OPTIONS if option.path]


def by_name(option: Option) -> str:
    return option.name


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a value"


def refused(variable: str, path: object, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings([], {variable: str(path), **environ})
    message = str(caught.value)
    assert variable in message and str(path) in message
    assert len(message.splitlines()) == 1
    return message


def settings(**environ: str) -> Settings:
    return load_settings([], environ)


@pytest.mark.parametrize("option", PLAIN, ids=by_name)
def test_every_plain_option_reads_its_file(option: Option, file: Path) -> None:
    value = VALUES.get(option.name, "on")
    file.write_text(value + "\n")
    found = settings(**{f"{option.environment}_FILE": str(file)})
    direct = settings(**{option.environment: value})
    shown = {each.name: each for each in found.values}
    assert found.exports == direct.exports
    assert [each.text for each in found.values] == [each.text for each in direct.values]
    assert f"{option.environment}_FILE" in shown[option.name].source
    assert str(file) in shown[option.name].source
    assert found.unknown_variables == ()


@pytest.mark.parametrize("option", PLAIN, ids=by_name)
@pytest.mark.parametrize("content", [b"", b"\n", b" \n\n"])
def test_an_empty_file_is_an_error(option: Option, content: bytes, file: Path) -> None:
    file.write_bytes(content)
    assert "empty" in refused(f"{option.environment}_FILE", file)


@pytest.mark.parametrize("option", PATHS, ids=by_name)
def test_an_option_that_holds_a_path_refuses_it_by_name(option: Option, file: Path) -> None:
    file.write_text("/x")
    message = refused(f"{option.environment}_FILE", file)
    assert f"set {option.environment}={file}" in message


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    assert "No such file" in refused("VRAMBLK_METRICS_TOKEN_FILE", tmp_path / "none")
    assert "not a regular file" in refused("VRAMBLK_METRICS_TOKEN_FILE", tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in refused("VRAMBLK_METRICS_TOKEN_FILE", tmp_path / "fifo")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"hunter2\r\n", "CRLF"),
        (b"\xef\xbb\xbfhunter2\n", "byte-order mark"),
        (b"\xff\xfeh\0u\0n\0", "byte-order mark"),
        (b"\xfe\xff\0h\0u\0n", "byte-order mark"),
        (b"hunter\xe9\n", "UTF-8"),
        (b"hunter2\nhunter3\n", "printable ASCII"),
        (b"x" * (1 << 20), "64 KiB"),
    ],
)
def test_what_an_editor_adds_is_said(content: bytes, said: str, file: Path) -> None:
    file.write_bytes(content)
    message = refused("VRAMBLK_METRICS_TOKEN_FILE", file)
    assert said in message
    assert "hunter" not in message


def test_both_are_refused(file: Path) -> None:
    file.write_text("64M")
    refused("VRAMBLK_SIZE_FILE", file, VRAMBLK_SIZE="1G")
    assert settings(VRAMBLK_SIZE="", VRAMBLK_SIZE_FILE=str(file)).exports[0].size.amount == 64 << 20


def test_an_empty_variable_counts_as_unset() -> None:
    assert settings(VRAMBLK_SIZE_FILE="", VRAMBLK_CONFIG_FILE="").values == settings().values


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.protects], ids=by_name)
@pytest.mark.parametrize("suffix", ["", "_FILE"])
def test_an_empty_variable_does_not_turn_a_protection_off(option: Option, suffix: str) -> None:
    """As left by TOKEN=$(cat nothing), or by a misspelt name in VRAMBLK_METRICS_TOKEN=$TOKEN."""
    variable = option.environment + suffix
    message = refused(variable, "", VRAMBLK_SIZE="64M")
    assert message.startswith(f"{option.name} = '' (environment {variable}): empty, which would turn it off; ")
    assert message.endswith(f"allowed: {option.allowed}, or unset {variable}")
    flag = [option.flag] if option.boolean else [option.flag, VALUES.get(option.name, "/x")]
    with pytest.raises(ConfigError, match=variable):
        load_settings(flag, {variable: ""})


def test_the_token_and_everything_about_tls_is_a_protection() -> None:
    """Whoever left one of them out would be served more than was meant."""
    protecting = {option.name for option in OPTIONS if option.protects}
    assert protecting == {"metrics_token"} | {option.name for option in OPTIONS if option.group == "TLS"}
    assert all(option.protects for option in OPTIONS if option.secret)


def test_beside_a_file_an_empty_variable_is_no_danger(file: Path) -> None:
    file.write_text("hunter2\n")
    assert settings(VRAMBLK_METRICS_TOKEN="", VRAMBLK_METRICS_TOKEN_FILE=str(file)).metrics_token == "hunter2"
    assert settings(VRAMBLK_METRICS_TOKEN="hunter2", VRAMBLK_METRICS_TOKEN_FILE="").metrics_token == "hunter2"


def test_a_flag_overrides_but_does_not_excuse(file: Path) -> None:
    file.write_text("64M")
    found = load_settings(["--size", "1G"], {"VRAMBLK_SIZE_FILE": str(file)})
    assert found.exports[0].size.amount == 1 << 30
    file.write_text("rubbish")
    with pytest.raises(ConfigError, match="rubbish"):
        load_settings(["--size", "1G"], {"VRAMBLK_SIZE_FILE": str(file)})


def test_at_the_command_line_it_is_one_line_and_exit_2(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.touch()
    assert cli.main(["check"], {"VRAMBLK_METRICS_TOKEN_FILE": str(file)}) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    assert "VRAMBLK_METRICS_TOKEN_FILE" in line and str(file) in line
