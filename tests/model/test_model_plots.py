"""Pictures of many classes, looked at through what stands on their axes."""

import io
import itertools
import warnings

import numpy as np
import pytest

from mlops_nb.model.plots import plot_calibration, plot_errors, plot_loss, plot_outcomes
from mlops_nb.model.scores import Predictions


def guesses(classes: int, rows: int = 2000) -> Predictions:
    """Fair predictions of classes, the last of which have most rows."""
    random = np.random.default_rng(0)
    names = np.array([f"{'a long and dear $ name ' * (classes > 9)}{place}" for place in range(classes)], dtype=object)
    truth = random.choice(classes, rows, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    chances = np.exp(random.normal(size=(rows, classes)) + 2 * (truth[:, None] == np.arange(classes)))
    chances /= chances.sum(axis=1, keepdims=True)
    return Predictions("multiclass", names[truth], names[chances.argmax(axis=1)], chances, tuple(names), None)


def drawn(figure):
    """The figure, after it was drawn without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="png")
    return figure


def overlapping(labels) -> bool:
    """Whether two texts on an axis run into each other."""
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    return any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


@pytest.mark.parametrize(("classes", "shown"), [(2, 2), (7, 7), (12, 12), (13, 13), (14, 13), (40, 13)])
def test_every_row_is_in_the_confusion_matrix(classes, shown):
    found = guesses(classes)
    [axis] = drawn(plot_outcomes(found)).axes
    counts = np.array([int(text.get_text().replace(",", "")) for text in axis.texts]).reshape(shown, shown)
    assert counts.sum() == len(found.truth)
    assert not overlapping(axis.get_xticklabels()) and not overlapping(axis.get_yticklabels())
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert len(set(labels)) == shown
    if classes > 13:
        assert labels[-1] == f"{classes - 12} others" and f"the 12 most frequent of {classes}" in axis.get_title()
        wrong = np.isin(found.truth, found.classes[-12:]) & (found.truth != found.predicted)
        assert counts[:-1].sum() - np.trace(counts[:-1, :-1]) == wrong.sum()
    else:
        assert axis.get_title() == "Confusion matrix"


@pytest.mark.parametrize(("classes", "shown"), [(3, 3), (8, 8), (9, 7), (40, 7)])
def test_curves_have_a_name_and_a_colour_each(classes, shown):
    figure = drawn(plot_errors(guesses(classes)))
    left, right = figure.axes
    curves = [line for line in left.lines if not line.get_label().startswith("_")]
    assert len({line.get_color() for line in curves}) == len(curves) == shown
    assert [line.get_color() for line in right.lines] == [line.get_color() for line in curves]
    [legend] = figure.legends
    assert len({text.get_text() for text in legend.get_texts()}) == shown
    assert (legend.get_title().get_text() != "") == (shown < classes)


def test_the_best_round_is_named():
    [axis] = drawn(plot_loss({"loss": [0.6, 0.4, 0.3], "validation_loss": [0.6, 0.45, 0.5]})).axes
    assert "best: round 1" in [text.get_text() for text in axis.get_legend().get_texts()]
    assert all(tick == round(tick) for tick in axis.get_xticks())


def test_a_dollar_sign_is_no_formula():
    chances = np.tile([[0.6, 0.4]], (60, 1))
    names = np.array(["$x_", "$y^"] * 30, dtype=object)
    found = Predictions("binary", names, names, chances, ("$x_", "$y^"), "$x_")
    for picture in (plot_outcomes, plot_calibration, plot_errors):
        drawn(picture(found))
