"""``vramblk status`` and the drawing of ``top``, against a real observer and against servers that misbehave."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from rich.console import Console

from tests.unit.observed import Observed, settings_of
from vramblk.commands import observerclient
from vramblk.commands.observerclient import StatusServer
from vramblk.commands.status import status
from vramblk.commands.top import _View, sparkline
from vramblk.config.settings import load_settings
from vramblk.config.units import printable
from vramblk.errors import RuntimeFailure
from vramblk.shared.control import ControlWord
from vramblk.shared.window import ConnectionState, Word

HISTORY = {"columns": [], "rows": [], "next": 0}


@pytest.fixture
def observed(tmp_path: Path) -> Iterator[Observed]:
    found = Observed(tmp_path, "--metrics-token", "s3cret")
    yield found
    found.close()


def asking(observed: Observed, *arguments: str):  # type: ignore[no-untyped-def]
    return settings_of("--status-socket", str(observed.path), *arguments)


def test_status_for_people(observed: Observed, capsys: pytest.CaptureFixture[str]) -> None:
    """State, warnings with their remedies, exports and clients; control characters are taken out."""
    window = observed.shared.windows[0]
    window.set_connection(0, 1, time.monotonic_ns(), 0, ConnectionState.TRANSMISSION, "tcp:\x1b[31mred")
    window.store(Word.CONNECTIONS, 1)
    assert status(asking(observed), json=False, health=False) == 0
    text = capsys.readouterr().out
    assert "ready" in text and "export vram: 64 MiB on a numpy array" in text
    assert "\x1b" not in text and "[31mred" in text


def test_status_says_when_the_certificate_ends(
    observed: Observed, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(asking(observed), json=False, health=False) == 0
    assert "certificate" not in capsys.readouterr().out
    observed.control.store(ControlWord.CERTIFICATE_UNTIL_S, 4102444800)
    assert status(asking(observed), json=False, health=False) == 0
    assert ", certificate until 2100-01-01 00:00 UTC" in capsys.readouterr().out


def test_status_as_json(observed: Observed, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(asking(observed), json=True, health=False) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 1


def test_health_has_an_exit_status_and_one_line(
    observed: Observed, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(asking(observed), json=False, health=True) == 0
    assert capsys.readouterr().out.startswith("ok: ready")
    observed.control.engine_counters.add("device_lost")
    assert status(asking(observed), json=False, health=True) == 1
    assert capsys.readouterr().out.count("\n") == 1


def test_metrics_address_and_token(observed: Observed) -> None:
    """A flag decides where is asked; without the token TCP is refused with what to give."""
    tcp = ("--metrics-addr", f"127.0.0.1:{observed.port}")
    with pytest.raises(RuntimeFailure, match="token"):
        StatusServer(settings_of(*tcp)).json("/status.json")
    with pytest.raises(RuntimeFailure, match="the server refuses this token"):
        StatusServer(settings_of(*tcp, "--metrics-token", "wrong")).json("/status.json")
    settings = settings_of(*tcp, "--metrics-token", "s3cret")
    assert StatusServer(settings).json("/status.json")["state"] == "ready"
    assert StatusServer(settings_of("--metrics-addr", f"0.0.0.0:{observed.port}")).get("/healthz")[0] == 200


def test_the_token_goes_to_the_socket_of_a_flag_only(observed: Observed, tmp_path: Path) -> None:
    """The status socket is asked first. An address of the settings may be anybody's while the server is down."""
    variables = {"VRAMBLK_METRICS_ADDR": f"127.0.0.1:{observed.port}", "VRAMBLK_METRICS_TOKEN": "s3cret"}

    def server(path: str) -> StatusServer:
        return StatusServer(load_settings([], variables | {"VRAMBLK_STATUS_SOCKET": path}))

    assert server(str(observed.path)).json("/status.json")["state"] == "ready"
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        variables["VRAMBLK_METRICS_ADDR"] = f"127.0.0.1:{listener.getsockname()[1]}"

        def answer() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    heard.append(connection.recv(4096))
                    connection.sendall(b"HTTP/1.1 401 no\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(RuntimeFailure, match="only an address that a flag names"):
            server(str(tmp_path / "none.sock")).json("/status.json")
        with pytest.raises(RuntimeFailure, match="refuses this token"):
            server("off").json("/status.json")
        thread.join(10)
    assert b"s3cret" not in heard[0] and b"Bearer s3cret" in heard[1]


def test_nothing_answers(tmp_path: Path) -> None:
    """One line that names the place, why, and what to try."""
    with pytest.raises(RuntimeFailure, match=r"none\.sock: No such file.*--status-socket"):
        StatusServer(settings_of("--status-socket", str(tmp_path / "none.sock"))).get("/healthz")
    with pytest.raises(RuntimeFailure, match="off"):
        StatusServer(settings_of("--status-socket", "off"))


@contextmanager
def strange(tmp_path: Path, *pieces: bytes, pause_s: float = 0) -> Iterator[Path]:
    """A status socket where the first client gets these pieces, whatever it asks."""
    path = tmp_path / "strange.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            with sock, suppress(OSError):
                sock.recv(4096)
                for piece in pieces:
                    sock.sendall(piece)
                    time.sleep(pause_s)

        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff\n",
        b"HTTP/1.1 200 OK\r\n\r\nnot json",
        b"HTTP/1.1 500 no\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000,
        b'HTTP/1.1 200 OK\r\n\r\n"' + b"x" * (17 << 20) + b'"',
        b"\x1b]0;sudo rm\x07 \xc2\x9b\r\n",
    ],
)
def test_strange_answers_are_refused(tmp_path: Path, answer: bytes) -> None:
    """What is no status document ends in one line, not in a traceback."""
    with strange(tmp_path, answer) as path, pytest.raises(RuntimeFailure) as failure:
        StatusServer(settings_of("--status-socket", str(path))).json("/status.json")
    assert str(failure.value).isprintable()


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nA: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_an_answer_that_trickles_in_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    """The limit is for the whole answer, not for each of its bytes."""
    monkeypatch.setattr(observerclient, "TIMEOUT_S", 0.2)
    with (
        strange(tmp_path, start, *[b"x"] * 50, pause_s=0.05) as path,
        pytest.raises(RuntimeFailure, match="timed out"),
    ):
        StatusServer(settings_of("--status-socket", str(path))).json("/status.json")


