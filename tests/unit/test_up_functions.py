"""The functions of deploy/lib, one by one: a test sources the files and replaces what they would run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tools import upnames
from tools.variables import FOREIGN_VARIABLES
from vramblk.config.options import OPTIONS

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = sorted((ROOT / "deploy/lib").glob("*.sh"))


def run(
    directory: Path, script: str, *, stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script after the whole library, in `directory`, with a host that has no devices."""
    sources = [f". {shlex.quote(str(path))}" for path in LIBRARY]
    return subprocess.run(
        ["sh", "-euc", "\n".join([*sources, script])],
        cwd=directory, input=stdin, capture_output=True, text=True, timeout=30,
        env={"PATH": os.environ["PATH"], "VRAMBLK_HOST_ROOT": str(directory / "host"), **variables},
    )  # fmt: skip


def prints(directory: Path, script: str, *, stdin: str = "", **variables: str) -> str:
    done = run(directory, script, stdin=stdin, **variables)
    assert (done.returncode, done.stderr) == (0, ""), (done.returncode, done.stdout, done.stderr)
    return done.stdout


def refuses(directory: Path, script: str, status: int, words: str, **variables: str) -> None:
    done = run(directory, script, **variables)
    assert done.returncode == status, (done.stdout, done.stderr)
    assert done.stderr.startswith("vramblk: ") and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def make(directory: Path, name: str, text: str = "") -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


#: Whether the function that follows succeeds, as a word.
ANSWER = 'answer() { if "$@"; then echo yes; else echo no; fi; }\n'


# ------------------------------------------------------------------------------- the files themselves


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_a_file_alone_defines_and_runs_nothing(tmp_path: Path, path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-euc", f". {shlex.quote(str(path))}"],
        cwd=tmp_path, env={"PATH": "/nonexistent"}, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_the_script_sources_every_file() -> None:
    lines = (ROOT / "deploy/up.sh").read_text().splitlines()
    assert sorted(line for line in lines if line.startswith(". ")) == [f". deploy/lib/{path.name}" for path in LIBRARY]


def test_no_function_is_defined_twice_or_never_called() -> None:
    texts = {path: path.read_text() for path in [*LIBRARY, ROOT / "deploy/up.sh"]}
    whole = "\n".join(line for text in texts.values() for line in text.splitlines() if not line.lstrip().startswith("#"))
    names = re.findall(r"^(\w+)\(\) [{(]", whole, re.MULTILINE)
    assert len(names) > 60
    assert sorted(set(names)) == sorted(names)
    assert [name for name in names if len(re.findall(rf"\b{name}\b", whole)) < 2] == []


# ------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("0", "0 B"), ("999", "999 B"), ("1024", "1 KiB"), ("8192", "8 KiB"), ("1536", "1.5 KiB"),
        ("13958643712", "13 GiB"), ("1125899906842624", "1024 TiB"),
    ],
)  # fmt: skip
def test_size(tmp_path: Path, number: str, text: str) -> None:
    assert prints(tmp_path, f"size {number}") == f"{text}\n"


def test_fail(tmp_path: Path) -> None:
    refuses(tmp_path, "fail 78 'no GPU;' 'type: this'; echo unreached", 78, "no GPU; type: this")


# ------------------------------------------------------------------------------- settings


def test_names_are_those_that_the_scripts_look_up() -> None:
    found = upnames.calls("x=$(given A)\n# setting B\n  y $(setting C) $(setting A); remember D 1\n")
    assert found == {"A": True, "C": True, "D": False}


def test_a_name_of_no_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"VRAMBLK_NONE, which is in no table; add it to tools/variables\.py"):
        upnames.render(upnames.calls("given VRAMBLK_NONE"))


def test_a_default_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="VRAMBLK_RENDER_GID, which has none; type given"):
        upnames.render(upnames.calls("setting VRAMBLK_RENDER_GID"))


def test_the_environment_overrides_the_dotenv_file_also_when_it_is_empty(tmp_path: Path) -> None:
    script = "dotenv='VRAMBLK_NBD_PORT=1000'; given VRAMBLK_NBD_PORT; setting VRAMBLK_NBD_PORT"
    assert prints(tmp_path, script) == "1000\n1000\n"
    assert prints(tmp_path, script, VRAMBLK_NBD_PORT="2000") == "2000\n2000\n"
    assert prints(tmp_path, script, VRAMBLK_NBD_PORT="") == "\n10809\n"


