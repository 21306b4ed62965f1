"""Folds of the cross-validation: no row is scored by a model that has seen its twin."""

import numpy as np
import pandas as pd
import pytest
from model_support import KINDS, learn, people

from mlops_nb.data.splitting import split_table
from mlops_nb.model import train as training
from mlops_nb.model.artifact import Model
from mlops_nb.model.evaluation import cross_validate, evaluate, fold_notes, make_folds
from mlops_nb.model.schema import describe_inputs


def repeated(rows: int = 300, twice: int = 120) -> pd.DataFrame:
    table = people(rows)
    again = table.sample(twice, random_state=1)
    return pd.concat([table, again]).sample(frac=1, random_state=2).reset_index(drop=True)


@pytest.mark.parametrize(("target", "task"), [("group", "binary"), ("spent", "regression")])
def test_equal_rows_are_in_one_fold(target, task):
    table = repeated()
    twins = table.groupby(list(table), dropna=False).ngroup().to_numpy()
    folds = make_folds(table, target, task)
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(len(table)))
    for fit, held in folds:
        assert not set(twins[fit]) & set(twins[held])
        assert 60 <= len(held) <= 110


def test_repeated_rows_do_not_flatter_the_cross_validation():
    table = repeated()
    random = np.random.default_rng(0)
    names = table.groupby(list(table), dropna=False).ngroup()
    table["group"] = names.map(dict(enumerate(random.choice(["no", "yes"], names.max() + 1))))
    part = table[[*KINDS, "group"]]
    fitted = learn(table, "group", "binary", "forest", trees=20)
    folds = cross_validate(fitted, part, "group", "binary", "yes")
    assert abs(folds["roc_auc"].mean() - 0.5) < 0.1


def test_a_table_of_hardly_any_different_rows_still_has_folds():
    table = pd.DataFrame({"x": [1, 2] * 20, "group": ["no", "yes"] * 20})
    assert len(make_folds(table, "group", "binary")) == 5
    few = pd.DataFrame({"x": [1, 2, 3, 1, 2, 3], "spent": [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]})
    assert len(make_folds(few, "spent", "regression")) == 5


def visits(patients: int = 60, each: int = 8) -> tuple[pd.DataFrame, dict[str, object]]:
    """Rows of patients who can be told apart by a feature that says nothing of a new patient's illness."""
    random = np.random.default_rng(0)
    patient = np.repeat(np.arange(patients), each)
    ill = random.permutation(np.repeat(["no", "yes"], patients // 2))
    table = pd.DataFrame({"patient": patient, "scan": random.normal(size=patients)[patient], "ill": ill[patient]})
    table["noise"] = random.normal(size=len(table))
    kinds = {"patient": "integer", "scan": "number", "noise": "number", "ill": "category"}
    profile = {"task": "binary", "target": "ill", "positive": "yes", "classes": ["no", "yes"]}
    columns = {name: {"kind": kind} for name, kind in kinds.items()}
    return table, {**profile, "features": ["scan", "noise"], "columns": columns, "kept": ["patient"]}


@pytest.mark.parametrize(("by", "low", "high"), [("random", 0.75, 1), ("group", 0.2, 0.7)])
def test_folds_are_cut_as_the_parts_were(by, low, high):
    table, profile = visits()
    split = split_table(table, profile, by=by, column="patient" if by == "group" else "", seed=1)
    schema = describe_inputs(split.train, {"scan": "number", "noise": "number"}, "ill", "binary", "yes")
    fitted = training.fit(split.train, profile, "forest", trees=50)
    found = evaluate(Model(fitted, schema=schema), split.train, split.test, by=by, groups=split.groups["group"])
    assert found.notes == [] and "patient" not in split.train
    assert low <= found.metrics["accuracy"] <= high
    assert low <= found.cross_validation["accuracy_mean"] <= high


def test_folds_of_time_never_look_ahead_and_never_cut_a_moment():
    random = np.random.default_rng(2)
    when = random.integers(0, 40, 500)
    table = pd.DataFrame({"x": random.normal(size=500), "group": random.choice(["no", "yes"], 500)})
    folds = make_folds(table, "group", "binary", "time", when)
    assert len(folds) == 5
    for fit_on, held in folds:
        assert when[fit_on].max() < when[held].min()
        assert 50 <= len(held) <= 120
    assert [len(held) for _, held in make_folds(table, "group", "binary", "time", when > 20)] == [(when > 20).sum()]


def test_what_folds_cannot_follow_is_said():
    table, _ = visits()
    assert "the groups were not given" in fold_notes(480, "group", None)[0]
    assert "all the same" in fold_notes(480, "time", np.zeros(480))[0]
    assert fold_notes(480, "group", table["patient"].to_numpy()) == fold_notes(480, "random", None) == []
    assert len(make_folds(table, "ill", "binary", "time", np.zeros(480))) == 5
    few = table["patient"].to_numpy() // 20
    assert len(make_folds(table, "ill", "binary", "group", few)) == len(np.unique(few)) == 3
