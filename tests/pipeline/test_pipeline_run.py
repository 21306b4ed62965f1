"""Runs of small pipelines: what they record, how they fail, what they tell."""

import errno
import io
import json
import os
import re
import sqlite3

import pytest
from pipeline_support import Project, gives, states

from mlops_nb.core import files
from mlops_nb.core.errors import Refused, StorageError, UsageError
from mlops_nb.core.store import Store
from mlops_nb.pipeline.reporter import EventWriter, Reporter, Reporters

SPLIT = [
    "#| parameters\nsize: int = 3  # rows",
    "import helper",
    "flow.train = [helper.double(x) for x in range(size)]",
]
TRAIN = ["from mlops_nb import Metrics, log", "# Fit", "for i in range(3):\n    log(loss=1 / (i + 1), step=i)"]
TRAIN += ["flow.model = sum(flow.split.train)\nflow.metrics = Metrics({'total': sum(flow.split.train)})"]


def build(folder) -> Project:
    project = Project(folder)
    project.file("helper.py", "def double(x): return 2 * x\n")
    project.step("10_split", *SPLIT)
    project.step("20_train", *TRAIN)
    return project


class Heard(Reporter):
    """Remembers what it was told."""

    def __init__(self):
        self.warnings, self.headings, self.order = [], [], []

    def plan(self, plan):
        self.order.append("plan")

    def run_started(self, run):
        self.order.append("run")

    def step_started(self, step, number, total, reasons):
        self.order.append(f"{step} {number}/{total}")

    def progress(self, step, cell, total, heading):
        self.headings.append((step, cell, total, heading))

    def step_finished(self, step):
        self.order.append(f"{step['step']} {step['state']}")

    def warning(self, text):
        self.warnings.append(text)

    def finished(self, run):
        self.order.append(run["status"])


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A project that ran once, its result, and what was told of it; not to be changed."""
    project = build(tmp_path_factory.mktemp("first") / "project")
    heard, events = Heard(), io.StringIO()
    result = project.run(reporter=Reporters(heard, EventWriter(events)), command=["mlops-nb", "run", "churn"])
    return project, result, heard, [json.loads(line) for line in events.getvalue().splitlines()]


def test_the_document(first):
    project, result, _, _ = first
    document = result.document
    assert (result.exit_code, document["status"], document["schema"], document["children"]) == (0, "ok", 1, [])
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", document["run"])
    assert document["parameters"] == {"split.size": 3}
    split, train = document["steps"]
    assert {"id", "step", "variant", "state", "reasons", "seconds", "notebook", "artifacts", "metrics", "error"} <= set(
        split
    )
    assert (split["state"], split["reasons"], split["error"]) == ("done", ["never run"], None)
    assert train["metrics"] == {"total": 6} and train["artifacts"]["metrics"]["type"] == "Metrics"
    assert split["notebook"] == f".mlops/runs/{document['run']}/10_split.ipynb"
    assert (project.folder / split["notebook"]).exists()


def test_what_the_ledger_holds(first):
    project, result, _, _ = first
    run = project.ledger.run(result.document["run"])
    assert run["status"] == "ok" and run["command"] == ["mlops-nb", "run", "churn"] and run["git"] is None
    assert run["parameters"] == {"split.size": 3}
    assert {step["step"]: step["reasons"] for step in run["steps"]} == {"split": ["never run"], "train": ["never run"]}
    names = ["helper.py", "nbs/pipelines/churn/10_split.ipynb", "nbs/pipelines/churn/20_train.ipynb"]
    assert sorted(run["sources"]) == names
    store = Store(project.workspace / "objects")
    assert store.read(run["sources"]["helper.py"]) == (project.folder / "helper.py").read_bytes()
    assert [point["values"]["loss"] for point in project.ledger.points(run["run"], "train")] == [1, 1 / 2, 1 / 3]
    parts = project.ledger.last_parts("churn", "split")
    assert list(parts["definitions"]) == ["helper:double"]


def test_what_was_told(first):
    _, result, heard, events = first
    steps = ["split 1/2", "split done", "train 2/2", "train done"]
    assert heard.order == ["plan", "run", *steps, "ok"] and heard.warnings == []
    assert ("train", 5, 5, "Fit") in heard.headings
    kinds = [event["event"] for event in events]
    assert kinds[0] == "run_started" and kinds[-1] == "run_finished" and kinds.count("step_finished") == 2
    assert {event["run"] for event in events} == {result.document["run"]}
    assert next(event for event in events if event["event"] == "cell")["total"] == 4


def test_the_attempt_is_what_was_planned(first):
    project, result, _, _ = first
    folder = project.workspace / "attempts" / result.document["run"] / "train"
    context = json.loads((folder / "context.json").read_text())
    assert context["gives"] == ["metrics", "model"] and list(context["needs"]) == ["split.train"]
    executed = json.loads((project.folder / result.document["steps"][0]["notebook"]).read_text())
    sources = ["".join(cell["source"]) for cell in executed["cells"]]
    assert sources == ["from mlops_nb import flow", *SPLIT], "nothing is injected when all parameters are defaults"


@pytest.fixture
def again(first, tmp_path):
    """A copy of the project that ran once, to be changed freely."""
    import shutil

    shutil.copytree(first[0].folder, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")


def test_everything_cached(again, first, listeners):
    told = []
    for event in ("run_started", "step_committed", "run_completing", "run_finished"):
        listeners.on(event, lambda event=event, **facts: told.append((event, facts)))
    result = again.run()
    assert states(result) == {"split": "cached", "train": "cached"} and gives(result) == gives(first[1])
    assert [step["reasons"] for step in result.document["steps"]] == [["up to date"]] * 2
    assert result.document["steps"][1]["metrics"] == {"total": 6}
    assert [event for event, _ in told] == ["run_started", *["step_committed"] * 2, "run_completing", "run_finished"]
    assert told[1][1]["step"]["key"] and told[3][1]["ledger"] is not None
    assert not (again.workspace / "attempts" / result.document["run"]).exists()


def test_models_of_a_run(again, listeners):
    model = {"name": "churn", "version": 1, "digest": "3f", "aliases": ["champion"]}
    listeners.on("run_completing", lambda **facts: [model])
    listeners.on("run_completing", lambda **facts: None)
    assert again.run().document["models"] == [model]


def test_a_listener_that_fails(again, listeners):
    def fail(**facts):
        raise RuntimeError("the mirror is dirty")

    heard = Heard()
    listeners.on("step_committed", fail)
    result = again.run(reporter=heard)
    assert result.exit_code == 0 and heard.warnings[0] == "step_committed: RuntimeError: the mirror is dirty"
    listeners.on("run_completing", fail)
    result = again.run()
    error = result.document["error"]
    assert (result.exit_code, result.document["status"]) == (1, "failed") and isinstance(result.defect, RuntimeError)
    assert (error["type"], error["message"]) == ("RuntimeError", "the mirror is dirty") and error["hint"]
    assert again.ledger.runs()[0]["status"] == "failed"


@pytest.mark.parametrize(("error", "status", "code"), [(Refused, "refused", 3), (StorageError, "failed", 2)])
def test_a_registry_that_says_no(again, listeners, error, status, code):
    def refuse(**facts):
        raise error("No.", "Do better.")

    listeners.on("run_completing", refuse)
    result = again.run()
    assert (result.document["status"], result.exit_code) == (status, code)
    assert result.document["error"]["message"] == "No."
    assert again.ledger.run(result.document["run"])["status"] == status


def test_early_cutoff_and_force(again, first):
    again.file("helper.py", "def double(x): return x + x\n")
    result = again.run()
    assert states(result) == {"split": "done", "train": "cached"}
    assert re.fullmatch(r"helper\.py::double changed \(.{4} -> .{4}\)", result.document["steps"][0]["reasons"][0])
    forced = again.run(force=True, only="split")
    assert states(forced) == {"split": "done"} and forced.document["steps"][0]["reasons"] == ["forced"]
    assert gives(forced)["split.train"] == gives(first[1])["split.train"]


def test_a_damaged_object_is_made_again(again, first):
    digest = gives(first[1])["split.train"]
    path = again.workspace / "objects" / digest[:2] / digest
    path.chmod(0o644)
    path.write_bytes(b"x" * path.stat().st_size)
    result = again.run()
    assert states(result) == {"split": "done", "train": "cached"}
    assert result.document["steps"][0]["reasons"] == ["artifact train is damaged in the store"]
    assert Store(again.workspace / "objects").read(digest) == b"[0,2,4]"
    assert states(again.run()) == {"split": "cached", "train": "cached"}


def test_a_parameter(again):
    result = again.run(parameters={"split.size": "4"})
    assert states(result) == {"split": "done", "train": "done"}
    assert result.document["steps"][1]["metrics"] == {"total": 12}
    assert result.document["steps"][0]["reasons"] == ["parameter size: 3 -> 4"]
    assert re.fullmatch(r"need split\.train changed \(.{4} -> .{4}\)", result.document["steps"][1]["reasons"][0])


def test_a_source_that_changes_while_it_runs(again):
    again.step(
        "10_split", *SPLIT, "from pathlib import Path\nPath('helper.py').write_text('def double(x): return 3 * x')"
    )
    heard = Heard()
    result = again.run(reporter=heard, to="split")
    assert result.exit_code == 0
    assert "helper.py::double changed" in heard.warnings[0] and "not reused" in heard.warnings[0]
    assert result.document["steps"][0]["reasons"][-1].startswith("not reusable: helper.py::double changed")
    again.file("helper.py", "def double(x): return 2 * x\n")
    assert again.plan(to="split").runs == ["split"], "a result of unknown source is not reused"


def test_a_notebook_that_changes_while_it_runs(again):
    path = again.folder / "nbs/pipelines/churn/10_split.ipynb"
    edit = "from pathlib import Path\np = Path('nbs/pipelines/churn/10_split.ipynb')\n"
    edit += "p.write_text(p.read_text().replace('range(' 'size)', 'range(size + 1)'))"
    again.step("10_split", edit, *SPLIT)
    heard = Heard()
    result = again.run(reporter=heard, to="split")
    assert "cell 5 changed" in heard.warnings[0] and "size + 1" in path.read_text()
    manifest = again.ledger.run(result.document["run"])["steps"][0]["artifacts"]["train"]
    assert Store(again.workspace / "objects").read(manifest["sha256"]) == b"[0,2,4]", "what was planned is what ran"


def failure(project, *cells, **options):
    """The failed step, the exit code and the run's status of a step of these cells."""
    project.step("10_split", *cells)
    result = project.run(**options)
    return result.document["steps"][0], result.exit_code, result.document["status"]


