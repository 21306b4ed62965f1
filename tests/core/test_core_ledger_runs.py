"""Runs: their status survives any crash, and many processes can write at once."""

import os
import signal
import sqlite3
import subprocess
import time

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as options
from hypothesis import strategies as st

from mlops_nb.core.errors import Busy, UsageError
from mlops_nb.core.ledger import Ledger, leases
from mlops_nb.core.ledger.database import now, unix_time
from mlops_nb.core.locks import wait_until

RUN = """
import sys
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
ledger = Ledger.open(load_settings(sys.argv[1], environ={}))
ledger.begin_run("run-1", "tabular", {"train.model": "forest"})
ledger.begin_step("run-1", "train", position=40, key="k1", reasons=["never ran"])
lease = ledger.try_lease("k1", "run-1")
print("there", flush=True)
sys.stdin.readline()
"""

MANY = """
import sys
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
ledger = Ledger.open(load_settings(sys.argv[1], environ={}))
manifest = {"gives": {}, "metrics": {"auc": 0.5}}
for number in range(15):
    run = f"{sys.argv[2]}-{number:02d}"
    ledger.begin_run(run, "tabular", {"train.seed": number})
    ledger.begin_step(run, "train", position=40, key=run, reasons=[])
    ledger.commit_step(run, "train", key=f"k{number}", parts={"number": number}, manifest=manifest)
    ledger.end_run(run, "ok")
ledger.close()
"""


@pytest.fixture
def ledger(settings):
    """The ledger of an empty project."""
    with Ledger.open(settings) as ledger:
        yield ledger


def test_a_killed_run_reads_as_crashed_at_once(settings, ledger, start_python):
    process = start_python(RUN, settings.project)
    assert process.stdout.readline() == "there\n"
    assert ledger.runs()[0]["status"] == "running"
    assert ledger.try_lease("k1", "run-2") is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    (run,) = ledger.runs()
    assert run["status"] == "crashed"
    assert run["parameters"] == {"train.model": "forest"}
    assert ledger.runs(status="running") == []
    step = ledger.run("run-1")["steps"][0]
    assert (step["state"], step["error"]["type"]) == ("failed", "Crashed")
    lease = ledger.try_lease("k1", "run-2")
    assert lease is not None
    assert ledger.reap() == ["run-1"]
    assert ledger.database.rows("SELECT status FROM runs") == [{"status": "crashed"}]
    assert ledger.database.rows("SELECT state FROM run_steps") == [{"state": "failed"}]
    assert ledger.lease_holder("k1")["run_id"] == "run-2", "the lease of the next run stays"
    assert ledger.runs(status="crashed")[0]["run"] == "run-1"


def test_a_waiting_run_gets_the_lease_of_a_killed_one(settings, ledger, start_python):
    process = start_python(RUN, settings.project)
    process.stdout.readline()
    waited = []

    def kill(holder):
        waited.append(holder["pid"])
        process.send_signal(signal.SIGKILL)

    with ledger.lease("k1", "run-2", timeout=20, on_wait=kill):
        assert waited == [process.pid]
        assert ledger.lease_holder("k1")["pid"] == os.getpid()


def test_many_processes_write_at_once(settings, ledger, start_python, finish):
    finish(*(start_python(MANY, settings.project, name) for name in "abc"))
    runs = ledger.runs(limit=100)
    assert len(runs) == 45
    assert {run["status"] for run in runs} == {"ok"}
    assert all(run["metrics"] == {"train.auc": 0.5} for run in runs)
    assert ledger.database.rows("SELECT count(*) AS n FROM results") == [{"n": 15}], "equal keys have one result"
    assert ledger.database.problems() == [] and ledger.database.lost() == {}


def test_parameters_and_metrics_are_rows_for_everyone(settings, ledger, where):
    ledger.begin_run("run-1", "tabular", {"train.model": "forest", "train.max_iter": 200, "split.by": None})
    manifest = {"gives": {}, "metrics": {"roc_auc": 0.99}}
    ledger.commit_step("run-1", "evaluate", key="k", parts={}, manifest=manifest)
    query = (
        "SELECT step, name, value, number FROM run_parameters WHERE run_id = 'run-1' AND name <> 'by' "
        "UNION ALL SELECT step, name, value, value FROM metrics ORDER BY 2"
    )
    expected = [
        ("train", "max_iter", "200", 200.0),
        ("train", "model", "forest", None),
        ("evaluate", "roc_auc", 0.99, 0.99),
    ]
    if where:
        import psycopg

        query = query.replace(
            "step, name, value, value FROM metrics", "step, name, CAST(value AS text), value FROM metrics"
        )
        with psycopg.connect(where) as reader:
            assert reader.execute(query).fetchall() == [*expected[:2], ("evaluate", "roc_auc", "0.99", 0.99)]
    else:
        assert sqlite3.connect(settings.workspace.path / "ledger.sqlite").execute(query).fetchall() == expected


