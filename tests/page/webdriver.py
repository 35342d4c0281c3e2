"""Just enough of WebDriver (w3.org/TR/webdriver) and of Chromium's own commands to drive one headless page."""

from __future__ import annotations

import base64
import json
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.wire.harness import eventually, free_port

TIMEOUT_S = 60
_ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
    "--disable-background-networking", "--no-first-run", "--force-color-profile=srgb",
)  # fmt: skip


class Browser:
    """A headless Chromium with an empty profile under ``directory``."""

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self._base = f"http://127.0.0.1:{port}"
        self._log = (directory / "chromedriver.log").open("w")
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], stdout=self._log, stderr=self._log
        )
        try:
            eventually(self._is_up, timeout_s=TIMEOUT_S)
            options = {"args": [*_ARGUMENTS, f"--user-data-dir={directory / 'profile'}"]}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            created = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/session/{created['sessionId']}"
        except BaseException:
            self._driver.kill()
            raise

    def close(self) -> None:
        try:
            self._call("DELETE", self._session)
        finally:
            self._driver.terminate()
            try:
                self._driver.wait(10)
            except subprocess.TimeoutExpired:
                self._driver.kill()
                self._driver.wait()
            self._log.close()

    def open(self, url: str) -> None:
        self.console()
        self._call("POST", self._session + "/url", {"url": url})

    def script(self, body: str, *arguments: Any) -> Any:
        """What the function body ``body`` returns."""
        return self._call("POST", self._session + "/execute/sync", {"script": body, "args": list(arguments)})

    def wait(self, body: str, timeout_s: float = 20) -> Any:
        """The first true value that ``return body`` gives."""
        return eventually(lambda: self.script(f"return {body}"), timeout_s, 0.2)

    def console(self) -> list[str]:
        """Lines of the console since the last call."""
        entries = self._call("POST", self._session + "/se/log", {"type": "browser"})
        return [f"{entry['level']}: {entry['message']}" for entry in entries]

    def press(self, *keys: str) -> None:
        """Press keys one after another, such as "Tab" or "ArrowLeft"."""
        for key in keys:
            for kind in ("keyDown", "keyUp"):
                self.devtools(
                    "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=_CODES[key]
                )

    def emulate(self, width: int, dark: bool, phone: bool) -> None:
        """Viewport width in CSS pixels, theme and kind of screen."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.devtools("Emulation.setEmulatedMedia", features=scheme)
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=844 if phone else 900,
            deviceScaleFactor=2 if phone else 1, mobile=phone,
        )  # fmt: skip

    def screenshot(self, path: Path) -> None:
        """The whole page, as PNG."""
        size = self.devtools("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def devtools(self, command: str, **parameters: Any) -> Any:
        body = {"cmd": command, "params": parameters}
        return self._call("POST", self._session + "/goog/cdp/execute", body)

    def _is_up(self) -> bool:
        if self._driver.poll() is not None:
            raise AssertionError(f"chromedriver ended with status {self._driver.returncode}")
        try:
            return bool(self._call("GET", "/status")["ready"])
        except OSError:
            return False

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._base + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.read().decode()[:1000]}") from None


_CODES = {"Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Enter": 13}


def settle() -> None:
    """Let the page draw two more answers."""
    time.sleep(2.5)
