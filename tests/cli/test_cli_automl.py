"""`mlops-nb automl`: what it writes is a pipeline that gives the very score that it told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support import BIN

from mlops_nb.notebook.artifacts import fetch


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run `mlops-nb WORDS` without tracking."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "MLOPS_NB_TRACKING_MODE": "off"}
    line = [sys.executable, "-m", "mlops_nb", *words]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[Path, dict]:
    """A project with a table and the pipeline that a search of two trials wrote, and what the command said."""
    place = tmp_path_factory.mktemp("automl")
    (place / "settings.ini").write_text("[package]\nname = demo\n", encoding="utf-8")
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {"x": random.normal(size=160), "z": random.normal(size=160), "colour": random.choice(list("ab"), 160)}
    )
    table["y"] = np.where(table["x"] + 0.3 * random.normal(size=160) > 0, "yes", "no")
    (place / "data").mkdir()
    table.to_csv(place / "data" / "small.csv", index=False)
    words = ("automl", "data/small.csv", "--target", "y", "--trials", "2", "--seed", "5", "--json")
    done = command(*words, "-p", "ingest.exclude=z", cwd=place)
    assert done.returncode == 0, done.stderr
    return place, json.loads(done.stdout)


def test_the_pipeline_gives_the_score_that_the_search_told(found):
    place, document = found
    assert document["pipeline"] == "small" and document["folder"] == "nbs/pipelines/small"
    assert [trial["settings"]["model"] for trial in document["trials"]] == ["boosting", "logistic"]
    assert command("lint", "small", cwd=place).returncode == 0
    done = command("run", "small", "--json", "--to", "evaluate", cwd=place)
    assert done.returncode == 0, done.stderr
    steps = {step["step"]: step for step in json.loads(done.stdout)["steps"]}
    assert steps["evaluate"]["metrics"]["roc_auc"] == document["verdict"]["found"]


def test_the_notebook_tells_how_its_settings_were_found(found):
    place, document = found
    train = json.loads((place / document["folder"] / "40_train.ipynb").read_text(encoding="utf-8"))
    told = "".join(train["cells"][1]["source"])
    assert "2 trials on the training part alone" in told and document["verdict"]["words"] in told
    cells = ["".join(cell["source"]) for cell in train["cells"]]
    parameters = next(cell for cell in cells if cell.startswith("#| parameters"))
    assert f'= "{document["settings"]["model"]}"' in parameters and "seed: Annotated[int" in parameters
    ingest = (place / document["folder"] / "10_ingest.ipynb").read_text(encoding="utf-8")
    assert 'source: Source = \\"data/small.csv\\"' in ingest and 'exclude: list[str] = [\\"z\\"]' in ingest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data/small.csv",), "There is a pipeline 'small' already."),
        (("data/small.csv", "--name", "Big-One"), "Try: --name big_one"),
        (("data/small.csv", "--name", "x", "--budget", "soon"), "120s, 5m, 1h"),
        (("data/small.csv", "--name", "x", "-p", "train.model=forest"), "is what automl decides"),
        (("data/small.csv", "--name", "x", "--target", "why"), "'why'"),
        (("data/absent.csv", "--name", "x"), "absent.csv"),
        (
            ("data/small.csv", "--name", "x", "--target", "y", "--metric", "rmse"),
            "no metric 'rmse' for the task binary",
        ),
    ],
)
def test_what_cannot_be_searched_is_said_before_the_search(found, words, message):
    place, _ = found
    done = command("automl", *words, cwd=place)
    assert done.returncode in (2, 3), done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (place / "nbs" / "pipelines" / "x").exists()


def test_a_new_project_can_have_the_step_that_selects(tmp_path):
    done = command("new", "churn", "--with", "select", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert command("lint", cwd=tmp_path / "churn").returncode == 0
    plan = json.loads(command("plan", "churn", "--json", cwd=tmp_path / "churn").stdout)
    assert [step["step"] for step in plan["steps"]][2:5] == ["split", "select", "train"]
    done = command("new", "other", "--with", "selct", cwd=tmp_path)
    assert done.returncode == 2 and "Did you mean 'select'?" in done.stderr and not (tmp_path / "other").exists()


def test_a_new_project_can_have_the_step_that_mitigates(tmp_path):
    done = command("new", "credit", "--with", "mitigate", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert command("lint", cwd=tmp_path / "credit").returncode == 0
    plan = json.loads(command("plan", "credit", "--json", cwd=tmp_path / "credit").stdout)
    assert [step["step"] for step in plan["steps"]][3:6] == ["train", "mitigate", "evaluate"]
    for step in ("50_evaluate", "60_package"):
        text = (tmp_path / "credit" / "nbs" / "pipelines" / "credit" / f"{step}.ipynb").read_text(encoding="utf-8")
        assert "flow.mitigate.model" in text and "flow.train.model" not in text


def test_the_step_that_mitigates_compares_and_hands_on_a_model_without_the_column(tmp_path):
    assert command("new", "credit", "--with", "mitigate", cwd=tmp_path).returncode == 0
    place, random = tmp_path / "credit", np.random.default_rng(0)
    sex, merit = random.choice(["f", "m"], 400), random.normal(size=400)
    table = pd.DataFrame({"merit": merit, "hobby": random.normal(size=400) + 2 * (sex == "f"), "sex": sex})
    likely = 1.5 * merit + np.where(sex == "f", -1.2, 1.2) + random.logistic(size=400)
    table["hired"] = np.where(likely > 0, "yes", "no")
    table.to_csv(place / "hired.csv", index=False)
    given = ("ingest.source=hired.csv", "ingest.target=hired", "ingest.keep=sex", "train.model=logistic")
    given += ("mitigate.sensitive=sex", "mitigate.criterion=demographic_parity")
    words = [word for one in given for word in ("-p", one)]
    done = command("run", "credit", "--to", "mitigate", "--json", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    shown = json.loads(command("show", json.loads(done.stdout)["run"], "mitigate", "--json", cwd=place).stdout)
    model, told = (fetch(shown["artifacts"][name], place / ".mlops") for name in ("model", "trade_off"))
    names = ["none", *["reweighing"] * 2, *["exponentiated_gradient"] * 2, "threshold_optimizer"]
    assert [point["method"] for point in told["points"]] == names
    assert told["points"][2]["unfairness"][0] < told["points"][0]["unfairness"][0], "reweighing 1"
    assert model.schema.names == ["merit", "hobby"]
    [step] = [one for one in json.loads(done.stdout)["steps"] if one["step"] == "mitigate"]
    cells = json.loads((place / step["notebook"]).read_text(encoding="utf-8"))["cells"]
    shown = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    assert any("image/png" in data or "image/svg+xml" in data for data in shown), "the trade-off curve"
    assert any("What fairness costs" in "".join(data.get("text/html", "")) for data in shown)
