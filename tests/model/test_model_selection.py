"""Selection of columns: what is noise goes, what is signal stays, and the same seed gives the same list."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from model_support import KINDS, people, profile_of

from mlops_nb.core.errors import UsageError
from mlops_nb.model.selection import select_features, stability_index
from mlops_nb.model.train import fit


def noisy(target: str, task: str, classes: int = 2) -> tuple[pd.DataFrame, dict]:
    """People with two more columns that say nothing."""
    random = np.random.default_rng(3)
    table = people(300, classes=classes)[[*KINDS, target]]
    table["draw"] = random.normal(size=len(table))
    table["colour"] = pd.Series(random.choice(list("rgb"), len(table)), dtype="str")
    return table, profile_of(target, task, {**KINDS, "draw": "number", "colour": "category"}, "class 01")


@pytest.mark.parametrize(
    ("target", "task", "model"),
    [("group", "binary", "logistic"), ("group", "multiclass", "logistic"), ("spent", "regression", "linear")],
)
def test_noise_goes_and_signal_stays(target, task, model):
    table, profile = noisy(target, task, 3 if task == "multiclass" else 2)
    found = select_features(table, profile, model=model, resamples=4, draws=19)
    assert {"age", "plan"} <= set(found.keep)
    assert {"draw", "colour"} <= set(found.drop) and "no more than a shuffled target allows" in found.drop["draw"]
    chosen = found.profile(profile)
    assert chosen["columns"]["draw"]["role"] == "out" and chosen["columns"]["draw"]["reason"] == found.drop["draw"]
    assert list(fit(table, chosen, model).feature_names_in_) == found.keep
    json.dumps(found.document(), allow_nan=False)


def test_elimination_keeps_the_signal_and_names_the_order():
    table, profile = noisy("group", "binary")
    found = select_features(table, profile, "rfecv", "logistic")
    assert "age" in found.keep and "one standard error" in next(iter(found.drop.values()))
    assert found.table["importance"]["age"] > found.table["importance"]["draw"]


def test_the_same_seed_gives_the_same_list_and_nothing_to_learn_keeps_all():
    table, profile = noisy("group", "binary")
    table["group"] = table["group"].to_numpy()[np.random.default_rng(0).permutation(len(table))]
    one, two = (select_features(table, profile, model="logistic", resamples=2, draws=19) for _ in range(2))
    assert one.table.equals(two.table)
    if not one.drop:
        assert "more than chance" in one.notes[0]


def test_an_unknown_method_is_refused():
    with pytest.raises(UsageError, match="no method 'nul'"):
        select_features(*noisy("group", "binary"), method="nul")  # type: ignore[arg-type]


def test_stability_is_one_for_agreement_and_about_zero_by_lot():
    random = np.random.default_rng(0)
    values = [stability_index(random.random((10, 12)) < 0.4) for _ in range(300)]
    assert abs(np.nanmean([value for value, _, _ in values])) < 0.03
    inside = np.mean([low <= 0 <= high for _, low, high in values])
    assert inside > 0.85, "the interval is asymptotic, and ten resamples are few"
    assert math.isnan(stability_index(np.zeros((4, 3), dtype=bool))[0])
