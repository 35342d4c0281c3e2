"""host/vramblk-swap against a local user without rights, and against a server whose container is compromised."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import SCRIPT, Host, script_text

STATE = "/run/vramblk-swap"
LOCK = f"{STATE}/private/lock"
STATUS_SOCKET = "/run/vramblk/status.sock"
AS_ROOT = os.geteuid() == 0


def write_stub(host: Host, name: str, body: str) -> None:
    stub = host.home / "bin" / name
    stub.write_text(f"#!/bin/sh\n{body}\n")
    stub.chmod(0o755)


# ---------------------------------------------------------------- the lock


@contextmanager
def held(path: Path, exclusive: bool = False) -> Iterator[int]:
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield file.fileno()


def test_a_lock_that_another_user_holds_holds_nothing_up(host: Host) -> None:
    """An earlier version's, which anybody could open, and this version's with lax modes."""
    (host.home / "bin" / "flock").unlink()
    host.write(f"{STATE}/lock", "")
    host.write(LOCK, "")
    with held(host.path(f"{STATE}/lock")), held(host.path(LOCK)):
        assert host.run("down").returncode == 0
    assert host.path(LOCK).stat().st_mode & 0o777 == 0o600
    assert host.path(LOCK).parent.stat().st_mode & 0o777 == 0o700
    assert not host.path(f"{STATE}/lock").exists()
    assert host.path(STATE).stat().st_mode & 0o777 == 0o755, "other users may ask for the status"


def test_the_lock_excludes_a_second_one(host: Host) -> None:
    (host.home / "bin" / "flock").unlink()
    host.run("down")
    ended = threading.Event()
    with held(host.path(LOCK), exclusive=True) as lock:
        thread = threading.Thread(target=lambda: (host.run("down"), ended.set()))
        thread.start()
        assert not ended.wait(0.5)
        fcntl.flock(lock, fcntl.LOCK_UN)
        thread.join()


def test_a_lock_that_is_held_names_its_holder_and_wait_waits(host: Host) -> None:
    host.run("down", "--wait")
    holder = host.read(LOCK)
    assert re.fullmatch(r"pid \d+: vramblk-swap down --wait", holder)
    left = host.home / "left"
    write_stub(host, "flock", f'read left <{left}; echo $((left - 1)) >{left}; [ "$left" -le 0 ]')
    left.write_text("60\n")
    refused = host.run("down")
    assert refused.returncode == 1
    assert f"another vramblk-swap has been running for ten minutes ({holder})" in refused.stderr
    left.write_text("70\n")
    waited = host.run("down", "--wait")
    assert waited.returncode == 0, waited.stderr
    assert waited.stderr.count(f"waiting for another vramblk-swap ({holder})") == 1


@pytest.mark.parametrize("path", [STATE, f"{STATE}/private", LOCK])
@pytest.mark.parametrize("kind", ["a link", *(["another user's"] if AS_ROOT else [])])
def test_a_lock_in_foreign_hands_is_refused(host: Host, path: str, kind: str) -> None:
    host.run("down")
    if kind == "a link":
        host.path(path).rename(host.root / "elsewhere")
        host.path(path).symlink_to(host.root / "elsewhere")
    else:
        os.chown(host.path(path), 1, -1)
    result = host.run("down")
    assert result.returncode == 1
    assert f"{host.path(path)} is a symbolic link or belongs to another user" in result.stderr


def test_records_that_others_could_write_are_not_undone(host: Host) -> None:
    host.run("up")
    host.path(STATE).chmod(0o777)
    before = host.state()
    result = host.run("down")
    assert result.returncode == 1 and "others may write to" in result.stderr and host.state() == before


# ---------------------------------------------------------------- names in records


@pytest.mark.parametrize(
    "name",
    [
        "memory.max 1073741824 max /x",
        "a*",
        "[a]",
        "a?",
        "a\tb",
        "a\x1b[31m",
        "a/../../..",
        "..",
        "a'b",
        "$(a)",
    ],
)
def test_a_cgroup_with_a_name_that_means_something_is_refused(host: Host, name: str) -> None:
    host.write("/proc/4242/cgroup", f"0::/slice/{name}\n")
    host.write("/sys/fs/cgroup/slice/memory.max", "1073741824\n")
    host.write(f"/sys/fs/cgroup/slice/{name}/memory.swap.max", "max\n")
    before = host.state()
    result = host.run("up")
    assert result.returncode == 1 and "the name of the server's cgroup" in result.stderr
    assert host.calls() == [] and host.state() == before and "\x1b" not in result.stderr


def test_a_cgroup_with_a_name_that_systemd_escaped_is_used(host: Host) -> None:
    name = r"/system.slice/system-vramblk\x2dswap.slice/vramblk@0.service"
    host.write("/proc/4242/cgroup", f"0::{name}\n")
    host.write(f"/sys/fs/cgroup{name}/memory.swap.max", "max\n")
    before = host.state()
    assert host.run("up").returncode == 0
    assert host.read(f"/sys/fs/cgroup{name}/memory.swap.max") == "0"
    changed = {"path": f"/sys/fs/cgroup{name}/memory.swap.max", "value": "0", "was": "max"}
    assert changed in json.loads(host.run("status", "--json").stdout)["changed"]
    assert f"changed   {changed['path']} to 0, was max" in host.run("status").stdout
    assert host.run("down").returncode == 0 and host.state() == before


def test_a_value_of_several_words_and_of_globs_is_restored(host: Host) -> None:
    subprocess.run(
        [host.home / "make-devices"], env={"VRAMBLK_TEST_ROOT": str(host.root), "PATH": "/usr/bin:/bin"}
    )
    host.write("/sys/block/nbd0/queue/read_ahead_kb", "* of /*\n")
    assert host.run("up").returncode == 0
    assert host.run("down").returncode == 0
    assert host.read("/sys/block/nbd0/queue/read_ahead_kb") == "* of /*"


def test_records_of_an_earlier_version_are_undone(host: Host) -> None:
    """A machine whose script was replaced under live swap: fields were separated by spaces."""
    before = host.state()
    host.run("up")
    shown = [host.run("status", *options).stdout for options in ((), ("--json",))]
    assert "changed   /proc/sys/vm/page-cluster to 0, was 3" in shown[0]
    host.write(f"{STATE}/records", host.path(f"{STATE}/records").read_text().replace("\t", " "))
    assert [host.run("status", *options).stdout for options in ((), ("--json",))] == shown
    assert host.run("down").returncode == 0 and host.state() == before


@pytest.mark.parametrize(("tool", "option"), [("sed", "$2"), ("grep", "$1$2x")])
def test_a_record_that_cannot_be_read_is_kept_and_ends_the_undoing(host: Host, tool: str, option: str) -> None:
    """The OOM killer may end what reads it: without swapoff the device must not be detached."""
    host.run("up")
    host.calls()
    before = host.state()
    real = shutil.which(tool)
    write_stub(host, tool, f'case {option} in [0-9]*p | -cx) exit 137 ;; esac\nexec {real} "$@"')
    result = host.run("down")
    assert result.returncode == 1 and "cannot read" in result.stderr, result.stderr
    assert "still swap" in result.stderr
    assert host.calls() == [] and host.state() == before
    (host.home / "bin" / tool).unlink()
    assert host.run("down").returncode == 0
    assert host.calls()[:1] == ["swapoff /dev/nbd0"]


# ---------------------------------------------------------------- who the server is


def without(path: str, old: str, new: str):  # type: ignore[no-untyped-def]
    return lambda host: host.write(path, host.path(path).read_text().replace(old, new))


@pytest.mark.parametrize(
    "change",
    [
        *(
            lambda host, at=at: host.write(
                "/proc/4242/status",
                "Name:\tvramblk-supervi\nUid:\t"
                + "\t".join(str(os.getuid() + 1000 * (at == each)) for each in range(4))
                + "\nNSpid:\t4242\t1\n",
            )
            for at in range(4)
        ),
        without("/proc/4242/status", "NSpid:\t4242\t1", "NSpid:\t4242\t2"),
        without("/proc/4242/net/unix", " 99 ", " 98 "),
        without("/proc/4242/net/unix", "00010000 0001 01", "00000000 0001 03"),
        without("/proc/4242/net/unix", "/nbd.sock", "/other.sock"),
        lambda host: host.path("/proc/4242/fd/3").unlink(),
    ],
)
def test_a_process_that_only_looks_like_the_server_is_not_it(host: Host, change) -> None:  # type: ignore[no-untyped-def]
    change(host)
    before = host.state()
    result = host.run("up", "--strict")
    assert result.returncode == 1 and "the server's process is not found" in result.stderr
    assert host.calls() == [] and host.state() == before


_PROCESS = r"""
import ctypes, os, socket, sys
namespaces, listens, uid, folder = sys.argv[1] == "yes", sys.argv[2] == "yes", int(sys.argv[3]), sys.argv[4]
libc = ctypes.CDLL(None)
own = socket.socket(socket.AF_UNIX)
own.bind(f"{folder}/nbd.sock" if listens else f"{folder}/{os.getpid()}.sock")
own.listen()
if uid:
    os.setuid(uid)
