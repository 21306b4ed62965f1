"""What a collector takes and what it leaves, also when it is killed, doubled, or meets a run."""

import json
import os
import shutil
import signal
import sqlite3
import time

import pytest
from support import gives, states
from upkeep_support import Project, faults, object_of, run, start


def files(project: Project) -> set[str]:
    kept = {p.relative_to(project.workspace).as_posix() for p in project.workspace.rglob("*") if p.is_file()}
    return {name for name in kept if name.startswith(("objects/", "attempts/", "runs/", "scratch/", "tmp/"))}


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def test_nothing_goes_unless_it_is_said(demo):
    before = files(demo)
    told = demo.json("gc", "--keep-runs", "1")
    assert not told["deleted"] and told["attempts"] == 1 and told["bytes"] > 0
    assert files(demo) == before
    assert demo.json("gc", "--keep-days", "1", "--delete")["attempts"] == 0
    assert files(demo) == before


def test_recent_runs_and_what_they_reach_stay(demo, three_runs):
    first, second, failed = three_runs[1]
    told = demo.json("gc", "--keep-runs", "1", "--delete")
    assert set(told["kept"]) == {failed["run"], second["run"]}, "the newest, and the newest good one"
    assert told["results"] == 1
    assert not object_of(demo, gives(first)["train.metrics"]).exists()
    assert object_of(demo, gives(first)["make.numbers"]).exists(), "the later runs took it over"
    assert (demo.workspace / "attempts" / failed["run"] / "train" / "manifest.json").exists()
    assert (demo.folder / failed["steps"][1]["notebook"]).exists() and (
        demo.folder / first["steps"][0]["notebook"]
    ).exists()
    assert not (demo.folder / first["steps"][1]["notebook"]).exists()
    assert faults(demo) == []
    assert set(states(run(demo, "-p", "train.seed=1")).values()) == {"cached"}
    again = run(demo)
    assert states(again) == {"make": "cached", "train": "done"} and gives(again) == gives(first)
    assert demo.json("show", first["run"])["metrics"] == {"train.score": 3}, "numbers are history and stay"


def test_what_workers_left_goes_after_a_day(demo, three_runs):
    run = three_runs[1][-1]["run"]
    commit, copy = demo.workspace / "commits/3f2a/r.train.1.json", demo.workspace / f"attempts/{run}/train/0badf00d"
    for path in (commit, copy / "out/20_train.ipynb"):
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    assert demo.json("gc", "--delete")["copies"] == 0 and commit.exists()
    for path in (commit, *copy.rglob("*"), copy):
        os.utime(path, (time.time() - 90_000, time.time() - 90_000))
    assert demo.json("gc", "--delete")["copies"] == 2
    assert not commit.parent.exists() and not copy.exists() and (copy.parent / "manifest.json").exists()


