"""A Dask scheduler and workers as processes of their own, on loopback."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec
from pipeline_support import ROOT, Project, wait_for

LEFT = ("--idle-timeout", "300")  # should nobody be there to end it
ROLES = ("SCHEDULER", "WORKER", "CLIENT")
MODULES = {"scheduler": "distributed.cli.dask_scheduler", "worker": "distributed.cli.dask_worker"}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Cluster:
    """A scheduler with some workers; in a `with` block."""

    def __init__(
        self,
        folder: Path,
        workers: int = 2,
        nanny: bool = True,
        scheme: str = "tcp",  # or tls, with what `certificates` gave
        **configuration: Any,
    ):
        self.folder, self.nanny, self.scheme, self.port = folder, nanny, scheme, free_port()
        self.environment = {f"DASK_DISTRIBUTED__{name}": str(value) for name, value in configuration.items()}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        place = ["--host", f"{scheme}://127.0.0.1", "--port", str(self.port)]
        self.begin("scheduler", *place, "--no-dashboard", "--no-show", *LEFT)
        for number in range(workers):
            self.add(f"w{number}")

    def begin(self, name: str, *words: str, before: Sequence[str] = (), **environment: str) -> None:
        """Start a process; what it says goes to a file."""
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with open(self.folder / f"{name}.log", "ab") as log:
            command = [sys.executable, "-m", MODULES["scheduler" if name == "scheduler" else "worker"], *words]
            known = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **self.environment, **environment}
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "cwd": self.folder, "start_new_session": True}
            self.processes[name] = subprocess.Popen([*before, *command], stdout=log, stderr=log, env=known, **options)

    def add(self, name: str, before: Sequence[str] = (), **environment: str) -> None:
        """One more worker."""
        nanny = [] if self.nanny else ["--no-nanny"]
        words = [f"{self.scheme}://127.0.0.1:{self.port}", "--nthreads", "1", "--name", name, "--no-dashboard", *nanny]
        self.begin(name, *words, "--local-directory", str(self.folder / name), before=before, **environment)

    @property
    def address(self) -> str:
        """As `--on` takes it."""
        return f"{self.scheme.replace('tcp', 'dask')}://127.0.0.1:{self.port}"

    def __enter__(self) -> "Cluster":
        workers = len(self.processes) - 1
        with self.client() as client:
            client.wait_for_workers(workers, timeout=60)
        return self

    def client(self) -> Any:
        """A client beside the runner's."""
        from distributed import Client, Security

        names = {"tls_ca_file": "CA_FILE", "tls_client_cert": "CLIENT__CERT", "tls_client_key": "CLIENT__KEY"}
        known = {name: self.environment.get(f"DASK_DISTRIBUTED__COMM__TLS__{own}") for name, own in names.items()}
        options: dict[str, Any] = {"security": Security(**known)} if self.scheme == "tls" else {}
        return Client(f"{self.scheme}://127.0.0.1:{self.port}", set_as_default=False, timeout=30, **options)

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


def certificates(folder: Path) -> dict[str, str]:
    """A certificate that scheduler, workers and clients show and ask for, as Dask's configuration is told of it."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cluster")])
    public = key.public_key()
    made = (
        x509.CertificateBuilder(name, name, public, x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    shown, hidden = folder / "cluster.pem", folder / "cluster.key"
    shown.write_bytes(made.public_bytes(form.Encoding.PEM))
    hidden.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
    both = {
        f"COMM__TLS__{who}__{what}": str(path) for who in ROLES for what, path in (("CERT", shown), ("KEY", hidden))
    }
    return {"COMM__REQUIRE_ENCRYPTION": "True", "COMM__TLS__CA_FILE": str(shown), **both}


def apart(hidden: Path) -> list[str]:
    """What stands before a command for which a folder is empty, as on another machine; nothing where that cannot be."""
    shell = ["sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden)]
    for way in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        if shutil.which("unshare") and not subprocess.run([*way, *shell, "true"], capture_output=True).returncode:
            return [*way, *shell]
    return []


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
