"""kill -9 at the points that matter, on the real pipeline: a plain run afterwards ends as if nothing had happened."""

import pytest
from support import gives, states

POINTS = [
    "before-register",
    "after-register",
    "before-version",
    "after-version",
    "before-alias",
    "after-alias",
    "before-publish",
    "after-publish",
]
WORDS = ("-p", "package.name=second")


@pytest.fixture(scope="module")
def undisturbed(default_run, tmp_path_factory):
    project = default_run[0].copy(tmp_path_factory.mktemp("undisturbed") / "workspace")
    return project.run(*WORDS)


@pytest.mark.parametrize("point", [*POINTS, "before-commit", "after-object-write"])
def test_killed_at(point, default_run, undisturbed, tmp_path):
    project = default_run[0].copy(tmp_path / "workspace")
    done = project.call("mlops-nb", "run", "tabular", *WORDS, MLOPS_NB_FAULT=point)
    assert done.returncode in (-9, 1), done.stderr  # the step process itself may be the one that dies
    newest = project.json("runs")["runs"][0]
    assert newest["status"] in ("crashed", "failed")
    again = project.run(*WORDS)
    assert again["status"] == "ok" and gives(again) == gives(undisturbed)
    assert again["models"] == undisturbed["models"]
    found = {finding["check"]: finding["level"] for finding in project.json("doctor")["findings"]}
    assert (found["ledger"], found["tracking"]) == ("ok", "ok") and found["workspace"] != "fail"
    assert "crashed runs" not in found, "the run that was killed is recorded as crashed"
    assert project.json("runs")["runs"][1]["status"] in ("crashed", "failed")
    assert set(states(project.run(*WORDS)).values()) == {"cached"}
    listed = [(m["name"], m["version"], m["digest"], m["aliases"]) for m in project.json("models")["models"]]
    assert len(listed) == 2 and all(aliases == ["champion"] for *_, aliases in listed)