def test_what_wandb_is_still_to_get_stays(demo, three_runs):
    first, second, failed = (found["run"] for found in three_runs[1])
    with sqlite3.connect(demo.workspace / "ledger.sqlite") as database:
        row = (first, "train", "written", "a1b2c3d4", "2026-11-28T00:00:00Z")
        database.execute("INSERT OR REPLACE INTO mirrors VALUES (?, ?, ?, ?, ?)", row)
    words = ("gc", "--keep-runs", "1", "--delete")
    assert demo.json(*words, MLOPS_NB_TRACKING_MODE="mirror")["kept"] == sorted([first, second, failed], reverse=True)
    assert (demo.workspace / "attempts" / first / "train").exists()
    with sqlite3.connect(demo.workspace / "ledger.sqlite") as database:
        row = (first, "train", "verified", 1, None, None, "2026-11-28T00:00:00Z")
        database.execute("INSERT OR REPLACE INTO deliveries VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    assert first not in demo.json(*words, MLOPS_NB_TRACKING_MODE="mirror")["kept"]


@pytest.mark.parametrize("point", ["before-collect", "while-collecting", "while-collecting:3"])
def test_killed_while_collecting(demo, three_runs, point):
    for name in ("objects/.incoming.0a.tmp", "runs/.x.ipynb.1b.tmp", "cache/.files.json.2c"):
        (demo.workspace / name).write_text("half")
    words = ("gc", "--keep-runs", "0", "--delete")
    assert demo.call("mlops-nb", *words, MLOPS_NB_FAULT=point).returncode == -signal.SIGKILL
    assert faults(demo) == []
    demo.json(*words)
    assert faults(demo) == [] and not [path for path in demo.workspace.rglob(".*") if path.name != ".gitignore"]
    told = demo.json(*words)
    assert not any(
        told[name] for name in ("objects", "runs", "attempts", "notebooks", "temporaries", "results", "bytes")
    )
    assert gives(run(demo)) == gives(three_runs[1][0])


def test_two_collectors_at_once(demo):
    ended = [start(demo, "gc", "--keep-runs", "0", "--delete", "--json") for _ in range(2)]
    codes = [process.wait(60) for process in ended]
    assert sorted(codes) in ([0, 0], [0, 4])
    assert faults(demo) == [] and demo.json("gc", "--keep-runs", "0")["objects"] == 0


def test_a_run_keeps_collectors_away(demo):
    (demo.folder / "started").unlink()
    process = start(demo, "run", "demo", "--json", "-p", "make.wait=go", "-p", "make.rows=5")
    wait_for((demo.folder / "started").exists)
    refused = demo.json("gc", "--keep-runs", "0", "--delete", expect=4)["error"]
    assert refused["type"] == "Busy" and "is going on" in refused["message"] and refused["hint"]
    demo.json("gc", "--keep-runs", "0")
    (demo.folder / "go").touch()
    out, err = process.communicate(timeout=120)
    document = json.loads(out)
    assert process.returncode == 0, err
    demo.json("gc", "--keep-runs", "0", "--delete")
    assert faults(demo) == []
    assert set(states(run(demo, "-p", "make.wait=go", "-p", "make.rows=5")).values()) == {"cached"}
    assert document["run"] in [found["run"] for found in demo.json("runs")["runs"]]


def test_runs_and_collectors_in_turns(demo, three_runs):
    words = ("gc", "--keep-runs", "0", "--delete", "--json")
    running = [start(demo, "run", "demo", "--json", "-p", f"train.seed={seed}") for seed in (7, 8)]
    codes = []
    while any(process.poll() is None for process in running):
        codes.append(demo.call("mlops-nb", *words).returncode)
    assert set(codes) <= {0, 4} and [process.wait() for process in running] == [0, 0]
    assert faults(demo) == []
    assert gives(run(demo)) == gives(three_runs[1][0])


def test_a_killed_run_does_not_keep_them_away(demo):
    (demo.folder / "started").unlink()
    process = start(demo, "run", "demo", "-p", "make.wait=never", "-p", "make.rows=6")
    wait_for((demo.folder / "started").exists)
    process.kill()
    process.wait()
    told = demo.json("gc", "--keep-runs", "0", "--delete")
    assert told["deleted"] and faults(demo) == []


def test_a_lost_ledger_stops_it(demo, three_runs):
    for name in ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"):
        (demo.workspace / name).unlink(missing_ok=True)
    before = files(demo)
    assert "no ledger" in demo.json("gc", "--delete", expect=2)["error"]["message"]
    run(demo)
    error = demo.json("gc", "--keep-runs", "0", "--delete", expect=2)["error"]
    assert "3 runs" in error["message"] and "fsck --rebuild" in error["hint"]
    assert before <= files(demo)
    demo.json("fsck", "--rebuild")
    assert len(demo.json("runs")["runs"]) == 4
    demo.json("gc", "--keep-runs", "0", "--delete")
    assert faults(demo) == []


def test_scratch_stays_for_a_day(demo, three_runs):
    kept = gives(three_runs[1][0])["train.metrics"]
    for step, days in (("make", 0), ("train", 2)):
        folder = demo.workspace / "scratch" / "demo" / step
        folder.mkdir(parents=True)
        record = {"type": "Metrics", "sha256": kept, "size": 11, "meta": {}, "at": time.time()}
        (folder / "manifest.json").write_text(json.dumps({"gives": {"metrics": record} if not days else {}}))
        for path in (folder / "manifest.json", folder):
            os.utime(path, (time.time() - days * 86400,) * 2)
    assert demo.json("gc", "--keep-runs", "1", "--delete")["scratch"] == 1
    assert object_of(demo, kept).exists() and (demo.workspace / "scratch/demo/make").exists()
    assert not (demo.workspace / "scratch/demo/train").exists()


def test_wrong_words(demo):
    assert demo.json("gc", "--keep-runs", "1", "--keep-days", "1", expect=2)["error"]["type"] == "UsageError"
    shutil.rmtree(demo.workspace)
    told = demo.json("gc", "--delete")
    assert told["objects"] == 0 and not demo.workspace.exists()


def test_registered_models_stay(default_run, tmp_path):
    project = default_run[0].copy(tmp_path / "workspace")
    project.run("-p", "package.name=second", "--to", "split")
    told = project.json("gc", "--keep-runs", "0", "--delete")
    assert default_run[1]["run"] in told["kept"]
    assert faults(project) == []
    again = project.run()
    assert set(states(again).values()) == {"cached"} and again["models"] == default_run[1]["models"]