def test_a_link_in_the_place_of_the_socket_is_not_followed(observed: Observed, tmp_path: Path) -> None:
    link = tmp_path / "link.sock"
    link.symlink_to(observed.path)
    with pytest.raises(RuntimeFailure, match=r"link\.sock: is a symbolic link"):
        StatusServer(settings_of("--status-socket", str(link))).get("/healthz")


def evil(value: object) -> object:
    """A document whose every text and key would be obeyed by a terminal."""
    if isinstance(value, dict):
        return {key: evil(each) for key, each in value.items()}
    if isinstance(value, list):
        return [evil(each) for each in value]
    return f"{value}\x1b[2J\u009b\u202e\nnext" if isinstance(value, str) else value


def test_nothing_of_a_hostile_document_reaches_the_terminal_as_a_command(
    observed: Observed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    window = observed.shared.windows[0]
    window.set_connection(0, 1, time.monotonic_ns(), 0, ConnectionState.TRANSMISSION, "tcp:peer")
    window.store(Word.CONNECTIONS, 1)
    observed.control.store(ControlWord.CERTIFICATE_UNTIL_S, 4102444800)
    document = StatusServer(asking(observed)).json("/status.json")
    document["warnings"] = [{"severity": "note", "text": "t", "remedy": "r"}]
    document["latency_s"] = {"read\x1b": {"p50": 1e-5, "p95": 1e-4, "p99": 1e-3, "p999": 1e-2}}
    body = b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(evil(document)).encode()
    with strange(tmp_path, body) as path:
        assert status(settings_of("--status-socket", str(path)), json=False, health=False) == 0
    text = capsys.readouterr().out
    assert text.count("[2J") >= 10
    assert text.replace("\n", "").isprintable()
    assert not [line for line in text.splitlines() if line.startswith("next")]
    view = _View(StatusServer(asking(observed)))
    view.refresh()
    view._server.json = lambda path: evil(document) if "status" in path else HISTORY  # type: ignore[method-assign]
    view.refresh()
    text = "\n".join(drawn(view, 200, 60))
    assert text.count("[2J") >= 5 and text.replace("\n", "").isprintable()


@pytest.mark.parametrize("document", [{}, [], 1, {"warnings": [1]}, {"warnings": [], "health": "x"}])
def test_a_document_that_is_no_status_is_one_line(tmp_path: Path, document: object) -> None:
    body = b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(document).encode()
    with strange(tmp_path, body) as path, pytest.raises(RuntimeFailure, match="not understood"):
        status(settings_of("--status-socket", str(path)), json=False, health=False)


@pytest.mark.parametrize("document", [{}, [], 1, {"warnings": [1]}, {"warnings": [], "health": "x", "exports": []}])
@pytest.mark.parametrize("history", [HISTORY, [], {"next": 1}])
def test_top_ends_in_one_line_at_a_document_that_is_none(observed: Observed, document: object, history: object) -> None:
    view = _View(StatusServer(asking(observed)))
    view._server.json = lambda path: document if "status" in path else history  # type: ignore[method-assign]
    with pytest.raises(RuntimeFailure, match="not understood"):
        view.refresh()
        view.render(Console())


@pytest.mark.parametrize("depth", [100, 500, 700, 900, 5_000])
def test_a_document_that_is_nested_deeply_is_one_line(tmp_path: Path, depth: int) -> None:
    """Also where it is not too deep for the parser; `top` takes it through the same function."""
    body = b'HTTP/1.1 200 OK\r\n\r\n{"more": ' + b"[" * depth + b"]" * depth + b"}"
    with strange(tmp_path, body) as path, pytest.raises(RuntimeFailure, match="not understood"):
        status(settings_of("--status-socket", str(path)), json=False, health=False)


def drawn(view: _View, width: int, height: int) -> list[str]:
    """The lines that a terminal of this size would show, and would have to show if it were higher."""
    console = Console(width=width, height=height, record=True, file=open("/dev/null", "w"))
    console.print(view.render(console), end="")
    return console.export_text().splitlines()


def test_top_draws_every_state(observed: Observed) -> None:
    """The view renders in wide and narrow terminals, with and without history and clients."""
    view = _View(StatusServer(asking(observed)))
    for width in (120, 60, 20):
        view.refresh()
        assert "ready" in "\n".join(drawn(view, width, 24))


def test_top_without_an_answer_says_that_first(observed: Observed) -> None:
    """What was told before is shown as old: "ready" in the first line would be taken for the state."""
    view = _View(StatusServer(asking(observed)))
    view.refresh()
    view.problem = "gone\x1b[2J"
    view._answered -= 75
    first, second, *_ = drawn(view, 100, 24)
    assert first == "no answer: gone\N{REPLACEMENT CHARACTER}[2J"
    assert second.startswith("1m15s ago, with all that follows: vramblk")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 40), (60, 12), (200, 60), (40, 10)])
