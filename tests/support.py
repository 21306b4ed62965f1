"""How the tests that cross rooms run the commands of a project, each in a process of its own."""

import contextlib
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
REQUIRED = bool(os.environ.get("MLOPS_NB_TEST_REQUIRED"))  # as CI sets it: a program that cannot be had is a failure
PROGRAMS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlops_nb-tests"


@dataclass
class Project:
    """A project folder with a workspace, and where the commands of this environment are."""

    folder: Path
    workspace: Path
    binaries: Path = BIN
    bento_home: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "MLOPS_NB_WORKSPACE_PATH": str(self.workspace),
            "BENTOML_HOME": str(self.bento_home or self.workspace.parent / "bentoml"),
            "PATH": f"{self.binaries}{os.pathsep}{os.environ['PATH']}",
        }

    def call(self, *command: str, timeout: float = 300, **extra: str) -> subprocess.CompletedProcess:
        """Run a command of the environment in the project's folder."""
        return subprocess.run(
            [str(self.binaries / command[0]), *command[1:]],
            cwd=self.folder,
            env={**self.environment, **extra},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def json(self, *words: str, expect: int = 0, **extra: str) -> dict:
        """Run `mlops-nb WORDS --json`; its document."""
        done = self.call("mlops-nb", *words, "--json", **extra)
        assert done.returncode == expect, f"exit {done.returncode}, expected {expect}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def run(self, *words: str, expect: int = 0, **extra: str) -> dict:
        """Run the tabular pipeline; the run's document."""
        return self.json("run", "tabular", *words, expect=expect, **extra)

    def copy(self, folder: Path) -> "Project":
        """The same project with a copy of the workspace, to be changed freely."""
        shutil.copytree(self.workspace, folder, symlinks=True)
        return Project(self.folder, folder, self.binaries, self.bento_home or self.workspace.parent / "bentoml")


def shared_folder(tmp_path_factory) -> Path:
    """The temporary folder that all test processes share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder


def debian_program(package: str, program: str) -> str:
    """A program of this machine, else of a package of Debian, unpacked, not installed; skips without it."""
    if found := shutil.which(program):
        return found
    return str(debian_folder(package, f"usr/bin/{program}") / "usr" / "bin" / program)


def debian_folder(
    package: str,
    within: str,  # what is wanted of it
    programs: Path = PROGRAMS,  # where packages are unpacked
) -> Path:
    """The folder that a package of Debian is unpacked in, not installed; skips without it."""
    place = programs / package
    if (place / within).exists():
        return place
    programs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=programs) as folder:
        why = _unpack(package, Path(folder))
        with contextlib.suppress(OSError):  # another test process was faster
            (Path(folder) / "unpacked").rename(place)
    if (place / within).exists():
        return place
    reason = f"{within} cannot be had from Debian's package {package}: {why}"
    pytest.fail(reason) if REQUIRED else pytest.skip(reason)


def _unpack(package: str, folder: Path) -> str:
    """Fetch a package and unpack it into `folder/unpacked`; what went wrong."""
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        return "this is no Debian"
    fetched = subprocess.run(
        ["apt-get", "download", package], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    files = [*folder.glob("*.deb")]
    if not files:
        return (fetched.stderr.strip().splitlines() or ["apt-get download gave nothing"])[-1]
    done = subprocess.run(["dpkg", "-x", files[0], folder / "unpacked"], capture_output=True, text=True, check=False)
    return done.stderr.strip()


def gives(document: dict) -> dict[str, str]:
    """`step.artifact` -> sha256 of everything a run's steps gave."""
    return {
        f"{step['step']}.{name}": artifact["sha256"]
        for step in document["steps"]
        for name, artifact in step["artifacts"].items()
    }


def states(document: dict) -> dict[str, str]:
    """Step -> state of a run."""
    return {step["step"]: step["state"] for step in document["steps"]}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(url: str, body: object = None, timeout: float = 10) -> tuple[int, dict]:
    """GET, or POST of a JSON body; status and the JSON answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


@contextlib.contextmanager
def serving(project: Project, *words: str, **extra: str):
    """`bentoml serve` in the project's folder until it is ready; yields its address."""
    port = free_port()
    command = [str(project.binaries / "bentoml"), "serve", *words, "--port", str(port)]
    log = project.workspace.parent / f"serve-{port}.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            command,
            cwd=project.folder,
            env={**project.environment, **extra},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        wait_ready(server, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, 9)
            server.wait()


def wait_ready(server: subprocess.Popen, address: str, log: Path, seconds: float = 90) -> None:
    """Return when the service answers /readyz with 200; fail with its log when it ends or takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise AssertionError(f"bentoml serve ended with {server.returncode}:\n{log.read_text()[-4000:]}")
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"bentoml serve was not ready after {seconds} s:\n{log.read_text()[-4000:]}")


@contextlib.contextmanager
def memory_disk(place: Path, size: str):
    """A file system in memory, mounted at `place`; the test is skipped where mounting is not permitted."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a small file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> None:
    """Write a file `filler` until no byte is free."""
    with open(disk / "filler", "wb", buffering=0) as filler:
        for size in (65536, 4096, 512, 1):
            try:
                while filler.write(b"x" * size) == size:
                    continue
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
