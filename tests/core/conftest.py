"""Small disks, other processes: what the tests of the core share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import fill, memory_disk

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


@pytest.fixture
def settings(tmp_path):
    """The settings of an empty project."""
    (tmp_path / "settings.ini").write_text("[package]\nimport_name = churn\n")
    return load_settings(tmp_path, environ={})
