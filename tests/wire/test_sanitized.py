"""The compiled modules under AddressSanitizer, in an engine that serves hostile clients itself.

They are compiled into a copy of the package. The server has a mapped file, so that no OpenCL runtime is in
the way, and forbidden bytes behind each lane, export and map; see ``sanitized_server.py``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from . import rawclient as nbd
from .harness import REPOSITORY, Server, requires
from .test_fuzz import Attacker, HonestClient

#: Two minutes of it are for the compiler, on one core.
pytestmark = [requires("cc"), pytest.mark.timeout(600)]

CASES = 1_500
EXPORT = 8 << 20
PROGRAM = (sys.executable, str(Path(__file__).with_name("sanitized_server.py")))
#: Clients that take the larger lanes.
IDLE = 16
#: A bound that is gone, as (module, its source, what it becomes).
LANE = ("engine/direct.py", "data + size > self._tx_end", "data + size > self._tx_end + (1 << 20)")
REQUESTS = ("engine/direct.py", "self.reads + self.writes >= _MOST_REQUESTS", "self.reads >= 4 * _MOST_REQUESTS")
END = ("memory/copies.py", " or offset > self.size_bytes - length:", ":")


def compile_into(tree: Path) -> None:
    run = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "-j2"], cwd=tree, text=True, capture_output=True,
        env={**os.environ, "VRAMBLK_COMPILE": "require", "VRAMBLK_SANITIZE": "address"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with modules that check what they access."""
    pytest.importorskip("Cython")
    tree = tmp_path_factory.mktemp("sanitized") / "tree"
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tree)
    for name in ("share", "vramblk"):
        shutil.copytree(REPOSITORY / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    compile_into(tree)
    return tree


@pytest.fixture(scope="module")
def broken(sanitized: Path) -> Path:
    """The same without three bounds."""
    tree = sanitized.with_name("broken")
    shutil.copytree(sanitized, tree)
    for module, bound, instead in (LANE, REQUESTS, END):
        path = tree / "vramblk" / module
        source = path.read_text()
        assert source.count(bound) == 1, bound
        path.write_text(source.replace(bound, instead))
    compile_into(tree)
    return tree


@contextmanager
def serving(tree: Path, directory: Path) -> Iterator[Server]:
    directory.mkdir()
    exports = []
    for name in ("abused", "honest"):
        with (directory / name).open("wb") as file:
            file.truncate(2 * EXPORT)
        exports.append(f"  - {{name: {name}, size: 8M, device: 'map:{directory / name}'}}\n")
    config = directory / "exports.yaml"
    config.write_text("exports:\n" + "".join(exports))
    library = subprocess.run(["cc", "-print-file-name=libasan.so"], text=True, capture_output=True, check=True).stdout
    environment = {
        "PYTHONPATH": str(tree),
        "PYTHONMALLOC": "malloc",
        "LD_PRELOAD": os.path.realpath(library.strip()),
        "ASAN_OPTIONS": f"detect_leaks=0:halt_on_error=1:exitcode=77:log_path={directory / 'report'}",
    }
    server = Server(
        directory, "--config", str(config), "--workers", "0", "--map-overwrite", size=None, program=PROGRAM,
        environment=environment,
    )  # fmt: skip
    with server:
        yield server


def reports(server: Server) -> str:
    return "\n".join(path.read_text() for path in server.directory.glob("report.*"))


def fill_a_lane(server: Server) -> None:
    """More bytes to be read, with each kind of reply, than the smallest lane sends from."""
    with ExitStack() as stack:
        for _ in range(IDLE):
            stack.enter_context(server.client("honest"))
        for kinds in ({}, {"structured": True}, {"extended": True}):
            client = stack.enter_context(server.client("abused", **kinds))
            for length in (4096, 60_000, 65_535, 128 << 10):
                requests = [client.encode(nbd.READ, number, length) for number in range(64)]
                client.send(b"".join(request for _, request in requests))
                client.gather([cookie for cookie, _ in requests])


def send_many_requests(server: Server) -> None:
    """More requests at once than one go takes."""
    with server.client("abused") as client:
        for command, payload in ((nbd.READ, None), (nbd.WRITE, b"x")):
            requests = [client.encode(command, number, 1, payload=payload) for number in range(1000)]
            client.send(b"".join(request for _, request in requests))
            client.gather([cookie for cookie, _ in requests])


def go_beyond_the_end(server: Server) -> None:
    """Reads and writes that begin or end behind the export."""
    for extended in (False, True):
        with server.client("abused", extended=extended) as client:
            for offset in (EXPORT - 1, EXPORT, EXPORT + 4096, 2 * EXPORT, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
                for length in (2, 512, 65536):
                    assert client.call(nbd.READ, offset, length).error
                    assert client.call(nbd.WRITE, offset, payload=bytes(length)).error


ATTACKS = (fill_a_lane, send_many_requests, go_beyond_the_end)


def test_hostile_clients_touch_no_byte_that_is_not_theirs(sanitized: Path, tmp_path: Path) -> None:
    """Requests at all bounds and mutated bytes, of one client and of many: AddressSanitizer has nothing to report."""
    with serving(sanitized, tmp_path / "server") as server:
        engine = server.named("engine")
        maps = Path(f"/proc/{engine[0]}/maps").read_text()
        assert "libasan" in maps and f"{sanitized}/vramblk/engine/direct." in maps
        attacker = Attacker(server)
        for attack in ATTACKS:
            attack(server)
        attacker.negotiation(CASES // 3)
        attacker.transmission(CASES)
        with ExitStack() as stack:
            for _ in range(IDLE):
                stack.enter_context(server.client("honest"))
            honest = HonestClient(server)
            honest.start()
            try:
                attacker.transmission(CASES)
            finally:
                honest.stop()
        assert not reports(server), reports(server)
        assert honest.failure is None and honest.rounds
        assert server.named("engine") == engine
    assert not reports(server), reports(server)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_bound_that_is_gone_is_found(broken: Path, tmp_path: Path, attack: Callable[[Server], None]) -> None:
    """The negative control: the same requests end an engine without that bound, with a report."""
    with serving(broken, tmp_path / "server") as server:
        with suppress(ConnectionError, EOFError, OSError, AssertionError):
            attack(server)
        assert server.wait() == 1
        assert "AddressSanitizer" in reports(server) and "/vramblk/" in reports(server)
