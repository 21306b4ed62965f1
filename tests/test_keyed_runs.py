"""The real pipeline as a scheduler calls it: a step per command, one of them killed, and the same model in the end."""

import pytest
from support import Project, gives

STEPS = ["ingest", "validate", "split", "train", "evaluate", "package"]
KEY = "scheduled__2026-11-29T02:00:00+00:00"
WORDS = ("-p", "package.name=second")


def models(project: Project) -> list[tuple]:
    return [(m["name"], m["version"], m["digest"], m["aliases"]) for m in project.json("models")["models"]]


@pytest.fixture(scope="module")
def called(default_run, tmp_path_factory):
    """A project whose pipeline was called step by step, with the last call killed once, and the answers."""
    project = default_run[0].copy(tmp_path_factory.mktemp("called") / "workspace")
    answers = [project.run("--only", step, "--run-key", KEY, *WORDS) for step in STEPS[:-1]]
    killed = project.call(
        "mlops-nb", "run", "tabular", "--only", "package", "--run-key", KEY, MLOPS_NB_FAULT="before-alias"
    )
    assert killed.returncode == -9, killed.stderr
    assert project.json("runs", "--run-key", KEY)["runs"][0]["status"] == "crashed"
    return project, [*answers, project.run("--only", "package", "--run-key", KEY)]


def test_it_ends_as_one_plain_run(called, default_run, tmp_path):
    project, answers = called
    plain = default_run[0].copy(tmp_path / "workspace")
    once = plain.run(*WORDS)
    assert {name: digest for answer in answers for name, digest in gives(answer).items()} == gives(once)
    assert answers[-1]["models"] == once["models"] and models(project) == models(plain)
    assert [answer["left"] for answer in answers] == [STEPS[number + 1 :] for number in range(len(STEPS))]
    assert len({answer["run"] for answer in answers}) == 1


def test_it_is_shown_as_one_run_with_its_key(called):
    project, answers = called
    (run,) = project.json("runs", "--run-key", KEY)["runs"]
    assert (run["run"], run["key"], run["status"]) == (answers[0]["run"], KEY, "ok")
    assert run["parameters"]["package.name"] == "second" and "evaluate.roc_auc" in run["metrics"]
    assert [one["key"] for one in project.json("runs")["runs"]] == [KEY, None]
    assert project.json("runs", "--run-key", "another")["runs"] == []
    assert KEY in project.call("mlops-nb", "runs").stdout
    assert f"key {KEY}" in project.call("mlops-nb", "show", run["run"]).stdout
    assert project.json("lineage", "second:1")["schema"] == 1


def test_a_repeated_call_answers_the_same_and_does_nothing(called):
    project, answers = called
    before = project.json("models")
    assert project.run("--only", "train", "--run-key", KEY) == answers[3]
    assert project.run("--only", "package", "--run-key", KEY) == answers[5]
    assert project.json("models") == before and len(project.json("runs")["runs"]) == 2


def test_what_cannot_be_is_refused_with_what_to_do(called):
    project, _ = called
    for words, message in (
        (("--run-key", ""), "The run key is empty"),
        (("--run-key", KEY, "--force"), "--force does not go with --run-key"),
        (("--run-key", KEY, "--sweep", "train.seed=1,2"), "--sweep does not go with --run-key"),
        (("--run-key", KEY, "-p", "train.seed=77"), "train.seed is 0 there and 77 here"),
        (("--run-key", "new", "--only", "train"), "has not finished under the key 'new'"),
    ):
        error = project.run(*words, expect=2)["error"]
        assert message in error["message"] and error["hint"]


def test_a_ledger_made_anew_knows_the_key(called, tmp_path):
    project, answers = called
    copy = project.copy(tmp_path / "workspace")
    for file in copy.workspace.glob("ledger.sqlite*"):
        file.unlink()
    assert copy.call("mlops-nb", "fsck", "--rebuild").returncode == 0
    assert copy.run("--only", "train", "--run-key", KEY) == answers[3]
