"""Explanations: equal to their definition, to shap's values, and the same wherever they are computed."""

from functools import cache
from itertools import combinations
from math import factorial

import numpy as np
import pandas as pd
import pytest
from model_support import KINDS, learn, people
from sklearn.ensemble import RandomForestClassifier

import mlops_nb
from mlops_nb.core.errors import UsageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
from mlops_nb.model.artifact import Model
from mlops_nb.model.background import Background, draw_background
from mlops_nb.model.counterfactual import counterfactual
from mlops_nb.model.dependence import partial_dependence, plot_explanation
from mlops_nb.model.importance import MOST_INPUTS, chosen_inputs, permutation_importance
from mlops_nb.model.package import ModelPackage
from mlops_nb.model.reasons import explain_records
from mlops_nb.model.schema import describe_inputs
from mlops_nb.model.scores import predict_rows
from mlops_nb.model.shapley import Explainer, column_owners, mix_rows, scale_of, to_shap
from mlops_nb.model.worst import worst_examples
from mlops_nb.notebook.artifacts import fetch

SMALL = {"trees": 8, "max_iter": 15}


@cache
def known(target: str = "group", task: str = "binary", model: str = "boosting", classes: int = 2, **settings):
    """A table, a small model of it, its schema and background."""
    table = people(240, classes=classes)
    fitted = learn(table, target, task, model, **SMALL, **{name: list(value) for name, value in settings.items()})
    schema = describe_inputs(table, KINDS, target, task)
    return table, Model(fitted, schema=schema), schema, draw_background(table, schema, 12)


def by_definition(answer, record: pd.DataFrame, background: pd.DataFrame) -> np.ndarray:
    """Shapley values from all subsets of the inputs."""
    names = list(record.columns)
    size, everyone = len(names), np.arange(len(background))

    @cache
    def worth(chosen: frozenset) -> np.ndarray:
        taken = np.tile([n in chosen for n in range(size)], (len(background), 1))
        return answer(mix_rows(record, background, taken, everyone)).mean(axis=0)

    found = []
    for one in range(size):
        others = [n for n in range(size) if n != one]
        gains = [
            factorial(k) * factorial(size - k - 1) * (worth(frozenset({*s, one})) - worth(frozenset(s)))
            for k in range(size)
            for s in combinations(others, k)
        ]
        found.append(np.sum(gains, axis=0) / factorial(size))
    return np.array(found)


