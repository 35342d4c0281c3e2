"""Subcommands, exit statuses, and the one line on stderr."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools import docsgen
from vramblk import __version__, cli
from vramblk.commands import check
from vramblk.config.options import OPTIONS
from vramblk.config.settings import Settings, load_settings
from vramblk.errors import ConfigError, PreconditionError, RuntimeFailure

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Settings, argparse.Namespace]]:
    """Every subcommand only records that it was called."""
    made = []
    for name, command in cli.COMMANDS.items():

        def record(settings: Settings, arguments: argparse.Namespace, name: str = name) -> int:
            made.append((name, settings, arguments))
            return 0

        replaced = cli.Command(command.help, record, command.options, command.json, command.add_arguments)
        monkeypatch.setitem(cli.COMMANDS, name, replaced)
    return made


def stderr_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("vramblk: ")
    return line


def test_no_subcommand_means_serve(calls: list[tuple[str, Settings, argparse.Namespace]]) -> None:
    assert cli.main([], {}) == 0
    assert cli.main(["--size", "64M"], {}) == 0
    assert cli.main(["serve", "--size", "64M"], {}) == 0
    assert [name for name, _, _ in calls] == ["serve"] * 3


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_options_stand_after_the_subcommand(
    name: str, calls: list[tuple[str, Settings, argparse.Namespace]]
) -> None:
    assert cli.main([name, "--size", "64M"], {"VRAMBLK_WORKERS": "3"}) == 0
    ((called, settings, _),) = calls
    assert called == name
    assert settings.workers == 3


def test_list_devices_is_the_subcommand_devices(
    calls: list[tuple[str, Settings, argparse.Namespace]],
) -> None:
    assert cli.main(["--list-devices"], {}) == 0
    assert cli.main(["--list-devices", "--json"], {}) == 0
    assert cli.main(["devices", "--json"], {}) == 0
    assert [(name, arguments.json) for name, _, arguments in calls] == [
        ("devices", False), ("devices", True), ("devices", True),
    ]  # fmt: skip


def test_help_and_version_may_be_words(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for argv in (["help"], ["--help"], ["help", "status"], ["status", "--help"], ["version"], ["--version"]):
        with pytest.raises(SystemExit, match="0"):
            cli.main(argv, {})
        shown[" ".join(argv)] = capsys.readouterr().out
    assert shown["help"] == shown["--help"]
    assert shown["help status"] == shown["status --help"] != shown["help"]
    assert shown["version"] == shown["--version"]


def test_own_options_of_subcommands(calls: list[tuple[str, Settings, argparse.Namespace]]) -> None:
    assert cli.main(["status", "--health"], {}) == 0
    assert cli.main(["selftest", "--passes", "7", "--json"], {}) == 0
    assert calls[0][2].health
    assert calls[1][2].passes == 7


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["chek"], "nearest is check"),
        (["frobnicate"], "unknown subcommand 'frobnicate'; allowed: serve, devices"),
        (["start"], "nearest is serve"),
        (["stop"], "unknown subcommand 'stop'; allowed: serve, devices"),
        (["--bogus"], "unknown flag '--bogus'; vramblk --help lists all"),
        (["--metric-addr", "x"], "the nearest is --metrics-addr"),
        (["help", "frobnicate"], "frobnicate"),
        (["--size", "64M", "check"], "the subcommand comes first"),
        (["--size", "64Q"], "size = '64Q' (flag --size)"),
        (["--json"], "--list-devices"),
        (["selftest", "--passes", "0"], "1 to 1000000"),
        (["check", "--health"], "--health"),
        (["serve", "status"], "'status'"),
        ([""], "unknown subcommand ''"),
    ],
)
def test_bad_command_line_is_one_line_and_exit_2(
    argv: list[str], part: str, capsys: pytest.CaptureFixture[str], calls: list[object]
) -> None:
    assert cli.main(argv, {}) == 2
    assert part in stderr_line(capsys)
    assert calls == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("two\nlines"), 2),
        (PreconditionError("no device"), 78),
        (RuntimeFailure("busy"), 1),
        (OSError(12, "Cannot allocate memory"), 1),
        (MemoryError(), 1),
        (ImportError("libOpenCL.so.1"), 1),
    ],
)
def test_failure_at_start_is_one_line(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "serve", cli.Command("", fail, json=False))
    assert cli.main([], {}) == status
    assert stderr_line(capsys)


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "serve", cli.Command("", interrupt, json=False))
    assert cli.main([], {}) == 130
    assert capsys.readouterr().err == ""


def test_unknown_variable_is_a_log_event(
    capfd: pytest.CaptureFixture[str], calls: list[tuple[str, Settings, argparse.Namespace]]
) -> None:
    assert cli.main([], {"VRAMBLK_SIZ": "64M"}) == 0
    captured = capfd.readouterr()
    event = json.loads(captured.out)
    assert (event["event"], event["level"]) == ("unknown_variable", "warning")
    assert (event["name"], event["nearest"]) == ("VRAMBLK_SIZ", "VRAMBLK_SIZE")
    assert captured.err == ""
    assert cli.main([], {"VRAMBLK_FROBNICATION": "1"}) == 0
    assert "nearest" not in json.loads(capfd.readouterr().out)


def test_a_size_that_is_rounded_up_is_a_log_event(
    capfd: pytest.CaptureFixture[str], calls: list[tuple[str, Settings, argparse.Namespace]]
) -> None:
    assert cli.main(["--size", "5000"], {}) == 0
    event = json.loads(capfd.readouterr().out)
    assert (event["event"], event["level"], event["export"]) == ("size_rounded", "info", "vram")
    assert (event["asked_bytes"], event["size_bytes"]) == (5000, 8192)


def test_overridden_exports_are_a_log_event(
    capfd: pytest.CaptureFixture[str], calls: list[tuple[str, Settings, argparse.Namespace]], tmp_path: Path
) -> None:
    path = tmp_path / "exports.yaml"
    path.write_text("exports: [{name: one, size: 8M}, {name: two, size: 16M}]\n")
    assert cli.main(["--config", str(path), "--size", "8M"], {}) == 0
    event = json.loads(capfd.readouterr().out)
    assert (event["event"], event["level"]) == ("exports_overridden", "warning")
    assert (event["name"], event["source"], event["exports"]) == ("size", "flag --size", ["two"])
    warned = {each.name: each for each in check.examine(load_settings(["--config", str(path), "--size", "8M"], {}))}
    assert warned["exports"].detail == "size = 8M (flag --size) is used for two instead of its own"


def test_help_of_the_program_lists_every_option_and_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["-h"], {})
    text = capsys.readouterr().out
    for option in OPTIONS:
        assert option.flag in text
        assert option.environment in text
    for name in cli.COMMANDS:
        assert f"  {name} " in text


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_each_subcommand(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"], {})
    text = capsys.readouterr().out
    assert f"usage: vramblk {name}" in text
    assert ("--json" in text) == (name not in ("serve", "top", "relay"))


@pytest.mark.parametrize("argv", [["-V"], ["--version"], ["status", "-V"]])
def test_version(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(argv, {})
    assert capsys.readouterr().out == f"vramblk {__version__}\n"


def test_command_line_loads_nothing_heavy() -> None:
    """The process that parses the command line becomes the supervisor, which must never hold OpenCL."""
    program = "import sys; from vramblk import cli; cli.make_parser('serve'); print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = {"pyopencl", "numpy", "rich", "prometheus_client", "ssl", "asyncio"}
    assert not heavy & set(loaded.stdout.split())


def test_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vramblk", "-s", "x"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("vramblk: size = 'x' (flag --size): ")
    assert done.stderr.count("\n") == 1


def test_closed_stdout_is_no_traceback() -> None:
    command = f"{sys.executable} -m vramblk check --device map:/dev/zero --listen-addr 127.0.0.1:0 | true"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""


def test_generated_pages_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert docsgen.main(["--check"], ROOT) == 0, capsys.readouterr().err


def test_pages_are_made_from_the_table(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"head\n{docsgen.BEGIN}\nold\n{docsgen.END}\ntail\n")
    assert docsgen.main(["--check"], tmp_path) == 1
    assert docsgen.main([], tmp_path) == 0
    assert docsgen.main(["--check"], tmp_path) == 0
    text = readme.read_text()
    assert text.startswith("head\n")
    assert text.endswith("tail\n")
    assert "old" not in text
    for option in OPTIONS:
        assert f"`{option.flag}`" in text
        assert f"{option.environment}=" in (tmp_path / ".env.example").read_text()
        assert f"`{option.environment}`" in (tmp_path / "docs" / "reference" / "options.md").read_text()
