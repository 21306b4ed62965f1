"""A Dask scheduler and workers as processes of their own, on loopback."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline_support import ROOT, Project, wait_for

LEFT = ("--idle-timeout", "300")  # should nobody be there to end it
MODULES = {"scheduler": "distributed.cli.dask_scheduler", "worker": "distributed.cli.dask_worker"}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Cluster:
    """A scheduler with some workers; in a `with` block."""

    def __init__(self, folder: Path, workers: int = 2, nanny: bool = True, **configuration: Any):
        self.folder, self.nanny, self.port = folder, nanny, free_port()
        self.environment = {f"DASK_DISTRIBUTED__{name}": str(value) for name, value in configuration.items()}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.begin("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard", "--no-show", *LEFT)
        for number in range(workers):
            self.add(f"w{number}")

    def begin(self, name: str, *words: str, **environment: str) -> None:
        """Start a process; what it says goes to a file."""
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with open(self.folder / f"{name}.log", "ab") as log:
            command = [sys.executable, "-m", MODULES["scheduler" if name == "scheduler" else "worker"], *words]
            known = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **self.environment, **environment}
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "cwd": self.folder, "start_new_session": True}
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=known, **options)

    def add(self, name: str, **environment: str) -> None:
        """One more worker."""
        nanny = [] if self.nanny else ["--no-nanny"]
        words = [f"tcp://127.0.0.1:{self.port}", "--nthreads", "1", "--name", name, "--no-dashboard", *nanny]
        self.begin(name, *words, "--local-directory", str(self.folder / name), **environment)

    @property
    def address(self) -> str:
        """As `--on` takes it."""
        return f"dask://127.0.0.1:{self.port}"

    def __enter__(self) -> "Cluster":
        workers = len(self.processes) - 1
        with self.client() as client:
            client.wait_for_workers(workers, timeout=60)
        return self

    def client(self) -> Any:
        """A client beside the runner's."""
        from distributed import Client

        return Client(self.address.replace("dask", "tcp"), set_as_default=False, timeout=30)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process of the cluster alone."""
        self.processes[name].send_signal(number)

    def stop(self, name: str) -> None:
        """End a process, and what it has started."""
        process = self.processes.pop(name)
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(15)

    def __exit__(self, *error: object) -> None:
        for name in [*reversed(self.processes)]:
            self.stop(name)


def on(project: Project, place: str, more: str = "") -> Project:
    """Let a project's steps run there."""
    path = project.folder / "settings.ini"
    path.write_text(f"{path.read_text()}[pipeline]\non = {place}\n{more}")
    return project


def ran(project: Project) -> list[str]:
    """The steps in the order in which they began, as they note it themselves."""
    notes = project.folder / "ran"
    return notes.read_text().split() if notes.exists() else []


def begun(project: Project, name: str, count: int = 1) -> None:
    """Wait until a step has begun so many times."""
    wait_for(lambda: ran(project).count(name) >= count, 90)


def note(name: str) -> str:
    """A cell that notes that its step has begun."""
    return f"with open('ran', 'a') as file:\n    file.write('{name}\\n')"
