"""Every number is scikit-learn's; intervals are what slow loops give; guesses score as guesses."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from mlops_nb.core.errors import UsageError
from mlops_nb.core.serializers import Metrics
from mlops_nb.model.bootstrap import intervals, weighted_metrics
from mlops_nb.model.measures import MAIN_METRIC, MEASURES, measure_names, ranking_metric
from mlops_nb.model.plots import plot_calibration, plot_errors, plot_outcomes
from mlops_nb.model.scores import Predictions, score, unscored


def random_predictions(seed: int, rows: int, classes: int, coarse: bool = False) -> Predictions:
    """Predictions with some truth in them; `coarse` ones have many ties."""
    random = np.random.default_rng(seed)
    names = [f"c{number:02d}" if classes < 100 else f"c{number:03d}" for number in range(classes)]
    truth = random.choice(names, rows)
    chances = random.dirichlet(np.ones(classes), rows) + 1 / classes * (truth[:, None] == np.array(names))
    if coarse:
        chances = np.round(chances * classes) + 0.1
    chances = chances / chances.sum(axis=1, keepdims=True)
    predicted = np.array(names, dtype=object)[chances.argmax(axis=1)]
    task = "binary" if classes == 2 else "multiclass"
    return Predictions(task, truth.astype(object), predicted, chances, tuple(names), "c01" if classes == 2 else None)


def random_numbers(seed: int, rows: int) -> Predictions:
    random = np.random.default_rng(seed)
    truth = random.normal(10, 3, rows)
    return Predictions("regression", truth, truth + random.normal(0, 1, rows))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 200), st.booleans())
def test_two_classes_score_as_in_scikit_learn(seed, rows, coarse):
    found = random_predictions(seed, rows, 2, coarse)
    truth, chance = found.truth == "c01", found.probabilities[:, 1]
    expected = {
        "accuracy": sk.accuracy_score(found.truth, found.predicted),
        "precision": sk.precision_score(found.truth, found.predicted, pos_label="c01", zero_division=0),
        "recall": sk.recall_score(found.truth, found.predicted, pos_label="c01", zero_division=0),
        "f1": sk.f1_score(found.truth, found.predicted, pos_label="c01", zero_division=0),
        "log_loss": sk.log_loss(truth, chance, labels=[False, True]),
        "brier": sk.brier_score_loss(truth, chance),
    }
    if 0 < truth.sum() < rows:
        expected["roc_auc"] = sk.roc_auc_score(truth, chance)
        expected["average_precision"] = sk.average_precision_score(truth, chance)
    assert score(found) == expected
    assert list(score(found)) == [name for name in measure_names("binary") if name in expected]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 150), st.integers(3, 6))
def test_many_classes_score_as_in_scikit_learn(seed, rows, classes):
    found = random_predictions(seed, rows, classes)
    got, macro = score(found), {"average": "macro", "zero_division": 0}
    assert got["precision"] == sk.precision_score(found.truth, found.predicted, **macro)
    assert got["recall"] == sk.recall_score(found.truth, found.predicted, **macro)
    assert got["f1"] == sk.f1_score(found.truth, found.predicted, **macro)
    assert got["log_loss"] == sk.log_loss(found.truth, found.probabilities, labels=list(found.classes))
    assert got["brier"] == sk.brier_score_loss(found.truth, found.probabilities, labels=list(found.classes))
    if len(set(found.truth)) == classes:
        expected = sk.roc_auc_score(found.truth, found.probabilities, multi_class="ovr")
        assert got["roc_auc"] == pytest.approx(expected, rel=1e-12)
        one_hot = found.truth[:, None] == np.array(found.classes)
        expected = sk.average_precision_score(one_hot, found.probabilities)
        assert got["average_precision"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("coarse", [False, True])
def test_300_classes_score_as_in_scikit_learn(coarse):
    found = random_predictions(5, 3000, 300, coarse)
    weights = np.random.default_rng(5).multinomial(3000, np.full(3000, 1 / 3000), size=2).astype(float)
    functions = weighted_metrics(found)
    one_hot = (found.truth[:, None] == np.array(found.classes)).astype(int)
    for weight, got in [(np.ones(3000), score(found)), *((weight, None) for weight in weights)]:
        got = got or {name: function(weight[None, :])[0] for name, function in functions.items()}
        drawn = one_hot[weight > 0].any(axis=0)
        weighed = {"sample_weight": weight, "average": "macro"}
        macro = {
            **weighed,
            "zero_division": 0,
            "labels": sorted({*found.truth[weight > 0], *found.predicted[weight > 0]}),
        }
        expected = {
            "accuracy": sk.accuracy_score(found.truth, found.predicted, sample_weight=weight),
            "precision": sk.precision_score(found.truth, found.predicted, **macro),
            "recall": sk.recall_score(found.truth, found.predicted, **macro),
            "f1": sk.f1_score(found.truth, found.predicted, **macro),
            "roc_auc": sk.roc_auc_score(one_hot[:, drawn], found.probabilities[:, drawn], **weighed),
            "average_precision": sk.average_precision_score(
                one_hot[:, drawn], found.probabilities[:, drawn], **weighed
            ),
            "log_loss": sk.log_loss(one_hot, found.probabilities, sample_weight=weight),
            "brier": sk.brier_score_loss(found.truth, found.probabilities, labels=found.classes, sample_weight=weight),
        }
        assert got == pytest.approx(expected, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 300))
def test_numbers_score_as_in_scikit_learn(seed, rows):
    found = random_numbers(seed, rows)
    assert score(found) == {
        "mse": sk.mean_squared_error(found.truth, found.predicted),
        "rmse": sk.root_mean_squared_error(found.truth, found.predicted),
        "mae": sk.mean_absolute_error(found.truth, found.predicted),
        "r2": sk.r2_score(found.truth, found.predicted),
    }


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(8, 120), st.integers(2, 4), st.booleans())
def test_a_draw_scores_as_its_rows_do(seed, rows, classes, coarse):
    found = random_predictions(seed, rows, classes, coarse)
    picks = np.random.default_rng(seed).integers(0, rows, (5, rows))
    weights = np.stack([np.bincount(pick, minlength=rows) for pick in picks]).astype(float)
    got = {name: function(weights) for name, function in weighted_metrics(found).items()}
    for place, pick in enumerate(picks):
        drawn = Predictions(
            found.task,
            found.truth[pick],
            found.predicted[pick],
            found.probabilities[pick],
            found.classes,
            found.positive,
        )
        for name, value in score(drawn).items():
            assert got[name][place] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("rows", [100, 400])
def test_intervals_hold_the_truth_as_often_as_they_promise(rows):
    inside = []
    for seed in range(120):
        found = random_predictions(seed, rows, 2)
        low, high = intervals(found, draws=200, seed=seed)["accuracy"]
        inside.append(low <= ACCURACY <= high)
    assert 0.88 <= np.mean(inside) <= 0.99


ACCURACY = score(random_predictions(0, 400_000, 2))["accuracy"]


def test_intervals_depend_on_the_seed_alone():
    found = random_predictions(1, 300, 3)
    assert intervals(found, seed=1) == intervals(found, seed=1) != intervals(found, seed=2)


@pytest.mark.parametrize(
    ("found", "absent"),
    [
        (Predictions("regression", np.array([3.0, 3.0]), np.array([3.0, 4.0])), ["r2"]),
        (Predictions("regression", np.array([3.0]), np.array([4.0])), ["r2"]),
        (
            Predictions(
                "binary", np.array(["a", "a"], object), np.array(["a", "b"], object), np.eye(2), ("a", "b"), "b"
            ),
            ["roc_auc", "average_precision"],
        ),
    ],
)
def test_what_cannot_be_computed_is_absent_and_said(found, absent):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores, bounds = score(found), intervals(found, draws=20)
    assert [name for name in measure_names(found.task) if name not in scores] == absent
    assert list(bounds) == list(scores) and Metrics(scores)
    assert unscored(found)[0].startswith(", ".join(absent))
    for picture in (plot_outcomes, plot_calibration, plot_errors):
        picture(found)


def test_no_row_is_an_error():
    with pytest.raises(UsageError, match="no row to score"):
        score(Predictions("regression", np.array([]), np.array([])))


def test_directions_agree_with_scikit_learn():
    better = score(random_predictions(0, 500, 2))
    worse_found = random_predictions(0, 500, 2)
    shuffled = np.random.default_rng(0).permutation(500)
    worse = score(
        Predictions(
            "binary",
            worse_found.truth,
            worse_found.predicted[shuffled],
            worse_found.probabilities[shuffled],
            worse_found.classes,
            "c01",
        )
    )
    for name, value in better.items():
        assert (value > worse[name]) == MEASURES[name].greater_is_better, name


def test_every_task_has_a_metric_that_ranks():
    for task, name in MAIN_METRIC.items():
        assert ranking_metric(task).name == name in measure_names(task)
    with pytest.raises(UsageError, match="no metric 'rmse' for the task binary"):
        ranking_metric("binary", "rmse")
