"""vramblk-swap auto with a source of free memory that the test writes; nothing of it needs a GPU."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import GPU, SCRIPT, Host

GIB = 1 << 30
#: What the stub of curl sends, and how often: the server sends a line every two seconds.
_CURL = f"""#!{shutil.which("bash")}
case $* in
*/free)
    echo $$ >>"$STUB_HOME/listeners"
    while :; do cat "$STUB_HOME/free"; {shutil.which("sleep")} "$(cat "$STUB_HOME/every")"; done ;;
*) cat "$STUB_HOME/status.env" ;;
esac
"""

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="auto requires bash")


class Auto:
    def __init__(self, host: Host, **changes: str) -> None:
        self.host = host
        self.log = host.home / "auto.log"
        self.every(0.5)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["sh", SCRIPT, "auto"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={
                    "PATH": f"{host.home}/bin:{os.environ['PATH']}", "VRAMBLK_TEST_ROOT": str(host.root),
                    "STUB_HOME": str(host.home), "VRAMBLK_SWAP_TIMEOUT": "1", "VRAMBLK_TEST_PATIENCE": "3",
                    "VRAMBLK_RESERVE": "1G", **changes,
                },
            )  # fmt: skip

    def every(self, seconds: float) -> None:
        (self.host.home / "every").write_text(f"{seconds}\n")

    def said(self, words: str) -> int:
        return self.log.read_text().count(words)

    def until(self, holds: Callable[[], bool], seconds: float = 40) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end and self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


@pytest.fixture
def sliced(host: Host) -> Host:
    host.status(exports=["vram-0", "vram-1", "vram-2"])
    assert host.run("up").returncode == 0
    host.calls()
    (host.home / "bin" / "curl").write_text(_CURL)
    return host


@pytest.fixture
def start(sliced: Host) -> Iterator[Callable[..., Auto]]:
    started: list[Auto] = []

    def one(**changes: str) -> Auto:
        started.append(Auto(sliced, **changes))
        return started[-1]

    yield one
    for each in started:
        if each.process.poll() is None:
            each.end()
    listeners = sliced.home / "listeners"
    for pid in listeners.read_text().split() if listeners.exists() else []:
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue


def free(host: Host, gib: float, *others: str) -> None:
    words = " ".join([f"{GPU} {int(gib * GIB)} {8 * GIB}", *others])
    (host.home / "free.new").write_text(f"{words}\n")
    (host.home / "free.new").rename(host.home / "free")


def swaps(host: Host) -> int:
    return len(host.read("/proc/swaps").splitlines()) - 1


def test_slices_go_while_the_reserve_is_missing_and_come_back(sliced: Host, start: Callable[..., Auto]) -> None:
    free(sliced, 1.5)
    auto = start()
    auto.until(lambda: auto.said("watching") == 1)
    time.sleep(3)
    assert swaps(sliced) == 3, "the reserve is free, a slice more is not"
    free(sliced, 0.5)
    auto.until(lambda: swaps(sliced) < 3)
    free(sliced, 1.5)
    time.sleep(6)
    assert swaps(sliced) == 2, "one slice was enough"
    free(sliced, 2.0)
    auto.until(lambda: swaps(sliced) == 3)
    assert auto.said("taking 1024 MiB back") == 1
    assert auto.end() == 0


def test_as_many_as_needed_at_once(sliced: Host, start: Callable[..., Auto]) -> None:
    free(sliced, 0)
    auto = start(VRAMBLK_RESERVE="25%")  # 2 GiB of 8
    auto.until(lambda: swaps(sliced) == 1)
    assert auto.said("needs 2048 MiB: releasing") == 1


def test_default_reserve_is_the_larger_of_1_gib_and_a_tenth(sliced: Host, start: Callable[..., Auto]) -> None:
    free(sliced, 1.001)
    auto = start(VRAMBLK_RESERVE="")
    auto.until(lambda: auto.said("watching") == 1)
    time.sleep(2)
    assert swaps(sliced) == 3
    (sliced.home / "free").write_text(f"{GPU} {int(1.9 * GIB)} {20 * GIB}\n")
    auto.until(lambda: swaps(sliced) == 2)


def test_pages_that_have_nowhere_to_go_are_kept_and_it_is_said_seldom(sliced: Host, start: Callable[..., Auto]) -> None:
    used = sliced.read("/proc/swaps").replace("1048572 0 ", "1048572 900000 ")
    sliced.write("/proc/swaps", used + "\n")
    sliced.write("/proc/meminfo", "MemTotal: 2000000 kB\nMemAvailable: 100000 kB\n")
    free(sliced, 0)
    auto = start()
    auto.until(lambda: auto.said("878 MiB are in /dev/nbd0 and there is room for") == 1)
    time.sleep(1)
    assert auto.said(": kept") == 1
    auto.until(lambda: auto.said(": kept") == 2)
    assert swaps(sliced) == 3 and sliced.calls() == [], "it does not even try"


def test_nothing_is_started_while_there_is_nothing_to_do(sliced: Host, start: Callable[..., Auto]) -> None:
    """A process that waits for memory could not give any back. The kernel counts what children have used."""
    free(sliced, 1.5)
    auto = start()
    auto.until(lambda: (sliced.home / "listeners").exists())
    time.sleep(1)

    def of_children() -> list[str]:
        fields = Path(f"/proc/{auto.process.pid}/stat").read_text().rpartition(")")[2].split()
        return [fields[8], fields[10], fields[13], fields[14]]

    before = of_children()
    for gib in (1.5, 1.2, 1.8):
        free(sliced, gib)
        time.sleep(1)
    used = sliced.read("/proc/swaps").replace("1048572 0 ", "1048572 900000 ")
    sliced.write("/proc/swaps", used + "\n")
    sliced.write("/proc/meminfo", "MemTotal: 2000000 kB\nMemAvailable: 100000 kB\n")
    free(sliced, 0.1)
    auto.until(lambda: auto.said(": kept") == 1)
    assert of_children() == before
    assert len((sliced.home / "listeners").read_text().split()) == 1


def test_a_gpu_without_slices_and_one_unknown_are_left_alone(sliced: Host, start: Callable[..., Auto]) -> None:
    free(sliced, 1.5, f"0000:02:00.0 0 {8 * GIB}")
    auto = start()
    auto.until(lambda: auto.said("watching") == 1)
    time.sleep(2)
    assert swaps(sliced) == 3 and sliced.calls() == []


def test_where_swap_is_off_it_waits(sliced: Host, start: Callable[..., Auto]) -> None:
    assert sliced.run("down").returncode == 0
    sliced.calls()
    free(sliced, 0)
    auto = start()
    auto.until(lambda: auto.said("watching") == 1)
    free(sliced, 7)
    time.sleep(5)
    assert sliced.calls() == [] and swaps(sliced) == 0


@pytest.mark.parametrize(
    "line",
    [
        f"{GPU} -1 8", f"{GPU} 0x0 8", f"{GPU} 0 $(touch /x)", "../.. 0 8", f"{GPU} 0", f"{GPU} {'9' * 40} 8", "* 0 8",
        "x" * 5000, f"{GPU} 08 8", "a[$(id)] 0 8",
    ],
)  # fmt: skip
def test_what_is_no_line_of_free_memory_does_nothing(sliced: Host, start: Callable[..., Auto], line: str) -> None:
    (sliced.home / "free").write_text(f"{line}\n")
    auto = start()
    auto.until(lambda: (sliced.home / "listeners").exists())
    time.sleep(1.5)
    assert auto.process.poll() is None and swaps(sliced) == 3 and sliced.calls() == []
    free(sliced, 0.5)
    auto.until(lambda: swaps(sliced) == 2)


def test_a_flood_of_lines_is_not_read_at_once(sliced: Host, start: Callable[..., Auto]) -> None:
    free(sliced, 1.5)
    auto = start()
    auto.every(0)
    auto.until(lambda: auto.said("too many lines") == 1)
    auto.every(0.5)
    free(sliced, 0.5)
    auto.until(lambda: swaps(sliced) == 2)


def test_a_server_that_goes_and_comes_is_asked_again(sliced: Host, start: Callable[..., Auto]) -> None:
    free(sliced, 1.5)
    auto = start()
    auto.until(lambda: (sliced.home / "listeners").exists())
    os.kill(int((sliced.home / "listeners").read_text().split()[0]), signal.SIGKILL)
    auto.until(lambda: auto.said("no answer on /run/vramblk/status.sock") == 1)
    auto.until(lambda: auto.said("answers again") == 1)
    free(sliced, 0.5)
    auto.until(lambda: swaps(sliced) == 2)


def test_a_link_in_the_place_of_the_socket_is_not_followed(sliced: Host, start: Callable[..., Auto]) -> None:
    sliced.path("/run/vramblk/status.sock").symlink_to("../../docker.sock")
    free(sliced, 0)
    auto = start()
    auto.until(lambda: auto.said("no answer on") == 1)
    assert not (sliced.home / "listeners").exists() and swaps(sliced) == 3


def test_it_needs_root_and_a_status_socket(sliced: Host) -> None:
    assert sliced.run("auto", STUB_UID="1000").returncode == 78
    assert sliced.run("auto", VRAMBLK_STATUS_SOCKET="off").returncode == 78
    for value in ("1", "100%", "-5%", "1X", "all"):
        assert sliced.run("auto", VRAMBLK_RESERVE=value).returncode == 2
