"""Small disks, other processes: what the tests of the core share."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from postgres_service import ledger_url
from support import fill, memory_disk, shared_folder

from mlops_nb.core.settings import load_settings


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 kB in memory; `fill` leaves no free byte, `read_only` makes it read-only."""
    with memory_disk(tmp_path / "disk", "512k") as place:
        yield SmallDisk(place)


class SmallDisk:
    """The mounted folder."""

    def __init__(self, path: Path):
        self.path = path

    def fill(self) -> None:
        """Write until nothing more goes in."""
        fill(self.path)

    def read_only(self) -> None:
        """Refuse every write from now on."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True)


@pytest.fixture
def start_python():
    """Start a program in another Python; it is killed at the end of the test if it still runs."""
    started = []

    def start(code: str, *arguments: object, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def finish():
    """Wait for started programs to end well; what each printed."""

    def wait(*processes: subprocess.Popen) -> list[str]:
        printed = []
        for process in processes:
            out, error = process.communicate(timeout=60)
            assert process.returncode == 0, error
            printed.append(out.strip())
        return printed

    return wait


def pytest_generate_tests(metafunc):
    """Every test of the ledger that asks for the settings of a project runs on both databases."""
    if metafunc.module.__name__.startswith("test_core_ledger") and "settings" in metafunc.fixturenames:
        metafunc.parametrize("where", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def where(request, tmp_path_factory):
    """What `[workspace] ledger` is: nothing for SQLite, or the address of an empty ledger in Postgres."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield ""
        return
    name = f"test_{os.getpid()}_{next(NUMBERS)}"
    with ledger_url(shared_folder(tmp_path_factory), name) as url:
        yield url


NUMBERS = itertools.count()


@pytest.fixture
def settings(tmp_path, where):
    """The settings of an empty project."""
    return project_settings(tmp_path, where)


@pytest.fixture
def file_settings(tmp_path):
    """The settings of an empty project whose ledger is a file."""
    return project_settings(tmp_path, "")


def project_settings(folder: Path, url: str):
    """Write settings.ini and read it."""
    ledger = f"[workspace]\nledger = {url}\n" if url else ""
    (folder / "settings.ini").write_text(f"[package]\nimport_name = churn\n{ledger}")
    return load_settings(folder, environ={})
