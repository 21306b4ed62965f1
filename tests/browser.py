"""A headless Chromium, driven over its own protocol: the keyboard, what is shown, and every request that leaves it."""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket
from support import PROGRAMS, REQUIRED

from mlops_nb.core.locks import FileLock

NAMES = ("chromium-headless-shell", "chromium", "google-chrome", "chrome")
PACKAGE = "chromium-headless-shell"
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)
KEYS = {"Tab": 9, "Enter": 13, " ": 32, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38, "Home": 36, "End": 35}


def _unpacked() -> str:
    """Fetch Chromium and the libraries it lacks here from Debian, and unpack them; what went wrong."""
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        return "this is no Debian"
    wanted = ["apt-get", "-s", "--no-install-recommends", "install", PACKAGE]
    planned = subprocess.run(wanted, capture_output=True, text=True, timeout=60, check=False)
    packages = re.findall(r"^Inst (\S+)", planned.stdout, re.M)
    if not packages:
        return planned.stderr.strip() or "apt-get knows no such package"
    folder = PROGRAMS / "chromium.part"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fetch = ["apt-get", "download", *packages]
    fetched = subprocess.run(fetch, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if fetched.returncode:
        return fetched.stderr.strip()
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder], check=True)
        package.unlink()
    folder.rename(PROGRAMS / "chromium")
    return ""


def chromium() -> tuple[str, dict[str, str]]:
    """The command of a Chromium and the variables it needs; skips (in CI: fails) where none can be had."""
    for name in NAMES:
        if found := shutil.which(name):
            return found, {}
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    root = PROGRAMS / "chromium"
    program = root / "usr" / "lib" / "chromium" / PACKAGE
    with FileLock(PROGRAMS / "chromium.lock", timeout=400):
        why = "" if program.exists() else _unpacked()
    if why:
        reason = f"Chromium cannot be had from Debian: {why}"
        pytest.fail(reason) if REQUIRED else pytest.skip(reason)
    libraries = [str(path) for path in (root / "usr" / "lib").glob("*-linux-gnu")]
    libraries += [f"{path}/pulseaudio" for path in libraries]
    return str(program), {"LD_LIBRARY_PATH": os.pathsep.join(libraries)}


class Page:
    """One tab."""

    def __init__(self, socket: websocket.WebSocket, session: str):
        self.socket, self.session, self.number = socket, session, 0
        self.requests: list[str] = []
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> Any:
        """Ask the browser; its answer."""
        self.number += 1
        message = {"id": self.number, "sessionId": self.session, "method": method, "params": parameters}
        self.socket.send(json.dumps(message))
        while True:
            said = json.loads(self.socket.recv())
            if said.get("id") == self.number and said.get("sessionId") == self.session:
                assert "error" not in said, (method, said)
                return said["result"]
            self._note(said)

    def _note(self, said: dict[str, Any]) -> None:
        name, told = said.get("method"), said.get("params", {})
        if name == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif name == "Runtime.exceptionThrown":
            self.complaints.append(told["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif name == "Log.entryAdded" and told["entry"]["source"] in ("security", "javascript", "violation"):
            self.complaints.append(told["entry"]["text"])

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        said = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def open(self, address: str, until: str) -> None:
        """Go to an address, and wait for an expression to become true."""
        self.send("Page.navigate", url=address)
        self.wait(until)

    def wait(self, until: str, seconds: float = 20) -> None:
        """Wait for an expression to become true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(AssertionError):  # the page may be between two documents
                if self.run(f"Boolean({until})"):
                    return
            time.sleep(0.03)
        raise AssertionError(f"never became true: {until}\n{self.run('document.body.innerText')}\n{self.complaints}")

    def text(self, selector: str) -> str:
        """What an element shows."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def press(self, key: str, times: int = 1, shift: bool = False) -> None:
        """Press a key that is no letter."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        given = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
        for _ in range(times):
            kind = "keyDown" if text else "rawKeyDown"
            self.send("Input.dispatchKeyEvent", type=kind, text=text, modifiers=8 * shift, **given)
            self.send("Input.dispatchKeyEvent", type="keyUp", modifiers=8 * shift, **given)

    def type(self, text: str) -> None:
        """Type into what has the keyboard, in place of what is selected."""
        self.send("Input.insertText", text=text)

    def focused(self) -> dict[str, str]:
        """Name and role, as a screen reader says them, of what has the keyboard."""
        found = self.send("Runtime.evaluate", expression="document.activeElement")["result"]["objectId"]
        nodes = self.send("Accessibility.getPartialAXTree", objectId=found, fetchRelatives=False)["nodes"]
        return {part: nodes[0].get(part, {}).get("value", "") for part in ("role", "name", "description")}

    def tab_to(self, name: str, most: int = 150) -> dict[str, str]:
        """Press Tab until what has this name has the keyboard, and assert that one can see so."""
        for _ in range(most):
            self.press("Tab")
            if (found := self.focused())["name"].strip() == name:
                ring = self.run("getComputedStyle(document.activeElement).outlineStyle")
                assert ring != "none", f"nobody sees that {name} has the keyboard"
                return found
        raise AssertionError(f"{name} cannot be reached with the Tab key")

    def size(self, width: int, height: int) -> None:
        """Show the page in a window of this size."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def dark(self, on: bool = True) -> None:
        """Prefer dark colours, or light ones."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if on else "light"}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path) -> None:
        """Write what is shown as a PNG, from top to bottom."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Any]:
    """Run a Chromium; yields what opens a tab."""
    program, variables = chromium()
    command = [program, *OPTIONS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables})
    assert process.stderr
    try:
        address = next(m[1] for line in process.stderr if (m := re.search(r"listening on (ws://\S+)", line)))
        socket = websocket.create_connection(address, timeout=30, suppress_origin=True)
        yield lambda: _tab(socket)
        socket.close()
    finally:
        process.terminate()
        process.wait(20)


def _tab(socket: websocket.WebSocket) -> Page:
    def ask(method: str, **parameters: Any) -> Any:
        socket.send(json.dumps({"id": 0, "method": method, "params": parameters}))
        while (said := json.loads(socket.recv())).get("id") != 0:
            continue
        return said["result"]

    target = ask("Target.createTarget", url="about:blank")["targetId"]
    session = ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    return Page(socket, session)
