"""Tables of a user's own, never seen before, go through unchanged; scores are honest."""

import gzip
import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
from sklearn.datasets import load_diabetes, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support import ROOT, Project, states

from mlops_nb.core.store import Store
from mlops_nb.model.measures import MEASURES
from mlops_nb.model.package import NAME, ModelPackage
from mlops_nb.notebook.artifacts import fetch
from mlops_nb.notebook.source import read_step


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Project(ROOT, tmp_path_factory.mktemp("tables") / "workspace")


def evaluated(document: dict) -> dict:
    return next(step["metrics"] for step in document["steps"] if step["step"] == "evaluate")


def awkward_table(rows: int = 900) -> pd.DataFrame:
    """Mixed types, blanks, dates, an id, a constant, an all-missing column; the target follows from three of them."""
    rng = np.random.default_rng(0)
    plan = rng.choice(["basic", "plus", "pro"], rows, p=[0.6, 0.3, 0.1])
    tenure = rng.integers(1, 72, rows)
    fee = rng.gamma(4, 12, rows).round(2)
    score = 1.2 * (plan == "basic") - 0.06 * tenure + 0.02 * fee
    table = pd.DataFrame(
        {
            "customer id": [f"C{n:06d}" for n in range(rows)],
            "plan": np.where(rng.random(rows) < 0.05, "?", plan),
            "tenure": tenure,
            "monthly fee": [f"{value:.2f}".replace(".", ",") for value in fee],
            "signed": pd.to_datetime("2019-01-01") + pd.to_timedelta(rng.integers(0, 1800, rows), "D"),
            "notes": "",
            "country": "DE",
            "calls": np.where(rng.random(rows) < 0.1, "", rng.poisson(2, rows).astype(str)),
            "churned": np.where(rng.random(rows) < 1 / (1 + np.exp(-score)), "yes", "no"),
        }
    )
    table["signed"] = table["signed"].dt.strftime("%d.%m.%Y")
    return table


def test_a_semicolon_file_in_windows_1252_with_everything_awkward(project, tmp_path):
    table = awkward_table()
    table.loc[3, "plan"] = "größe"
    table["sex"] = np.random.default_rng(1).choice(["f", "m", ""], len(table), p=[0.5, 0.48, 0.02])
    path = tmp_path / "kunden.csv"
    path.write_bytes(table.to_csv(sep=";", index=False).encode("cp1252"))
    words = ["ingest.keep=sex", "evaluate.sensitive=sex,plan", "evaluate.costs=1,5", "evaluate.slices=tenure=[0, 12)"]
    words += ["package.gates=demographic_parity_difference[sex] <= 0.9,accuracy[sex=f] >= 0.4"]
    named = [word for pair in words for word in ("-p", pair)]
    document = project.run("-p", f"ingest.source={path}", "-p", "ingest.target=churned", *named)
    assert document["status"] == "ok" and 0.7 < evaluated(document)["roc_auc"] < 0.95
    shown = project.call("mlops-nb", "show", document["run"]).stdout
    assert "ingest" in shown and "roc_auc" in shown
    check_assessment(project, document)
    check_groups_by_gates(project, document["models"][0])


def check_groups_by_gates(project: Project, model: dict) -> None:
    """Gates on what was found of groups: those of the package passed, stricter ones of the settings do not."""
    assert model["aliases"] == ["champion"] and "refused" not in model
    strict = {"MLOPS_NB_REGISTRY_GATES": "demographic_parity_difference[sex] <= 0.0001; accuracy[sex=f] >= 0.999"}
    gates = project.json("promote", f"{model['name']}:{model['version']}", "--check", expect=3, **strict)["gates"]
    assert [gate["verdict"] for gate in gates] == ["passed", "passed", "missed", "missed"]
    assert all(gate["low"] < gate["value"] < gate["high"] and gate["n"] > 90 for gate in gates)


def check_assessment(project: Project, document: dict) -> None:
    """A column that is no feature has groups, and the package carries every number of the evaluation."""
    artifacts = {
        f"{step['step']}.{name}": found for step in document["steps"] for name, found in step["artifacts"].items()
    }
    store = Store(project.workspace / "objects")
    paths = {name: store.path(artifacts[name]["sha256"]) for name in ("evaluate.assessment", "package.package")}
    rows = {(row["metric"], row["slice"]): row for row in json.loads(paths["evaluate.assessment"].read_bytes())["rows"]}
    assert 90 < rows["roc_auc", "sex=f"]["n"] < 130 and rows["accuracy", "sex=(missing)"]["value"] is None
    assert rows["demographic_parity_difference", "sex & plan"]["n"] > 0 and rows["threshold", ""]["value"] < 0.5
    assert rows["accuracy", "tenure=[0, 12)"]["low"] < rows["accuracy", "tenure=[0, 12)"]["high"]
    package = ModelPackage.read(paths["package.package"])
    assert package.manifest["assessment"]["rows"] == list(rows.values()) and "sex" not in package.schema.names


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train.seed=-1", "at least 0"),
        ("split.seed=4294967296", "at most 4294967295"),
        ("evaluate.seed=-1", "at least 0"),
        ("ingest.source=", "ingest.source is empty"),
        ("ingest.source=sklearn:wines", "no data set 'sklearn:wines'"),
    ],
)
def test_values_that_no_step_can_use_are_refused_before_a_kernel_starts(project, words, told):
    error = project.json("plan", "tabular", "-p", words, expect=2)["error"]
    assert told in error["message"] and error["hint"] and error["notebook"].startswith("nbs/pipelines/tabular/")