def test_the_sqlite_shell_reads_it(file_settings):
    with Ledger.open(file_settings) as ledger:
        ledger.begin_run("run-1", "tabular", {"train.model": "forest"})
    command = ["sqlite3", str(ledger.database.path), "SELECT step, name, value FROM run_parameters"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("no sqlite3 command here")
    assert done.stdout == "train|model|forest\n"


values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
names = st.from_regex(r"[a-z]{1,8}\.[a-z_]{1,8}", fullmatch=True)


@given(parameters=st.dictionaries(names, values | st.lists(values, max_size=3), max_size=5))
@options(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parameters_come_back_with_their_types(ledger, parameters):
    run = f"run-{len(ledger.runs(limit=1000))}"
    ledger.begin_run(run, "tabular", parameters)
    found = ledger.run(run)["parameters"]
    assert found == parameters
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in parameters.items()
    }
    ledger.end_run(run, "ok")


def test_a_run_tells_all_that_is_known(ledger):
    facts = {"command": ["mlops-nb", "run", "tabular"], "git": {"commit": "3f2a", "dirty": True}}
    ledger.begin_run("sweep", "tabular", {})
    ledger.begin_run("child", "tabular", {}, parent="sweep", sources={"nbs/a.ipynb": "aa"}, **facts)
    run = ledger.run("child")
    assert (run["parent"], run["sources"]) == ("sweep", {"nbs/a.ipynb": "aa"})
    assert {name: run[name] for name in facts} == facts
    assert run["pid"] == os.getpid() and run["host"] and run["user"] and run["python"].startswith("3.")
    assert ledger.run("sweep")["children"] == ["child"]


def test_steps_tell_what_became_of_them(ledger):
    ledger.begin_run("run-1", "tabular", {})
    ledger.begin_step("run-1", "train", position=40, key="k", reasons=["forced"], variant={"train.model": "forest"})
    ledger.fail_step("run-1", "train", error={"type": "StepFailed", "message": "no"}, seconds=1.5, notebook="t.ipynb")
    ledger.skip_step("run-1", "evaluate", position=50, reasons=["train failed"])
    ledger.end_run("run-1", "failed", error={"type": "StepFailed", "message": "no"})
    train, evaluate = ledger.run("run-1")["steps"]
    assert train | {"error": None} == {
        "id": "run-1/train",
        "step": "train",
        "variant": {"train.model": "forest"},
        "position": 40,
        "state": "failed",
        "reasons": ["forced"],
        "seconds": 1.5,
        "notebook": "t.ipynb",
        "artifacts": {},
        "metrics": {},
        "error": None,
        "key": "k",
        "attempt": None,
        "attempts": 0,
        "findings": [],
    }
    assert train["error"]["message"] == "no"
    assert (evaluate["state"], evaluate["reasons"]) == ("skipped", ["train failed"])
    assert ledger.run("run-1")["status"] == "failed"


def test_an_ended_run_stays_as_it_is(ledger):
    ledger.begin_run("run-1", "tabular", {})
    ledger.begin_step("run-1", "train", position=1, key=None, reasons=[])
    ledger.end_run("run-1", "interrupted")
    ledger.end_run("run-1", "ok")
    run = ledger.run("run-1")
    assert run["status"] == "interrupted"
    assert run["steps"][0]["state"] == "failed"
    with pytest.raises(UsageError, match="cannot end as 'fine'"):
        ledger.end_run("run-1", "fine")
    with pytest.raises(UsageError, match="There is a run run-1 already"):
        ledger.begin_run("run-1", "tabular", {})


def test_runs_are_filtered_and_newest_first(ledger):
    for number, (pipeline, status) in enumerate([("a", "ok"), ("b", "ok"), ("a", "failed"), ("a", "ok")]):
        ledger.begin_run(f"run-{number}", pipeline, {})
        ledger.end_run(f"run-{number}", status)
    ids = [run["run"] for run in ledger.runs()]
    assert ids == ["run-3", "run-2", "run-1", "run-0"]
    assert [run["run"] for run in ledger.runs(pipeline="a", status="ok")] == ["run-3", "run-0"]
    assert len(ledger.runs(limit=2)) == 2
    assert [run["run"] for run in ledger.runs(limit=1, among=["run-0", "run-1", "run-9"])] == ["run-1"]
    assert ledger.runs(among=[]) == []
    assert ledger.latest_run("a") == "run-3"
    assert ledger.latest_run("a", "failed") == "run-2"
    assert ledger.latest_run("c") is None
    with pytest.raises(UsageError, match="status 'okay'"):
        ledger.runs(status="okay")


@pytest.mark.parametrize("text", ["%", "_", "run-%", "' OR 1=1 --", ""])
def test_odd_run_ids_find_nothing_by_accident(ledger, text):
    for run in ("run-1", "run-2"):
        ledger.begin_run(run, "tabular", {})
    with pytest.raises(UsageError, match=r"There is no run|2 runs start with"):
        ledger.run(text)


def test_the_heart_beats_for_runs_and_leases(settings):
    with Ledger.open(settings) as ledger:
        ledger.heart.pause = 0.02
        ledger.begin_run("run-1", "tabular", {})
        lease = ledger.try_lease("k", "run-1")
        first = ledger.database.rows("SELECT r.heartbeat AS r, l.heartbeat AS l FROM runs r, leases l")[0]

        def later():
            beat = ledger.database.rows("SELECT r.heartbeat AS r, l.heartbeat AS l FROM runs r, leases l")[0]
            return beat["r"] > first["r"] and beat["l"] > first["l"]

        assert wait_until(later, 10)
        lease.release()
        ledger.end_run("run-1", "ok")
        assert ledger.heart.error is None


def test_a_closed_ledger_opens_again_when_it_is_used(settings):
    ledger = Ledger.open(settings)
    ledger.heart.pause = 0.02
    beats = "SELECT count(*) AS n FROM runs WHERE heartbeat > started"
    for number in range(2):
        ledger.begin_run(f"run-{number}", "tabular", {})
        assert wait_until(lambda wanted=number + 1: ledger.database.rows(beats) == [{"n": wanted}], 10)
        ledger.end_run(f"run-{number}", "ok")
        ledger.close()


def test_an_interrupted_transaction_leaves_the_connection_usable(ledger):
    with pytest.raises(KeyboardInterrupt), ledger.database.transaction() as execute:
        execute("INSERT INTO events (at, actor, kind, subject, details) VALUES ('', '', '', '', '')")
        raise KeyboardInterrupt
    ledger.add_event("kind", "subject")
    assert len(ledger.events()) == 1


def test_a_run_of_another_machine_is_judged_by_its_heartbeat(ledger, monkeypatch):
    ledger.begin_run("run-1", "tabular", {})
    with ledger.database.transaction() as execute:
        execute("UPDATE runs SET boot = 'another', host = 'another', started = :old", old=now(time.time() - 500))
    assert ledger.runs()[0]["status"] == "running"
    old = now(time.time() - leases.STALE - 1)
    monkeypatch.setattr(leases, "STALE", 0.5)  # no server of these tests has been there for longer
    with ledger.database.transaction() as execute:
        execute("UPDATE runs SET heartbeat = :old", old=old)
    (run,) = ledger.runs()
    assert run["status"] == "crashed"
    assert 370 < run["seconds"] < 390, "it lived from its start to its last heartbeat"
    ledger.reap()
    assert ledger.run("run-1")["ended"] == old


def test_waiting_for_a_lease_has_an_end(ledger):
    with (
        ledger.lease("k1", "run-1"),
        pytest.raises(Busy, match=r"run run-1 .* still computing the result k1") as caught,
    ):
        ledger.lease("k1", "run-2", timeout=0.2)
    assert caught.value.exit_code == 4


def test_times_are_utc_and_sort():
    moments = [0.0, 1.5, 1_790_000_000.123456, time.time()]
    texts = [now(moment) for moment in moments]
    assert texts == sorted(texts)
    assert [round(unix_time(text), 5) for text in texts] == [round(moment, 5) for moment in moments]
