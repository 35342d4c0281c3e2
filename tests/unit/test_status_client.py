"""``vramblk status`` and the drawing of ``top``, against a real observer and against servers that misbehave."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tests.unit.observed import Observed, settings_of
from vramblk.errors import RuntimeFailure
from vramblk.shared.window import ConnectionState, Word
from vramblk.status_client import StatusServer, clean, format_latency, format_seconds, format_size, status
from vramblk.top import _View, sparkline


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
    assert "ready" in text and "export vram: 64M on a numpy array" in text
    assert "\x1b" not in text and "[31mred" in text


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
    settings = settings_of(*tcp, "--metrics-token", "s3cret")
    assert StatusServer(settings).json("/status.json")["state"] == "ready"
    assert StatusServer(settings_of("--metrics-addr", f"0.0.0.0:{observed.port}")).get("/healthz")[0] == 200


def test_nothing_answers(tmp_path: Path) -> None:
    """One line that names the place, why, and what to try."""
    with pytest.raises(RuntimeFailure, match=r"none\.sock: No such file.*--status-socket"):
        StatusServer(settings_of("--status-socket", str(tmp_path / "none.sock"))).get("/healthz")
    with pytest.raises(RuntimeFailure, match="off"):
        StatusServer(settings_of("--status-socket", "off"))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff\n",
        b"HTTP/1.1 200 OK\r\n\r\nnot json",
        b"HTTP/1.1 500 no\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
    ],
)
def test_strange_answers_are_refused(tmp_path: Path, answer: bytes) -> None:
    """What is no status document ends in one line, not in a traceback."""
    path = tmp_path / "strange.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(4096)
                sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(RuntimeFailure):
            StatusServer(settings_of("--status-socket", str(path))).json("/status.json")
        thread.join()


def test_top_draws_every_state(observed: Observed) -> None:
    """The view renders in wide and narrow terminals, with and without history and clients."""
    view = _View(StatusServer(asking(observed)))
    for width in (120, 60, 20):
        view.refresh()
        console = Console(width=width, height=24, record=True, file=open("/dev/null", "w"))
        console.print(view.render(console))
        assert "ready" in console.export_text()
    view.problem = "gone\x1b[2J"
    console.print(view.render(console))
    text = console.export_text()
    assert "no answer" in text and "\x1b[2J" not in text


def test_formats() -> None:
    assert [format_size(size) for size in (0, 999, 1024, 1536, 10**6, 150 << 20, 1 << 50)] == [
        "0 B", "999 B", "1.0 KiB", "1.5 KiB", "977 KiB", "150 MiB", "1024 TiB",
    ]  # fmt: skip
    assert [format_latency(value) for value in (None, 12e-6, 2.5e-3)] == ["-", "12 us", "2.5 ms"]
    assert [format_seconds(value) for value in (5, 190, 18120, 363600)] == ["5s", "3m10s", "5h02m", "4d05h"]
    assert clean("a\x1bb\nc") == "a�b�c"
    assert sparkline([0, 0.001, 8], 8) == " ▁█"
    assert sparkline([0, 0], 0) == "  "
