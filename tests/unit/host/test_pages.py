"""vramblk-swap(8) and the example of /etc/default/vramblk: both name exactly what the script reads and writes."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tools import hostpages

from .conftest import SCRIPT, Host, script_text

ROOT = SCRIPT.parents[1]
MAN = (ROOT / hostpages.MAN).read_text()
#: A variable where the script reads it, with the default that it has there.
_READ = re.compile(r"\$\{VRAMBLK_(?!TEST_)(\w+?)(?::?-([^}]*))?\}")


def shown(text: str) -> str:
    """A text of man(7) without its escapes and font macros."""
    return re.sub(r"^\.(?:[BI]R?) ", "", text, flags=re.MULTILINE).replace("\\-", "-")


def example() -> dict[str, str]:
    assignments = re.findall(r"^#(VRAMBLK_\w+)=(.*)$", (ROOT / hostpages.EXAMPLE).read_text(), re.MULTILINE)
    assert assignments
    return dict(assignments)


def test_help_lists_every_variable_that_the_script_reads_with_its_default() -> None:
    read = {f"VRAMBLK_{name}": default for name, default in _READ.findall(script_text())}
    assert len(read) >= 8
    assert {row.name: row.value for row in hostpages.script_help().settings} == read


def test_help_lists_every_option_and_command_that_the_script_accepts() -> None:
    accepted = re.findall(r"^    (--[a-z-]+)\)(?: \w+=yes ;;)?$", script_text(), re.MULTILINE)
    assert {row.name for row in hostpages.script_help().options} == set(accepted)
    (commands,) = re.findall(
        r"unknown command \$command; allowed are (.*?)\" ;;$", script_text(), re.MULTILINE
    )
    assert [row.name for row in hostpages.script_help().commands] == re.split(", | and ", commands)


def test_help_lists_every_exit_status_that_the_script_chooses() -> None:
    chosen = re.findall(r"\b(?:fail |exit |code=)([0-9]+)\b", script_text())
    assert {row.name for row in hostpages.script_help().statuses} == set(chosen)


def test_example_has_exactly_the_settings_of_the_script_and_sets_none() -> None:
    assert list(example()) == [row.name for row in hostpages.script_help().settings]
    for line in (ROOT / hostpages.EXAMPLE).read_text().splitlines():
        assert not line or line.startswith("#"), line


def test_example_without_its_comment_signs_changes_nothing(host: Host) -> None:
    """So the defaults in it are the script's, and the script knows each name."""
    assert host.run("up").returncode == 0
    plain, state = host.calls(), host.state()
    assert host.run("down").returncode == 0
    host.calls()
    host.write("/etc/default/vramblk", "".join(f"{name}={value}\n" for name, value in example().items()))
    again = host.run("up")
    assert again.returncode == 0 and "nothing reads" not in again.stderr, again.stderr
    assert host.calls() == plain
    state["etc/default/vramblk"] = host.read("/etc/default/vramblk") + "\n"
    assert host.state() == state


def test_the_unit_overrides_the_timeout_as_the_help_describes() -> None:
    (row,) = [row for row in hostpages.script_help().settings if row.name == "VRAMBLK_SWAP_TIMEOUT"]
    (seconds,) = re.findall("vramblk-swap.service sets ([0-9]+)", row.default)
    assert (
        f"Environment=VRAMBLK_SWAP_TIMEOUT={seconds}\n"
        in (ROOT / "host/systemd/vramblk-swap.service").read_text()
    )


def test_man_page_lists_exactly_the_files_of_the_script() -> None:
    section = shown(MAN.partition(".SH FILES\n")[2].partition(".SH ")[0])
    listed = set(re.findall(r"^/run/vramblk-swap/(\S+)$", section, re.MULTILINE))
    text = script_text()
    own = set(re.findall(r"=\$state_dir/(\w+)$", text, re.MULTILINE)) - {"private"}
    own |= set(re.findall(r">\"\$state_dir/(\w+)\"", text))
    own |= {f"private/{name}" for name in re.findall(r"=\$private/(\w+)$", text, re.MULTILINE)}
    assert listed == own
    units = set(re.findall(r"^(\S+\.service)$", section, re.MULTILINE))
    assert units == {path.name for path in (ROOT / "host/systemd").iterdir()}


def test_examples_of_the_man_page_run(host: Host) -> None:
    lines = re.findall(r"\.RS\n(.*)\n\.RE", shown(MAN))
    assert len(lines) >= 5
    for line in lines:
        words = line.removeprefix("sudo ").split()
        at = words.index("vramblk-swap")
        done = host.run(*words[at + 1 :], **dict(word.split("=") for word in words[:at]))
        assert done.returncode == 0, (line, done.stderr)


@pytest.mark.skipif(not shutil.which("groff"), reason="requires groff")
def test_groff_has_no_warning() -> None:
    for page in sorted((ROOT / "share/man").glob("man?/*")):
        done = subprocess.run(
            ["groff", "-ww", "-man", "-Tutf8", str(page)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize("line", ["  --quick", "up attach", "\tup  attach"])
def test_a_line_of_help_that_would_be_lost_is_an_error(line: str) -> None:
    text = subprocess.run(
        ["sh", SCRIPT, "--help"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert len(hostpages.parse(text).options) == 8
    with pytest.raises(ValueError, match="not a name and its description"):
        hostpages.parse(text.replace("  --dry-run", f"{line}\n  --dry-run"))
