"""Results: one transaction, one winner, and found again in microseconds."""

import signal
import threading

import pytest

from mlops_nb.core.errors import UsageError
from mlops_nb.core.ledger import Ledger

COMMIT = """
import sys, time
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
ledger = Ledger.open(load_settings(sys.argv[1], environ={}))
run = sys.argv[2]
ledger.begin_run(run, "tabular", {})
manifest = {"gives": {"model": {"type": "Model", "sha256": run, "size": 1, "meta": {}}}, "metrics": {"auc": 0.5}}
points = [{"t": float(n), "step": n, "values": {"loss": 1 / (n + 1)}} for n in range(20)]
print("ready", flush=True)
sys.stdin.readline()
for number in range(100):
    winner = ledger.commit_step(run, "train", key=f"k{number}", parts={}, manifest=manifest, points=points)
    print(winner["manifest"]["gives"]["model"]["sha256"], winner["won"], flush=True)
"""


def manifest(digest="aa", **metrics):
    return {"gives": {"model": {"type": "Model", "sha256": digest, "size": 3, "meta": {"n": 1}}}, "metrics": metrics}


@pytest.fixture
def ledger(settings):
    """A ledger with two runs going on."""
    with Ledger.open(settings) as ledger:
        ledger.begin_run("run-1", "tabular", {})
        ledger.begin_run("run-2", "tabular", {})
        yield ledger


def counts(ledger):
    tables = ("results", "artifacts", "points", "metrics", "run_steps")
    return {table: ledger.database.rows(f"SELECT count(*) AS n FROM {table}")[0]["n"] for table in tables}


def test_of_two_that_compute_the_same_one_wins(settings, ledger, start_python, finish):
    processes = [start_python(COMMIT, settings.project, name) for name in ("a", "b")]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    first, second = ([line.split() for line in out.splitlines()] for out in finish(*processes))
    assert [digest for digest, _ in first] == [digest for digest, _ in second]
    assert all({one[1], other[1]} == {"True", "False"} for one, other in zip(first, second, strict=True))
    assert counts(ledger)["results"] == counts(ledger)["artifacts"] == 100
    assert counts(ledger)["points"] == 2000


def test_a_kill_during_commits_leaves_whole_results(settings, ledger, start_python):
    process = start_python(COMMIT, settings.project, "a")
    process.stdout.readline()
    process.stdin.write("go\n")
    process.stdin.flush()
    for _ in range(10):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = counts(ledger)
    assert found["results"] >= 10
    assert found["artifacts"] == found["results"]
    assert found["points"] == 20 * found["results"]
    assert ledger.database.problems() == [] and ledger.database.lost() == {}


def test_a_commit_that_fails_leaves_nothing(ledger):
    bad = {"gives": {"model": {"type": "Model", "sha256": None, "size": 3}}, "metrics": {}}
    with pytest.raises(Exception, match=r"(?i)not.null"):
        ledger.commit_step("run-1", "train", key="k", parts={}, manifest=bad)
    assert set(counts(ledger).values()) == {0}


def test_committing_twice_is_committing_once(ledger):
    points = [{"t": 1.0, "values": {"loss": 0.5}}]
    for _ in range(2):
        ledger.commit_step("run-1", "train", key="k", parts={}, manifest=manifest(auc=0.9), points=points)
    assert set(counts(ledger).values()) == {1}


def test_a_commit_needs_its_run(ledger):
    with pytest.raises(UsageError, match="no run run-9"):
        ledger.commit_step("run-9", "train", key="k", parts={}, manifest=manifest())


def test_begun_facts_stay_and_given_ones_change(ledger):
    ledger.begin_step("run-1", "train", position=40, key="k", reasons=["never ran"], attempt="attempts/run-1/train")
    ledger.commit_step("run-1", "train", key="k", parts={}, manifest=manifest(), seconds=2.5, notebook="runs/t.ipynb")
    (step,) = ledger.run("run-1")["steps"]
    assert (step["position"], step["reasons"], step["attempt"]) == (40, ["never ran"], "attempts/run-1/train")
    assert (step["state"], step["seconds"], step["notebook"]) == ("done", 2.5, "runs/t.ipynb")
    assert step["artifacts"] == {"model": {"type": "Model", "sha256": "aa", "size": 3, "meta": {"n": 1}}}


def test_a_step_that_failed_and_then_worked_has_no_error(ledger):
    ledger.begin_step("run-1", "train", position=40, key="k", reasons=[])
    ledger.fail_step("run-1", "train", error={"message": "no"})
    ledger.commit_step("run-1", "train", key="k", parts={}, manifest=manifest())
    (step,) = ledger.run("run-1")["steps"]
    assert (step["state"], step["error"]) == ("done", None)


def test_many_keys_are_found_at_once(ledger):
    for number in range(3):
        ledger.commit_step("run-1", "train", key=f"k{number}", parts={}, manifest=manifest(auc=number), notebook="n")
    found = ledger.find_results([f"k{number}" for number in range(1200)])
    assert sorted(found) == ["k0", "k1", "k2"]
    assert found["k2"] == {
        "key": "k2",
        "step": "train",
        "pipeline": "tabular",
        "manifest": manifest(auc=2),
        "metrics": {"auc": 2},
        "notebook": "n",
        "seconds": None,
        "run": "run-1",
        "created": found["k2"]["created"],
    }
    assert ledger.find_results([]) == {}


def test_last_parts_are_those_of_the_newest_good_result(ledger):
    variant = {"train.model": "forest"}
    ledger.commit_step("run-1", "train", key="k1", parts={"seed": 1}, manifest=manifest())
    ledger.commit_step("run-1", "tune", key="k2", parts={"seed": 2}, manifest=manifest(), variant=variant)
    ledger.commit_step("run-2", "train", key="k3", parts={"seed": 3}, manifest=manifest())
    ledger.begin_run("run-3", "tabular", {})
    ledger.begin_step("run-3", "train", position=1, key="k4", reasons=[])
    ledger.fail_step("run-3", "train", error={})
    assert ledger.last_parts("tabular", "train") == {"seed": 3}
    assert ledger.last_parts("tabular", "tune", variant) == {"seed": 2}
    assert ledger.last_parts("tabular", "tune") is None
    assert ledger.last_parts("other", "train") is None
    ledger.commit_step("run-3", "train", key="k1", parts={}, manifest=manifest(), cached=True)
    assert ledger.last_parts("tabular", "train") == {"seed": 1}


def test_odd_numbers_of_curves_are_kept_as_missing(ledger):
    points = [{"t": 1.0, "step": None, "values": {"loss": float("nan"), "lr": 0.1}}]
    ledger.commit_step("run-1", "train", key="k", parts={}, manifest=manifest(), points=points)
    assert ledger.points("run-1", "train") == [{"t": 1.0, "step": None, "values": {"loss": None, "lr": 0.1}}]


def test_threads_have_their_own_connections(ledger):
    errors = []

    def write(name):
        try:
            for number in range(20):
                key = f"{name}{number}"
                ledger.commit_step("run-1", name, key=key, parts={}, manifest=manifest(auc=number))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("x", "y", "z")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert counts(ledger)["results"] == 60
    assert counts(ledger)["metrics"] == 3, "one metric for each step of the run"
