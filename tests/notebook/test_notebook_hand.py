"""By hand: where needs come from, and which notebook it is."""

import json
import os
import subprocess
import sys
import time

import pytest
from step_files import IMPORTS, write_notebook, write_project

from mlops_nb.core.errors import UsageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
from mlops_nb.notebook.artifacts import keep, read_manifest
from mlops_nb.notebook.context import RunContext
from mlops_nb.notebook.flow import flow, log
from mlops_nb.notebook.hand import HandContext, Place, find_place


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name in ("MLOPS_NB_STEP", "JPY_SESSION_NAME", "MLOPS_NB_WORKSPACE_PATH"):
        monkeypatch.delenv(name, raising=False)
    write_project(tmp_path / "demo")
    monkeypatch.chdir(tmp_path / "demo")
    return tmp_path / "demo"


def context_of(project, step="20_total"):
    folder = project / "nbs/pipelines/demo"
    return HandContext(Place(load_settings(project), folder, folder / f"{step}.ipynb", True))


def commit_run(project, run_id, value, status="ok"):
    """Enter a run of step `make` in the ledger, good or failed after that step."""
    record = keep(value, project / ".mlops")
    with Ledger.open(load_settings(project)) as ledger:
        ledger.begin_run(run_id, "demo", {})
        ledger.begin_step(run_id, "make", position=10, key=run_id, reasons=[])
        manifest = {"format": 1, "step": "make", "gives": {"rows": record}, "metrics": {}}
        facts = {"key": run_id, "parts": {}, "manifest": manifest, "points": []}
        ledger.commit_step(run_id, "make", **facts, cached=False, seconds=1.0, notebook="n")
        ledger.end_run(run_id, status)


def test_needs_come_from_one_run_until_the_kernel_restarts(project, capsys):
    commit_run(project, "20261123-100000-aaaa", [1])
    context = context_of(project)
    assert context.read("make", "rows") == [1]
    assert context.read("make", "rows") == [1]
    assert capsys.readouterr().out == "flow: needs come from run 20261123-100000-aaaa, just now\n"
    commit_run(project, "20261123-110000-bbbb", [2])
    assert context.read("make", "rows") == [1]
    assert "run 20261123-110000-bbbb is newer; restart the kernel" in capsys.readouterr().out
    assert context.read("make", "rows") == [1]
    assert capsys.readouterr().out == ""
    assert context_of(project).read("make", "rows") == [2]


def test_fresher_scratch_wins_and_a_fresher_run_wins_back(project, capsys):
    commit_run(project, "20261123-100000-aaaa", [1])
    context_of(project, "10_make").give("rows", [7])
    assert context_of(project).read("make", "rows") == [7]
    assert capsys.readouterr().out == "flow: make.rows was made by hand, just now\n"
    time.sleep(0.01)
    commit_run(project, "20261123-110000-bbbb", [2])
    assert context_of(project).read("make", "rows") == [2]


def test_a_failed_run_serves_when_there_is_no_good_one(project, capsys):
    commit_run(project, "20261123-100000-aaaa", [1], status="failed")
    assert context_of(project).read("make", "rows") == [1]
    assert "run 20261123-100000-aaaa (failed)" in capsys.readouterr().out
    commit_run(project, "20261123-110000-bbbb", [2])
    commit_run(project, "20261123-120000-cccc", [3], status="failed")
    assert context_of(project).read("make", "rows") == [2]


def test_what_was_never_made_names_notebook_and_command(project):
    with pytest.raises(UsageError, match=r"make\.rows has not been made yet") as caught:
        context_of(project).read("make", "rows")
    assert caught.value.hint == "Run 10_make.ipynb by hand, or: mlops-nb run demo --to make"


def test_values_are_fresh_each_time(project):
    context_of(project, "10_make").give("rows", [1, 2])
    context = context_of(project)
    context.read("make", "rows").append(3)
    assert context.read("make", "rows") == [1, 2]
    assert context.read_variants("make", "rows") == [({}, [1, 2])]