if namespaces:  # where a machine allows none, it is a process with this name all the same
    libc.unshare(0x10000000 | 0x20000000)  # CLONE_NEWUSER, CLONE_NEWPID
read_end, write_end = os.pipe()
if child := os.fork():
    print(child, os.read(read_end, 10).decode(), flush=True)
    sys.stdin.read()
    os.kill(child, 9)
else:
    libc.prctl(15, b"vramblk-supervisor")  # PR_SET_NAME
    os.write(write_end, str(os.getpid()).encode())
    sys.stdin.read()
"""


@contextmanager
def process(folder: Path, namespaces: bool, listens: bool, uid: int = 0) -> Iterator[tuple[int, int]]:
    """A real process named as the supervisor; its pid here and in its own namespace."""
    words = ["yes" if namespaces else "no", "yes" if listens else "no", str(uid), str(folder)]
    with subprocess.Popen(
        [sys.executable, "-c", _PROCESS, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as made:
        assert made.stdout is not None
        here, inside = map(int, made.stdout.readline().split())
        yield here, inside
        made.communicate()


@pytest.mark.parametrize("uid", [0, *([65534] if AS_ROOT else [])])
def test_a_real_process_in_its_own_namespaces_is_not_taken_for_the_server(host: Host, uid: int) -> None:
    """Against this machine's /proc: it sees the socket, has the name, and the pid that the server reports."""
    folder = host.root.parent / "run"
    folder.mkdir()
    for each in (host.root.parent, folder):
        each.chmod(0o777)
    host.path(str(folder)).parent.mkdir(parents=True)
    host.path(str(folder)).symlink_to(folder)
    shutil.rmtree(host.path("/proc"))
    host.path("/proc").symlink_to("/proc")
    environment = {"VRAMBLK_NBD_SOCKET": str(folder / "nbd.sock")}
    with socket.socket(socket.AF_UNIX) as other:
        if not uid:
            other.bind(str(folder / "nbd.sock"))
        with process(folder, namespaces=True, listens=bool(uid), uid=uid) as (here, inside):
            assert Path(f"/proc/{here}/comm").read_text() == "vramblk-supervi\n"
            host.status(pid=inside)
            result = host.run("up", "--dry-run", **environment)
            assert "the server's process is not found" in result.stderr, result.stderr
            assert "+ echo 0 > /sys/fs/cgroup" not in result.stderr
    (folder / "nbd.sock").unlink()
    with process(folder, namespaces=False, listens=True) as (_, inside):
        host.status(pid=inside)
        result = host.run("up", "--dry-run", **environment)
        assert "the server's process is not found" not in result.stderr, result.stderr