def test_a_name_that_is_not_known_ends_it(tmp_path: Path) -> None:
    refuses(tmp_path, "x=$(setting VRAMBLK_NBD); echo unreached", 1, "VRAMBLK_NBD is not in deploy/lib/names.sh")


def test_plain_values(tmp_path: Path) -> None:
    """As the two implementations of Compose write them."""
    text = (
        "services:\n  ask:\n    environment:\n      COMPOSE_FILE: '[]'\n      VRAMBLK_IMAGE: '[it''s $$5]'\n"
        "      VRAMBLK_EXPORT_NAME: '[a long\n        name]'\n    image: none\n"
    )
    assert prints(tmp_path, "plain_values", stdin=text) == (
        "COMPOSE_FILE=\nVRAMBLK_IMAGE=it's $5\nVRAMBLK_EXPORT_NAME=a long name\n"
    )


def test_a_dotenv_file_that_compose_refuses(tmp_path: Path) -> None:
    make(tmp_path, ".env")
    refuses(tmp_path, "compose() { echo first; echo line 3 >&2; return 1; }; read_dotenv", 2, "line 3; correct .env")
    refuses(tmp_path, "compose() { echo; }; read_dotenv", 2, "COMPOSE_FILE")


# ------------------------------------------------------------------------------- what is written to .env


PROTECTIONS = "for each in $protections $tls_protections; do echo \"$each\"; done"


def test_protections_are_variables_of_the_server_or_of_compose(tmp_path: Path) -> None:
    known = {option.environment for option in OPTIONS} | {option.file_variable for option in OPTIONS}
    known |= {variable.name for variable in FOREIGN_VARIABLES}
    found = prints(tmp_path, PROTECTIONS).split()
    assert len(found) > 5 and set(found) <= known


def test_own_lines_go_and_edited_ones_stay(tmp_path: Path) -> None:
    """The comment repeats the line below it; only while the two agree is the line ours."""
    mark = prints(tmp_path, 'printf %s "$choice_mark"')
    own = f"A=1\n{mark}compose.yaml\nB=2\nCOMPOSE_FILE=compose.yaml\n"
    assert prints(tmp_path, "without_own_choice", stdin=own) == "A=1\nB=2\n"
    edited = f"{mark}compose.yaml\nCOMPOSE_FILE=compose.yaml:mine.yaml\n"
    assert prints(tmp_path, "without_own_choice", stdin=edited) == "COMPOSE_FILE=compose.yaml:mine.yaml\n"
    mark = prints(tmp_path, 'printf %s "$tls_mark"')
    assert prints(tmp_path, "without_kept_for_tls", stdin=f"{mark}X=on\nX=on\nX=on\n") == "X=on\n"
    assert prints(tmp_path, "without_kept_for_tls", stdin=f"{mark}X=on\nX=yes\n") == "X=yes\n"


def test_lines_are_appended_after_the_users(tmp_path: Path) -> None:
    path = make(tmp_path, ".env", "A=1\n\nB=2  # mine")
    shown = prints(tmp_path, "add_line COMPOSE_FILE=compose.yaml; add_line C=3; write_kept")
    assert shown == "  COMPOSE_FILE=compose.yaml   (written to .env)\n  C=3   (written to .env)\n"
    mark = prints(tmp_path, 'printf %s "$choice_mark"')
    assert path.read_text() == f"A=1\n\nB=2  # mine\n{mark}compose.yaml\nCOMPOSE_FILE=compose.yaml\nC=3\n"
    prints(tmp_path, "add_line COMPOSE_FILE=compose.yaml:compose.tls.yaml; write_kept")
    assert path.read_text().startswith("A=1\n\nB=2  # mine\nC=3\n#")
    assert path.read_text().count("COMPOSE_FILE=") == 1


