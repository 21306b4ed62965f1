"""Models of awkward tables: strangers in the columns, tiny, wide, lopsided, and with nothing to learn."""

import time

import numpy as np
import pandas as pd
import pytest
from model_support import KINDS, learn, model_of, people, profile_of

from mlops_nb.core.errors import UsageError
from mlops_nb.model.artifact import settings_grid
from mlops_nb.model.evaluation import evaluate
from mlops_nb.model.features import parts_grid
from mlops_nb.model.schema import frame_from_records
from mlops_nb.model.train import fit, fit_facts, loss_curve

MODELS = {
    "binary": ["logistic", "forest", "boosting", "voting", "stacking"],
    "regression": ["linear", "forest", "boosting", "voting", "stacking"],
}
EVERY = [(task, model) for task, models in MODELS.items() for model in models]
TARGET = {"binary": "group", "multiclass": "group", "regression": "spent"}


@pytest.mark.parametrize(("task", "model"), EVERY)
def test_a_record_of_strangers_is_answered(task, model):
    fitted = model_of(people(), TARGET[task], task, model, trees=10, max_iter=50)
    strangers = [
        {"age": 10**9, "income": None, "member": True, "plan": "never seen", "zip": "0000", "since": "1890-01-01"},
        {"age": -1, "income": 1e300, "member": False, "plan": None, "zip": "1001", "since": "2190-12-31T23:59:59"},
        {},
    ]
    rows = frame_from_records(fitted.schema, strangers)
    assert np.isfinite(fitted.predict(rows) if task == "regression" else fitted.predict_proba(rows)).all()


@pytest.mark.parametrize(("task", "model"), EVERY)
def test_every_algorithm_learns_from_mixed_columns(task, model):
    table = people(1200)
    fitted = model_of(table[:800], TARGET[task], task, model, max_iter=100)
    found = evaluate(fitted, table[:800][[*KINDS, TARGET[task]]], table[800:][[*KINDS, TARGET[task]]])
    name = "r2" if task == "regression" else "roc_auc"
    assert found.metrics[name] > found.baseline[name] + 0.25
    assert found.intervals[name][0] <= found.metrics[name] <= found.intervals[name][1]


@pytest.mark.parametrize("model", MODELS["binary"])
def test_a_shuffled_target_cannot_be_predicted(model):
    table = people(4000)
    table["group"] = table["group"].sample(frac=1, random_state=0).to_numpy()
    fitted = model_of(table[:2000], "group", "binary", model, trees=30, max_iter=100)
    found = evaluate(fitted, table[:2000][[*KINDS, "group"]], table[2000:][[*KINDS, "group"]])
    assert 0.45 < found.metrics["roc_auc"] < 0.55
    assert 0.45 < found.cross_validation["roc_auc_mean"] < 0.55, "and no fold sees its own targets"


def test_thousands_of_levels_of_noise_teach_nothing():
    random = np.random.default_rng(0)
    table = pd.DataFrame({"code": random.integers(0, 5000, 12_000).astype(str), "y": random.choice(["a", "b"], 12_000)})
    table = table.astype({"code": "str", "y": "str"})
    fitted = learn(table[:8000], "y", "binary", "boosting", {"code": "category"})
    right = (fitted.predict(table[8000:]) == table["y"][8000:]).mean()
    assert fitted[-1].n_features_in_ == 1 and 0.46 < right < 0.54


TINY = [*EVERY, ("multiclass", "boosting"), ("multiclass", "logistic")]
HANDFULS = [(task, model, rows) for task, model in TINY for rows in (6, 12, 40)]
TOO_FEW = {("binary", "stacking", 6), ("binary", "stacking", 12), ("regression", "stacking", 6)}


@pytest.mark.parametrize(("task", "model", "rows"), [one for one in HANDFULS if one not in TOO_FEW])
def test_a_handful_of_rows_is_enough(task, model, rows):
    table = people(rows, classes=3 if task == "multiclass" else 2)
    fitted = model_of(table, TARGET[task], task, model, trees=10, max_iter=50)
    part = table[[*KINDS, TARGET[task]]]
    found = evaluate(fitted, part, part)
    assert np.isfinite(list(found.metrics.values())).all()


@pytest.mark.parametrize(("task", "model", "rows"), sorted(TOO_FEW))
def test_a_stack_of_too_few_rows_is_refused(task, model, rows):
    words = f"Stacking cannot be learned from {rows if task == 'regression' else f'{rows // 2} rows of a class'}"
    with pytest.raises(UsageError, match=words) as caught:
        model_of(people(rows), TARGET[task], task, model)
    assert "'voting'" in caught.value.hint


def test_a_stack_whose_rarest_class_is_absent_from_some_folds():
    table = people(300, classes=3)
    rare = np.flatnonzero(table["group"] == "class 02")[1:]
    table = table.drop(index=rare).reset_index(drop=True)
    fitted = model_of(table, "group", "multiclass", "stacking", trees=5, max_iter=20)
    assert fitted.predict_proba(table).shape == (len(table), 3)
    part = table[[*KINDS, "group"]]
    assert np.isfinite(list(evaluate(fitted, part, part).metrics.values())).all()