def test_an_edited_file_of_the_same_name_runs_again(project, tmp_path):
    path = tmp_path / "wine.csv"
    table = load_wine(as_frame=True).frame
    table.to_csv(path, index=False)
    words = ["-p", f"ingest.source={path}", "-p", "ingest.target=target", "-p", "train.model=logistic"]
    first = project.run(*words)
    assert evaluated(first)["accuracy"] > 0.9
    assert set(states(project.run(*words)).values()) == {"cached"}
    table.assign(hue=table["hue"] + 1).to_csv(path, index=False)
    plan = project.json("plan", "tabular", *words)
    assert plan["steps"][0]["action"] == "run" and "wine.csv" in plan["steps"][0]["reasons"][0]


def test_a_regression_target_in_a_compressed_tsv(project, tmp_path):
    path = tmp_path / "diabetes.tsv.gz"
    path.write_bytes(gzip.compress(load_diabetes(as_frame=True).frame.to_csv(sep="\t", index=False).encode(), mtime=0))
    words = ["-p", f"ingest.source={path}", "-p", "ingest.target=target", "-p", "train.model=linear"]
    document = project.run(*words, "-p", "evaluate.curves=true")
    metrics = evaluated(document)
    assert 0.3 < metrics["r2"] < 0.65
    [report] = [project.folder / step["notebook"] for step in document["steps"] if step["step"] == "evaluate"]
    shown = [cell.get("outputs", []) for cell in json.loads(report.read_text(encoding="utf-8"))["cells"]]
    assert not re.search("probabilit|false alarm", json.dumps(shown)), "what is shown speaks of numbers"
    assert metrics["rmse"] == pytest.approx(metrics["mse"] ** 0.5) and metrics["mae"] < metrics["rmse"]
    cells = json.loads(report.read_text(encoding="utf-8"))["cells"]
    drawn = [cell["outputs"] for cell in cells if "\nplot_curve(" in "".join(cell["source"])]
    assert len(drawn) == 2 and all("image/" in json.dumps(outputs) for outputs in drawn), "both curves"


def test_a_shuffled_target_is_not_predicted(project, tmp_path):
    rng = np.random.default_rng(1)
    rows = 6000
    table = pd.DataFrame(rng.normal(size=(rows, 6)), columns=list("abcdef"))
    table["kind"] = rng.choice(list("xyz"), rows)
    table["target"] = rng.choice(["no", "yes"], rows)
    path = tmp_path / "noise.parquet"
    table.to_parquet(path)
    metrics = evaluated(project.run("-p", f"ingest.source={path}", "-p", "ingest.target=target"))
    assert 0.45 < metrics["roc_auc"] < 0.55


def test_warnings_reach_the_terminal_also_when_the_step_is_reused(project, tmp_path):
    rng = np.random.default_rng(5)
    table = pd.DataFrame({"a": rng.normal(size=240), "target": rng.choice(["no", "yes"], 240)})
    table["known_later"] = table["target"].map({"no": 0, "yes": 3})
    path = tmp_path / "leak.csv"
    table.to_csv(path, index=False)
    words = ["-p", f"ingest.source={path}", "-p", "ingest.target=target", "-p", "train.model=logistic"]
    for _ in "computed", "reused":
        told = project.call("mlops-nb", "run", "tabular", *words).stdout
        assert "! validate: leakage: known_later: The column is the target in other words" in told
        assert "does no better than a guess" not in told
    steps = {step["step"]: step for step in project.run(*words)["steps"]}
    [finding] = steps["validate"]["findings"]
    assert (finding["level"], finding["kind"]) == ("warning", "leakage") and "known_later" in finding["text"]
    for shown in (["show", "latest"], ["show", "latest", "validate"]):
        assert "! validate: leakage: known_later" in project.call("mlops-nb", *shown).stdout
    left_out = project.call("mlops-nb", "run", "tabular", *words, "-p", "ingest.exclude=known_later").stdout
    assert "! evaluate: score: The model (roc_auc" in left_out and "leakage" not in left_out


def by_hand(model: str) -> Any:
    """What the default parameters of train stand for, in scikit-learn's words."""
    if model == "logistic":
        return make_pipeline(StandardScaler(), LogisticRegression(C=1, max_iter=300))
    facts = {"max_iter": 300, "learning_rate": 0.1, "l2_regularization": 1, "min_samples_leaf": 20, "random_state": 0}
    return HistGradientBoostingClassifier(**facts, early_stopping=True, validation_fraction=0.1, n_iter_no_change=10)


