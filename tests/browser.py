"""A real headless browser for tests of pages, spoken to over its DevTools protocol."""

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import ClientConnection, connect

FOUND = next((p for n in ("chromium", "chromium-browser", "google-chrome", "chrome") if (p := shutil.which(n))), "")
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-extensions", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--mute-audio", "--remote-debugging-port=0", "--remote-allow-origins=*")  # fmt: skip


class Browser:
    """One page at a time. Collects what the page asks for and what goes wrong in it."""

    def __init__(self, profile: Path) -> None:
        environment = {**os.environ, "HOME": str(profile)}
        self._process = subprocess.Popen(
            [FOUND, *ARGUMENTS, f"--user-data-dir={profile}", "about:blank"],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment, start_new_session=True,
        )  # fmt: skip
        assert self._process.stderr is not None
        address = ""
        for line in self._process.stderr:
            if match := re.search(r"DevTools listening on (ws://\S+)", line):
                address = match[1]
                break
        assert address, "the browser ended without saying where it listens"
        self._line: ClientConnection = connect(address, max_size=None, open_timeout=60)
        self._numbers, self._session = itertools.count(1), ""
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.loaded = False
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._line.close()
        self._process.kill()
        self._process.wait()

    def open(self, page: Path, *, width: int, height: int) -> None:
        """Show a file on a screen of this size, as a phone would."""
        self.requests, self.errors, self.loaded = [], [], False
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=True)
        self.ask("Page.navigate", url=page.resolve().as_uri())
        until = time.monotonic() + 60
        while not self.loaded:
            assert time.monotonic() < until, "the page did not load"
            self._note(json.loads(self._line.recv(timeout=60)))
        self.value("1")  # whatever was sent before this answer has been seen now

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is worth in the page."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def picture(self, path: Path) -> Path:
        """Write what is seen, the whole page from top to bottom, as PNG."""
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        self._line.send(json.dumps({"id": number, "method": method, "params": params, **session}))
        while True:
            message = json.loads(self._line.recv(timeout=60))
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method", ""), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.errors.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
