"""The status page in a real browser. Requires chromium, chromium-driver and fio; axe-core from PyPI."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.wire.harness import Server, free_port

from .conftest import Loaded
from .webdriver import Browser, settle

VIEWS = [
    pytest.param(1280, False, False, id="desktop-light"),
    pytest.param(1280, True, False, id="desktop-dark"),
    pytest.param(390, False, True, id="phone-light"),
    pytest.param(390, True, True, id="phone-dark"),
]
READY = "document.getElementById('state').textContent === 'ready'"
MOVING = "document.querySelectorAll('#tiles .value').length >= 6 && !document.querySelector('#tiles .value').textContent.startsWith('0 ')"


@pytest.fixture
def page(loaded: Loaded, browser: Browser) -> Browser:
    browser.emulate(1280, dark=False, phone=False)
    browser.open(loaded.url)
    browser.wait(READY)
    browser.wait(MOVING)
    return browser


def axe() -> str:
    """Source of axe-core, as the package on PyPI carries it."""
    found = importlib.util.find_spec("axe_core_python")
    if found is None or found.origin is None:
        pytest.skip("requires axe-core-python")
    return (Path(found.origin).parent / "axe.min.js").read_text()


def test_page_shows_what_the_server_does(page: Browser) -> None:
    """State, curves, the map's three kinds of cells, the client and its latencies appear without a reload."""
    settle()
    for chart in ("Throughput", "Requests", "Latency of reads", "Latency of writes"):
        assert chart in page.script("return document.getElementById('charts').textContent")
    assert page.wait(
        "[...document.querySelectorAll('#charts path')].every(path => path.getAttribute('d').includes('L'))"
    )
    label = page.wait("document.querySelector('svg.map[aria-label]')?.getAttribute('aria-label')")
    assert label.startswith("Map of vram in 512 ranges of 128 KiB: ")
    assert 256 <= int(label.split(": ")[1].split()[0]) < 512  # fio keeps to the first half
    assert page.wait("document.querySelectorAll('svg.map .hot').length > 0", timeout_s=40)
    assert "unix:pid=" in page.script("return document.getElementById('connections').textContent")
    assert page.script("return document.getElementById('latency').rows.length") == 2
    assert page.script("return document.querySelectorAll('#processes tr').length") == 5
    assert "system RAM" in page.script("return document.getElementById('warnings').textContent")


@pytest.mark.parametrize(("width", "dark", "phone"), VIEWS)
def test_pictures_and_accessibility(
    page: Browser, artefacts: Path, request: pytest.FixtureRequest, width: int, dark: bool, phone: bool
) -> None:
    """At phone and desktop width, light and dark: nothing overflows, and axe-core finds nothing at all."""
    page.emulate(width, dark, phone)
    settle()
    page.screenshot(artefacts / f"{request.node.callspec.id}.png")
    assert page.script("return document.scrollingElement.scrollWidth") <= width
    page.script(axe())
    page.script("window.found = null; axe.run().then(result => { window.found = result; })")
    found: Any = page.wait("window.found")
    problems = [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]
    assert not problems, "\n".join(problems)
    assert len(found["passes"]) > 15


def test_on_a_phone_no_word_is_broken(page: Browser) -> None:
    """The figures of a fast server are wide."""
    page.emulate(390, False, True)
    settle()
    broken = page.script("""
        const found = [];
        for (const text of ["1,234,567/s", "1023 MiB/s", "99.9 GiB/s", "64 of 4096"]) {
          for (const tile of document.querySelectorAll("#tiles .value")) {
            tile.textContent = text;
            const lines = new Set([...text].map((_, at) => {
              const range = document.createRange();
              range.setStart(tile.firstChild, at); range.setEnd(tile.firstChild, at + 1);
              return Math.round(range.getBoundingClientRect().top);
            }));
            if (lines.size > 1 || tile.scrollWidth > tile.clientWidth) found.push(text);
          }
        }
        return found""")
    assert broken == []


def test_charts_have_a_scale(page: Browser) -> None:
    """Three labels beside each curve, round numbers, the highest value within."""
    settle()
    scales = page.script(
        "return [...document.querySelectorAll('.scale')].map(each => [...each.children].map(label => label.textContent))"
    )
    assert len(scales) == 4
    for top, half, zero in scales:
        assert zero == "0"
        assert top and half and top != half
    assert page.script("return [4.9e6, 330, 0.073, 0.0004, 1024, 0].map((value, at) => roundUp(value, at % 4 ? 1000 : 1024))") == [
        6 << 20, 400, pytest.approx(0.08), pytest.approx(0.0004), 1024, 0,
    ]  # fmt: skip


def test_keyboard_reaches_every_figure(page: Browser) -> None:
    """Tab visits the skip link and each chart; arrow keys read a chart's values."""
    seen = []
    for _ in range(12):
        page.press("Tab")
        seen.append(
            page.script(
                "const at = document.activeElement; return at.getAttribute('aria-label') || at.textContent"
            )
        )
    assert seen[0] == "To the figures"
    assert [text for text in seen if text.endswith("point in time")] == [
        f"{title}, point in time"
        for title in ("Throughput", "Requests", "Latency of reads", "Latency of writes")
    ]
    assert {"Table of connections", "status.json"} <= set(seen)
    page.script("document.querySelector('[role=slider]').focus()")
    assert page.script("return document.activeElement.getAttribute('aria-valuetext')").startswith(
        "now: read "
    )
    page.press("ArrowLeft", "ArrowLeft")
    assert " ago: read " in page.script("return document.activeElement.getAttribute('aria-valuetext')")
    page.press("End")
    assert page.script("return document.activeElement.getAttribute('aria-valuenow')") == "0"


def test_no_console_errors_and_nothing_from_elsewhere(page: Browser, loaded: Loaded) -> None:
    """The console stays empty, the policy is kept, and only this server is asked for anything."""
    settle()
    assert page.console() == []
    names = page.script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert names and all(name.startswith((loaded.url + "/", "data:")) for name in names)
    assert {name.removeprefix(loaded.url).partition("?")[0] for name in names} - {"data:,"} <= {
        "/status.json", "/history.json", "/map.json"
    }  # fmt: skip


def test_page_says_when_the_server_is_gone_and_names_are_text(browser: Browser, tmp_path: Path) -> None:
    """A name full of markup is shown as it is; a dead server is announced, and one that comes back is seen."""
    name = "<img src=x onerror=alert(1)>&amp;\"'"
    port = free_port()
    arguments = ("--metrics-addr", f"127.0.0.1:{port}", "--export-name", name, "--workers", "1")
    start: Callable[[str], Server] = lambda directory: Server(tmp_path / directory, *arguments)  # noqa: E731
    browser.emulate(1280, dark=False, phone=False)
    with start("first"):
        browser.open(f"http://127.0.0.1:{port}/")
        browser.wait(READY)
        assert browser.wait("document.querySelector('#exports h2')?.textContent") == f"Export {name}"
        assert browser.script("return document.images.length") == 0
    browser.wait("document.getElementById('state').textContent === 'no answer'")
    with start("second"):
        browser.wait(READY)
