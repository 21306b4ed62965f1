"""Independent steps at once: the same results, fair shares of the machine, and an orderly end."""

import json
import os
import signal
import sqlite3

import pytest
from pipeline_support import Project, finish, gives, kernels_of, states, wait_for

from mlops_nb.core.ledger.database import unix_time
from mlops_nb.pipeline import slots
from mlops_nb.pipeline.attempt import available_cores

# each of the two waits until the other has begun: alone, it would wait for ever
MEET = "import os, time\nopen('{0}', 'w').close()\nwhile not os.path.exists('{1}'):\n    time.sleep(0.01)"


@pytest.fixture
def wide(tmp_path):
    """One step, four that read it, one that reads those."""
    project = Project(tmp_path / "project")
    project.step("10_split", "flow.rows = [1, 2, 3]")
    for number in range(4):
        project.step(f"2{number}_part{number}", f"flow.sum = sum(flow.split.rows) + {number}")
    project.step("30_all", " + ".join(f"flow.part{number}.sum" for number in range(4)), "flow.total = 1")
    return project


def test_the_number_of_steps_at_once_changes_no_result(wide):
    found = [gives(wide.run(jobs=jobs, force=True)) for jobs in (1, 2, 16)]
    assert found[0] == found[1] == found[2] and len(found[0]) == 6


def spans(project):
    """Step -> when it began and ended, as the ledger has it."""
    with sqlite3.connect(project.workspace / "ledger.sqlite") as database:
        rows = database.execute("SELECT step, started, ended FROM run_steps").fetchall()
    return {step: (unix_time(started), unix_time(ended)) for step, started, ended in rows}


def test_independent_steps_overlap_and_dependent_ones_do_not(tmp_path):
    project = Project(tmp_path / "project")
    project.step("10_a", MEET.format("a", "b"), "flow.x = 1")
    project.step("20_b", MEET.format("b", "a"), "flow.x = 2")
    project.step("30_c", "flow.y = flow.a.x + flow.b.x")
    assert project.run(jobs=2).exit_code == 0
    found = spans(project)
    assert found["a"][0] < found["b"][1] and found["b"][0] < found["a"][1]
    assert found["c"][0] >= max(found["a"][1], found["b"][1])


def test_kernels_share_the_cores(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.endswith("_NUM_THREADS") or name == "OMP_WAIT_POLICY"]:
        monkeypatch.delenv(name)
    project = Project(tmp_path / "project")
    tell = "import json, os\nflow.told = json.dumps([os.environ['OMP_NUM_THREADS'], os.environ['OMP_WAIT_POLICY']])"
    for name in ("10_a", "20_b"):
        project.step(name, tell)
    for jobs in (1, 2):
        document = project.run(jobs=jobs, force=True).document
        for step in document["steps"]:
            digest = step["artifacts"]["told"]["sha256"]
            told = json.loads(json.loads((project.workspace / "objects" / digest[:2] / digest).read_bytes()))
            assert told == [str(max(1, available_cores() // jobs)), "PASSIVE"]


def test_steps_that_need_much_memory_run_one_after_the_other(tmp_path):
    project = Project(tmp_path / "project")
    for name in ("10_a", "20_b"):
        project.step(name, "import time\ntime.sleep(0.3)", "flow.x = 1")
    assert project.run(jobs=2).exit_code == 0
    history = slots.History(project.workspace / "cache/history.json")
    for step in ("churn.a", "churn.b"):
        assert history.known[step]["peak"] > 1e6
        history.remember(step, 1.0, 0.8 * slots.free_memory())  # other tests may give memory back meanwhile
    assert project.run(jobs=2, force=True).exit_code == 0
    with sqlite3.connect(project.workspace / "ledger.sqlite") as database:
        rows = database.execute(
            "SELECT started, ended FROM run_steps "
            "WHERE run_id = (SELECT id FROM runs ORDER BY started DESC LIMIT 1) ORDER BY started"
        ).fetchall()
    assert rows[1][0] >= rows[0][1]


def test_a_failure_lets_what_runs_finish_and_skips_the_rest(tmp_path):
    project = Project(tmp_path / "project")
    project.step("10_bad", MEET.format("a", "b"), "flow.x = 1 / 0")
    after = "import glob\nwhile not glob.glob('.mlops/attempts/*/bad/error.json'):\n    time.sleep(0.01)"
    project.step("20_good", MEET.format("b", "a"), after, "flow.x = 2")
    project.step("30_after_bad", "flow.y = flow.bad.x")
    project.step("40_after_good", "flow.y = flow.good.x")
    result = project.run(jobs=2)
    assert (result.exit_code, result.document["status"]) == (1, "failed")
    assert states(result) == {"bad": "failed", "good": "done", "after_bad": "skipped", "after_good": "skipped"}
    project.step("10_bad", "flow.x = 1")
    assert states(project.run()) == {"bad": "done", "good": "cached", "after_bad": "done", "after_good": "done"}


def test_an_interrupt_ends_two_running_steps(tmp_path):
    project = Project(tmp_path / "project")
    for name, mine, other in (("10_a", "a", "b"), ("20_b", "b", "a")):
        project.step(name, MEET.format(mine, other), f"open('{mine}2', 'w').close()\ntime.sleep(600)", "flow.x = 1")
    process = project.start(jobs=2)
    wait_for(lambda: all((project.folder / name).exists() for name in ("a2", "b2")))
    process.send_signal(signal.SIGINT)
    code, document = finish(process)
    assert (code, document["status"]) == (130, "interrupted")
    assert states(document) == {"a": "failed", "b": "failed"}
    wait_for(lambda: not kernels_of(project.folder))
    for step in document["steps"]:
        executed = json.loads((project.folder / step["notebook"]).read_text(encoding="utf-8"))
        assert "KeyboardInterrupt" in json.dumps(executed["cells"])
    assert {step["state"] for step in project.ledger.run(document["run"])["steps"]} == {"failed"}
