"""/status.env and /free: lines for scripts, which no text of a document can break."""

from __future__ import annotations

from typing import Any

from tests.unit.observed import Observed
from vramblk.observer import flat
from vramblk.observer.gpu import Reading


def document(**changes: Any) -> dict[str, Any]:
    export = {
        "name": "vram-0", "mode": "swap", "size_bytes": 1 << 30, "read_only": False, "held": True,
        "missing_bytes": None, "written_bytes": 4096, "device": {"pci": "01:00.0"},
    }  # fmt: skip
    return {
        "state": "ready", "mode": "swap", "pid": 7, "locked_bytes": 120 << 20, "exports": [export],
        "gpus": [{"pci": "0000:01:00.0", "memory_free_bytes": 5, "memory_total_bytes": 9}],
        "swap_preconditions": [{"name": "min_free", "ok": False, "detail": "small", "remedy": "raise it"}],
        **changes,
    }  # fmt: skip


def read(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


def test_every_line_is_a_name_and_a_plain_value() -> None:
    text = flat.lines(document())
    assert text.startswith("format=1\n") and text.endswith("\nend=yes\n")
    assert read(text) == {
        "format": "1", "state": "ready", "mode": "swap", "pid": "7", "locked_bytes": str(120 << 20),
        "exports": "1", "export_0_name": "vram-0", "export_0_mode": "swap", "export_0_size_bytes": str(1 << 30),
        "export_0_read_only": "no", "export_0_held": "yes", "export_0_missing_bytes": "",
        "export_0_written_bytes": "4096", "export_0_gpu": "0000:01:00.0", "export_0_gpu_free_bytes": "5",
        "export_0_gpu_total_bytes": "9", "preconditions": "1", "precondition_0_name": "min_free",
        "precondition_0_ok": "no", "precondition_0_detail": "small", "precondition_0_remedy": "raise it",
        "end": "yes",
    }  # fmt: skip


def test_no_text_makes_a_line_of_its_own() -> None:
    evil = "x\nstate=ready\r\x1b]0;\u2028" + "y" * 1000
    missing = {"name": evil, "ok": None, "detail": evil, "remedy": evil}
    export = document()["exports"][0] | {"name": evil, "device": {"pci": evil}}
    text = flat.lines(document(swap_preconditions=[missing], exports=[export], state=evil))
    assert all(" " <= letter <= "~" or letter == "\n" for letter in text)
    assert len(text.splitlines()) == len(flat.lines(document()).splitlines())
    assert max(map(len, text.splitlines())) < 350
    assert read(text)["export_0_name"] == "", "an altered name would be another export's"


def test_free_memory_has_only_gpus_that_tell() -> None:
    readings = [
        Reading("0000:01:00.0", memory_total_bytes=9, memory_free_bytes=0),
        Reading("0000:02:00.0", memory_total_bytes=9),
        Reading("0000:03:00.0", memory_total_bytes=8, memory_free_bytes=3),
    ]
    assert flat.free_memory(readings) == "0000:01:00.0 0 9 0000:03:00.0 3 8\n"
    assert flat.free_memory([]) == "\n"


def test_the_observer_answers_scripts(tmp_path: Any) -> None:
    observed = Observed(tmp_path)
    try:
        status, text = observed.get("/status.env")
        assert status == 200 and read(text)["export_0_name"] == "vram" and text.endswith("end=yes\n")
        assert observed.get("/free", tcp=True)[0] == 403, "over TCP it would hold places of the page"
        with observed.connect() as client:
            client.sendall(b"GET /free HTTP/1.0\r\n\r\n")
            answer = b""
            while b"\r\n\r\n\n\n" not in answer:  # the head, and two lines two seconds apart: there is no GPU here
                answer += client.recv(4096)
        assert b" 200 " in answer and b"Content-Length" not in answer
        assert observed.get("/status.env")[0] == 200
    finally:
        observed.close()
