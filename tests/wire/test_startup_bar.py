"""The progress bar while the memory is set up: on a terminal only, and to nobody's harm."""

from __future__ import annotations

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .harness import Server, alive, clean_environment, descendants, eventually, requires

PROGRAM = (sys.executable, str(Path(__file__).with_name("slow_server.py")))
BAR = "━"
#: 128 MiB in the proof's four passes of one step each, two seconds in all.
SIZE = 128 << 20
SLOW = {"VRAMBLK_TEST_STEP_S": "0.8"}
Start = Callable[..., Server]


@pytest.fixture
def memory() -> Iterator[str]:
    """A file on tmpfs, served without OpenCL."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="vramblk-test-") as file:
        os.truncate(file.fileno(), SIZE)
        yield file.name


def options(memory: str, path: Path) -> list[str]:
    return ["--device", f"map:{memory}", "--size", "max", "--listen-addr", f"unix:{path}/nbd.sock",
            "--status-socket", "off"]  # fmt: skip


class OnTerminal:
    """A server whose stderr is a terminal; its stdout is a file."""

    def __init__(self, directory: Path, memory: str, **environment: str) -> None:
        self.log_path = directory / "log"
        outside, inside = pty.openpty()
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                [*PROGRAM, *options(memory, directory)], stdin=inside, stdout=log, stderr=inside,
                start_new_session=True, cwd=directory,
                env=clean_environment(TERM="xterm-256color", LC_ALL="C.UTF-8", **SLOW, **environment),
            )  # fmt: skip
        os.close(inside)
        self.raw = bytearray()
        self._outside = outside
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._outside, 65536):
                self.raw += data
        except OSError:
            pass  # the last one who had the terminal open is gone

    @property
    def text(self) -> str:
        return self.raw.decode(errors="ignore")

    def wait(self) -> int:
        try:
            return self.process.wait(60)
        finally:
            left = [self.process.pid, *descendants(self.process.pid)]
            for pid in left:
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            self._reader.join(10)
            os.close(self._outside)


def test_bar_is_seen_and_vanishes(tmp_path: Path, memory: str) -> None:
    """It shows the proof and how far it is; when the server is ready there is nothing of it."""
    server = OnTerminal(tmp_path, memory)
    try:
        eventually(lambda: BAR in server.text and "/128.0 MiB" in server.text, 60)
        eventually(lambda: '"ready"' in server.log_path.read_text(), 60)
    finally:
        server.process.send_signal(signal.SIGTERM)
        status = server.wait()
    assert status == 0
    done = [float(figure) for figure in re.findall(r"([\d.]+)/128\.0 MiB", server.text)]
    assert done == sorted(done) and done[-1] >= 64
    assert server.text.endswith("\r\x1b[J")
    assert BAR not in server.log_path.read_text()


def test_ctrl_c_while_the_bar_is_seen(tmp_path: Path, memory: str) -> None:
    """An interrupted start leaves no bar, no word on stderr and no complaint in the log."""
    server = OnTerminal(tmp_path, memory)
    try:
        eventually(lambda: BAR in server.text, 60)
    finally:
        server.process.send_signal(signal.SIGINT)
        status = server.wait()
    assert status == 0
    assert server.text.endswith("\r\x1b[J")
    assert not re.search('"level":"(error|critical)"', server.log_path.read_text())


def test_failure_is_one_line_where_the_bar_was(tmp_path: Path, memory: str) -> None:
    """The bar is gone before the error is said, and nothing follows it."""
    server = OnTerminal(tmp_path, memory, VRAMBLK_TEST_BAD_STEP="4")
    try:
        eventually(lambda: BAR in server.text, 60)
    finally:
        status = server.wait()
    assert status == 1
    rest = server.text.rpartition("\x1b[J")[2]
    assert rest.startswith("vramblk: ") and rest.count("\n") == 1 and rest.endswith("\n")
    assert "engine_died" not in server.log_path.read_text()


def test_no_bar_in_a_file(start: Start, memory: str) -> None:
    """Stderr that is a file stays empty, however long the start takes."""
    server = start("--device", f"map:{memory}", size="max", program=PROGRAM, environment=SLOW)
    assert server.stop() == 0
    assert server.stderr == ""
    assert BAR not in "".join(server.raw_lines)


def test_failure_is_one_line_in_a_file(start: Start, memory: str) -> None:
    """Exactly one, with the reason."""
    server = start(
        "--device", f"map:{memory}", size="max", program=PROGRAM, ready=False,
        environment={**SLOW, "VRAMBLK_TEST_BAD_STEP": "3"},
    )  # fmt: skip
    assert server.wait(60) == 1
    assert server.stderr.count("\n") == 1 and "injected" in server.stderr
    assert server.find_event("engine_died") is None


@requires("tmux")
def test_log_lines_on_the_same_terminal_stay_whole(tmp_path: Path, memory: str) -> None:
    """Lines that the log writes between two pictures are on the screen, each by itself, and no bar is left."""
    tmux = ["tmux", "-S", str(tmp_path / "tmux"), "-f", "/dev/null"]
    environment = clean_environment(LC_ALL="C.UTF-8", TERM="xterm-256color", **SLOW)
    # A wide one, so that no line is folded; few rows, so that the screen has to scroll.
    command = shlex.join([*PROGRAM, *options(memory, tmp_path)])
    subprocess.run(
        [*tmux, "new-session", "-d", "-x", "240", "-y", "6", f"{command}; sleep 60"], env=environment, check=True
    )

    def screen() -> str:
        captured = subprocess.run(
            [*tmux, "capture-pane", "-p", "-S", "-"], env=environment, capture_output=True, text=True, timeout=20
        )
        return captured.stdout

    try:
        eventually(lambda: BAR in screen(), 60)
        eventually(lambda: "ready" in screen(), 60)
        lines = screen().split("\n")
    finally:
        subprocess.run([*tmux, "send-keys", "C-c"], env=environment, check=True)
        eventually(lambda: not (tmp_path / "nbd.sock").exists())
        subprocess.run([*tmux, "kill-server"], env=environment, check=True)
    assert BAR not in "".join(lines) and "MiB" not in "".join(lines)
    shown = [line for line in lines if line.strip()]
    assert all(re.match(r"\d\d:\d\d:\d\d \w+ +\w+ .*\(supervisor\)$", line) for line in shown), shown
    assert [re.search('line="step (.)"', line)[1] for line in shown if "child_stderr" in line] == list("1234")
