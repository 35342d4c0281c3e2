"""What code that runs in a worker or in the observer tries: see SECURITY.md."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .harness import Server, alive, eventually

pytestmark = [pytest.mark.wire, pytest.mark.skipif(os.geteuid() != 0, reason="requires root")]
Start = Callable[..., Server]
PROGRAM = (sys.executable, str(Path(__file__).with_name("taken_server.py")))


def taken(start: Start, program: str, *arguments: str, tcp: bool = False) -> Server:
    """A server whose workers and observer run ``program`` on SIGUSR2."""
    return start(*arguments, program=PROGRAM, environment={"TAKEN": program}, tcp=tcp)


#: Locks that belong to the open file, which the supervisor has open too, and not to the process.
LOCK_PLACES = """
import fcntl, os, struct
from pathlib import Path
F_OFD_SETLK = 37
for path in Path("/proc/self/fd").iterdir():
    if "vramblk-places" in os.path.realpath(path):
        fcntl.fcntl(int(path.name), F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
os._exit(1)
"""


@pytest.mark.parametrize(("role", "event"), [("worker", "worker_restarted"), ("observer", "observer_died")])
def test_a_child_leaves_no_place_taken(start: Start, role: str, event: str) -> None:
    """It has taken all places of all exports, and dies: they are free again."""
    server = taken(start, LOCK_PLACES, "--workers", "1", "--export-max-connections", "2")
    os.kill(server.named(role)[0], signal.SIGUSR2)
    server.wait_event(event)
    with server.client() as first, server.client() as second:
        assert first.read(0, 1) == second.read(0, 1) == b"\0"


#: Whoever is traced is reported as stopped to its parent, which waits for its end.
PRETEND_DEATH = """
import ctypes, os, signal
libc = ctypes.CDLL(None)
libc.prctl(1, 0, 0, 0, 0)
libc.ptrace(0, 0, 0, 0)
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.parametrize("role", ["worker", "observer"])
def test_a_child_cannot_pretend_that_it_has_ended(start: Start, role: str) -> None:
    """It has the supervisor trace it, and stops: it is killed, and only then has a successor."""
    server = taken(start, PRETEND_DEATH, "--workers", "1")
    (bad,) = server.named(role)
    os.kill(bad, signal.SIGUSR2)
    event = server.wait_event(f"{role}_died")
    assert event["child"] == bad and event["signal"] == "SIGKILL"
    assert not alive(bad)
    eventually(lambda: set(server.named(role)) - {bad})


#: A process of the observer's own goes on when it has ended, and undoes what the supervisor does with the log pipe.
HOLD_THE_LOG = """
import os
def is_pipe(number):
    return os.path.realpath(f"/proc/self/fd/{number}").startswith("/proc/") and number > 2
if not os.fork():
    os.setsid()
    pipes = [number for number in map(int, os.listdir("/proc/self/fd")) if is_pipe(number)]
    while True:
        for number in pipes:
            try:
                os.set_blocking(number, True)
            except OSError:
                pass
"""


def test_a_process_of_the_observers_does_not_keep_the_server_from_ending(start: Start) -> None:
    server = taken(start, HOLD_THE_LOG, "--workers", "1")
    (observer,) = server.named("observer")
    os.kill(observer, signal.SIGUSR2)
    helper = eventually(lambda: set(server.named("observer")) - {observer}).pop()
    try:
        assert server.stop() == 0
    finally:
        os.kill(helper, signal.SIGKILL)


READ_FROM_HERE = """
import os, sys
try:
    print("read", open("secret").read(), file=sys.stderr, flush=True)
except OSError as error:
    print("refused", type(error).__name__, file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("role", ["worker", "observer"])
def test_a_child_reads_nothing_from_where_the_server_was_started(
    start: Start, role: str, tmp_path: Path
) -> None:
    (tmp_path / "server0").mkdir()
    tmp_path.chmod(0o700)
    (tmp_path / "server0" / "secret").write_text("s3cret")
    server = taken(start, READ_FROM_HERE, "--workers", "1")
    os.kill(server.named(role)[0], signal.SIGUSR2)
    assert "refused" in server.wait_event("child_stderr")["line"]
    assert server.get("/readyz")[0] == 200


INHERITED = """
import os, sys
try:
    print("read", os.pread(77, 100, 0), file=sys.stderr, flush=True)
except OSError as error:
    print("refused", type(error).__name__, file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("role", ["worker", "observer"])
def test_a_child_has_no_file_that_the_server_was_started_with(start: Start, role: str) -> None:
    program = ("bash", "-c", 'exec 77</etc/shadow; exec "$@"', "bash", *PROGRAM)
    server = start("--workers", "1", program=program, environment={"TAKEN": INHERITED})
    os.kill(server.named(role)[0], signal.SIGUSR2)
    assert "refused" in server.wait_event("child_stderr")["line"]


#: Starts argv[1:] in a session that has a key.
WITH_A_KEY = """
import ctypes, os, sys
syscall = ctypes.CDLL(None).syscall
if syscall(250, 1, None) < 0 or syscall(248, b"user", b"vramblk-test", b"s3cret", 6, -3) < 0:
    sys.exit("no keys")
os.execv(sys.argv[1], sys.argv[1:])
"""
READ_THE_KEY = """
import ctypes, sys
syscall, found = ctypes.CDLL(None).syscall, ctypes.create_string_buffer(64)
key = syscall(250, 10, -3, b"user", b"vramblk-test", 0)
print("refused" if syscall(250, 11, key, found, 64) < 0 else found.value, file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("role", ["worker", "observer"])
def test_a_child_reads_no_key_of_the_session(start: Start, role: str) -> None:
    if (
        os.uname().machine != "x86_64"
        or subprocess.run([sys.executable, "-c", WITH_A_KEY, "/bin/true"]).returncode
    ):
        pytest.skip("requires the kernel's keyrings on x86_64")
    program = (sys.executable, "-c", WITH_A_KEY, *PROGRAM)
    server = start("--workers", "1", program=program, environment={"TAKEN": READ_THE_KEY})
    os.kill(server.named(role)[0], signal.SIGUSR2)
    assert server.wait_event("child_stderr")["line"] == "refused"


#: Tries to change the memory files that are for reading, and what can be done with them.
CHANGE_FILES = """
import fcntl, os, sys
F_SEAL_SEAL = 1
outcomes = []
def attempt(what, act):
    try:
        act()
    except OSError:
        outcomes.append("refused")
    else:
        outcomes.append(what)
for number in map(int, os.listdir("/proc/self/fd")):
    path = f"/proc/self/fd/{number}"
    if os.path.realpath(path).startswith(("/memfd:vramblk-control", "/memfd:vramblk-written")):
        attempt("opened", lambda: os.open(path, os.O_RDWR))
        attempt("sealed", lambda: fcntl.fcntl(number, fcntl.F_ADD_SEALS, F_SEAL_SEAL))
print(*outcomes, file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("role", ["worker", "observer"])
def test_a_child_has_the_others_memory_files_to_read_only(start: Start, role: str) -> None:
    """Whoever has the observer while the engine starts could keep the written-map from being sealed, and cut it."""
    server = taken(start, CHANGE_FILES, "--workers", "1")
    os.kill(server.named(role)[0], signal.SIGUSR2)
    assert set(server.wait_event("child_stderr")["line"].split()) == {"refused"}


#: Runs argv[1:] with a terminal as stdout, at which somebody has typed; what is printed there goes to the real stdout.
ON_A_TERMINAL = """
import os, pty, sys
ours, theirs = pty.openpty()
if os.fork():
    os.close(ours)
    os.dup2(theirs, 1)
    os.close(theirs)
    os.execv(sys.argv[1], sys.argv[1:])
os.close(theirs)
os.write(ours, b"s3cret\\n")
try:
    while data := os.read(ours, 4096):
        os.write(1, data)
except OSError:
    pass
"""
READ_THE_TERMINAL = """
import os, sys
def attempt(act):
    try:
        return f"done:{act()}"
    except OSError:
        return "refused"
def read():
    os.set_blocking(1, False)
    return os.read(1, 100)
def read_anew():
    return os.read(os.open("/proc/self/fd/1", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK), 100)
print("taken", attempt(read), attempt(read_anew), file=sys.stderr, flush=True)
"""


def test_the_observer_does_not_read_what_is_typed_at_the_servers_terminal(start: Start) -> None:
    """Started in the foreground: what is typed there, also once the server has ended, may be a password."""
    server = start(
        "--workers", "1", ready=False, program=(sys.executable, "-c", ON_A_TERMINAL, *PROGRAM),
        environment={"TAKEN": READ_THE_TERMINAL},
    )  # fmt: skip
    eventually(lambda: any(" ready " in line for line in server.raw_lines), 120)
    os.kill(server.named("observer")[0], signal.SIGUSR2)
    told = eventually(lambda: [line for line in server.raw_lines if "child_stderr" in line])
    assert "taken refused refused" in told[0]


#: Who closes a TCP connection last waits as SO_LINGER says until the other side has taken all.
LINGERING = """
import os, socket, struct, sys, time
def fill(connection):
    connection.setblocking(False)
    try:
        while True:
            connection.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    connection.setblocking(True)
def lingering():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.socket()
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
    fill(ours)
    return ours, theirs
def lines():
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            line = socket.socket(fileno=os.dup(number))
        except OSError:
            continue
        if line.family == socket.AF_UNIX and line.type == socket.SOCK_SEQPACKET:
            yield line
def send(line, connection):
    try:
        socket.send_fds(line, [b"x"], [connection.fileno()])
    except OSError:
        pass
"""
LEAVE_A_WAIT_TO_THE_NEXT = f"""{LINGERING}
ours, theirs = lingering()
for line in lines():
    send(line, ours)
    send(line, theirs)
os._exit(1)
"""
LEAVE_A_WAIT_AND_STAY = f"""{LINGERING}
ours, theirs = lingering()
for line in lines():
    send(line, ours)
print("sent", file=sys.stderr, flush=True)
ours.close()
while True:
    time.sleep(1)
"""


def test_a_dead_worker_has_left_the_supervisor_nothing_to_wait_for(start: Start) -> None:
    """It has sent a connection that nobody takes, for the supervisor to close: it has a successor all the same."""
    server = taken(start, LEAVE_A_WAIT_TO_THE_NEXT, "--workers", "1")
    os.kill(server.named("worker")[0], signal.SIGUSR2)
    server.wait_event("worker_restarted")
    with server.client() as client:
        assert client.read(0, 1) == b"\0"


def test_the_observer_leaves_the_supervisor_nothing_to_wait_for(start: Start) -> None:
    """It has sent such a connection, and stays: the server ends."""
    server = taken(start, LEAVE_A_WAIT_AND_STAY, "--workers", "1")
    os.kill(server.named("observer")[0], signal.SIGUSR2)
    server.wait_event("child_stderr")
    assert server.stop() == 0


#: Takes what the supervisor has sent, and leaves it there.
LEAVE_A_WAIT_IN_WHAT_IT_TAKES_BACK = f"""{LINGERING}
*_, line = lines()
print("waits", file=sys.stderr, flush=True)
line.setblocking(True)
_, [(_, _, descriptor)], _, _ = line.recvmsg(4096, socket.CMSG_LEN(4), socket.MSG_PEEK)
fill(socket.socket(fileno=struct.unpack("i", descriptor)[0]))
while True:
    time.sleep(1)
"""


def test_a_worker_leaves_no_wait_in_a_connection_that_is_taken_back(start: Start) -> None:
    """It stands still, and has filled a connection that it has not taken: the supervisor closes that."""
    server = taken(start, LEAVE_A_WAIT_IN_WHAT_IT_TAKES_BACK, "--workers", "1", tcp=True)
    os.kill(server.named("worker")[0], signal.SIGUSR2)
    server.wait_event("child_stderr")
    with socket.create_connection(("127.0.0.1", server.port)):
        server.wait_event("connection_refused")
    os.kill(server.named("worker")[0], signal.SIGKILL)
    server.wait_event("worker_restarted")


#: Writes to every pipe that it can write to, of which one is the log.
SPOIL_THE_LOG = """
import os
for number in map(int, os.listdir("/proc/self/fd")):
    try:
        if number > 2 and os.readlink(f"/proc/self/fd/{number}").startswith("pipe:"):
            os.write(number, b"false \\x1b]0;title\\x07\\xc2\\x9b2J\\r\\x1b[33mline\\x1b[0m\\n")
    except OSError:
        pass
"""


def test_a_worker_sends_no_control_sequences_to_the_servers_terminal(start: Start) -> None:
    """What it writes to the log is passed on without, but for the colours of the log itself."""
    server = taken(start, SPOIL_THE_LOG, "--workers", "1")
    os.kill(server.named("worker")[0], signal.SIGUSR2)
    [line] = eventually(lambda: [line for line in server.raw_lines if line.startswith("false")])
    assert line == "false ?]0;title??2J?\x1b[33mline\x1b[0m\n"