def test_nothing_is_written_if_nothing_was_chosen(tmp_path: Path) -> None:
    assert prints(tmp_path, "write_kept") == ""
    assert not (tmp_path / ".env").exists()


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("/a.yaml", "VRAMBLK_CONFIG=/a.yaml\n"), ("/a b", "VRAMBLK_CONFIG='/a b'\n"), ("", ""), ("off", ""), ("0", ""),
        ("it's", "  VRAMBLK_CONFIG is not remembered"), ("$HOME", "  VRAMBLK_CONFIG is not remembered"),
    ],
)  # fmt: skip
def test_keep(tmp_path: Path, value: str, kept: str) -> None:
    shown = prints(tmp_path, 'keep VRAMBLK_CONFIG; printf %s "$to_keep"', VRAMBLK_CONFIG=value)
    assert shown.startswith(kept) if kept else shown == ""


def test_keep_an_empty_address(tmp_path: Path) -> None:
    """It leaves the decision to a YAML file."""
    script = 'keep VRAMBLK_LISTEN_ADDR; printf %s "$to_keep"'
    assert prints(tmp_path, script, VRAMBLK_LISTEN_ADDR="") == "VRAMBLK_LISTEN_ADDR=\n"


@pytest.mark.parametrize(
    ("line", "answer"),
    [("A=1", "yes"), (" export A = 1", "yes"), ("#A=1", "no"), ("BA=1", "no"), ("A_FILE=1", "no")],
)
def test_in_dotenv(tmp_path: Path, line: str, answer: str) -> None:
    make(tmp_path, ".env", line)
    assert prints(tmp_path, f"{ANSWER} answer in_dotenv A") == f"{answer}\n"


# ------------------------------------------------------------------------------- the GPU and the compose files


TOOLKIT = "compose.nvidia.yaml NVIDIA\n"


def test_find_gpu(tmp_path: Path) -> None:
    """A node that NVIDIA's driver makes is stronger than AMD's, and that than a render node."""
    find = "docker() { echo '{\"runc\":{}}'; }; find_gpu"
    programs = make(tmp_path, "bin/nvidia-smi", "#!/bin/sh\nexit 9\n")
    programs.chmod(0o755)
    path = f"{programs.parent}:{os.environ['PATH']}"
    assert prints(tmp_path, find, PATH=path) == "- none\n"
    vendor = "host/sys/class/drm/renderD128/device/vendor"
    make(tmp_path, vendor, "0x1002\n")
    assert prints(tmp_path, find, PATH=path) == "compose.intel.yaml AMD (without /dev/kfd)\n"
    make(tmp_path, vendor, "0x8086\n")
    assert prints(tmp_path, find, PATH=path) == "compose.intel.yaml Intel\n"
    make(tmp_path, "host/dev/kfd")
    assert prints(tmp_path, find, PATH=path) == "compose.rocm.yaml AMD\n"
    make(tmp_path, "host/dev/nvidiactl")
    runtime = find.replace("runc", "nvidia")
    assert prints(tmp_path, runtime, PATH=path) in ("compose.nvidia-runtime.yaml NVIDIA\n", TOOLKIT)
    make(tmp_path, "bin/nvidia-container-runtime-hook", "#!/bin/sh\n").chmod(0o755)
    assert prints(tmp_path, find, PATH=path) == TOOLKIT


def test_group_of(tmp_path: Path) -> None:
    there = make(tmp_path, "there")
    assert prints(tmp_path, f"group_of /none {there}") == f"{there.stat().st_gid}\n"
    assert prints(tmp_path, "group_of /none") == "0\n"


NO_SERVER = "add_tls_and_swap ''; echo \"files $files\""


@pytest.mark.parametrize(
    ("before", "variables", "after"),
    [
        ("a", {}, "a"),
        ("a", {"VRAMBLK_TLS": "on"}, "a:compose.tls.yaml"),
        ("a:compose.tls.yaml", {}, "a:compose.tls.yaml"),
        ("a:compose.tls.yaml", {"VRAMBLK_TLS": "off"}, "a"),
        ("a", {"VRAMBLK_MODE": "swap"}, "a:compose.swap.yaml"),
        ("a:compose.tls.yaml", {"VRAMBLK_MODE": "swap"}, "a:compose.tls.yaml:compose.swap.yaml"),
        ("a:compose.swap.yaml", {"VRAMBLK_TLS": "on", "VRAMBLK_MODE": "swap"}, "a:compose.tls.yaml:compose.swap.yaml"),
        ("a:compose.tls.yaml:compose.swap.yaml", {}, "a:compose.tls.yaml"),
    ],
)
def test_add_tls_and_swap(tmp_path: Path, before: str, variables: dict[str, str], after: str) -> None:
    shown = prints(tmp_path, f"files={before}; {NO_SERVER}", **variables)
    assert shown.endswith(f"files {after}\n")
    assert ("swap mode ends" in shown) == (before.endswith("swap.yaml") and "VRAMBLK_MODE" not in variables)


