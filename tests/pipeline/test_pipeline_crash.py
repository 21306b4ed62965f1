"""kill -9, Ctrl-C and company: whatever happens, a plain run afterwards ends as if nothing had happened."""

import random
import shutil
import signal
import sqlite3
import time

import pytest
from pipeline_support import Project, finish, gives, kernels_of, states, stop, wait_for

from mlops_nb.core.ledger import Ledger

SLOW = "import time\nfor i in range(20):\n    time.sleep(0.02)"


def build(folder, ledger=True) -> Project:
    """A project of two slow steps, with an empty ledger: making one costs a second in every process."""
    project = Project(folder)
    if ledger:
        Ledger.open(project.settings).close()
    project.step("10_split", "#| parameters\nsize: int = 3", SLOW, "flow.train = list(range(size))\nflow.test = [size]")
    project.step("20_train", SLOW, "flow.model = sum(flow.split.train)", SLOW)
    return project


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the pipeline gives when nobody disturbs it."""
    project = build(tmp_path_factory.mktemp("undisturbed") / "project")
    result = project.run()
    assert states(result) == {"split": "done", "train": "done"}
    return gives(result)


def consistent(project):
    """The ledger is whole, its runs have ended, what it refers to is there."""
    ledger = project.ledger
    database = sqlite3.connect(project.workspace / "ledger.sqlite")
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    assert database.execute("SELECT count(*) FROM leases").fetchone() == (0,)
    for (digest,) in database.execute("SELECT sha256 FROM artifacts"):
        assert (project.workspace / "objects" / digest[:2] / digest).exists()
    assert not list((project.workspace / "objects").rglob("*.tmp"))
    assert {run["status"] for run in ledger.runs()} <= {"ok", "failed", "refused", "interrupted", "crashed"}


@pytest.mark.parametrize("point", ["after-object-write", "before-commit", "after-commit", "after-commit:2"])
def test_killed_at_a_named_point(tmp_path, undisturbed, point):
    project = build(tmp_path / "project")
    code, _ = finish(project.start({"MLOPS_NB_FAULT": point}))
    assert code == -signal.SIGKILL
    assert [run["status"] for run in project.ledger.runs()] == ["crashed"]
    code, document = finish(project.start())
    assert code == 0 and gives(document) == undisturbed
    cached = {"after-commit": {"split"}, "after-commit:2": {"split", "train"}}.get(point, set())
    assert {step for step, state in states(document).items() if state == "cached"} == cached
    assert [run["status"] for run in project.ledger.runs()] == ["ok", "crashed"]
    consistent(project)


def test_killed_at_random_moments(tmp_path, undisturbed):
    project, chance = build(tmp_path / "project", ledger=False), random.Random(0)
    for _ in range(3):
        process = project.start()
        time.sleep(chance.uniform(0.3, 3.0))
        stop(process)
        wait_for(lambda: not kernels_of(project.folder), 10)
    code, document = finish(project.start())
    assert code == 0 and gives(document) == undisturbed
    assert {run["status"] for run in project.ledger.runs()[1:]} <= {"crashed", "ok"}
    consistent(project)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal(tmp_path, undisturbed, number):
    project = build(tmp_path / "project")
    events = tmp_path / "events"
    process = project.start(events=str(events))
    wait_for(lambda: events.exists() and '"step": "train", "cell": 2' in events.read_text())
    process.send_signal(number)
    process.send_signal(number)
    code, document = finish(process)
    assert (code, document["status"]) == (130, "interrupted")
    assert states(document) == {"split": "done", "train": "failed"}
    assert document["error"]["message"] == f"The run was stopped by {signal.Signals(number).name}."
    assert kernels_of(project.folder) == []
    run = project.ledger.run(document["run"])
    assert run["status"] == "interrupted" and states(run) == {"split": "done", "train": "failed"}
    code, document = finish(project.start())
    assert code == 0 and gives(document) == undisturbed and states(document)["split"] == "cached"
    consistent(project)


def test_two_runs_at_once_compute_each_key_once(tmp_path, undisturbed):
    project = build(tmp_path / "project")
    project.step("05_count", "open('count', 'a').write('x')", SLOW, "flow.x = 1")
    project.step(
        "10_split", "#| parameters\nsize: int = 3", "flow.count.x", SLOW, "flow.train, flow.test = [0, 1, 2], [size]"
    )
    ended = [finish(process) for process in [project.start(), project.start()]]
    assert [code for code, _ in ended] == [0, 0]
    assert all({**gives(document), "count.x": ""} == {**undisturbed, "count.x": ""} for _, document in ended)
    assert (project.folder / "count").read_text() == "x", "one computed, the other waited"
    every = [state for _, document in ended for state in states(document).values()]
    assert sorted(every) == ["cached"] * 3 + ["done"] * 3
    waited = [step["reasons"][0] for _, document in ended for step in document["steps"] if step["state"] == "cached"]
    assert any(reason.startswith("computed meanwhile by run") for reason in waited)
    consistent(project)


def test_a_lease_of_a_dead_run_is_taken_over(tmp_path, undisturbed):
    project = build(tmp_path / "project")
    first = project.start()
    wait_for(lambda: kernels_of(project.folder))
    second = project.start()
    wait_for(lambda: len(project.ledger.runs()) == 2)
    stop(first)
    code, document = finish(second)
    assert code == 0 and gives(document) == undisturbed and set(states(document).values()) == {"done"}
    assert sorted(run["status"] for run in project.ledger.runs()) == ["crashed", "ok"]


def test_no_kernel_outlives_its_runner(tmp_path):
    project = build(tmp_path / "project")
    project.step("10_split", "import time\ntime.sleep(600)", "flow.train = flow.test = [1]")
    process = project.start()
    wait_for(lambda: kernels_of(project.folder))
    stop(process)
    wait_for(lambda: not kernels_of(project.folder), 5)
    assert project.ledger.runs()[0]["status"] == "crashed"


def test_a_workspace_that_cannot_be_made(tmp_path):
    project = build(tmp_path / "project", ledger=False)
    project.file(".mlops", "in the way")
    code, document = finish(project.start())
    assert code == 2 and document["error"]["type"] == "StorageError" and document["error"]["hint"]
    (project.folder / ".mlops").unlink()
    shutil.rmtree(project.folder / "nbs")
