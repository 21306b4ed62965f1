"""The search: same seed, same trials; a budget is kept; bad trials are recorded; the verdict is honest."""

import numpy as np
import pandas as pd
import pytest
from model_support import KINDS, model_of, people, profile_of

from mlops_nb.core.errors import UsageError
from mlops_nb.model import search as searching
from mlops_nb.model.curves import learning_curve, plot_curve, regularisation_path
from mlops_nb.model.measures import MEASURES
from mlops_nb.model.search import Search, Trial, search_settings
from mlops_nb.model.train import fit
from mlops_nb.model.verdict import judge_settings


def case(task: str, rows: int = 400) -> tuple[pd.DataFrame, dict]:
    """A table of people, and its profile."""
    target = "spent" if task == "regression" else "group"
    table = people(rows, classes=3 if task == "multiclass" else 2)[[*KINDS, target]]
    return table, profile_of(target, task, positive="class 01" if task == "binary" else None)


def few_and_quick(monkeypatch) -> None:
    """Two folds, and after two trials the sampler's own."""
    folds, first = searching.folds_of, searching.first_trials
    monkeypatch.setattr(searching, "folds_of", lambda *given: folds(*given)[:2])
    monkeypatch.setattr(searching, "first_trials", lambda *given: first(*given)[:2])


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_same_seed_gives_the_same_trials_and_settings_that_fit(task, monkeypatch):
    few_and_quick(monkeypatch)
    table, profile = case(task, 120)
    one, two = (search_settings(table, profile, trials=5, seed=3) for _ in range(2))
    assert [(t.settings, t.score) for t in one.trials] == [(t.settings, t.score) for t in two.trials]
    assert one.trials[0].settings["model"] == "boosting", "the untuned default comes first"
    sign = 1 if one.measure.greater_is_better else -1
    assert sign * one.best.score >= sign * one.trials[0].score
    fit(table, profile, **one.best.settings)
    assert one.best.settings["model"] in repr(one) and one._repr_html_()


def test_the_default_is_tried_however_short_the_time():
    table, profile = case("binary", 120)
    found = search_settings(table, profile, budget=0.01)
    assert [trial.settings["model"] for trial in found.trials] == ["boosting"] and np.isfinite(found.best.score)


def test_a_large_table_is_first_looked_at_in_part(monkeypatch):
    few_and_quick(monkeypatch)
    monkeypatch.setattr(searching, "SMALLEST", 40)
    table, profile = case("binary", 450)
    found = search_settings(table, profile, trials=7)
    assert found.trials[0].rows == 450 and list(found.trials[0].steps) == [50, 150, 450]
    assert {trial.state for trial in found.trials} >= {"complete", "stopped early"}
    assert found.compared_on == 450 and 450 in found.best.steps


def test_a_quick_trial_that_alone_saw_all_rows_has_not_won():
    measure = MEASURES["rmse"]
    slow = Trial(0, {"model": "boosting"}, 5.0, 100, {100: 5.0}, state="out of time")
    quick = Trial(1, {"model": "linear"}, 9.0, 900, {100: 11.0, 900: 9.0}, state="complete")
    assert Search(measure, [slow, quick], 1.0, 1.0, 900).best is slow


def test_a_failed_trial_is_recorded_and_the_search_goes_on(monkeypatch):
    few_and_quick(monkeypatch)
    table, profile = case("regression", 60)
    score = searching.held_out_score

    def broken(known, held, profile, metric, settings):
        if settings["model"] == "linear":
            raise UsageError("The solver lost its way.", "Try another.")
        return score(known, held, profile, metric, settings)

    monkeypatch.setattr(searching, "held_out_score", broken)
    found = search_settings(table, profile, trials=3)
    assert [trial.state for trial in found.trials[:2]] == ["complete", "failed"] and len(found.trials) == 3
    assert found.trials[1].error == "The solver lost its way."


def test_an_interrupted_search_keeps_what_it_found(monkeypatch):
    few_and_quick(monkeypatch)
    table, profile = case("binary", 120)

    def report(trial, best):
        raise KeyboardInterrupt

    found = search_settings(table, profile, trials=5, report=report)
    assert len(found.trials) == 1 and "interrupted" in found.notes[0]


def test_a_search_without_an_end_or_without_a_result_is_refused():
    with pytest.raises(UsageError, match="needs an end"):
        search_settings(*case("binary"))
    with pytest.raises(UsageError, match="No trial came to an end: no luck"):
        _ = Search(MEASURES["rmse"], [Trial(0, {}, state="failed", error="no luck")], 1.0, 1.0, 9).best


def test_equal_models_are_not_called_better():
    table, profile = case("binary", 600)
    train, test = table[:300], table[300:]
    found = judge_settings({"model": "boosting", "regularisation": 1.3}, train, test, profile)
    low, high = found.difference
    assert low <= 0 <= high and not found.better and not found.worse and "No difference shown" in found.words
    bad = judge_settings({"model": "boosting", "max_iter": 1, "leaves": 2}, train, test, profile)
    assert bad.worse and "does worse than the untuned default" in bad.words


@pytest.mark.parametrize(
    ("task", "model"), [("binary", "voting"), ("multiclass", "forest"), ("regression", "boosting")]
)
def test_curves_of_every_task(task, model):
    table, profile = case(task, 100)
    fitted = model_of(table, profile["target"], task, model, trees=5, max_iter=10)
    for curve in (learning_curve(fitted, table), regularisation_path(fitted, table)):
        assert np.isfinite(curve.validation).all() and curve.grid().rows and plot_curve(curve) is not None
    assert len(learning_curve(fitted, table).points()) >= 3


def test_few_rows_give_a_short_curve_and_no_error():
    table, _ = case("binary", 26)
    assert "Too few rows" in learning_curve(model_of(table, "group", "binary", "logistic"), table).words