@pytest.mark.parametrize("model", ["logistic", "boosting"])
def test_scores_equal_the_same_algorithm_done_by_hand(default_run, tmp_path, model):
    """Fitted and scored here on the run's own split, which is read from its store."""
    project = default_run[0].copy(tmp_path / "workspace")
    document = project.run("-p", f"train.model={model}")
    records = project.json("show", document["run"], "split")["artifacts"]
    train, test = (fetch(records[part], project.workspace) for part in ("train", "test"))
    inputs, target = list(train.columns[:-1]), test.iloc[:, -1].astype("str")
    assert len(train) + len(test) == 569
    fitted = by_hand(model).fit(train[inputs].astype("float32"), train.iloc[:, -1].astype("str"))
    chances = fitted.predict_proba(test[inputs].astype("float32"))
    positive = list(fitted.classes_).index("malignant")
    truth, found = target == "malignant", evaluated(document)
    expected = {
        "accuracy": sk.accuracy_score(target, fitted.predict(test[inputs].astype("float32"))),
        "roc_auc": sk.roc_auc_score(truth, chances[:, positive]),
        "average_precision": sk.average_precision_score(truth, chances[:, positive]),
        "log_loss": sk.log_loss(target, chances),
        "brier": sk.brier_score_loss(truth, chances[:, positive]),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("model", ["logistic", "boosting"])
def test_many_classes_many_categories_and_a_date(project, tmp_path, model):
    rng, rows = np.random.default_rng(7), 7_000
    town = np.concatenate([np.arange(5000), rng.integers(0, 5000, rows - 5000)])
    days = rng.integers(0, 1000, rows)
    sold = np.where(rng.random(rows) < 0.8, town % 20, rng.integers(0, 20, rows)) + 20 * (days > 500)
    table = pd.DataFrame({"town": [f"town {n}" for n in town], "size": rng.normal(size=rows)})
    table["day"] = (pd.Timestamp("2021-01-01") + pd.to_timedelta(days, "D")).strftime("%Y-%m-%d")
    table["article"] = [f"article {n:02d}" for n in sold]
    path = tmp_path / "articles.csv"
    table.to_csv(path, index=False)
    words = ["-p", f"ingest.source={path}", "-p", "ingest.target=article", "-p", f"train.model={model}"]
    document = project.run(*words, "-p", "train.max_iter=30")
    found = {step["step"]: step for step in document["steps"]}
    metrics = found["evaluate"]["metrics"]
    assert metrics["accuracy"] > 4 * metrics["baseline.accuracy"] and metrics["roc_auc"] > 0.7
    assert all(np.isfinite(value) for value in metrics.values()) and len(document["models"]) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "package.name=Churn Model",
            "package.name wants lower-case letters, digits and inner hyphens, at most 63, not",
        ),
        ("package.metric=auc", "Did you mean 'roc_auc'?"),
    ],
)
def test_a_bad_parameter_of_the_last_step_is_refused_before_the_first(project, given, said):
    for command in "plan", "run":
        done = project.call("mlops-nb", command, "tabular", "-p", given)
        assert done.returncode == 2 and said in done.stdout + done.stderr
        assert "▶" not in done.stdout


def test_the_last_step_takes_what_a_package_takes():
    parameters = read_step(ROOT / "nbs" / "pipelines" / "tabular" / "60_package.ipynb").parameters
    assert parameters["metric"].choices == ("", *MEASURES)
    for name in ["a", "a1-b", "x" * 63, "x" * 64, "-a", "a-", "A", "a b", "ä", "a\n"]:
        assert bool(NAME.fullmatch(name)) == bool(re.fullmatch(parameters["name"].pattern, name)), name


BAD_TABLES = {
    "empty": ("", "empty"),
    "header-only": ("a,b,target\n", "no rows"),
    "one-column": ("target\n1\n2\n", "one column"),
    "one-value": ("a,target\n" + "".join(f"{n},yes\n" for n in range(50)), "one value"),
    "class-seen-once": (
        "a,target\n" + "".join(f"{n},{'yes' if n % 2 else 'no'}\n" for n in range(50)) + "9,maybe\n",
        "maybe",
    ),
    "ragged": ("a,b,target\n1,2,yes\n1,2,3,4,no\n2,3,no\n", "3"),
    "no-target": ("a,b,targit\n" + "".join(f"{n},{n % 7},{n % 2}\n" for n in range(50)), "targit"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_a_bad_table_is_refused_in_words(project, tmp_path, kind):
    text, said = BAD_TABLES[kind]
    path = tmp_path / f"{kind}.csv"
    path.write_text(text, encoding="utf-8")
    done = project.call("mlops-nb", "run", "tabular", "-p", f"ingest.source={path}", "-p", "ingest.target=target")
    told = done.stdout + done.stderr
    code, status = (1, "failed") if kind == "no-target" else (3, "refused")
    assert done.returncode == code, told
    assert said in told and "Traceback" not in told and "→" in told
    assert f" {status} " in next(line for line in told.splitlines() if " ingest " in line and "running" not in line)
    assert f"1 {status}, 5 skipped" in told
    assert project.json("runs")["runs"][0]["status"] == status