def test_a_process_of_another_user_with_the_pid_of_nbd_client_hides_no_loss(host: Host) -> None:
    host.run("up")
    host.write("/proc/77/status", "Uid:\t1000\t1000\t1000\t1000\n")
    assert json.loads(host.run("status", "--json").stdout)["swap"] == "lost"


@pytest.mark.parametrize(
    ("mode", "group", "warned"),
    [(0o600, 1, False), (0o660, 1, True), (0o666, 0, True), *([(0o660, 0, False)] if AS_ROOT else [])],
)
def test_a_socket_that_more_than_root_may_open_is_warned_about(
    host: Host, mode: int, group: int, warned: bool
) -> None:
    """Without root's rights the group is this user's own, which is not root's."""
    path = host.path("/run/vramblk/nbd.sock")
    path.chmod(mode)
    if AS_ROOT:
        os.chown(path, -1, group)
    result = host.run("up")
    assert result.returncode == 0
    assert ("can read what is swapped out" in result.stderr) == warned


# ---------------------------------------------------------------- what the server sends


def test_an_answer_that_is_too_long_is_none(host: Host) -> None:
    answer = host.home / "status.env"
    answer.write_text(answer.read_text().replace("end=yes", "more=x\n" * (1 << 18) + "end=yes"))
    result = host.run("up")
    assert result.returncode == 1 and "the server does not answer on" in result.stderr
    write_stub(host, "curl", "exec yes")
    assert "the server does not answer on" in host.run("up").stderr, "it also ends"


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_an_answer_that_was_cut_off_is_none(host: Host, cut: int) -> None:
    answer = host.home / "status.env"
    answer.write_text(answer.read_text()[: -cut - 1])
    result = host.run("up")
    assert result.returncode == 1 and "the server does not answer on" in result.stderr


