"""Logged points survive kills, full disks and many writers."""

import multiprocessing
import signal
import subprocess
import sys

import pytest
from support import fill, memory_disk

from mlops_nb.core.errors import StorageError
from mlops_nb.notebook.context import append_points, read_points

ENDLESS = """
import sys
from pathlib import Path
from mlops_nb.notebook.context import append_points
step = 0
while True:
    append_points(Path(sys.argv[1]), {"loss": 1.0}, step)
    print(step, flush=True)
    step += 1
"""


def test_nothing_that_was_logged_is_lost_by_a_kill(tmp_path):
    file = tmp_path / "points.ndjson"
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(file)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) == 500:
            process.send_signal(signal.SIGKILL)
            break
    acknowledged = [int(line) for line in process.stdout.read().splitlines() if line.isdigit()]
    process.wait()
    steps = [point["step"] for point in read_points(file)]
    assert steps == list(range(len(steps))) and len(steps) > max([500, *acknowledged])


def _log_many(file, worker):
    for step in range(200):
        append_points(file, {f"worker_{worker}": 1.0}, step)


def test_lines_of_several_processes_do_not_mix(tmp_path):
    file = tmp_path / "points.ndjson"
    workers = [multiprocessing.Process(target=_log_many, args=(file, worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(read_points(file)) == 800 == len(file.read_bytes().splitlines())


def test_a_full_disk_is_said_and_what_was_logged_stays(tmp_path):
    with memory_disk(tmp_path / "disk", "64k") as disk:
        file = disk / "points.ndjson"
        append_points(file, {"loss": 1.0}, 0)
        fill(disk)
        with pytest.raises(StorageError, match="full"):
            for step in range(1, 1000):
                append_points(file, {"loss": 1.0}, step)
        steps = [point["step"] for point in read_points(file)]
    assert steps and steps == list(range(len(steps)))


def test_a_line_that_is_not_whole_costs_no_other(tmp_path):
    file = tmp_path / "points.ndjson"
    append_points(file, {"loss": 1.0}, 0)
    with file.open("ab") as torn:
        torn.write(b'{"t": 1.0, "st\n\n')
    append_points(file, {"loss": 0.5}, 1)
    assert [point["step"] for point in read_points(file)] == [0, 1]
