"""Real runs, seen by W&B's own reader: steps that log by themselves, sweeps, and ways in which a step ends badly."""

import json

import pytest
from track_support import inspect, new_project, parts, summary, write_step

OWN = """
import wandb
run = wandb.init(config={"depth": depth})
for loss in (0.9, 0.4):
    wandb.log({"loss": loss})
"""
PLAIN = """
from mlops_nb import Metrics, flow, log, note
import sys
for step in range(3):
    log(step=step, error=1 / (step + 1))
note("few rows", "size")
flow.metrics = Metrics({"auc": 0.9})
assert "wandb" not in sys.modules or own
"""


@pytest.mark.parametrize("engine", ["fork", "kernel"])
def test_a_notebook_that_logs_to_w_and_b_by_itself_shares_the_run_with_the_mirror(tmp_path, engine):
    project = new_project(tmp_path, f"[pipeline]\nengine = {engine}\n")
    write_step(project, "own", "10_train", "#| parameters\ndepth: int = 3  # of trees", "own = True", OWN, PLAIN)
    write_step(project, "own", "20_rest", "own = False\nfrom mlops_nb import flow\nflow.train.metrics", PLAIN)
    run = project.json("run", "own", WANDB_MODE="online", WANDB_RUN_ID="mine")["run"]
    by_step, by_mirror = (inspect(part, "--summary") for part in parts(project, run, "train"))
    assert by_step["run_id"] == by_mirror["run_id"] == f"{run}-train"
    assert by_step["config"] == {"depth": 3} and by_step["summary"]["loss"] == 0.4
    assert by_step["state"] == by_mirror["state"] == "finished"
    assert by_mirror["summary"]["error"] == 1 / 3 and by_mirror["summary"]["auc"] == 0.9
    rows = [r["history"]["item"]["_step"] for p in parts(project, run, "train") for r in inspect(p) if "history" in r]
    assert rows == list(range(6)), "each step of history once, and in order"
    groups = {r["run"]["run_group"] for p in parts(project, run, "train") for r in inspect(p) if "run" in r}
    assert groups == {run} and len(parts(project, run, "rest")) == 1


def test_a_step_that_logs_by_itself_and_fails_keeps_its_curve(tmp_path):
    project = new_project(tmp_path)
    write_step(project, "own", "10_train", "depth = 3", OWN, "raise ValueError('too deep')")
    run = project.json("run", "own", expect=1)["run"]
    by_step, by_mirror = (inspect(part, "--summary") for part in parts(project, run, "train"))
    assert by_step["summary"]["loss"] == 0.4
    assert (by_mirror["state"], by_mirror["exit_code"]) == ("failed", 1)
    assert by_mirror["notes"].startswith("ValueError: too deep")


ENDS = {
    "refused": ("from mlops_nb import Refused\nraise Refused('auc is 0.4', 'Train longer.')", "failed", 3, ["refused"]),
    "killed": ("import os\nos.kill(os.getpid(), 9)", "failed", 137, ["killed"]),
    "crashed": ("import ctypes\nctypes.string_at(0)", "failed", 139, ["crashed"]),
    "memory": ("import time\nheld = bytearray(600_000_000)\ntime.sleep(20)", "failed", 137, ["out of memory"]),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_way_a_step_ends_is_seen(tmp_path, end):
    source, state, code, tags = ENDS[end]
    project = new_project(tmp_path, "[pipeline]\nmemory = 400\n" if end == "memory" else "")
    write_step(project, "ends", "10_train", "from mlops_nb import log\nlog(loss=0.5, step=7)", source)
    run = project.json("run", "ends", expect=3 if end == "refused" else 1)["run"]
    seen = summary(project, run, "train")
    assert (seen["state"], seen["exit_code"]) == (state, code), seen["notes"]
    assert seen["tags"] == ["ends", "failed", *tags] and seen["summary"]["loss"] == 0.5
    [alert] = [record["alert"] for record in inspect(parts(project, run, "train")[-1]) if "alert" in record]
    assert (alert["level"], alert["title"]) == ("ERROR", "ends train failed") and alert["text"] == seen["notes"]
    shown = project.call("python", "-c", f"from mlops_nb import curves; print(curves({run!r}))")
    assert "train loss, 1 points" in shown.stdout


def test_the_children_of_a_sweep_share_its_group(tmp_path):
    project = new_project(tmp_path)
    write_step(project, "grid", "10_train", "#| parameters\ndepth: int = 3  # of trees", "own = True", OWN, PLAIN)
    run = project.json("run", "grid", "--sweep", "train.depth=1,2")["run"]
    names, groups = set(), set()
    for folder in (project.workspace / "wandb").glob("offline-run-*"):
        [record, *_] = [record["run"] for record in inspect(folder) if "run" in record]
        names.add(record["display_name"])
        groups.add(record["run_group"])
    assert groups == {run} and len(names) == 2


def test_what_is_not_shared_is_a_reference_and_what_is_shared_can_be_seen(tmp_path):
    project = new_project(tmp_path)
    sources = [
        "#| parameters\ndepth: int = 3  # of trees",
        "import pandas as pd\nfrom mlops_nb import Metrics, flow, log\nlog(loss=0.5)",
        "flow.rows = pd.DataFrame({'income': [1234567, 7654321]})",
        "flow.metrics = Metrics({'auc': 0.9})\nflow.rest = {'a': 1}",
    ]
    write_step(project, "share", "10_train", *sources)
    [run, everything] = [
        project.json("run", "share", "--force", MLOPS_NB_TRACKING_SHARE=words)["run"]
        for words in ("parameters", "metrics, reports, tables, files")
    ]
    private, open_ = summary(project, run, "train"), summary(project, everything, "train")
    assert private["config"]["depth"] == 3 and not {"auc", "loss"} & set(private["summary"])
    assert "depth" not in open_["config"] and open_["summary"]["auc"] == 0.9
    assert open_["summary"]["tables/rows"]["nrows"] == 2 and "notebook" in open_["summary"]
    [folder] = parts(project, run, "train")
    written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert not any(b"1234567" in content or b"income" in content for content in written)
    contents = [
        content
        for record in inspect(folder)
        if "artifact" in record
        for content in record["artifact"]["manifest"]["contents"]
    ]
    assert len(contents) == 3 and all(item["ref"].startswith("mlops-nb://sha256/") for item in contents)
    assert "local_path" not in json.dumps(contents)