@pytest.mark.parametrize(
    "text",
    ["", "\n" * 100_000, "state=ready\nmode=swap\nend=yes\n", "format=2\nstate=ready\nmode=swap\nend=yes\n",
     "format=1\nstate=ready\nmode=swap\n", "format=1\nstate=ready\nmode=swap\nend=yes\n.\n", '{"state":"ready"}'],
)
def test_an_answer_that_is_no_document_is_none(host: Host, text: str) -> None:
    (host.home / "status.env").write_text(text)
    assert "the server does not answer on" in host.run("up").stderr


#: A window's title, 8-bit CSI, a C1 control in UTF-8, right-to-left override, a line of its own.
EVIL = "\x1b]0;sudo rm\x07 \x9b31m \u009b \u202e \r\n+ sudo rm -rf / \x7f"


def assert_printable(result: subprocess.CompletedProcess[str]) -> None:
    for text in (result.stdout, result.stderr):
        assert re.fullmatch(r"[\n -~]*", text), text
        assert not re.search(r"^\+ sudo", text, re.M)


def test_nothing_of_the_servers_texts_reaches_the_terminal_as_a_command(host: Host) -> None:
    """Its own code prints none of these bytes; another's may."""
    for changes in (f"mode=x{EVIL}", f"state=x{EVIL}\nmode=x{EVIL}\nlocked_bytes={EVIL}", "mode=swap\nstate=ready"):
        (host.home / "status.env").write_bytes(
            "\n".join(
                [
                    "format=1", changes, "state=ready", "exports=1", "export_0_name=vram", "export_0_mode=swap",
                    f"export_0_size_bytes={EVIL}", f"export_0_gpu={EVIL}", f"precondition_0_name=n{EVIL}",
                    "precondition_0_ok=no", f"precondition_0_detail=d{EVIL}", "end=yes\n",
                ]
            ).encode("latin-1", "replace")
        )  # fmt: skip
        result = host.run("up")
        assert_printable(result)
        assert "]0;sudo rm" in result.stderr
        assert_printable(host.run("status"))
        result = host.run("status", "--json")
        assert_printable(result)
        if changes.startswith("state"):
            assert json.loads(result.stdout)["server"]["state"].startswith("x?]0;sudo rm")


def test_no_name_of_an_export_is_taken_for_an_option_or_a_command(host: Host) -> None:
    names = ["-timeout", "$(touch x)", "a b; c", "`id`", "* /", "'"]
    host.status(exports=names[:4])
    assert host.run("up").returncode == 0
    attached = [call for call in host.calls() if call.startswith("nbd-client ")]
    assert [call.split(" -name ")[1].split(" -nonetlink")[0] for call in attached] == names[:4]
    told = json.loads(host.run("status", "--json").stdout)
    assert [each["export"] for each in told["devices"]] == names[:4]
    assert host.run("down").returncode == 0
    host.status(exports=names[4:])
    assert host.run("up").returncode == 0
    assert [each["export"] for each in json.loads(host.run("status", "--json").stdout)["devices"]] == names[4:]


def test_the_exports_of_a_server_are_bounded(host: Host) -> None:
    host.status(exports=[f"vram-{number}" for number in range(100)])
    result = host.run("up", "--dry-run")
    assert result.stderr.count("+ nbd-client ") == 64
    assert "+ modprobe nbd nbds_max=64 max_part=0" in result.stderr


def test_a_server_that_never_answers_nbd_client_holds_the_lock_for_a_time_only(host: Host) -> None:
    """Or it would hold up `down`, and so the shutdown."""
    (host.home / "bin" / "timeout").unlink()
    write_stub(host, "nbd-client", "exec /bin/sleep 1000")
    before = host.state()
    result = host.run("up", VRAMBLK_SWAP_TIMEOUT="1")
    assert result.returncode == 1 and "did not answer nbd-client within 1 s" in result.stderr
    assert "nbd-client could not attach /dev/nbd0" in result.stderr
    assert host.state() == before


def test_what_nbd_client_and_docker_print_of_the_servers_texts_is_harmless(host: Host) -> None:
    printed = f"printf '%s\\n' 'Server said: {EVIL}' >&2"
    write_stub(host, "nbd-client", f"{printed}; exit 1")
    result = host.run("up")
    assert result.returncode == 1 and "Server said:" in result.stderr and "could not attach" in result.stderr
    assert result.stderr.index("+ nbd-client") < result.stderr.index("Server said:")
    assert re.fullmatch(r"[\n -~]*", result.stderr)
    host.fail("curl")
    write_stub(
        host, "docker",
        f"case $* in 'ps '*) echo aabb ;; *Config.Env*) echo VRAMBLK_MODE=swap ;; *) {printed}; exit 1 ;; esac",
    )  # fmt: skip
    result = host.run("up", "--start")
    assert result.returncode == 1 and "Server said:" in result.stderr and "cannot be started" in result.stderr
    assert re.fullmatch(r"[\n -~]*", result.stderr)


