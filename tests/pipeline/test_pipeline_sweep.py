"""Sweeps: who computes what, what is recorded, and what happens when a child fails or the runner is killed."""

import json
import signal

import pytest
from pipeline_support import Project, finish, gives, states, stop, wait_for

from mlops_nb.core.errors import Refused, UsageError
from mlops_nb.notebook.hand import HandContext, Place
from mlops_nb.pipeline.opened import open_step

SWEEP = {"train.model": ["tree", "linear"]}


def build(folder) -> Project:
    project = Project(folder)
    project.step("10_split", "#| parameters\nsize: int = 3  # rows", "flow.train = list(range(size))")
    project.step(
        "20_train",
        "from typing import Literal\n\nfrom mlops_nb import Metrics",
        '#| parameters\nmodel: Literal["tree", "linear", "bad"] = "tree"  # algorithm',
        "assert model != 'bad', 'does not fit'",
        "flow.model = [model, *flow.split.train]\nflow.metrics = Metrics({'letters': len(model)})",
    )
    project.step("30_score", "flow.report = flow.train.model[::-1]")
    project.step("40_best", 'flow.order = [[v["train.model"], m["letters"]] for v, m in flow.train["*"].metrics]')
    project.step("50_after", "flow.end = flow.best.order[0]")
    return project


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A project that was swept once, and the result; not to be changed."""
    project = build(tmp_path_factory.mktemp("swept") / "project")
    return project, project.run(sweep=SWEEP)


@pytest.fixture
def again(swept, tmp_path):
    """A copy of the project that was swept once."""
    import shutil

    shutil.copytree(swept[0].folder, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")


def told(document) -> list[tuple]:
    """Step, value of the variant and state of everything that a run computed."""
    return sorted((s["step"], *(s["variant"] or {}).values(), s["state"]) for s in document["steps"])


def test_each_step_is_computed_once_and_by_whom_it_belongs_to(swept):
    _, result = swept
    assert (result.exit_code, result.document["status"]) == (0, "ok")
    assert told(result.document) == [
        ("after", "done"),
        ("best", "done"),
        *[("score", "linear", "done"), ("score", "tree", "done")],
        ("split", "done"),
        *[("train", "linear", "done"), ("train", "tree", "done")],
    ]
    owners = {step["id"].partition("/")[0] for step in result.document["steps"] if step["variant"]}
    assert owners == set(result.document["children"])


def test_what_the_ledger_holds(swept):
    project, result = swept
    parent = project.ledger.run(result.document["run"])
    assert parent["children"] == result.document["children"] and parent["parent"] is None
    assert states(parent) == {"split": "done", "best": "done", "after": "done"}
    assert parent["parameters"]["train.model"] == ["tree", "linear"]
    for child, model in zip(parent["children"], SWEEP["train.model"], strict=True):
        run = project.ledger.run(child)
        assert (run["parent"], run["status"], run["parameters"]["train.model"]) == (parent["run"], "ok", model)
        assert states(run) == {"split": "cached", "train": "done", "score": "done"}
        assert {s["step"]: s["variant"] for s in run["steps"]}["score"] == {"train.model": model}
        assert run["steps"][0]["reasons"] == [f"computed by run {parent['run']}"]
        assert run["metrics"] == {"train.letters": len(model)}
        assert (project.folder / run["steps"][1]["notebook"]).exists()


def test_the_start_of_an_id_means_the_sweep(swept):
    project, result = swept
    assert project.ledger.find_run(result.document["run"][:15]) == result.document["run"]
    assert project.ledger.find_run(result.document["children"][1]) == result.document["children"][1]


def test_a_join_reads_its_variants_in_a_fixed_order(swept):
    project, result = swept
    digest = gives(result)["best.order"]
    order = json.loads((project.workspace / "objects" / digest[:2] / digest).read_text())
    assert order == [["linear", 6], ["tree", 4]]


def test_again_and_in_another_order_everything_is_known(again):
    plan = again.plan(sweep={"train.model": ["linear", "tree"]})
    assert {step["action"] for step in plan.document()["steps"]} == {"cached"}
    second = again.run(sweep={"train.model": ["linear", "tree"]})
    assert {step["state"] for step in second.document["steps"]} == {"cached"}
    assert states(again.run(only="train", parameters={"train.model": "linear"}))["train"] == "cached"


def test_another_value_computes_its_own_and_the_join(again):
    again.step("30_score", "flow.report = flow.train.model[::-2]")
    more = again.run(sweep={"train.model": ["tree"]})
    assert told(more.document) == [
        *[("after", "done"), ("best", "done"), ("score", "tree", "done")],
        *[("split", "cached"), ("train", "tree", "cached")],
    ]
    best = next(step for step in more.document["steps"] if step["step"] == "best")
    assert any('train[train.model="linear"].metrics is gone' in reason for reason in best["reasons"])


def test_a_grid_shares_what_does_not_differ(again):
    result = again.run(sweep={"split.size": ["2", "4"], "train.model": ["tree", "linear"]}, jobs=4)
    assert result.exit_code == 0 and len(result.document["children"]) == 4
    steps = result.document["steps"]
    assert [s["step"] for s in steps].count("split") == 2 and [s["step"] for s in steps].count("train") == 4
    taken = again.ledger.run(result.document["children"][1])["steps"][0]
    assert (taken["state"], taken["variant"]) == ("cached", {"split.size": 2})
    assert taken["reasons"] == [f"computed by run {result.document['children'][0]}"]
    contexts = [json.loads(f.read_text()) for f in again.workspace.glob("attempts/*/best/context.json")]
    assert max(len(context["needs"]["train[*].metrics"]) for context in contexts) == 4


def test_a_child_that_fails_stops_no_other(again):
    result = again.run(sweep={"train.model": ["bad", "tree"], "split.size": [5]})
    assert (result.exit_code, result.document["status"], result.document["error"]) == (1, "failed", None)
    bad, good = (again.ledger.run(child) for child in result.document["children"])
    assert (bad["status"], good["status"]) == ("failed", "ok")
    assert states(bad) == {"split": "done", "train": "failed", "score": "skipped"}
    parent = again.ledger.run(result.document["run"])
    assert states(parent) == {"best": "skipped", "after": "skipped"}
    assert parent["steps"][0]["reasons"] == [f"run {bad['run']} failed"]


def test_what_fails_before_the_children_fails_them_all(again):
    again.step("10_split", "#| parameters\nsize: int = 3  # rows", "flow.train = [1 / (size - size)]")
    result = again.run(sweep=SWEEP)
    assert (result.exit_code, states(result)["split"], states(result)["best"]) == (1, "failed", "skipped")
    children = [again.ledger.run(child) for child in result.document["children"]]
    assert [child["status"] for child in children] == ["failed", "failed"]
    assert {step["state"] for child in children for step in child["steps"]} == {"skipped"}


def test_the_registry_hears_of_each_child_in_order(again, listeners):
    heard = []

    def complete(run, **_):
        heard.append(run["run"])
        if run["parameters"]["train.model"] == "tree":
            raise Refused("Not this one.", "Take another one.")
        return [{"name": "m", "version": 1, "digest": "0" * 64, "aliases": []}] if not run["parent"] else None

    listeners.on("run_completing", complete)
    result = again.run(sweep=SWEEP)
    assert heard == result.document["children"] and result.exit_code == 1
    assert [again.ledger.run(child)["status"] for child in heard] == ["refused", "ok"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sweep": {"train.model": ["tree", "shrub"]}}, "shrub"),
        ({"sweep": {"train.modle": ["tree"]}}, "no parameter 'modle'"),
        ({"sweep": {"train.model": "tree"}}, "no list of values"),
        ({"sweep": {"train.model": ["tree", "tree"]}}, "train.model=tree twice"),
        ({"sweep": SWEEP, "parameters": {"train.model": "tree"}}, "set to one value as well"),
        ({"sweep": SWEEP, "to": "split"}, "'train' was not chosen"),
    ],
)
def test_refused_before_anything_runs(again, options, message):
    before = len(again.ledger.runs())
    with pytest.raises(UsageError) as refused:
        again.run(**options)
    assert message in refused.value.message and len(again.ledger.runs()) == before


def test_a_part_of_a_sweep(again):
    result = again.run(sweep={"train.model": ["tree", "linear"]}, to="train", force=True)
    assert result.exit_code == 0
    assert [s["step"] for s in result.document["steps"]] == ["split", "train", "train"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_the_middle_and_repeated(swept, tmp_path, number):
    project = build(tmp_path / "project")
    project.step("30_score", "import time\ntime.sleep(0.5)", "flow.report = flow.train.model[::-1]")
    process = project.start(sweep=SWEEP)
    wait_for(lambda: list(project.workspace.glob("attempts/*/score/context.json")))
    stop(process, number)
    ends = {run["status"] for run in project.ledger.runs()}
    assert ends == ({"crashed"} if number == signal.SIGKILL else {"interrupted"})
    code, document = finish(project.start(sweep=SWEEP))
    assert code == 0 and gives(document)["best.order"] == gives(swept[1])["best.order"]
    assert {"train", "split"} <= {step["step"] for step in document["steps"] if step["state"] == "cached"}


def test_by_hand_the_variants_are_those_of_the_sweep(swept):
    project, _ = swept
    settings = project.settings
    folder = settings.project / "nbs/pipelines/churn"
    context = HandContext(Place(settings, folder, folder / "40_best.ipynb", True))
    letters = [
        (variant["train.model"], value["letters"]) for variant, value in context.read_variants("train", "metrics")
    ]
    assert letters == [("linear", 6), ("tree", 4)]
    assert context.read("best", "order") == [["linear", 6], ["tree", 4]]
    assert context.read_variants("split", "train") == [({}, [0, 1, 2])]


def test_a_join_runs_although_every_variant_is_known(again):
    both = states(again.run(sweep=SWEEP))
    assert (both["best"], both["after"]) == ("cached", "cached")
    fewer = again.run(sweep={"train.model": ["linear"]})
    assert states(fewer)["best"] == states(fewer)["after"] == "done" and states(fewer)["train"] == "cached"


def test_a_child_that_the_registry_refuses_is_told_by_the_sweep(again, listeners):
    def refuse(run, **facts):
        if run["parameters"].get("train.model") == "tree":
            raise UsageError("The model is of no use.", "Train another one.")

    listeners.on("run_completing", refuse)
    result = again.run(sweep=SWEEP)
    assert (result.exit_code, result.document["status"]) == (1, "failed")
    assert result.document["error"]["message"] == "The model is of no use."
    assert again.ledger.run(result.document["run"])["error"]["hint"] == "Train another one."


def test_a_join_is_opened_with_what_all_variants_gave(again, swept):
    for run in (swept[1].document["run"], again.run(sweep=SWEEP).document["run"]):  # made there, and reused
        path = open_step(again.settings, run, "best")
        read = json.loads((path.parent / "context.json").read_bytes())["needs"]
        made = again.workspace / "attempts" / swept[1].document["run"] / "best/context.json"
        assert read == json.loads(made.read_bytes())["needs"]
        assert [record["variant"]["train.model"] for record in read["train[*].metrics"]] == ["linear", "tree"]