def test_failures(again):
    step, code, status = failure(again, "x = 1", "# Reading", "## The table", "y = 2\nflow.train = [y / 0]")
    assert (step["state"], code, status) == ("failed", 1, "failed")
    error = step["error"]
    assert (error["type"], error["message"]) == ("ZeroDivisionError", "division by zero")
    assert error["notebook"] == "nbs/pipelines/churn/10_split.ipynb"
    assert (error["cell"], error["line"], error["heading"], error["source"]) == (
        5,
        2,
        "The table",
        "flow.train = [y / 0]",
    )
    executed = json.loads((again.folder / step["notebook"]).read_text())
    assert any(out["output_type"] == "error" for cell in executed["cells"] for out in cell.get("outputs", []))
    run = again.ledger.run(again.ledger.latest_run("churn", status=None))
    assert [(s["step"], s["state"], s["reasons"]) for s in run["steps"]][1] == ("train", "skipped", ["split failed"])

    refused = failure(
        again, "from mlops_nb import Refused\nraise Refused('Few rows: 3.', 'Bring more.')\nflow.train = 0"
    )
    assert refused[1:] == (3, "refused")
    assert (refused[0]["error"]["message"], refused[0]["error"]["hint"]) == ("Few rows: 3.", "Bring more.")

    missing = failure(again, "if False:\n    flow.train = [1]")
    assert missing[1:] == (1, "failed") and missing[0]["error"]["message"] == "The step ended without giving 'train'."
    assert (missing[0]["error"]["cell"], missing[0]["error"]["line"]) == (2, 2)

    died = failure(again, "import os\nflow.train = [1]\nos.kill(os.getpid(), 9)")
    assert died[1] == 1 and died[0]["error"]["type"] == "KernelDied" and died[0]["error"]["cell"] == 2
    assert again.plan().runs == ["split", "train"], "what a failed step gave does not count"


