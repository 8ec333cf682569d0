"""Drive a headless Chromium over its DevTools pipe, and serve a folder to it."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from recombinator.utils.errors import InputError

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
    "--hide-scrollbars", "--autoplay-policy=no-user-gesture-required", "--remote-debugging-pipe",
)  # fmt: skip


def chromium() -> str:
    """Return the path of a Chromium or Chrome.

    Raises:
        InputError: None is installed.
    """
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        raise InputError(f"no Chromium found; install one of {', '.join(NAMES)}")
    return path


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine while the context lasts, and yield its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


class Browser:
    """A page in a headless Chromium, as a context.

    Args:
        options: Further options of Chromium.
        timeout: Longest wait for anything, in seconds.
        cores: Number of processor cores that all of the browser's processes share; None: all.
    """

    def __init__(self, *options: str, timeout: float = 120.0, cores: int | None = None) -> None:
        self.timeout, self._messages, self._rest = timeout, 0, b""
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # above 4, so that neither is overwritten where the child gets them as 3 and 4
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (theirs_in, theirs_out)]

        def hand_over() -> None:
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)
            if cores:
                os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])

        command = [chromium(), *OPTIONS, f"--user-data-dir={self._profile.name}", *options, "about:blank"]
        self._process = subprocess.Popen(
            command, preexec_fn=hand_over, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for fd in (theirs_in, theirs_out, *high):
            os.close(fd)
        self._in, self._out = ours_in, ours_out
        self._session: str | None = None
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        try:
            self.send("Browser.close")
            self._process.wait(10)
        except (OSError, InputError, subprocess.TimeoutExpired):
            self._process.kill()
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol, and return its result."""
        self._messages += 1
        message = {"id": self._messages, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + self.timeout
        while True:
            answer = self._read(end)
            if answer.get("id") == self._messages:
                if "error" in answer:
                    raise InputError(f"the browser: {method}: {answer['error']['message']}")
                return answer["result"]

    def _read(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self._in, 1 << 16) if ready else b""
            if not part:
                raise InputError("the browser: no answer, or it ended")
            self._rest += part
        first, self._rest = self._rest.split(b"\0", 1)
        return json.loads(first)

    def evaluate(self, expression: str) -> Any:
        """Evaluate JavaScript, wait for its promise, and return its value."""
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise InputError(f"the page: {details.get('exception', {}).get('description', details['text'])}")
        return result["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + self.timeout
        while time.monotonic() < end:
            value = self.evaluate(expression)
            if value:
                return value
            time.sleep(0.05)
        raise InputError(f"the page: {expression} did not become true in {self.timeout:g} seconds")

    def open(self, address: str) -> None:
        """Open a page, and wait until it is loaded."""
        self.send("Page.navigate", url=address)
        self.wait(f"location.href.startsWith({json.dumps(address)}) && document.readyState === 'complete'")

    def choose(self, selector: str, *files: Path) -> None:
        """Choose files in an input of the page."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(f.resolve()) for f in files])

    def screenshot(self, path: Path, width: int, height: int, dark: bool = False) -> None:
        """Write a picture of the page in a window of this size."""
        self.appear(width, height, dark)
        data = self.send("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def appear(self, width: int, height: int, dark: bool = False) -> None:
        """Set the size of the window and the color scheme."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
