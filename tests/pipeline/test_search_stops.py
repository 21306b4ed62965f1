"""A search that is killed, interrupted, pruned or run twice loses nothing."""

import signal
import sqlite3

import pytest
from pipeline_support import Project, finish, stop, wait_for
from search_support import LOSS, RATE, Heard, events, search, start_search, write_churn

SLOW = "import time; time.sleep(0.5)"


@pytest.fixture
def project(tmp_path):
    made = Project(tmp_path / "project")
    write_churn(made, SLOW, LOSS)
    return made


def test_a_search_that_was_killed_goes_on_where_it_was(project):
    process = start_search(project, trials=5)
    wait_for(lambda: len(events(project, "trial")) == 2, 90)
    wait_for(lambda: len([e for e in events(project, "step_started") if e["step"] == "train"]) == 3, 90)
    stop(process)
    heard = Heard()
    found = search(project, trials=5, reporter=heard)
    assert any("tried again" in text for text in heard.warnings)
    trials = found.document["trials"]
    assert found.exit_code == 0
    assert [trial["state"] for trial in trials] == ["ok", "ok", "interrupted", "ok", "ok", "ok"]
    assert trials[3]["parameters"] == trials[2]["parameters"]
    with sqlite3.connect(project.workspace / "search.sqlite") as database:
        assert database.execute("SELECT count(*) FROM trials WHERE state = 'RUNNING'").fetchone() == (0,)
    with project.ledger as ledger:
        assert {run["status"] for run in ledger.runs(status="running")} == set()


def test_an_interrupted_search_keeps_the_best_and_goes_on(project):
    process = start_search(project, trials=4)
    wait_for(lambda: len(events(project, "trial")) == 2, 90)
    process.send_signal(signal.SIGINT)
    code, document = finish(process)
    assert code == 130 and document["status"] == "interrupted"
    assert document["best"]["value"] is not None
    assert "same command" in document["error"]["hint"]
    again = search(project, trials=4).document
    assert [trial["state"] for trial in again["trials"]].count("ok") == 4
    assert again["trials"][:2] == document["trials"][:2]


def test_two_searches_share_one_study(project):
    first = start_search(project, trials=6, events=str(project.folder / "first"))
    wait_for(lambda: events(project, "trial", "first"), 90)
    second = start_search(project, trials=6, events=str(project.folder / "second"))
    documents = [finish(one, 120)[1] for one in (first, second)]
    assert any("Another search" in event["text"] for event in events(project, "warning", "second"))
    here = [len(events(project, "trial", name)) for name in ("first", "second")]
    assert min(here) > 0 and sum(here) in (6, 7)  # the last one may be begun by both
    last = max(documents, key=lambda one: sum(trial["state"] == "ok" for trial in one["trials"]))
    values = [str(trial["parameters"]) for trial in last["trials"]]
    assert len(set(values)) == len(values)


CURVE = """
import time
for step in range(8):
    log(loss=abs(rate - 0.1) + 1 / (step + 1), step=step)
    time.sleep(0.15)
"""


def test_a_trial_that_lags_behind_is_stopped(project):
    write_churn(project, CURVE, "flow.metrics = Metrics({'loss': abs(rate - 0.1)})")
    heard = Heard()
    found = search(project, trials=12, prune_on="train.loss", reporter=heard)
    states = [trial["state"] for trial in found.document["trials"]]
    assert found.exit_code == 0 and states[:5] == ["ok"] * 5
    assert "pruned" in states and set(states) == {"ok", "pruned"}
    pruned = next(trial for trial in found.document["trials"] if trial["state"] == "pruned")
    assert pruned["value"] is None
    with project.ledger as ledger:
        run = ledger.run(pruned["run"])
    step = next(step for step in run["steps"] if step["step"] == "train")
    assert run["status"] == "interrupted" and "pruned: train.loss is" in step["error"]["message"]
    assert any("other trials were better" in (trial["why"] or "") for trial in heard.trials)


def test_pruning_by_what_nobody_logs_is_said(project):
    write_churn(project, LOSS)
    heard = Heard()
    search(project, trials=1, prune_on="train.lost", reporter=heard)
    assert heard.warnings == ["No trial was pruned: step 'train' logged no 'lost'."]


def test_a_disk_that_fails_in_the_middle_ends_the_search_and_keeps_what_was_found(project, monkeypatch):
    from sqlalchemy.exc import OperationalError

    from mlops_nb.pipeline.study import OpenStudy

    ask, asked = OpenStudy._drawn_trial, []

    def full(self, wanted):
        asked.append(wanted)
        if len(asked) == 3:
            raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
        return ask(self, wanted)

    write_churn(project, LOSS)
    monkeypatch.setattr(OpenStudy, "_drawn_trial", full)
    found = search(project, trials=4)
    assert found.exit_code == 2 and found.document["error"]["type"] == "StorageError"
    assert "disk is full" in found.document["error"]["message"]
    assert len(found.document["trials"]) == 2 and found.document["best"]
    assert len(search(project, trials=4).document["trials"]) == 4


def test_a_step_may_take_a_while_to_fail_in_parallel(project):
    write_churn(project, SLOW, "if rate < 0.005:\n    raise ValueError(rate)", LOSS, parameters=RATE)
    found = search(project, trials=8, jobs=2)
    assert found.exit_code == 0 and len(found.document["trials"]) == 8
    assert {trial["state"] for trial in found.document["trials"]} <= {"ok", "failed"}
