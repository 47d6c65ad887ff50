"""Headless Chromium, driven by the Chrome DevTools protocol over a pipe: no driver and no Python package is needed."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

# Quiet and offline: no service of the browser may look for a network.
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe""".split()

# find: elements that match a selector. text: the texts within an element, one per line. Both enter shadow trees, which
# querySelectorAll and innerText do not.
HELPERS = """
function find(selector, root = document) {
  const found = [...root.querySelectorAll(selector)];
  for (const element of root.querySelectorAll('*'))
    if (element.shadowRoot) found.push(...find(selector, element.shadowRoot));
  return found;
}
function text(node) {
  if (node.nodeType == Node.TEXT_NODE) return node.textContent.trim();
  if (['STYLE', 'SCRIPT', 'TEMPLATE'].includes(node.nodeName)) return '';
  return [...(node.shadowRoot?.childNodes ?? []), ...node.childNodes].map(text).filter(Boolean).join('\\n');
}
"""


class Browser:
    """One window. Use it as a context manager.

    Args:
        profile: A new folder for what the browser stores.
        size: Width and height of the page in pixels.
        patience: Seconds until a call or a condition counts as failed.
    """

    def __init__(self, profile: Path, size: tuple[int, int] = (1400, 900), patience: float = 120):
        self.size, self.patience, self.number, self.buffer = size, patience, 0, b""
        their_end, self.to = os.pipe()
        self.back, their_answers = os.pipe()
        flags = [*FLAGS, f"--user-data-dir={profile}"]
        # Chromium reads commands from file descriptor 3 and answers on 4. Bash numbers them (dash knows only 0 to 9).
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (their_end, their_answers)]
        shell = 'exec "$@" 3<&{} 4>&{}'.format(*theirs)
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", str(shutil.which("chromium")), *flags],
            pass_fds=theirs, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (their_end, their_answers, *theirs):
            os.close(end)
        os.set_blocking(self.back, False)
        self.session: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(self.patience)
        os.close(self.to)
        os.close(self.back)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result. Events are ignored."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + self.patience + 10
        while time.monotonic() < end:
            answer = self._receive(end)
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
        raise TimeoutError(f"{method}: no answer from chromium")

    def _receive(self, end: float) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.back], [], [], max(0.0, end - time.monotonic()))
            assert ready, "no answer from chromium"
            part = os.read(self.back, 1 << 16)
            assert part, f"chromium ended with exit code {self.process.wait()}"
            self.buffer += part
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, which may use ``find`` and ``text`` and may be a promise."""
        program = f"(() => {{{HELPERS} return ({expression})}})()"
        done = self.call("Runtime.evaluate", expression=program, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, expression: str) -> Any:
        """The value of an expression as soon as it is true."""
        milliseconds = 1000 * self.patience
        value = self.evaluate(
            f"new Promise(done => {{const end = Date.now() + {milliseconds}; const look = () => {{let value = null;"
            f"try {{value = ({expression})}} catch (error) {{value = null}}"
            "if (value || Date.now() > end) done(value); else setTimeout(look, 100);}; look()})"
        )
        assert value, f"not within {self.patience} s: {expression}"
        return value

    def open(self, url: str) -> None:
        """Load a page in a new tab. (A navigation that changes the part after # only would not load anything.)"""
        self.session = None
        tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        width, height = self.size
        options = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **options)
        self.call("Page.navigate", url=url)

    def screenshot(self, path: Path) -> None:
        image = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=False)["data"]
        path.write_bytes(base64.b64decode(image))