def test_swap_mode_stays_while_swap_is_on(tmp_path: Path) -> None:
    make(tmp_path, "host/run/vramblk-swap/records", "swapon /dev/nbd0\n")
    assert "files a:compose.swap.yaml\n" in prints(tmp_path, f"files=a:compose.swap.yaml; {NO_SERVER}")
    assert prints(tmp_path, f"files=a; {NO_SERVER}") == "files a\n", "the records are another server's"


@pytest.mark.parametrize(
    ("files", "device", "answer"),
    [
        ("compose.yaml", "", "yes"), ("compose.yaml:compose.nvidia.yaml", "", "no"),
        ("compose.yaml:compose.rocm.yaml", "", "no"), ("compose.yaml:mine.yaml", "", "yes"),
        ("compose.yaml", "map:/dev/dax0.0", "no"),
    ],
)  # fmt: skip
def test_on_cpu(tmp_path: Path, files: str, device: str, answer: str) -> None:
    assert prints(tmp_path, f"{ANSWER} files={files}; answer on_cpu", VRAMBLK_DEVICE=device) == f"{answer}\n"


def test_certificates(tmp_path: Path) -> None:
    for name in ("ca-cert.pem", "server-cert.pem"):
        make(tmp_path, f"tls/{name}")
    refuses(tmp_path, "check_certificates ./tls", 78, "TLS requires ./tls/server-key.pem, which does not exist")
    make(tmp_path, "tls/server-key.pem")
    assert prints(tmp_path, "check_certificates ./tls") == ""


# ------------------------------------------------------------------------------- conflicts


@pytest.mark.parametrize(
    ("address", "table", "answer"),
    [
        ("00000000:2A39", "tcp", "yes"), ("0100007F:2A39", "tcp", "yes"), ("0200007F:2A39", "tcp", "no"),
        ("0100007F:2A3A", "tcp", "no"), ("0" * 32 + ":2A39", "tcp6", "yes"),
    ],
)  # fmt: skip
def test_taken(tmp_path: Path, address: str, table: str, answer: str) -> None:
    make(tmp_path, f"host/proc/net/{table}", f"  sl  local_address\n   0: {address} 00000000:0000 0A 0:0\n")
    assert prints(tmp_path, f"{ANSWER} answer taken 10809") == f"{answer}\n"


def test_a_connected_socket_takes_no_port(tmp_path: Path) -> None:
    make(tmp_path, "host/proc/net/tcp", "   0: 0100007F:2A39 0100007F:1000 01 0:0\n")
    assert prints(tmp_path, f"{ANSWER} answer taken 10809") == "no\n"


# ------------------------------------------------------------------------------- what Compose would change


CONFIG = """services:
  a:
    image: other:1
    environment:
      VRAMBLK_SIZE: 9G
  vramblk:
    build:
      args:
        VRAMBLK_NO: argument
    environment:
      OTHER: x
      VRAMBLK_EXPORT_NAME: "a b"
      VRAMBLK_READ_ONLY: 'on'
      VRAMBLK_SIZE: null
    image: "vramblk:1"
    ports:
    - VRAMBLK_NO: variable
volumes:
  vramblk:
    image: none
"""


def test_planned(tmp_path: Path) -> None:
    script = 'compose() { [ "$*" = config ] && cat; }; planned'
    assert prints(tmp_path, script, stdin=CONFIG).splitlines() == [
        "environment VRAMBLK_EXPORT_NAME=a b", "environment VRAMBLK_READ_ONLY=on", "environment VRAMBLK_SIZE=",
        "image vramblk:1",
    ]  # fmt: skip


