"""Runs are deleted with their files, never what others need, and being killed in between does no harm."""

import signal
import subprocess
import sys

from support import gives, states
from test_gc import files, wait_for
from upkeep_support import faults, object_of, run, start

from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings


def deleted(project, *words, expect=0, **extra):
    return project.json("runs", "delete", *words, expect=expect, **extra)


def test_nothing_goes_unless_it_is_said_and_what_is_reused_stays(demo, three_runs):
    first, second, failed = three_runs[1]
    before = files(demo)
    told = deleted(demo, first["run"])
    assert not told["deleted"] and told["reused"] == 1 and told["bytes"] > 0 and files(demo) == before
    deleted(demo, first["run"], failed["run"], "--delete")
    assert [row["run"] for row in demo.json("runs")["runs"]] == [second["run"]]
    assert object_of(demo, gives(first)["make.numbers"]).exists()
    assert not object_of(demo, gives(first)["train.metrics"]).exists()
    assert (demo.folder / first["steps"][0]["notebook"]).exists()
    assert not (demo.folder / first["steps"][1]["notebook"]).exists()
    assert faults(demo) == []
    assert set(states(run(demo, "-p", "train.seed=1")).values()) == {"cached"}
    again = run(demo)
    assert states(again) == {"make": "cached", "train": "done"} and gives(again) == gives(first)
    assert "was deleted" in demo.json("show", first["run"], expect=2)["error"]["message"]


def test_the_event_outlives_the_run_and_the_ledger(demo, three_runs):
    first = three_runs[1][0]
    deleted(demo, first["run"], "--delete")
    assert demo.call("mlops-nb", "fsck", "--rebuild").returncode == 0
    with Ledger.open(load_settings(demo.folder, {})) as ledger:
        events = ledger.events(kind="run_deleted")
        assert [event["subject"] for event in events] == [first["run"]] and events[0]["details"]["status"] == "ok"
        assert first["run"] not in [row["run"] for row in ledger.runs()]
    assert faults(demo) == []


def test_old_runs_go_by_their_age_and_by_a_filter(demo, three_runs):
    failed = three_runs[1][2]
    assert deleted(demo, "--older-than", "1d")["runs"] == []
    assert deleted(demo, "--older-than", "0d", "--where", "status == 'failed'")["runs"] == [failed["run"]]
    assert deleted(demo, "--where", "status == 'faild'")["runs"] == []
    assert deleted(demo, expect=2)["error"]["message"].startswith("No run is named")
    assert "90m, 12h, 30d" in deleted(demo, "--older-than", "yesterday", expect=2)["error"]["hint"]


def test_a_run_that_goes_on_is_refused(demo, three_runs, tmp_path):
    (demo.folder / "started").unlink(missing_ok=True)
    going = start(demo, "run", "demo", "-p", f"make.wait={tmp_path / 'go'}", "--json")
    try:
        wait_for(lambda: (demo.folder / "started").exists())
        error = deleted(demo, "latest", "--delete", expect=4)["error"]
        assert "is going on" in error["message"]
        assert deleted(demo, "latest", expect=4)["error"]["type"] == "Busy"
    finally:
        (tmp_path / "go").touch()
        going.communicate(timeout=120)
    assert going.returncode == 0


def test_children_go_with_their_sweep(demo, three_runs):
    sweep = run(demo, "--sweep", "train.seed=7,8")
    told = deleted(demo, sweep["run"], "--delete")
    assert told["runs"] == [sweep["run"], *sweep["children"]]
    assert faults(demo) == [] and len(demo.json("runs")["runs"]) == 3


def test_a_deletion_that_was_killed_leaves_what_gc_collects(demo, three_runs):
    first = three_runs[1][0]
    done = subprocess.run(
        [sys.executable, "-m", "mlops_nb", "runs", "delete", first["run"], "--delete"],
        cwd=demo.folder,
        env={**demo.environment, "MLOPS_NB_FAULT": "before-collect"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert first["run"] not in [row["run"] for row in demo.json("runs")["runs"]]
    demo.json("gc", "--keep-runs", "9", "--delete")
    assert faults(demo) == [] and not (demo.folder / first["steps"][1]["notebook"]).exists()


def test_what_a_step_costs_is_measured_and_a_reused_one_costs_nothing(demo, three_runs):
    first, second, _ = three_runs[1]
    steps = {step["step"]: step["costs"] for step in demo.json("show", second["run"])["steps"]}
    assert steps["train"]["cpu_seconds"] > 0
    assert steps["make"]["cpu_seconds"] == 0 and steps["make"]["had_cost"]["cpu_seconds"] > 0
    assert steps["make"]["from"] == first["run"]
    assert "it had cost" in demo.call("mlops-nb", "show", second["run"], "make").stdout
    ordinary = run(demo, "-p", "train.seed=5", "--force", "--engine", "kernel")
    assert demo.json("show", ordinary["run"])["costs"]["cpu_seconds"] > 0
    watts = demo.json("runs", "--where", "watt_hours > 0", "-n", "1")["runs"][0]["costs"]["watt_hours"]
    assert 0 < watts < 10
