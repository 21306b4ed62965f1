"""Slices, calibration, thresholds by cost, robustness: on every kind of column and task, and with bad input."""

import numpy as np
import pandas as pd
import pytest
from model_support import KINDS, model_of, people

from mlops_nb.core.errors import UsageError
from mlops_nb.model.assessment import Assessment, collect
from mlops_nb.model.calibration import calibrate, equal_bins
from mlops_nb.model.evaluation import evaluate
from mlops_nb.model.package import ModelPackage
from mlops_nb.model.robustness import blurred, disturb, without
from mlops_nb.model.scores import Predictions, predict_rows
from mlops_nb.model.slices import find_slices, slice_rows
from mlops_nb.model.thresholds import Decision, cheapest_threshold, cost_matrix, out_of_fold, weigh_costs


@pytest.fixture(scope="module", params=["binary", "multiclass", "regression"])
def fitted(request):
    """A linear model of people, its task, training and test rows, and what it says of the test rows."""
    table = people(700, classes=2 if request.param == "binary" else 4)
    target = "spent" if request.param == "regression" else "group"
    train, test = table[[*KINDS, target]].iloc[:450], table[[*KINDS, target]].iloc[450:].reset_index(drop=True)
    model = model_of(train, target, request.param, "linear" if request.param == "regression" else "logistic")
    return model, train, test, predict_rows(model.estimator, test, target, request.param, model.schema.positive)


def test_every_part_has_rows_for_every_task(fitted):
    model, train, test, found = fitted
    inputs = test.drop(columns=model.schema.target)
    evaluation = evaluate(model, train, test)
    parts = [find_slices(found, inputs, ["plan=pro", "age=[18, 50)"]), calibrate(found), disturb(model, train, test)]
    assessment = collect(evaluation, *parts)
    names = {row["metric"] for row in assessment.rows}
    ranked = {"binary": "roc_auc", "multiclass": "f1", "regression": "rmse"}[found.task]
    assert {f"{ranked}_under_{kind}" for kind in ("noise", "missing", "shift")} <= names
    assert ("expected_calibration_error" in names) == (found.task != "regression") and "calibration_slope" in names
    assert assessment.row(ranked)["n"] == len(test) and assessment.row(ranked, "age=[18, 50)")["n"] < len(test)
    assert all(row["low"] <= row["high"] for row in assessment.rows if row["low"] is not None)
    assert Assessment.parse(assessment.document()).rows == assessment.rows
    for part in (*parts, assessment):
        assert part._repr_html_().startswith("<") and repr(part)
    package = ModelPackage(model, "people", evaluation.metrics, train, assessment=assessment.document())
    assert package.manifest["assessment"] == assessment.document()


def test_the_same_numbers_every_time(fitted):
    model, train, test, found = fitted
    inputs = test.drop(columns=model.schema.target)
    again = [
        [*find_slices(found, inputs).records(), *calibrate(found).records(), *disturb(model, train, test).records()]
        for _ in range(2)
    ]
    assert again[0] == again[1]


def test_a_column_that_is_told_matters_most(fitted):
    model, train, test, _ = fitted
    robustness = disturb(model, train, test)
    assert robustness.missing[0].name in ("age", "since")
    assert set(robustness.grid().columns) == {"kind", "disturbance", robustness.measure.name, "95 % interval"}


def test_a_column_without_values_is_of_the_same_kind():
    table = people(20)
    for name in KINDS:
        empty = without(table, name)
        assert empty[name].isna().all() and table[name].notna().any()
    noisy = blurred(table, {"age": 10.0, "income": 100.0}, 0.3, 0)
    assert (noisy["age"] % 1 == 0).all() and (noisy["income"].isna() == table["income"].isna()).all()


def test_a_wide_table_is_searched_in_bounded_time():
    random = np.random.default_rng(0)
    wide = pd.DataFrame(random.normal(size=(400, 500)), columns=[f"c{number}" for number in range(500)])
    truth = random.choice(["no", "yes"], 400).astype(object)
    found = Predictions("binary", truth, truth[::-1].copy(), np.full((400, 2), 0.5), ("no", "yes"), "yes")
    slices = find_slices(found, wide)
    assert 2000 <= slices.looked <= 2000 + 120 * 119 / 2 and not any(one.shown for one in slices.found)


def test_nothing_is_large_enough_to_be_a_slice():
    truth = np.array(["no", "yes"] * 10, dtype=object)
    found = Predictions("binary", truth, truth, np.full((20, 2), 0.5), ("no", "yes"), "yes")
    slices = find_slices(found, pd.DataFrame({"plan": ["a", "b"] * 10}))
    assert slices.looked == 0 and slices.found == [] and "No slice was large enough" in repr(slices)