@pytest.mark.parametrize(
    ("target", "task", "model", "classes", "method"),
    [
        ("group", "binary", "logistic", 2, "linear"),
        ("group", "binary", "boosting", 2, "trees"),
        ("group", "binary", "forest", 2, "trees"),
        ("group", "multiclass", "logistic", 3, "linear"),
        ("group", "multiclass", "boosting", 3, "trees"),
        ("group", "multiclass", "forest", 3, "trees"),
        ("spent", "regression", "linear", 2, "linear"),
        ("spent", "regression", "boosting", 2, "trees"),
        ("spent", "regression", "forest", 2, "trees"),
    ],
)
def test_values_are_those_of_the_definition(target, task, model, classes, method):
    table, made, schema, background = known(target, task, model, classes)
    explainer, record = Explainer(made, background), table.loc[:, list(KINDS)].iloc[[3]].reset_index(drop=True)
    explained = explainer.explain(record)
    expected = by_definition(scale_of(made.estimator, schema).answer, record, background.rows)
    assert explainer.method == method
    assert np.allclose(explained.values[0], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


TASKS = [("group", "binary", 2), ("group", "multiclass", 3), ("spent", "regression", 2)]


@pytest.mark.parametrize(("target", "task", "classes"), TASKS)
def test_drawn_values_add_up_and_come_close(target, task, classes):
    algorithm = "linear" if task == "regression" else "logistic"
    table, made, schema, background = known(target, task, algorithm, classes, combine=("age", "income"))
    rows = table.loc[:, list(KINDS)].head(2)
    explained = Explainer(made, background, draws=8).explain(rows)
    answer = scale_of(made.estimator, schema).answer
    assert explained.method == "permutation" and np.allclose(explained.answers, answer(rows), atol=1e-4)
    expected = by_definition(answer, rows.head(1), background.rows)
    assert np.abs(explained.values[0] - expected).max() < 0.1 * np.abs(expected).sum()
    alone = Explainer(made, background, draws=8).explain(rows.tail(1))
    assert np.allclose(alone.values[0], explained.values[1], atol=1e-6), "what stands beside a record changes nothing"


def test_an_ensemble_is_explained_in_probabilities():
    table, made, schema, background = known(model="voting")
    explained = Explainer(made, background).explain(table.head(1))
    assert explained.unit == "probability of 'class 01'" and explained.method == "permutation"
    assert np.allclose(explained.answers, scale_of(made.estimator, schema).answer(table.head(1)))


def test_a_forest_that_is_no_pipeline_is_explained():
    table = people(120)[["age", "income", "group"]]
    schema = describe_inputs(table, {"age": "number", "income": "number"}, "group", "binary")
    forest = RandomForestClassifier(5, random_state=0).fit(table[schema.names].fillna(0), table["group"])
    background = draw_background(table.fillna({"age": 0, "income": 0}), schema, 8)
    explained = Explainer(forest, background, schema).explain(table[schema.names].fillna(0).head(2))
    assert np.allclose(explained.answers[:, 0], forest.predict_proba(table[schema.names].fillna(0).head(2))[:, 1])


def test_owners_of_columns_are_what_changes_them():
    table, made, _, _ = known(model="logistic")
    features = made.estimator.steps[0][1]
    owners, rows = column_owners(features, list(KINDS)), table.loc[:, list(KINDS)].head(40)
    assert owners is not None
    for place, name in enumerate(KINDS):
        changed = rows.assign(**{name: rows[name].iloc[::-1].array})
        moved = (features.transform(rows) != features.transform(changed)).any(axis=0)
        assert moved[owners == place].any() and not moved[owners != place].any(), name


def test_the_other_class_has_the_opposite_values():
    table, made, schema, background = known()
    other = describe_inputs(table, KINDS, "group", "binary", positive="class 00")
    one, two = (Explainer(made.estimator, background, s).explain(table.head(3)) for s in (schema, other))
    assert one.outputs == ("class 01",) and two.outputs == ("class 00",)
    assert np.allclose(one.values, -two.values) and np.allclose(one.base, -two.base)


def test_values_are_those_of_shap():
    shap = pytest.importorskip("shap")
    table = people(240)
    kinds = {"age": "integer", "income": "number"}
    fitted = learn(table, "group", "binary", "boosting", kinds, **SMALL)
    schema = describe_inputs(table, kinds, "group", "binary")
    background = draw_background(table, schema, 20)
    explained = Explainer(fitted, background, schema).explain(table.head(10))
    features, final = fitted.steps[0][1], fitted.steps[1][1]
    trees = shap.TreeExplainer(
        final, features.transform(background.rows).astype(float), feature_perturbation="interventional"
    )
    theirs = trees.shap_values(features.transform(table.head(10)).astype(float))
    assert np.abs(theirs - explained.values[:, :, 0]).max() < 1e-6
    plain = to_shap(explained)
    assert plain.feature_names == ["age", "income"] and plain.values.shape == (10, 2)


def test_reasons_are_the_same_in_a_package(tmp_path):
    table, made, _, _ = known()
    package = ModelPackage(made, "people", {"roc_auc": 0.9}, table)
    package.write(tmp_path / "one.zip")
    read = ModelPackage.read(tmp_path / "one.zip")
    assert read.background is not None and package.background is not None
    here = explain_records(Explainer(made, package.background), table.head(3))
    assert explain_records(Explainer(read.load_model(), read.background), table.head(3)) == here
    assert ModelPackage(made, "people", {"roc_auc": 0.9}, table, background=0).background is None


def test_a_background_keeps_every_kind_of_value():
    _, _, schema, background = known()
    again = Background.parse(background.content(), schema)
    assert again.content() == background.content()
    assert list(again.rows.dtypes.astype(str))[:2] == ["int64", "float64"] and again.usual == background.usual


def test_a_record_of_missing_values_has_reasons():
    table, made, _, background = known()
    texts = {name: pd.array([text], dtype="str") for name, text in {"plan": None, "zip": "x"}.items()}
    empty = table.head(1).assign(income=np.nan, **texts)
    told = explain_records(Explainer(made, background), empty, most=6)[0]["reasons"]
    assert any("plan missing instead of 'basic'" in reason["text"] for reason in told) or len(told) < 6
    with pytest.raises(UsageError, match="0 reasons were asked for"):
        explain_records(Explainer(made, background), empty, most=0)


def test_what_cannot_be_explained_says_so():
    table, made, _, background = known()
    with pytest.raises(UsageError, match="no background rows"):
        Explainer(made, Background(background.rows.head(0), {}))
    with pytest.raises(UsageError, match="no schema"):
        Explainer(made.estimator, background)
    with pytest.raises(UsageError, match="lacks 1 of the model's 6 inputs: age"):
        Explainer(made, background).explain(table.drop(columns="age"))


@pytest.mark.parametrize(("target", "task", "classes"), TASKS)
def test_importance_and_dependence_of_every_task(target, task, classes):
    table, made, _, background = known(target, task, "boosting", classes)
    found = permutation_importance(made, table, repeats=3)
    assert next(iter(found.losses)) in ("age", "plan", "since", "member")
    curves = partial_dependence(made, table, list(KINDS))
    assert all(np.isfinite(curve.answers).all() and len(curve.values) > 1 for curve in curves)
    assert len(plot_explanation(found, curves).axes) == 7
    predicted = predict_rows(made.estimator, table, target, task, made.schema.positive)
    worst = worst_examples(predicted, table, Explainer(made, background))
    assert worst.document() == worst_examples(predicted, table, Explainer(made, background)).document()
    assert worst.examples[0]["loss"] == max(one["loss"] for one in worst.examples)
    with pytest.raises(UsageError, match="no input 'agee'"):
        partial_dependence(made, table, ["agee"])


def test_rows_of_one_class_are_scored_by_another_metric():
    table, made, _, _ = known()
    found = permutation_importance(made, table[table.group == "class 01"], repeats=2)
    assert found.measure.name == "log_loss"
    with pytest.raises(UsageError, match="do not define roc_auc"):
        permutation_importance(made, table[table.group == "class 01"], metric="roc_auc")


def test_of_many_inputs_those_are_shuffled_that_answers_go_with():
    random = np.random.default_rng(0)
    wide = pd.DataFrame(random.normal(size=(300, 150)), columns=[f"c{n:03d}" for n in range(150)])
    wide["c140"] = pd.array(np.where(wide["c149"] > 0, "up", "down"), dtype="str")
    wide["y"] = np.where(wide["c149"] + 0.1 * random.normal(size=300) > 0, "yes", "no")
    kinds = {f"c{n:03d}": "category" if n == 140 else "number" for n in range(150)}
    fitted = learn(wide, "y", "binary", "boosting", kinds, max_iter=5)
    predicted = predict_rows(fitted, wide, "y", "binary", "yes")
    chosen = chosen_inputs(wide, list(kinds), predicted)
    assert len(chosen) == MOST_INPUTS and set(chosen[:2]) == {"c140", "c149"}
    model = Model(fitted, schema=describe_inputs(wide, kinds, "y", "binary"))
    found = permutation_importance(model, wide)
    assert len(found.losses) == MOST_INPUTS and found.inputs == 150 and found.rows == 200


def test_counterfactuals_change_only_what_may_change():
    table, made, _, _ = known()
    row = table[made.predict(table) == "class 00"].head(1)
    found = counterfactual(made, row, table, immutable=["age"])
    assert found.reached and "age" not in [change.input for change in found.changes]
    for change in found.changes:
        seen = table[change.input].astype(str).to_numpy()
        assert str(pd.Series([change.after]).astype(table[change.input].dtype).astype(str)[0]) in seen
    assert not counterfactual(made, row, table, wanted="class 00").changes
    stuck = counterfactual(made, row, table, actionable=[])
    assert not stuck.reached and "No change" in stuck.words
    for wrong, message in [({"immutable": ["agee"]}, "no input 'agee'"), ({"wanted": "class 1"}, "no class 'class 1'")]:
        with pytest.raises(UsageError, match=message):
            counterfactual(made, row, table, **wrong)
    with pytest.raises(UsageError, match="240 records"):
        counterfactual(made, table, table)


def test_a_number_can_be_wanted_higher_or_lower():
    table, made, _, _ = known("spent", "regression")
    row = table.iloc[[5]]
    now = float(made.predict(row)[0])
    assert counterfactual(made, row, table, at_least=now + 50).after >= now + 50
    assert counterfactual(made, row, table, at_most=now - 50).after <= now - 50
    with pytest.raises(UsageError, match="rise or to fall"):
        counterfactual(made, row, table)


def test_the_explanations_of_the_default_run(default_run):
    """What `evaluate` gives by default, read from the store, beside the run's own model and rows."""
    project, document = default_run
    settings = load_settings(project.folder, {"MLOPS_NB_WORKSPACE_PATH": str(project.workspace)})
    with Ledger.open(settings, create=False) as ledger:
        records = ledger.artifacts(document["run"])
    given = ("train.model", "split.train", "split.test")
    model, train, test = (fetch(records[name], project.workspace) for name in given)
    names = ("importance", "dependence", "worst", "counterfactual")
    importance, curves, worst, change = (fetch(records[f"evaluate.{name}"], project.workspace) for name in names)
    inputs = [row["input"] for row in importance["rows"]]
    assert importance["metric"] == "roc_auc" and importance["n"] == len(test) and set(inputs) == set(model.schema.names)
    assert importance["rows"][0]["loss"] == max(row["loss"] for row in importance["rows"]) > 0
    assert [curve["input"] for curve in curves] == inputs[:4]
    assert all(0 <= answer <= 1 for curve in curves for answers in curve["answers"].values() for answer in answers)
    first = worst["examples"][0]
    row = test.iloc[[first["row"]]]
    target = model.schema.target
    assert first["truth"] == str(row[target].iloc[0]) and first["reasons"] and worst["n"] == len(test)
    assert first["chance"] == min(one["chance"] for one in worst["examples"]) < 0.5
    drawing = (
        project.workspace / "objects" / (digest := records["evaluate.explanation"]["sha256"])[:2] / digest
    ).read_text()
    assert drawing.lstrip().startswith("<?xml") and len(drawing) > 10_000
    assert change["reached"] and 1 <= len(change["changes"]) <= 3 and change["after"] > change["before"]
    changed = row.assign(**{one["input"]: one["after"] for one in change["changes"]})
    assert model.predict(row[model.schema.names])[0] != first["truth"]
    assert model.predict(changed[model.schema.names])[0] == first["truth"], "the change does what it says"
    again = mlops_nb.counterfactual(model, row, train, wanted=first["truth"])
    assert again.words == change["words"]