def test_a_time_limit(again):
    text = (again.folder / "settings.ini").read_text()
    again.file("settings.ini", text + "[pipeline]\ntimeout = 2\n")
    step, code, _ = failure(again, "import time", "time.sleep(60)\nflow.train = []", to="split")
    assert code == 1 and step["error"]["type"] == "StepTimeout" and step["error"]["cell"] == 3 and step["seconds"] < 30


def test_secrets_stay_inside(again, monkeypatch):
    monkeypatch.setenv("CHURN_TEST_TOKEN", "hunter2hunter2")
    cells = ["#| parameters\npassword: Secret = 'env:CHURN_TEST_TOKEN'  # of the database"]
    cells += [
        "from mlops_nb.notebook.redact import secret\nvalue = secret(password)\nprint(value)\nraise ValueError(value)"
    ]
    step, _, _ = failure(again, "from mlops_nb import Secret", *cells, "flow.train = []")
    again.ledger.close()
    assert "hunter2" not in json.dumps(step) and "[redacted]" in step["error"]["message"]
    for path in again.workspace.rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path
    monkeypatch.delenv("CHURN_TEST_TOKEN")
    with pytest.raises(UsageError, match="CHURN_TEST_TOKEN is not set"):
        again.run()


def test_a_full_disk(again, monkeypatch):
    """The system's answer is injected: a real full disk needs a mount, which not every machine allows."""
    real = files._write_new
    before = sorted(path.name for path in (again.workspace / "objects").rglob("*"))

    def full(path, data, durable):
        if "attempts" in path.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, data, durable)

    monkeypatch.setattr(files, "_write_new", full)
    result = again.run(force=True)
    assert (result.exit_code, result.document["status"]) == (2, "failed")
    assert result.document["error"]["type"] == "StorageError" and "disk is full" in result.document["error"]["message"]
    assert states(result) == {"split": "failed", "train": "skipped"}
    assert sorted(path.name for path in (again.workspace / "objects").rglob("*")) == before
    monkeypatch.undo()
    assert sqlite3.connect(again.workspace / "ledger.sqlite").execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert states(again.plan().planner and again.run()) == {"split": "cached", "train": "cached"}


