"""A real Postgres server for the tests: found on this machine or unpacked from Debian's packages, shared by all."""

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from support import debian_folder, free_port

from mlops_nb.core.locks import FileLock

USER = "mlops"
OPEN = Path("/var/tmp/mlops_nb-tests")  # where a package is unpacked that another user than root has to reach
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",  # a server that is killed loses nothing by it, only a machine would
    "max_connections": "200",
    "autovacuum": "off",
    "shared_buffers": "64MB",
}
GUARD = """
import os, shutil, signal, sys, time
parent, folder = int(sys.argv[1]), sys.argv[2]
while os.path.exists(f"/proc/{parent}") and os.path.exists(folder):
    time.sleep(0.5)
try:
    os.kill(int(open(f"{folder}/data/postmaster.pid").readline()), signal.SIGQUIT)
    time.sleep(0.5)
except OSError:
    print("it has ended")
shutil.rmtree(folder, ignore_errors=True)
"""


@cache
def binaries() -> tuple[Path, str]:
    """The folder of `initdb`, `postgres` and `psql`, and the folder of libraries that they need besides."""
    here = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if here:
        return here[-1].parent, ""
    listed = subprocess.run(["apt-cache", "depends", "postgresql"], capture_output=True, text=True, check=False).stdout
    number = (re.findall(r"postgresql-(\d+)", listed) or ["15"])[0]
    inside = f"usr/lib/postgresql/{number}/bin"
    server = debian_folder(f"postgresql-{number}", f"{inside}/postgres", OPEN)
    client = debian_folder(f"postgresql-client-{number}", f"{inside}/psql", OPEN)
    if not (server / inside / "psql").exists():
        with contextlib.suppress(FileExistsError):  # another test process was faster
            (server / inside / "psql").symlink_to(client / inside / "psql")
    return server / inside, libraries(server, f"postgresql-{number}")


def libraries(unpacked: Path, package: str) -> str:
    """Folders with the libraries that the programs of an unpacked package lack on this machine."""
    programs = [str(path) for path in unpacked.glob("usr/lib/postgresql/*/bin/*") if path.name in ("postgres", "psql")]
    if "not found" not in subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False).stdout:
        return ""
    options = ["--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces"]
    listed = subprocess.run(["apt-cache", "depends", *options, package], capture_output=True, text=True, check=False)
    names = {line for line in listed.stdout.splitlines() if re.match(r"lib[a-z0-9.+-]+$", line)} - {"libc6"}
    folders = [
        str(folder)
        for name in sorted(names)
        for folder in debian_folder(name, "usr", OPEN).glob("usr/lib/*-linux-gnu")
        if subprocess.run(["dpkg", "-s", name], capture_output=True, check=False).returncode
    ]
    return os.pathsep.join(folders)


@dataclass
class Server:
    """A server of one's own."""

    folder: Path
    port: int

    def call(self, program: str, *words: str, check: bool = True, **options: str) -> subprocess.CompletedProcess:
        """Run one of Postgres's programs as the user that the server belongs to."""
        place, libs = binaries()
        environment = {**os.environ, "LC_ALL": "C", "PGOPTIONS": "", **({"LD_LIBRARY_PATH": libs} if libs else {})}
        return subprocess.run(
            [*as_nobody(), str(place / program), *words],
            env={**environment, **options},
            cwd="/",
            check=check,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "psql" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if program == "psql" else subprocess.DEVNULL,
        )

    def begin(self, **settings: str) -> "Server":
        """Make the server and start it."""
        if as_nobody():
            shutil.chown(self.folder, "nobody")
        words = ["-D", f"{self.folder}/data", "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        self.call("initdb", *words)
        lines = {**SETTINGS, "port": str(self.port), "unix_socket_directories": str(self.folder), **settings}
        with (self.folder / "data" / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in lines.items())
        access = self.folder / "data" / "pg_hba.conf"  # one user needs a password
        access.write_text(f"host all locked 127.0.0.1/32 scram-sha-256\n{access.read_text()}")
        self.control("start")
        return self

    def control(self, *words: str) -> None:
        """`pg_ctl start`, `pg_ctl restart -m immediate`, ..."""
        self.call("pg_ctl", "-D", f"{self.folder}/data", "-l", f"{self.folder}/log", "-w", *words)

    def sql(self, statement: str, database: str = "postgres") -> str:
        """What psql prints, without headings and frames."""
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-d", database]
        return self.call("psql", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", *where, "-c", statement).stdout.strip()

    def url(self, database: str) -> str:
        """The address of a database."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def end(self) -> None:
        """Stop it and remove its files."""
        with contextlib.suppress(subprocess.CalledProcessError):  # a test may have stopped it
            self.control("stop", "-m", "immediate")
        shutil.rmtree(self.folder, ignore_errors=True)


def as_nobody() -> list[str]:
    """What is to stand in front of a command that root may not run."""
    if os.getuid():
        return []
    nobody = pwd.getpwnam("nobody")
    return ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]


def own_server(**settings: str) -> Server:
    """A server for one test, which ends it."""
    place = Path(tempfile.mkdtemp(prefix="mlops-pg-", dir="/tmp"))  # within pytest's folder `nobody` finds nothing
    guard(place)
    return Server(place, free_port()).begin(**settings)


def shared_server(shared: Path) -> Server:
    """The server of all test processes."""
    known = shared / "postgres.json"
    with FileLock(shared / "postgres.lock", timeout=120):
        if not known.exists():
            server = own_server()
            known.write_text(json.dumps([str(server.folder), server.port]))
        folder, port = json.loads(known.read_text())
    return Server(Path(folder), port)


def guard(folder: Path) -> None:
    """See to it that a server does not outlive the tests, whatever happens to them."""
    controller = os.getppid() if os.environ.get("PYTEST_XDIST_WORKER") else os.getpid()
    subprocess.Popen([sys.executable, "-c", GUARD, str(controller), str(folder)], start_new_session=True)


def template(server: Server, shared: Path) -> str:
    """A database with an empty ledger, to be copied."""
    with FileLock(shared / "postgres-template.lock", timeout=120):
        if not server.sql("SELECT 1 FROM pg_database WHERE datname = 'template_ledger'"):
            from mlops_nb.core.ledger.address import Address
            from mlops_nb.core.ledger.upgrade import open_postgres

            server.sql("CREATE DATABASE template_making")
            open_postgres(Address.parse(server.url("template_making")), shared).close()
            server.sql("ALTER DATABASE template_making RENAME TO template_ledger")
    return "template_ledger"


@contextlib.contextmanager
def ledger_url(shared: Path, name: str, empty: bool = False):
    """The address of a database of one's own with an empty ledger, or with nothing."""
    server = shared_server(shared)
    made = f"CREATE DATABASE {name}" + ("" if empty else f" TEMPLATE {template(server, shared)}")
    server.sql(made)
    yield server.url(name)
    server.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def kill_backends(server: Server, database: str) -> None:
    """Cut all connections of a database, on the server's side."""
    server.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")


def postmaster(server: Server) -> int:
    """The number of the server's first process."""
    return int((server.folder / "data" / "postmaster.pid").read_text().split()[0])


def crash(server: Server, seconds: float = 0.0) -> None:
    """Kill the server as a power cut would, and start it again some seconds later."""
    os.kill(postmaster(server), signal.SIGQUIT)
    time.sleep(max(seconds, 0.3))
    server.control("start")
