"""A run whose model does not pass its gates: recorded, registered, refused, with exit code 3."""

import pytest


@pytest.fixture(scope="module")
def gated(default_run, tmp_path_factory):
    """The default run, and the same with a gate that nothing passes."""
    project = default_run[0].copy(tmp_path_factory.mktemp("gated") / "workspace")
    words = ("-p", "package.gates=roc_auc >= 0.99999, n >= 10; latency <= 30 s", "--from", "package")
    return project, words, project.run(*words, expect=3)


def test_the_run_ends_as_refused(gated):
    project, _, document = gated
    assert document["status"] == "refused"
    assert [step["state"] for step in document["steps"]][-1] == "done"
    (model,) = document["models"]
    assert model["aliases"] == [] and model["version"] == 2
    assert document["error"]["type"] == "Refused" and "1 of 2 gates: roc_auc" in document["error"]["message"]
    assert project.json("runs")["runs"][0]["status"] == "refused"


def test_running_it_again_is_refused_again(gated):
    project, words, _ = gated
    again = project.run(*words, expect=3)
    assert [step["state"] for step in again["steps"]][-1] == "cached"
    assert again["models"][0]["version"] == 2
    shown = project.call("mlops-nb", "run", "tabular", *words)
    assert shown.returncode == 3
    assert "refused" in shown.stdout and "roc_auc" in shown.stdout and "Traceback" not in shown.stderr


def test_a_gate_that_cannot_be_read_is_told_before_any_step_runs(gated):
    project, _, _ = gated
    done = project.call("mlops-nb", "run", "tabular", "-p", "package.gates=roc_auc => 0.9", "-p", "split.seed=9")
    assert done.returncode == 2
    assert "Write >= instead of =>" in done.stdout + done.stderr
    planned = project.call("mlops-nb", "plan", "tabular", "-p", "package.gates=roc_auc => 0.9")
    assert planned.returncode == 2 and "Write >= instead of =>" in planned.stdout + planned.stderr
    other = project.call("mlops-nb", "run", "tabular", MLOPS_NB_REGISTRY_GATES="signatur")
    assert other.returncode == 2 and "Did you mean 'signature'" in other.stdout + other.stderr


def test_a_sweep_tells_that_its_models_were_refused(gated):
    project, _, _ = gated
    sweep = ("--sweep", "package.metric=roc_auc,log_loss", "-p", "package.gates=log_loss <= 0.0001")
    document = project.run(*sweep, "--from", "package", expect=3)
    assert document["status"] == "refused" and "log_loss is" in document["error"]["message"]
    assert {run["status"] for run in project.json("runs", "-n", "3")["runs"]} == {"refused"}
