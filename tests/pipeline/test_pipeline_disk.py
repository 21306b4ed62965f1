"""A workspace on a real disk that is full, or read-only."""

import os
import subprocess

import pytest
from pipeline_support import Project, finish, gives, states
from support import fill, memory_disk


@pytest.fixture
def disk(tmp_path):
    """A file system of 4 MB in memory."""
    with memory_disk(tmp_path / "disk", "4m") as place:
        yield place


@pytest.fixture
def project(tmp_path, disk):
    project = Project(tmp_path / "project")
    project.file("settings.ini", f"[workspace]\npath = {disk}/workspace\n[tracking]\nmode = off\n")
    project.step("10_split", "#| parameters\nsize: int = 3", "flow.train = list(range(size))")
    project.step("20_train", "flow.model = sum(flow.split.train)")
    return project


def test_a_disk_that_fills_up(project, disk):
    first = project.run()
    assert states(first) == {"split": "done", "train": "done"}
    fill(disk)
    code, document = finish(project.start(parameters={"split.size": "4"}))
    error = document["error"]
    assert code == 2 and error["type"] == "StorageError" and "full" in error["message"] and error["hint"]
    os.unlink(disk / "filler")
    assert {run["status"] for run in project.ledger.runs()} <= {"ok", "failed", "crashed"}
    again = project.run()
    assert states(again) == {"split": "cached", "train": "cached"} and gives(again) == gives(first)


def test_a_disk_that_fills_up_while_a_step_runs(project, disk):
    project.run()
    filler = (
        f"with open('{disk}/filler', 'wb', buffering=0) as f:\n    try:\n        while f.write(b'x' * 4096): pass\n"
    )
    project.step("10_split", filler + "    except OSError: pass", "flow.train = list(range(100_000))")
    code, document = finish(project.start())
    error = document.get("error") or document["steps"][0]["error"]
    assert code == 2 and error["type"] == "StorageError" and "full" in error["message"]
    assert states(document) == {"split": "failed", "train": "skipped"}, "told, also when it cannot be recorded"
    os.unlink(disk / "filler")
    assert project.ledger.runs()[0]["status"] in ("failed", "crashed")
    project.step("10_split", "flow.train = list(range(100_000))")
    assert states(project.run()) == {"split": "done", "train": "done"}


def test_a_disk_that_is_read_only(project, disk):
    first = project.run()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert project.plan().runs == [], "looking is possible"
    code, document = finish(project.start())
    assert code == 2 and document["error"]["type"] == "StorageError" and document["error"]["hint"]
    assert "run" not in document, "the ledger knows no such run"
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    again = project.run()
    assert set(states(again).values()) == {"cached"} and gives(again) == gives(first)
    assert len(project.ledger.runs()) == 2