def test_unexported_notebooks(again):
    head = "# AUTOGENERATED! DO NOT EDIT! File to edit: nbs/lib/helper.ipynb.\n\n# %% nbs/lib/helper.ipynb #c0\n"
    again.file("helper.py", head + "def double(x): return 2 * x\n")
    from pipeline_support import write_notebook

    write_notebook(again.folder / "nbs/lib/helper.ipynb", "#| export\ndef double(x): return 4 * x")
    heard = Heard()
    assert states(again.run(reporter=heard)) == {"split": "cached", "train": "cached"}
    assert heard.warnings[0].startswith("Changed since its export: nbs/lib/helper.ipynb.")
    with pytest.raises(UsageError, match=r"nbs/lib/helper\.ipynb"):
        again.run(strict=True)
    assert [run["status"] for run in again.ledger.runs()] == ["ok", "ok"]


def test_refused_before_anything_runs(again):
    before = len(again.ledger.runs())
    for options in ({"pipeline": "chrun"}, {"parameters": {"split.sise": "1"}}, {"parameters": {"split.size": "x"}}):
        with pytest.raises(UsageError):
            again.run(**options)
    again.step("20_train", "flow.model = flow.split.trian")
    with pytest.raises(UsageError, match=r"split\.trian, but step 'split' gives only \['train'\]"):
        again.run()
    assert len(again.ledger.runs()) == before


def test_a_step_that_empties_its_environment_keeps_its_run(tmp_path):
    project = Project(tmp_path / "project")
    project.step("10_split", "import os\nos.environ.clear()", "flow.train = [1]")
    result = project.run()
    assert states(result) == {"split": "done"} and gives(result).keys() == {"split.train"}