def test_a_named_slice_of_three_rows_is_not_assessed():
    truth = np.array(["no", "yes"] * 50, dtype=object)
    found = Predictions("binary", truth, truth, np.full((100, 2), 0.5), ("no", "yes"), "yes")
    plans = pd.DataFrame({"plan": ["rare"] * 3 + ["often"] * 97})
    slices = find_slices(found, plans, ["plan=rare"])
    rows = [row for row in slices.records() if row["slice"] == "plan=rare"]
    assert rows and all(row["value"] is None and row["n"] == 3 for row in rows) and "not assessed" in repr(slices)


@pytest.mark.parametrize(
    ("text", "told", "hint"),
    [
        ("plam=pro", "names no column", "Did you mean 'plan'?"),
        ("plan=prow", "in none of the test rows", "Did you mean 'pro'?"),
        ("plan=[1, 2)", "holds no numbers", "Name a level"),
        ("age=[x, 20)", "'x' is no number", "[20, 30)"),
        ("age=23.5", "in none of the test rows", "age=[20, 30)"),
        ("", "names no column", "The test rows have"),
    ],
)
def test_slices_that_cannot_be(text, told, hint):
    with pytest.raises(UsageError, match=told) as caught:
        slice_rows(people(100), text)
    assert hint in str(caught.value)


def test_stretches_hold_their_ends_as_written():
    table = pd.DataFrame({"age": [20, 25, 30, None]})
    assert slice_rows(table, "age=[20, 30)").tolist() == [True, True, False, False]
    assert slice_rows(table, "age=(20, 30]").tolist() == [False, True, True, False]
    assert slice_rows(table, "age=[25, inf)").tolist() == [False, True, True, False]


def test_the_cheapest_threshold_is_the_cheapest_of_all():
    random = np.random.default_rng(0)
    scores = np.round(random.random(200), 2)
    truth = random.random(200) < scores
    for costs in ([1, 8], [5, 1], [1, 1], [0, 1, 3, -2]):
        matrix = cost_matrix(costs, ["no", "yes"], "yes")
        chosen = cheapest_threshold(truth, scores, matrix, 1)
        every = [matrix[truth.astype(int), (scores >= edge).astype(int)].sum() for edge in np.linspace(0, 1.01, 2021)]
        assert matrix[truth.astype(int), (scores >= chosen).astype(int)].sum() == min(every)


def test_costs_are_weighed_out_of_fold(fitted):
    model, train, _, found = fitted
    if found.task == "regression":
        with pytest.raises(UsageError, match="the target is a number"):
            weigh_costs(model, train, found, [1, 2])
        assert "regression decides nothing" in repr(weigh_costs(model, train, found, []))
        return
    learned = out_of_fold(model, train)
    assert len(learned.truth) == len(train) and learned.probabilities is not None
    size = len(model.schema.classes)
    costs = (
        [1, 9]
        if found.task == "binary"
        else [0 if a == b else 1 + 5 * (a > b) for a in range(size) for b in range(size)]
    )
    decision = weigh_costs(model, train, found, costs)
    assert isinstance(decision, Decision) and decision.costs.mean() <= decision.usual.mean()
    assert "The served model answers with probabilities" in repr(decision)
    with pytest.raises(UsageError, match="3 numbers"):
        weigh_costs(model, train, found, [1, 2, 3])
    with pytest.raises(UsageError, match="costs less than the right one"):
        weigh_costs(model, train, found, [-1, *costs[1:]] if found.task == "binary" else [9, *costs[1:]])
    with pytest.raises(UsageError, match="no number"):
        weigh_costs(model, train, found, [np.nan, *costs[1:]])


def test_calibration_of_classes_that_are_told_apart_without_error():
    truth = np.array(["no"] * 50 + ["yes"] * 50, dtype=object)
    risk = np.repeat([0.01, 0.99], 50)
    found = Predictions("binary", truth, truth, np.column_stack([1 - risk, risk]), ("no", "yes"), "yes")
    rows = {row["metric"]: row["value"] for row in calibrate(found).records()}
    assert rows["expected_calibration_error"] == pytest.approx(0.01)


def test_parts_are_of_equal_size():
    assert equal_bins(np.arange(25.0), np.ones(25)).rows.tolist() == [3, 2, 3, 2, 3, 2, 3, 2, 3, 2]
    assert len(equal_bins(np.array([0.5, 0.1]), np.ones(2)).rows) == 2
