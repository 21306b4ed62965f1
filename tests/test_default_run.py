"""The default run, and what other people's tools read of it."""

import json
import sqlite3
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import nbformat
import pytest
from support import BIN, ask, gives, serving, states

STEPS = ["ingest", "validate", "split", "train", "evaluate", "package"]


def test_every_step_is_done_and_the_model_is_champion(default_run):
    _, document = default_run
    assert document["schema"] == 1 and document["status"] == "ok" and document["pipeline"] == "tabular"
    assert states(document) == dict.fromkeys(STEPS, "done")
    [model] = document["models"]
    assert model["version"] == 1 and model["aliases"] == ["champion"] and len(model["digest"]) == 64


def test_scores_are_what_a_careful_person_gets(default_run):
    _, document = default_run
    metrics = next(step["metrics"] for step in document["steps"] if step["step"] == "evaluate")
    names = {"accuracy", "precision", "recall", "f1", "roc_auc", "average_precision", "log_loss", "brier"}
    assert names <= set(metrics)
    assert 0.95 < metrics["roc_auc"] <= 1 and 0.9 < metrics["accuracy"] <= 1 and metrics["brier"] < 0.08


def test_a_second_run_skips_every_step_and_says_so(default_run, tmp_path):
    project, document = default_run
    second = project.copy(tmp_path / "workspace")
    again = second.run()
    assert states(again) == dict.fromkeys(STEPS, "cached")
    assert all(step["reasons"] for step in again["steps"])
    assert gives(again) == gives(document) and again["models"] == document["models"]
    told = second.call("mlops-nb", "run", "tabular").stdout
    assert told.count("cached") >= len(STEPS) and "bentoml serve" in told and "Leaderboard" in told
    partly = second.call("mlops-nb", "run", "tabular", "--to", "ingest").stdout
    assert "✓ ok" in partly and "Leaderboard" not in partly


def test_executed_notebooks_are_valid_and_convert(default_run, tmp_path):
    project, document = default_run
    paths = [project.folder / step["notebook"] for step in document["steps"]]
    assert len(paths) == len(STEPS)
    for path in paths:
        assert path.read_bytes().endswith(b"}\n")
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip())
    command = ["jupyter-nbconvert", "--to", "html", "--output-dir", str(tmp_path), *map(str, paths)]
    assert project.call(*command).returncode == 0
    assert len(list(tmp_path.glob("*.html"))) == len(STEPS)


def test_source_notebooks_are_left_as_they_were(default_run):
    project, document = default_run
    sources = project.json("show", document["run"])["sources"]  # digests of what was there when the run began
    kept = {name: digest for name, digest in sources.items() if name.startswith("nbs/pipelines/tabular/")}
    assert len(kept) == len(STEPS)
    assert {name: sha256((project.folder / name).read_bytes()).hexdigest() for name in kept} == kept


def test_sqlite3_reads_the_ledger(default_run):
    project, document = default_run
    with sqlite3.connect(f"file:{project.workspace}/ledger.sqlite?mode=ro", uri=True) as ledger:
        assert ledger.execute("pragma integrity_check").fetchone() == ("ok",)
        [(status,)] = ledger.execute("select status from runs where id = ?", [document["run"]]).fetchall()
    assert status == "ok"


def test_bentoml_lists_the_model(default_run):
    project, document = default_run
    [model] = document["models"]
    listed = json.loads(project.call("bentoml", "models", "list", "-o", "json").stdout)
    assert f"{model['name']}:{model['version']}-{model['digest'][:12]}" in [entry["tag"] for entry in listed]


def test_wandb_reads_every_steps_run(default_run):
    project, document = default_run
    files = sorted(project.workspace.rglob("run-*.wandb"))
    assert len(files) == len(STEPS)
    found = {}
    for path in files:
        done = project.call("wandb", "leet", "inspect", "--summary", "--json", str(path))
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["config"]["mlops_nb"]["run"] == document["run"] and told["state"] == "finished"
        found[told["name"]] = told
    for step in document["steps"]:
        told = found[step["step"]]
        metrics = {name.replace(".", "/"): value for name, value in step["metrics"].items()}
        assert metrics == {name: told["summary"].get(name) for name in metrics}
        given = {n.partition(".")[2]: v for n, v in document["parameters"].items() if n.startswith(f"{step['step']}.")}
        assert given == {name: told["config"].get(name) for name in given}
    assert len(found["evaluate"]["summary"]) > 30


@pytest.fixture(scope="module")
def address(default_run):
    project, _ = default_run
    with serving(project) as found:
        yield found


def test_the_published_release_answers(default_run, address):
    _, document = default_run
    [model] = document["models"]
    schema = ask(f"{address}/schema")[1]
    record = {feature["name"]: feature["example"] for feature in schema["features"]}
    status, answer = ask(f"{address}/predict", record)
    assert status == 200 and answer["version"] == 1 and answer["model"] == model["name"]
    assert answer["prediction"] in answer["probabilities"]
    assert abs(sum(answer["probabilities"].values()) - 1) < 1e-6
    status, batch = ask(f"{address}/predict", [record, record])
    assert status == 200 and [p["prediction"] for p in batch["predictions"]] == [answer["prediction"]] * 2


def test_bad_input_names_row_and_field(address):
    schema = ask(f"{address}/schema")[1]
    record = {feature["name"]: feature["example"] for feature in schema["features"]}
    field = schema["features"][0]["name"]
    status, problem = ask(f"{address}/predict", [record, {**record, field: "wide"}])
    assert status in (400, 422)
    assert [(e["row"], e["field"]) for e in problem["errors"]] == [(1, field)]
    assert "number" in problem["errors"][0]["expected"]


def test_runs_and_models_answer_from_the_ledger(default_run):
    project, document = default_run
    [run] = [r for r in project.json("runs")["runs"] if r["run"] == document["run"]]
    assert run["parameters"]["train.model"] and run["metrics"]["evaluate.roc_auc"] > 0.9
    assert [m["version"] for m in project.json("models")["models"]] == [1]


def test_runs_in_a_notebook(default_run):
    project, document = default_run
    code = "from mlops_nb import runs, leaderboard; print(runs()); print(len(runs()._repr_html_()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project.folder,
        env=project.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert document["run"] in done.stdout


def test_nothing_of_this_machine_is_in_the_notebooks(default_run):
    project, document = default_run
    for step in document["steps"]:
        text = (project.folder / step["notebook"]).read_text(encoding="utf-8")
        assert str(Path.home()) + "/" not in text and str(project.folder) not in text, step["step"]


def test_the_benchmark_says_what_it_measures():
    done = subprocess.run(
        [str(BIN / "python"), "benchmarks/pipeline.py", "--help"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "papermill" in done.stdout