@pytest.mark.parametrize("severity", ["note", "error"])
def test_top_fits_into_the_terminal(observed: Observed, width: int, height: int, severity: str) -> None:
    """However many notes there are: state, gravest warning, first client and "q ends" are always there."""
    window = observed.shared.windows[0]
    for slot in range(5):
        window.set_connection(
            slot, slot + 1, time.monotonic_ns(), 0, ConnectionState.TRANSMISSION, f"tcp:peer{slot}"
        )
    view = _View(StatusServer(asking(observed)))
    view.refresh()
    document = view._document
    document["warnings"] = [
        {
            "severity": severity,
            "text": f"number {number}, " + "which is long, " * 12,
            "remedy": "do this, " * 20,
        }
        for number in range(6)
    ]
    document["latency_s"] = {"read": {"p50": 1e-5, "p95": 1e-4, "p99": 1e-3, "p999": 1e-2}}
    lines = drawn(view, width, height)
    assert len(lines) <= height
    assert lines[-1] == "q ends"
    text = "\n".join(lines)
    for each in ("ready", f"{severity}: number 0", "clients: 5", "tcp:"):
        assert each in text
    if (width, height) >= (80, 24):
        for each in (
            "latency",
            "last 1 s",
            "exports: 1",
            "tcp:peer1",
            "number 1" if height > 24 else "5 more",
        ):
            assert each in text, text
    assert ("-> do this" in text) is (height == 60)
    assert ("" in lines) is (height >= 40), "blank lines where there is room"


def test_formats() -> None:
    assert printable("a\x1bb\nc") == "a�b�c"
    assert sparkline([0, 0.001, 8], 8) == " ▁█"
    assert sparkline([0, 0], 0) == "  "
