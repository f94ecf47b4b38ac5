"""A headless Chromium that tests drive by its own protocol: JSON, ended by a NUL, over two pipes."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 60.0  # seconds for an answer: the machine may be busy with other tests

# the browser reads from the file descriptor 3 and writes to 4; this puts the two pipes there, and becomes it
BECOME = """
import fcntl, os, sys
reads, writes = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(reads, 3)
os.dup2(writes, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find():
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def why_not():
    """Say why no browser can be driven here; "" where one can."""
    if os.name != "posix":
        return "Chromium is driven over pipes, which needs POSIX"
    return "" if find() else f"no Chromium is installed here (looked for {', '.join(NAMES)})"


class Chromium:
    """A browser with one page, and what it said: `console`, `exceptions`, `requests`."""

    def __init__(self, folder):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        options = [
            "--headless=new",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder}",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--no-default-browser-check",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--force-color-profile=srgb",
        ]
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # which Chromium refuses to root
        self._process = subprocess.Popen(
            [sys.executable, "-c", BECOME, str(to_browser), str(from_browser), find(), *options, "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._received, self._number, self._session = b"", 0, None
        self.console, self.exceptions, self.requests, self._loaded = [], [], [], False
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    # --- the protocol -------------------------------------------------------------------------

    def call(self, method, **parameters):
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self):
        """Return the next message, and keep what should be known of it."""
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            part = os.read(self._read, 1 << 20) if ready else b""
            assert part, "Chromium has gone" if ready else f"Chromium says nothing for {PATIENCE:.0f} seconds"
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        found = json.loads(message)
        self._keep(found.get("method"), found.get("params", {}))
        return found

    def _keep(self, event, what):
        if event == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(argument.get("value")) for argument in what["args"]))
        elif event == "Log.entryAdded":
            self.console.append(what["entry"]["text"])
        elif event == "Runtime.exceptionThrown":
            self.exceptions.append(what["exceptionDetails"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])
        elif event == "Page.loadEventFired":
            self._loaded = True

    # --- what a reader does -------------------------------------------------------------------

    def open(self, path):
        """Open a file and wait until it is loaded."""
        self.console, self.exceptions, self.requests, self._loaded = [], [], [], False
        self.call("Page.navigate", url=path.absolute().as_uri())
        while not self._loaded:
            self._next()

    def look(self, width, height=900, *, dark=False, script=True):
        """Choose the width of the window in CSS pixels, light or dark, and whether scripts run."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Emulation.setScriptExecutionDisabled", value=not script)

    def run(self, expression):
        """Return the value of a JavaScript expression, as plain data."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key, code):
        """Press and release a key, as a keyboard does."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)
        self.run("new Promise((done) => requestAnimationFrame(() => done(true)))")

    def screenshot(self, **options):
        """Return a PNG of the window, or with `clip` of a part of the page."""
        return base64.b64decode(self.call("Page.captureScreenshot", **options)["data"])

    def print(self):
        """Return a PDF of the page."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False, preferCSSPageSize=True)["data"])

    def close(self):
        """End the browser."""
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
