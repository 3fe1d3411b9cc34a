"""A headless Chromium over its debugging pipe (Chrome DevTools Protocol): opens a page, asks it, takes its picture."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

__all__ = ["CHROMIUM", "Browser"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    *["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
    *["--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-extensions"],
    *["--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio", "--remote-debugging-pipe"],
    "--host-resolver-rules=MAP * ~NOTFOUND",  # nothing is looked up
)
SECONDS = 60.0


class Browser:
    """One page at a time. `said` is all that the page complained of: errors, failed requests, exceptions."""

    def __init__(self, folder: Path) -> None:
        """`folder` takes its profile."""
        assert CHROMIUM
        take, self._write = os.pipe()
        self._read, give = os.pipe()
        argv = [CHROMIUM, *QUIET, f"--user-data-dir={folder / 'profile'}", "about:blank"]

        def wire() -> None:
            low = os.dup(take), os.dup(give)
            os.dup2(low[0], 3)
            os.dup2(low[1], 4)

        env = {**os.environ, "HOME": str(folder)}
        with (folder / "chromium.log").open("w") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, close_fds=False, preexec_fn=wire, env=env)  # noqa: PLW1509
        os.close(take)
        os.close(give)
        self._number, self._rest, self.said = 0, b"", list[str]()
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = ""
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, path: Path, width: int) -> None:
        """Loads a file in a window of `width` CSS pixels and waits until its scripts have run."""
        self.said.clear()
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url=path.as_uri())
        end = time.monotonic() + SECONDS
        while self.ask("document.readyState") != "complete" or self.ask("location.protocol") != "file:":
            assert time.monotonic() < end, "the page does not load"
            time.sleep(0.05)
        self.ask("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 200)))")

    def prefer(self, scheme: str) -> None:
        """From now on the user prefers this color scheme, light or dark."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def ask(self, expression: str) -> Any:
        """The value of JavaScript in the page; a promise's, once it has one."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self, path: Path, selector: str = "html") -> Path:
        """A PNG of the first element that `selector` finds, whole."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        clip = self.ask(f"(({{x, y, width, height}}) => ({{x: x + scrollX, y: y + scrollY, width, height}}))({box})")
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=True, clip={**clip, "scale": 1})
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def close(self) -> None:
        """Ends it."""
        with contextlib.suppress(OSError, AssertionError):
            self._call("Browser.close")
        os.close(self._write)
        os.close(self._read)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        call: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "_session", ""):
            call["sessionId"] = self._session
        os.write(self._write, json.dumps(call).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])
            self._heard(message)

    def _message(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0], "the browser is silent"
            self._rest += os.read(self._read, 1 << 16)
        line, self._rest = self._rest.split(b"\0", 1)
        found: dict[str, Any] = json.loads(line)
        return found

    def _heard(self, message: dict[str, Any]) -> None:
        method, told = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.said.append(str(told["exceptionDetails"].get("exception", told["exceptionDetails"])))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.said.append(f"{told['type']}: {told['args']}")
        elif method == "Log.entryAdded":
            self.said.append(f"{told['entry']['level']}: {told['entry']['text']}")
        elif method == "Network.requestWillBeSent" and not told["request"]["url"].startswith(
            ("file:", "data:", "blob:")
        ):
            self.said.append(f"request: {told['request']['url'][:200]}")