def test_the_preconditions_that_are_printed_are_bounded(host: Host) -> None:
    missing = {"name": "x", "ok": False, "detail": "y" * 1000, "remedy": "z"}
    host.status(swap_preconditions=[missing] * 150)
    lines = [line for line in host.run("up").stderr.splitlines() if "warning: x" in line]
    assert len(lines) == 100 and max(map(len, lines)) < 400


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_links_in_the_place_of_sockets_are_not_followed(host: Host, force: tuple[str, ...]) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(host.root / "docker.sock"))
        host.path(STATUS_SOCKET).symlink_to("../../docker.sock")
        result = host.run("up")
        assert result.returncode == 1 and f"{STATUS_SOCKET} is a symbolic link" in result.stderr
        assert "curl" not in (host.home / "calls").read_text()
        host.path(STATUS_SOCKET).unlink()
        host.path("/run/vramblk/nbd.sock").unlink()
        host.path("/run/vramblk/nbd.sock").symlink_to("../../docker.sock")
        result = host.run("up", *force)
        assert result.returncode == 1 and "/run/vramblk/nbd.sock is a symbolic link" in result.stderr
        assert host.calls() == []


@pytest.mark.parametrize("after", ["modprobe", "nbd-client"])
def test_a_link_that_takes_the_sockets_place_later_leads_nowhere(host: Host, after: str) -> None:
    """From the first look at the socket to the connection the server can replace it as often as it likes."""
    asked = host.path("/run/vramblk/nbd.sock")
    inode = asked.stat().st_ino
    stub = (host.home / "bin" / after).read_text().removeprefix("#!/bin/sh\n")
    write_stub(
        host, after,
        f'ln -sf ../../docker.sock "{asked}"\n'
        f'[ "$1" != -unix ] || stat -L -c %i "$VRAMBLK_TEST_ROOT$2" >"$STUB_HOME/connected"\n{stub}',
    )  # fmt: skip
    result = host.run("up")
    connected = host.home / "connected"
    if after == "modprobe":
        assert result.returncode == 1 and "/run/vramblk/nbd.sock is no longer a socket" in result.stderr
        assert not any("nbd-client" in call or "mkswap" in call for call in host.calls())
    else:
        assert result.returncode == 0, result.stderr
        assert connected.read_text() == f"{inode}\n"
    assert not host.path(f"{STATE}/private/nbd.sock").exists()


def test_without_a_second_name_of_the_socket_nothing_is_attached(host: Host) -> None:
    """The server can have something else in its place while the second name is made, and a link after that."""
    write_stub(host, "ln", "exit 1")
    result = host.run("up")
    assert result.returncode == 1 and "cannot make a second name of /run/vramblk/nbd.sock" in result.stderr
    assert not any("nbd-client" in call or "mkswap" in call for call in host.calls())


# ---------------------------------------------------------------- who may run it as root through sudo


def test_a_user_of_sudo_chooses_no_program(tmp_path: Path) -> None:
    """Where sudo has no secure_path it hands on the PATH of its caller, who may have a few commands only."""
    theirs, ran = tmp_path / "theirs", tmp_path / "ran"
    theirs.write_text(f'#!/bin/sh\necho "$0" >>{ran}\nexit 1\n')
    theirs.chmod(0o755)
    for name in ("readlink", "env", "sed", "sort", "tr", "awk", "curl", "head", "cut", "vramblk"):
        (tmp_path / name).symlink_to(theirs)
    path = f"{tmp_path}:{os.environ['PATH']}"
    for uid, chosen in (("0", True), ("1000", False)):
        environment = {"PATH": path, "SUDO_UID": uid, "VRAMBLK_STATUS_SOCKET": "off"}
        subprocess.run(["/bin/sh", SCRIPT, "status"], env=environment, capture_output=True, timeout=60)
        assert ran.exists() == chosen, uid
        ran.unlink(missing_ok=True)


def test_curl_reads_no_settings_of_its_caller(host: Host) -> None:
    """sudo may hand on HOME, and a .curlrc there can have curl write to any file."""
    host.run("up")
    calls = [call for call in (host.home / "calls").read_text().splitlines() if call.startswith("curl ")]
    assert calls and all(call.startswith("curl --disable ") for call in calls)
    text = re.sub(r"\\\n *", " ", script_text())
    assert len(re.findall(r"\bcurl --(?!disable)", text)) == 0 and text.count("curl --disable") == 2