def test_changed_variables(tmp_path: Path) -> None:
    text = (
        "old PATH=/bin\nold VRAMBLK_SIZE=8G\nold VRAMBLK_EXPORT_NAME=a b=c\nold VRAMBLK_METRICS_TOKEN=old\n"
        "new VRAMBLK_EXPORT_NAME=a b=c\nnew VRAMBLK_READ_ONLY=on\nnew VRAMBLK_METRICS_TOKEN=new\nnew VRAMBLK_TLS=\n"
    )
    assert prints(tmp_path, "changed_variables", stdin=text).splitlines() == [
        "VRAMBLK_METRICS_TOKEN", "VRAMBLK_READ_ONLY: unset becomes on", "VRAMBLK_SIZE: 8G becomes unset",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("published", "shown"),
    [
        ("10809/tcp 10809", ""), ("10809/tcp 10819", "NAME: 10819 becomes 10809\n"), ("", ""),
        ("10810/tcp 1", ""),
    ],
)  # fmt: skip
def test_changed_port(tmp_path: Path, published: str, shown: str) -> None:
    script = f"published() {{ echo '{published}'; }}; changed_port id 10809 NAME 10809"
    assert prints(tmp_path, script) == shown


# ------------------------------------------------------------------------------- answers and losses


def test_an_answer_is_one_printable_line(tmp_path: Path) -> None:
    assert prints(tmp_path, "first_line", stdin="a\x1b]0;b\x07\nsecond\n") == "a?]0;b?\n"
    assert len(prints(tmp_path, "first_line", stdin="x" * 5000)) == 1024


@pytest.mark.parametrize(
    ("answer", "held"), [("2 8192", "2 8192\n"), ("", ""), ("2", ""), ("-1 0", ""), ("0 " + "9" * 30, ""), ("0 0x", "")]
)
def test_holds(tmp_path: Path, answer: str, held: str) -> None:
    assert prints(tmp_path, f"ask_server() {{ echo '{answer}'; }}; holds id") == held


def test_holds_soon_asks_again_while_the_container_lives(tmp_path: Path) -> None:
    script = "sleep() { :; }; lives() { %s; }; holds() { echo asked >>asked; }; holds_soon id; wc -l <asked"
    assert prints(tmp_path, script % "true").split() == ["3"]
    (tmp_path / "asked").unlink()
    assert prints(tmp_path, script % "false").split() == ["1"]


@pytest.mark.parametrize(
    ("environment", "mode", "answer"),
    [
        ("VRAMBLK_MODE=swap", "", "yes"), ("VRAMBLK_MODE=scratch", "swap", "no"), ("PATH=/bin", "swap", "no"),
        ("VRAMBLK_CONFIG=/a.yaml", "swap", "yes"), ("VRAMBLK_CONFIG=/a.yaml", "scratch", "no"),
        ("VRAMBLK_CONFIG=", "swap", "no"),
    ],
)  # fmt: skip
def test_is_swap(tmp_path: Path, environment: str, mode: str, answer: str) -> None:
    script = f"environment_of() {{ echo {environment}; }}; mode_of() {{ echo '{mode}'; }}; answer is_swap id"
    assert prints(tmp_path, ANSWER + script) == f"{answer}\n"


def test_is_swap_without_an_answer_of_docker(tmp_path: Path) -> None:
    refuses(tmp_path, "environment_of() { :; }; if is_swap id; then :; fi", 1, "does not report the container's mode")


def refuses_or_agrees(tmp_path: Path, script: str, force: str, words: str, status: int = 1) -> None:
    """Refuses with these words and this status, or without words prints nothing."""
    if words:
        refuses(tmp_path, script, status, words, FORCE=force)
    else:
        assert prints(tmp_path, script, FORCE=force) == ""


SCRATCH, SWAP = "is_swap() { return 1; }; ", "is_swap() { :; }; "


@pytest.mark.parametrize(
    ("server", "held", "force", "words"),
    [
        (SCRATCH, "0 0", "", ""),
        (SCRATCH, "2 0", "", "clients are attached (2); stopping refused; detach them (nbd-client -d); to cut them off: make down FORCE=1"),
        (SCRATCH, "2 0", "1", ""),
        (SCRATCH, "0 8192", "", "the running server holds 8 KiB of data, which ends with it"),
        (SCRATCH, "0 8192", "1", ""),
        (SCRATCH, "", "", "the running server does not answer"),
        (SCRATCH, "", "1", ""),
        (SWAP, "0 8192", "", ""),
        (SWAP, "1 0", "1", "clients are attached (1) and swap may be live"),
        (SWAP, "", "1", "the swap server does not report whether clients are attached"),
        (SCRATCH, "2 0", "yes", "FORCE=yes; allowed: 1, 0 or nothing"),
    ],
)  # fmt: skip
def test_refuse_to_stop(tmp_path: Path, server: str, held: str, force: str, words: str) -> None:
    refuses_or_agrees(tmp_path, f"{server} refuse_to_stop id '{held}'", force, words, 2 if "allowed" in words else 1)


