"""Leaderboards of ledgers that are odd: values that are no numbers, clocks that went back, disks that take nothing."""

import shutil
import subprocess
import time

import pytest
from support import Project, memory_disk

from mlops_nb.core.errors import StorageError, UsageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.ledger.database import now
from mlops_nb.core.ledger.query import Finder
from mlops_nb.core.settings import load_settings
from mlops_nb.track.annotate import tag_run
from mlops_nb.track.board import Board, Sources, gather, leaderboard


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A project with four runs: two have the metric, one lacks it, and of one it is infinite."""
    (tmp_path / "settings.ini").write_text("[package]\nname = demo\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    with Ledger.open(settings) as ledger:
        for number, value in enumerate([0.9, None, 0.5, 0.8]):
            enter(ledger, f"20261123-17050{number}-3f2a", number, {} if value is None else {"roc_auc": value})
        with ledger.database.transaction() as execute:  # no step can give it, other programs could
            execute("UPDATE metrics SET value = 9e999 WHERE value = 0.5")
    return settings


def enter(ledger: Ledger, run: str, seed: int, metrics: dict[str, float]) -> None:
    ledger.begin_run(run, "tabular", {"train.seed": seed, "train.model": "forest"})
    ledger.commit_step(run, "evaluate", key=run, parts={}, manifest={"gives": {}, "metrics": metrics})
    ledger.end_run(run, "ok")


def shown(table) -> list[str]:
    return [run["run"][14] for run in table]


def test_what_is_missing_or_infinite_stands_last_and_has_no_place(settings):
    table = leaderboard()
    assert shown(table)[:2] == ["0", "3"] and [row["#"] for row in table.rows] == [1, 2, None, None]
    assert shown(leaderboard(where="roc_auc == None")) == ["1"]
    assert "nan" not in leaderboard(by=["train.model"])._repr_html_()


def test_a_metric_that_is_text_or_not_a_number_is_shown_and_not_ranked():
    common = {"pipeline": "tabular", "status": "ok", "started": "2026-11-23T17:05:00Z", "seconds": 1.0}
    values = ["high", float("nan"), 0.5, True]
    runs = [{"run": f"r{n}", **common, "parameters": {"a": n}, "metrics": {"f1": v}} for n, v in enumerate(values)]
    board = Board(Sources(runs, (), "f1"), None, 10)
    assert board[0]["run"] == "r2" and [row["#"] for row in board.rows] == [1, None, None, None]
    assert "high" in board.page() and "high" in str(board)


def test_a_ledger_on_a_read_only_disk_answers_and_takes_nothing(settings, tmp_path, monkeypatch):
    before = str(leaderboard())
    with memory_disk(tmp_path / "disk", "8m") as disk:
        shutil.copytree(settings.workspace.path, disk / "workspace")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        monkeypatch.setenv("MLOPS_NB_WORKSPACE_PATH", str(disk / "workspace"))
        assert str(leaderboard()) == before and "<table" in leaderboard().page()
        for change in (lambda: tag_run("latest", "good"), lambda: leaderboard(columns=["run"], remember=True)):
            with pytest.raises(StorageError, match=r"read-only|cannot be opened"):
                change()


def test_a_clock_that_was_set_back_loses_nothing(settings):
    with Ledger.open(settings) as ledger:
        with ledger.database.transaction() as execute:
            later = now(time.time() + 86400)
            execute("UPDATE runs SET started = :at WHERE id LIKE '%170503%'", at=later)
        finder = Finder(ledger.database)
        assert finder.find()[0][14] == "3"
        assert "3" not in [run[14] for run in finder.find(before=now())]
        ledger.begin_run("back", "tabular", {})
        with ledger.database.transaction() as execute:
            execute("UPDATE runs SET started = :at WHERE id = 'back'", at=later)
        ledger.end_run("back", "ok")
        assert ledger.run("back")["seconds"] == 0.0


def test_an_id_is_used_once(settings):
    twice = pytest.raises(UsageError, match="There is a run 20261123-170500-3f2a already")
    with Ledger.open(settings) as ledger, twice:
        ledger.begin_run("20261123-170500-3f2a", "tabular", {})


def test_the_champion_is_compared_with_although_a_filter_leaves_it_out(settings):
    facts = {"task": "classification", "metric": "roc_auc", "schema_digest": "", "metrics": {}, "details": {}}
    with Ledger.open(settings) as ledger:
        ledger.register_version("churn", "33", run_id="20261123-170500-3f2a", **facts)
        ledger.move_alias("churn", "champion", 1, expected=None, reason="first")
    table = leaderboard(where="train.seed == 3")
    assert shown(table) == ["3"] and table.rows[0]["Δ champion"] == "-0.1000"


def test_of_many_runs_the_best_are_found_by_the_database(settings):
    with Ledger.open(settings) as ledger:
        for number in range(30):
            enter(ledger, f"20261124-{number:06d}-3f2a", 100 + number, {"roc_auc": number / 100})
    sources = gather(settings, metric="roc_auc", most=6)
    assert len(sources.runs) == 6 and sources.total == 34
    assert [run["metrics"]["evaluate.roc_auc"] for run in sources.runs[:3]] == [0.9, 0.8, 0.29]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--where", "metrics.evaluate.roc_auk > 0.9"], "Did you mean 'metrics.evaluate.roc_auc'?"),
        (["--where", "train.model = 'forest'"], "Write == instead of =."),
        (["--where", "train.model == forest"], "A text stands in quotes: 'forest'."),
        (["--sort", "evaluate.roc_au"], "Did you mean 'evaluate.roc_auc'?"),
        (["--columns", "train.sed"], "Did you mean 'train.seed'?"),
        (["--by", "train.modle"], "Did you mean 'train.model'?"),
        (["--metric", "roc_au"], "Did you mean"),
        (["tabluar"], "tabluar"),
    ],
)
def test_a_mistake_is_told_in_words(settings, words, hint):
    project = Project(settings.project, settings.workspace.path)
    error = project.json("leaderboard", *words, expect=2)["error"]
    assert hint in f"{error['message']} {error['hint']}"


def test_the_command_answers_people_and_programs(settings, tmp_path):
    project = Project(settings.project, settings.workspace.path)
    document = project.json("leaderboard", "tabular", "--where", "roc_auc < 1", "--html", "board.html")
    assert [run["run"][14] for run in document["runs"]] == ["0", "3"] and document["metric"] == "evaluate.roc_auc"
    assert {"tags", "note", "starred", "costs", "curves"} <= document["runs"][0].keys()
    page = (tmp_path / "board.html").read_text(encoding="utf-8")
    assert "20261123-170503-3f2a" in page.partition("<script>")[0], "readable without its script"
    assert "2 runs of tabular" in page
    groups = project.json("leaderboard", "--by", "train.model")["groups"]
    assert groups[0]["results"] == 2 and round(groups[0]["mean"], 6) == 0.85
    assert project.call("mlops-nb", "runs", "--where", "train.seed == 3").stdout.count("20261123") == 1
    shutil.rmtree(settings.workspace.path)
    assert "No runs yet" in project.call("mlops-nb", "leaderboard").stdout


def test_the_best_point_of_a_long_curve_is_its_best(settings):
    """However long it is, and whatever a picture leaves out."""
    values = [0.5 if n != 3217 else 0.1 for n in range(5000)]
    points = [{"t": float(n), "step": n, "values": {"loss": value}} for n, value in enumerate(values)]
    with Ledger.open(settings) as ledger:
        manifest = {"gives": {}, "metrics": {}}
        ledger.commit_step("20261123-170500-3f2a", "train", key="t", parts={}, manifest=manifest, points=points)
    project = Project(settings.project, settings.workspace.path)
    curve = project.json("leaderboard")["runs"][0]["curves"]["train.loss"]
    assert curve == {"best": 0.1, "best_step": 3217, "last": 0.5, "points": 5000}
    board = leaderboard()
    assert "0.1 at 3217" in str(board) and "0.1 at 3217" in board.page()
    assert list(board.curves("train.loss").curves) == ["20261123-170500-3f2a"]


def test_parents_of_sweeps_are_no_competitors_and_headings_are_names(settings):
    with Ledger.open(settings) as ledger:
        ledger.begin_run("20261123-170509-3f2a", "tabular", {"train.seed": "1, 2"})
        ledger.begin_run("20261123-170509-3f2a-1", "tabular", {"train.seed": 7}, parent="20261123-170509-3f2a")
        for run in ("20261123-170509-3f2a-1", "20261123-170509-3f2a"):
            ledger.end_run(run, "ok")
    names = [run["run"] for run in leaderboard()]
    assert "20261123-170509-3f2a-1" in names and "20261123-170509-3f2a" not in names
    assert len(leaderboard(where="state == 'ok' and took < 1e6")) == 5
    assert leaderboard(columns=["run", "starred", "status"]).columns == ["#", "run", "state"]
    assert leaderboard(sort=["roc_auc"]).caption.startswith("Runs")
    assert "None of the runs matches" in str(leaderboard(where="train.seed == 99"))


def test_what_is_said_about_a_run_is_in_the_list_of_runs(settings):
    project = Project(settings.project, settings.workspace.path)
    assert project.json("runs", "tag", "latest", "+good", "-bad")["tags"] == ["good"]
    project.json("runs", "star", "20261123-170500")
    project.json("runs", "note", "latest", "two words")
    found = {run["run"][14]: run for run in project.json("runs", "--where", "'good' in tags or starred")["runs"]}
    assert found["3"]["note"] == "two words" and found["0"]["starred"] and len(found) == 2
    with Ledger.open(settings) as ledger:
        assert {event["kind"] for event in ledger.events()} == {"run_tagged", "run_starred", "run_noted"}
        assert all("@" in event["actor"] for event in ledger.events())
    assert project.json("runs", "tag", "latest", "+two words", expect=2)["error"]["hint"]
    assert "Did you mean 'tag'?" in project.json("runs", "tga", "latest", expect=2)["error"]["hint"]


def test_exports_are_read_by_others(settings):
    import duckdb
    import pandas as pd

    project = Project(settings.project, settings.workspace.path)
    for name in ("runs.csv", "runs.parquet"):
        document = project.json("runs", "export", name, "--sort", "run")
        assert document["runs"] == 4 and {"run", "params.train.seed", "metrics.evaluate.roc_auc"} <= set(
            document["columns"]
        )
    one, other = pd.read_csv("runs.csv"), pd.read_parquet("runs.parquet")
    assert list(one.columns) == list(other.columns) and len(one) == len(other) == 4
    assert one["params.train.seed"].tolist() == other["params.train.seed"].tolist() == [0, 1, 2, 3]
    assert duckdb.sql("SELECT count(*) FROM 'runs.parquet'").fetchall() == [(4,)]
