"""Comparisons of algorithms: closed forms, SciPy, and how often equal ones are told apart."""

import math

import numpy as np
import pandas as pd
import pytest
from model_support import KINDS, people, profile_of
from scipy import stats

from mlops_nb.core.errors import UsageError
from mlops_nb.model.comparison import Comparison, compare_algorithms, compare_over_tables, compare_pairs
from mlops_nb.model.measures import MEASURES
from mlops_nb.model.significance import corrected_t_test, holm, rank_sums, signed_rank_test


def test_the_corrected_t_test_is_its_closed_form():
    values = np.array([0.02, -0.01, 0.03, 0.015, 0.0, 0.01, 0.02, 0.005, -0.002, 0.012])
    found = corrected_t_test(values, ratio=1 / 4)
    t = values.mean() / math.sqrt((1 / 10 + 1 / 4) * values.var(ddof=1))
    assert math.isclose(found.p, 2 * stats.t.sf(abs(t), 9))
    assert math.isclose(found.effect, values.mean() / values.std(ddof=1))
    bare = corrected_t_test(values, ratio=0)
    assert math.isclose(bare.p, stats.ttest_1samp(values, 0).pvalue)
    assert bare.p < found.p and bare.low > found.low


@pytest.mark.parametrize(("values", "p"), [([0.0, 0.0, 0.0], 1.0), ([0.1, 0.1, 0.1], 0.0)])
def test_differences_without_spread(values, p):
    assert corrected_t_test(values, 0.25).p == pytest.approx(p)


def test_the_signed_rank_test_agrees_with_scipy_and_its_interval_with_the_test():
    random = np.random.default_rng(0)
    for count in (6, 9, 14, 30):
        values = random.normal(0.3, 1, count)
        found = signed_rank_test(values)
        assert math.isclose(found.p, stats.wilcoxon(values).pvalue)
        assert (found.low > 0 or found.high < 0) == (found.p < 0.05), "interval and test say the same"
        inside, outside = values - (found.low + 1e-9), values - (found.low - 1e-9)
        assert stats.wilcoxon(inside).pvalue >= 0.05 > stats.wilcoxon(outside).pvalue
    assert signed_rank_test([0.0] * 7).p == 1.0
    assert np.allclose(rank_sums(3) * 8, [1, 1, 1, 2, 1, 1, 1])


def test_zeros_count_half_for_each_side():
    assert signed_rank_test([0.0, 0.0, 1.0, 2.0, 3.0]).effect < 1


def test_holm_is_monotone_and_never_above_one():
    assert holm([0.5, 0.01, 0.4]) == pytest.approx([0.8, 0.03, 0.8])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def equal_learners(random: np.random.Generator, folds: int = 5, repeats: int = 2) -> np.ndarray:
    """Differences of two linear models, each of which sees a half of the columns that is worth as much as the other."""
    rows = 100
    columns = random.normal(size=(rows, 6))
    target = columns.sum(axis=1) + random.normal(0, 2, rows)
    found = []
    for _ in range(repeats):
        order = random.permutation(rows)
        for held in np.array_split(order, folds):
            fitted = np.setdiff1d(order, held)
            errors = []
            for half in (slice(0, 3), slice(3, 6)):
                weights = np.linalg.lstsq(columns[fitted, half], target[fitted], rcond=None)[0]
                errors.append(np.mean((target[held] - columns[held, half] @ weights) ** 2))
            found.append(errors[0] - errors[1])
    return np.array(found)


def test_equal_learners_are_told_apart_in_about_one_table_of_twenty():
    random = np.random.default_rng(1)
    drawn = [equal_learners(random) for _ in range(600)]
    corrected = np.mean([corrected_t_test(values, 1 / 4).p < 0.05 for values in drawn])
    plain = np.mean([corrected_t_test(values, 0).p < 0.05 for values in drawn])
    assert 0.02 < corrected < 0.08, "about the nominal rate of 0.05"
    assert plain > 0.15, "the t-test that takes folds for independent finds far too many"


def test_equal_learners_over_tables_are_told_apart_in_at_most_one_of_twenty():
    random = np.random.default_rng(2)
    rate = np.mean([signed_rank_test(random.normal(0, 1, 10)).p < 0.05 for _ in range(1000)])
    assert 0.03 < rate < 0.07


@pytest.mark.parametrize(("target", "task"), [("group", "binary"), ("group", "multiclass"), ("spent", "regression")])
def test_a_winner_is_named_and_equals_are_not_told_apart(target, task):
    table = people(500, classes=3 if task == "multiclass" else 2)[[*KINDS, target]]
    plain = "linear" if task == "regression" else "logistic"
    stump = {"model": "boosting", "max_iter": 1, "leaves": 2}
    settings = {plain: {"model": plain}, "again": {"model": plain}, "stump": stump}
    found = compare_algorithms(table, profile_of(target, task, positive="class 01"), settings, repeats=1)
    assert found.winner is None and "No difference shown between" in found.words
    assert "does better than 'stump'" in found.words
    del settings["again"]
    assert compare_algorithms(table, profile_of(target, task, positive="class 01"), settings, repeats=1).winner == plain


def test_a_nested_candidate_chooses_within_each_training_part():
    table = people(300)[[*KINDS, "group"]]
    choices = [{"model": "logistic", "regularisation": strength} for strength in (1e6, 1.0)]
    settings = {"chosen": choices, "fixed": choices[1]}
    found = compare_algorithms(table, profile_of("group", "binary", positive="class 01"), settings, repeats=1)
    assert (found.scores["chosen"] == found.scores["fixed"]).all(), "nothing was learned with a strength of a million"


def test_folds_by_group_are_not_repeated():
    table = people(300)[[*KINDS, "group"]]
    homes = table["zip"].astype("category").cat.codes.to_numpy()
    profile = profile_of("group", "binary", positive="class 01")
    found = compare_algorithms(table, profile, ["logistic", "forest"], by="group", groups=homes, repeats=3)
    assert len(found.scores) == 5 and "cannot be drawn anew" in found.notes[0]


def test_many_tables_and_too_few():
    profile = profile_of("group", "binary", positive="class 01")
    tables = {f"{seed} <b>": (people(120, seed)[[*KINDS, "group"]], profile) for seed in range(2)}
    found = compare_over_tables(
        tables, {"logistic": {"model": "logistic"}, "<i>": {"model": "boosting", "max_iter": 2}}
    )
    assert found.winner is None and "it takes six" in found.notes[0]
    assert "&lt;i&gt;" in found._repr_html_() and "<i>" not in found._repr_html_()
    mixed = tables | {"numbers": (people(120)[[*KINDS, "spent"]], profile_of("spent", "regression"))}
    with pytest.raises(UsageError, match="no metric in common"):
        compare_over_tables(mixed, ["forest", "boosting"])


def test_smaller_errors_are_ahead():
    scores = pd.DataFrame({"far": [2.0, 2.1, 1.9, 2.0], "near": [1.0, 1.1, 0.9, 1.05]})
    pairs = compare_pairs(scores, MEASURES["rmse"], lambda values: corrected_t_test(values, 0.25))
    found = Comparison(MEASURES["rmse"], scores, pairs, "t")
    assert found.winner == "near" and pairs[0].ahead == "near" and pairs[0].difference.value < 0