def test_several_pipelines_and_no_place(project, tmp_path):
    write_notebook(project / "nbs/pipelines/other/10_make.ipynb", IMPORTS, "flow.x = 1")
    place = find_place({"__name__": "__main__"})
    assert (place.pipeline, place.step, place.sure) == (None, None, False)
    with pytest.raises(UsageError, match="belongs to no pipeline, and there are 2: demo, other"):
        HandContext(place).read("make", "rows")
    os.chdir(project / "nbs/pipelines/other")
    assert find_place({"__name__": "__main__"}).pipeline == project / "nbs/pipelines/other"


def test_an_editor_names_the_notebook(project, monkeypatch):
    step = project / "nbs/pipelines/demo/20_total.ipynb"
    assert find_place({"__vsc_ipynb_file__": str(step)}).step == step
    monkeypatch.setenv("JPY_SESSION_NAME", str(step))
    assert find_place({}).step == step
    analysis = write_notebook(project / "nbs/analysis.ipynb", "1")
    place = find_place({"__vsc_ipynb_file__": str(analysis)})
    assert (place.step, place.sure, place.pipeline) == (None, True, step.parent)


def test_outside_a_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no project"):
        find_place({})


def test_points_by_hand_start_anew(project, capsys):
    for number in (1, 2):
        context_of(project).log({"loss": number}, None)
    lines = (project / ".mlops/scratch/demo/total/points.ndjson").read_text().splitlines()
    assert [json.loads(line)["values"] for line in lines] == [{"loss": 2}]
    with pytest.raises(UsageError, match="takes a number"):
        context_of(project).log({"loss": "x"}, 1)


@pytest.fixture
def in_run(tmp_path, monkeypatch):
    """The process of a step in a run; the attempt's folder."""
    attempt = tmp_path / "attempts/r/train"
    attempt.mkdir(parents=True)
    variants = [{**keep({"auc": n}, tmp_path), "variant": {"train.n": n}} for n in (1, 2)]
    needs = {"split.train": keep([1], tmp_path), "search[*].metrics": variants}
    place = {"project": str(tmp_path), "workspace": str(tmp_path), "attempt": str(attempt)}
    document = {"run": "r", "pipeline": "demo", "step": "train", "needs": needs, "gives": ["model"], **place}
    (attempt / "context.json").write_text(json.dumps(document))
    monkeypatch.setenv("MLOPS_NB_STEP", str(attempt / "context.json"))
    return attempt


def test_flow_in_a_run(in_run):
    assert flow.split.train == [1]
    assert flow.search["*"].metrics == [({"train.n": 1}, {"auc": 1}), ({"train.n": 2}, {"auc": 2})]
    assert (dir(flow), dir(flow.search["*"])) == (["search", "split"], ["metrics"])
    assert (
        repr(flow.split) == "flow.split.train" and "split" in flow._repr_html_() and "metrics" in repr(flow.search["*"])
    )
    assert flow.split._ipython_key_completions_() == ["*"]
    flow.model = {"a": 1}
    log(loss=1, step=3)
    assert set(read_manifest(in_run / "manifest.json")["gives"]) == {"model"}
    assert not hasattr(flow, "_repr_png_") and not hasattr(flow.split, "_x") and not hasattr(flow.split["*"], "_x")


MISUSES = """
flow.x = 1
flow.model = None
del flow.model
flow._x = 1
flow.split.train = 1
flow.split["a"]
flow.split.test
flow.ingest.table
flow.model = object()
"""


@pytest.mark.parametrize("statement", MISUSES.split("\n")[1:-1])
def test_misuse_in_a_run_is_told(in_run, statement):
    with pytest.raises(UsageError) as caught:
        exec(statement, {"flow": flow})
    assert caught.value.hint
    assert not (in_run / "manifest.json").exists()


def test_a_run_context_reads_its_file(in_run):
    context = RunContext.read_file(in_run / "context.json")
    assert (context.step, context.run, context.manifest) == ("train", "r", in_run / "manifest.json")


def test_importing_flow_touches_nothing(tmp_path):
    code = "from mlops_nb import flow, log; print(flow); print(dir(flow))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "flow: nothing to read here\n[]\n", done.stderr
    assert not list(tmp_path.iterdir())