@pytest.mark.parametrize(
    ("server", "held", "force", "words"),
    [
        (SCRATCH, "0 0", "", ""),
        (SCRATCH, "1 0", "", "clients are attached (1); replacing the container (SIZE) refused"),
        (SCRATCH, "0 4096", "", "holds 4 KiB of data, which its replacement loses (SIZE); to keep it, undo the change"),
        (SCRATCH, "", "", "does not answer, so it may hold data; replacing it (SIZE) refused"),
        (SCRATCH, "1 4096", "1", ""),
        (SWAP, "1 0", "1", "clients are attached (1) and swap may be live"),
        (SWAP, "", "1", "the swap server does not report whether clients are attached"),
    ],
)  # fmt: skip
def test_refuse_to_replace(tmp_path: Path, server: str, held: str, force: str, words: str) -> None:
    refuses_or_agrees(tmp_path, f"{server} refuse_to_replace id '{held}' SIZE", force, words)


# ------------------------------------------------------------------------------- swap


def test_host_script_is_given_what_is_not_as_usual(tmp_path: Path) -> None:
    script = "as_root() { printf '%s\\n' \"$@\"; }; host_script up"
    assert prints(tmp_path, script).splitlines() == ["host/vramblk-swap", "up"]
    assert prints(tmp_path, script, VRAMBLK_RUN_DIR="/a", VRAMBLK_EXPORT_NAME="b c").splitlines() == [
        "env", "VRAMBLK_NBD_SOCKET=/a/nbd.sock", "VRAMBLK_STATUS_SOCKET=/a/status.sock", "VRAMBLK_EXPORT_NAME=b c",
        "host/vramblk-swap", "up",
    ]  # fmt: skip


# ------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("addresses", "answer"),
    [(None, "yes"), ("", "yes"), ("unix:/a", "no"), ("unix:/a, unix:/b", "no"), ("unix:/a,0.0.0.0:1", "yes")],
)
def test_serves_tcp(tmp_path: Path, addresses: str | None, answer: str) -> None:
    variables = {} if addresses is None else {"VRAMBLK_LISTEN_ADDR": addresses}
    assert prints(tmp_path, f"{ANSWER} answer serves_tcp", **variables) == f"{answer}\n"


@pytest.mark.parametrize(
    ("files", "tls", "mode"),
    [
        ("compose.yaml", "", ""), ("compose.yaml", "off", ""), ("compose.yaml", "require", "require"),
        ("compose.yaml:compose.tls.yaml", "", "require"), ("compose.yaml:compose.tls.yaml", "on", "on"),
    ],
)  # fmt: skip
def test_tls_mode(tmp_path: Path, files: str, tls: str, mode: str) -> None:
    assert prints(tmp_path, f"files={files}; tls_mode", VRAMBLK_TLS=tls).strip() == mode


def test_recipes(tmp_path: Path) -> None:
    plain = prints(tmp_path, "files=compose.yaml; say_recipes name 1000").splitlines()
    assert plain == [
        "  look at it       nbdinfo nbd://127.0.0.1:1000/name",
        "  a block device   sudo nbd-client -unix /run/vramblk/nbd.sock -N name -b 4096 /dev/nbd0",
    ]
    assert "nbds://localhost:1000/name   (with your keys" in prints(
        tmp_path, "files=compose.yaml:mine.yaml; say_recipes name 1000", VRAMBLK_TLS="on"
    )
    make(tmp_path, "tls/client-cert.pem")
    tls = prints(tmp_path, "files=compose.yaml:compose.tls.yaml; say_recipes name 1000")
    assert f"nbdinfo 'nbds://localhost:1000/name?tls-certificates={tmp_path}/tls'" in tls
    assert f"-certfile {tmp_path}/tls/client-cert.pem" in tls
