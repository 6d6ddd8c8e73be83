"""A Chromium without a window, driven over a pipe: for screenshots, and for tests that click."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TIMEOUT = 60.0  # seconds to wait for one answer


def find_browser() -> str | None:
    """Returns the path of a Chromium or Chrome; $DENSEKIT_CHROMIUM comes first."""
    return next(filter(None, map(shutil.which, (os.environ.get("DENSEKIT_CHROMIUM", ""), *NAMES))), None)


class Browser:
    """One page of a browser that can reach no host; a context manager.

    Args:
        program: path of the browser.
        log: where it writes its network log (--log-net-log), if anywhere.

    Attributes:
        events: every DevTools event so far, as {"method", "params"}.

    Source: https://chromedevtools.github.io/devtools-protocol (messages end in a zero byte, --remote-debugging-pipe).
    """

    def __init__(self, program: str, log: Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.events: list[dict[str, Any]] = []
        self._buffer, self._number = b"", 0
        command_read, self._write = os.pipe()
        self._read, reply_write = os.pipe()
        options = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--remote-debugging-pipe", f"--user-data-dir={self._folder.name}",
        ]  # fmt: skip
        if log:
            options += [f"--log-net-log={log}", "--net-log-capture-mode=Everything"]

        # the protocol is spoken on descriptors 3 and 4, which only a shell can set without code after fork
        script = f'exec "$0" "$@" 3<&{command_read} 4>&{reply_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, program, *options, "about:blank"],
            pass_fds=(command_read, reply_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(command_read)
        os.close(reply_write)
        self._session: str | None = None
        target = next(t for t in self._targets() if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self._session = None
            self.call("Browser.close")
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)
        self._folder.cleanup()

    def open(self, url: str, *, width: int = 1280, height: int = 900, ratio: float = 1, dark: bool = False) -> None:
        """Loads a page; returns when it has loaded."""
        self.resize(width, height, ratio)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=url)
        self._wait_for("Page.loadEventFired")

    def resize(self, width: int, height: int, ratio: float = 1) -> None:
        """Sets the size of the window in CSS pixels, and device pixels for each."""
        size = {"width": width, "height": height, "deviceScaleFactor": ratio}
        self.call("Emulation.setDeviceMetricsOverride", mobile=False, **size)

    def allow_scripts(self, allowed: bool) -> None:
        """Turns the scripts of pages on or off, from the next page on."""
        self.call("Emulation.setScriptExecutionDisabled", value=not allowed)

    def run(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression; it runs even where the page's scripts do not."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def press(self, x: float, y: float, *, to: tuple[float, float] | None = None) -> None:
        """Clicks at (x, y) in the window, or drags from there to `to`."""
        button = {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, buttons=1, **button)
        if to:
            for share in (0.25, 0.5, 0.75, 1):
                at = {"x": x + share * (to[0] - x), "y": y + share * (to[1] - y)}
                self.call("Input.dispatchMouseEvent", type="mouseMoved", button="left", buttons=1, **at)
            x, y = to
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, **button)

    def key(self, name: str, code: int, text: str = "") -> None:
        """Presses and releases a key, such as ("Enter", 13, "\\r") or ("ArrowRight", 39)."""
        options = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **options)
        self.call("Input.dispatchKeyEvent", type="keyUp", **options)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Writes what the window shows, or the whole page, as a PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def complaints(self) -> list[str]:
        """Returns what the page has written to the console, and what the browser has to say about it."""
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in kinds]

    def requests(self) -> list[str]:
        """Returns the addresses that the page has asked for, data: ones left out."""
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        urls = [str(event["params"]["request"]["url"]) for event in sent]
        return [url for url in urls if not url.startswith("data:")]

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """Returns the answer to a DevTools command.

        Raises:
            RuntimeError: the browser refuses it, or is gone.
            TimeoutError: no answer within TIMEOUT.
        """
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self.events.append(answer)

    def _targets(self) -> list[dict[str, Any]]:
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            targets: list[dict[str, Any]] = self.call("Target.getTargets")["targetInfos"]
            if any(target["type"] == "page" for target in targets):
                return targets
            time.sleep(0.1)
        raise TimeoutError("the browser has opened no page")

    def _wait_for(self, method: str) -> None:
        while not any(event["method"] == method for event in self.events):
            self.events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], TIMEOUT)[0]:
                raise TimeoutError("the browser does not answer")
            data = os.read(self._read, 2**20)
            if not data:
                raise RuntimeError("the browser is gone")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))
