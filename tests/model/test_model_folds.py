"""Folds of the cross-validation: no row is scored by a model that has seen its twin."""

import numpy as np
import pandas as pd
import pytest
from model_support import KINDS, learn, people

from mlops_nb.model.evaluation import cross_validate, make_folds


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