def test_members_of_an_ensemble_see_combinations_and_show_their_settings():
    table = people(400)
    fitted = learn(table, "group", "binary", "voting", combine=["age", "income"], trees=5, max_iter=20)
    assert list(fitted.feature_names_in_) == list(KINDS), "the model still takes the columns of the table"
    assert fitted[-1].estimators_[0].feature_names_in_[-1] == "age / income"
    assert "boosting: max_iter" in repr(settings_grid(fitted)) and "forest: numbers" in repr(parts_grid(fitted))
    assert fit_facts(fitted, 400)["trees"] > 5 and loss_curve(fitted)


def test_a_rare_class_is_found_with_balanced_weights():
    table = people(3000)
    rare = table["group"].eq("class 01") & (table["spent"] > table["spent"].quantile(0.97))
    table["group"] = pd.Series(np.where(rare, "rare", "usual"), dtype="str")
    found = {}
    for weight in ("none", "balanced"):
        fitted = model_of(table[:2000], "group", "binary", "logistic", class_weight=weight)
        predicted = fitted.predict(table[2000:])
        found[weight] = (predicted[table["group"][2000:] == "rare"] == "rare").mean()
    assert found["balanced"] > found["none"] + 0.2


def test_thirty_classes_one_of_them_with_two_rows():
    table = people(1500, classes=30)
    rare = np.flatnonzero(table["group"] == "class 07")[2:]
    table = table.drop(index=rare).reset_index(drop=True)
    fitted = model_of(table, "group", "multiclass", "boosting", max_iter=10)
    part = table[[*KINDS, "group"]]
    found = evaluate(fitted, part.iloc[::2], part.iloc[1::2])
    assert len(fitted.classes_) == 30 and np.isfinite(list(found.metrics.values())).all()


def test_a_class_that_only_the_test_part_has_counts_as_wrong():
    table = people(600, classes=3)
    train, test = table[table["group"] != "class 02"], table[table["group"] == "class 02"].head(50)
    fitted = model_of(train, "group", "multiclass", "logistic")
    found = evaluate(fitted, train[[*KINDS, "group"]], test[[*KINDS, "group"]])
    assert found.metrics["accuracy"] == 0 and found.metrics["log_loss"] > 30
    assert "roc_auc, average_precision: not computed" in found.notes[0]


@pytest.mark.parametrize("model", MODELS["binary"][:3])
def test_a_thousand_columns_are_quick(model):
    random = np.random.default_rng(0)
    names = [f"x{number}" for number in range(1000)]
    table = pd.DataFrame(random.normal(size=(300, 1000)), columns=names)
    table["y"] = np.where(table["x3"] + table["x4"] > 0, "yes", "no")
    started = time.process_time()
    fitted = learn(table, "y", "binary", model, dict.fromkeys(names, "number"))
    fitted.predict_proba(table.head(1))
    assert time.process_time() - started < 10


def test_clipping_keeps_one_absurd_value_from_ruling_a_line():
    random = np.random.default_rng(0)
    x = random.normal(size=400)
    table = pd.DataFrame({"x": x, "y": 3 * x})
    table.loc[0, "x"] = 1e6
    errors = {}
    for clip in (0.0, 0.01):
        fitted = learn(table, "y", "regression", "linear", {"x": "number"}, clip=clip)
        errors[clip] = np.abs(fitted.predict(table[1:]) - table["y"][1:]).mean()
    assert errors[0.01] < errors[0.0] / 5


def test_truth_values_with_gaps_and_all_missing_columns():
    table = people(300)
    table["member"] = table["member"].astype("boolean").where(np.arange(300) % 7 != 0)
    table["income"] = np.nan
    for model in MODELS["binary"]:
        fitted = model_of(table, "group", "binary", model, trees=10)
        assert np.isfinite(fitted.predict_proba(table)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="income"), "The table has no column 'income'."),
        (lambda table: table.drop(columns="group"), "The table has no column 'group'."),
        (lambda table: table.assign(group=table["group"].where(table["age"] > 30)), "The target 'group' is missing in"),
        (lambda table: table[table["group"] == "class 00"], "belong to one class, 'class 00'"),
    ],
)
def test_what_cannot_be_learned_from_is_said(change, message):
    with pytest.raises(UsageError) as caught:
        fit(change(people(200)), profile_of("group", "binary"))
    assert message in str(caught.value) and caught.value.hint


def test_no_column_left_to_learn_from():
    with pytest.raises(UsageError, match="No column is left"):
        learn(people(100), "group", "binary", "forest", {})


def test_predicting_without_a_column_names_it():
    fitted = model_of(people(200), "group", "binary", "logistic")
    with pytest.raises(UsageError, match="lacks 2 of the model's 6 inputs: age, zip"):
        fitted.predict(people(5).drop(columns=["age", "zip"]))


def test_columns_in_another_order_and_further_ones_do_no_harm():
    table = people(300)
    fitted = model_of(table, "group", "binary", "boosting")
    shuffled = table[["zip", "since", "plan", "member", "income", "age"]].assign(more=1)
    assert (fitted.predict_proba(shuffled) == fitted.predict_proba(table)).all()


def test_folds_follow_groups_and_time():
    table = people(400)
    fitted = model_of(table, "group", "binary", "logistic")
    part = table[[*KINDS, "group"]]
    moments = pd.Series(part["since"].rank(method="dense").astype(int).to_numpy())
    homes = pd.Series(part["zip"].astype("category").cat.codes.to_numpy())
    by_time = evaluate(fitted, part, part, by="time", groups=moments)
    by_group = evaluate(fitted, part, part, by="group", groups=homes)
    assert not by_time.notes and not by_group.notes
    assert not by_time.folds.equals(by_group.folds)
