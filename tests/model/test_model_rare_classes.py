"""Intervals when there are so many classes that each draw lacks some."""

import numpy as np
import pytest

from mlops_nb.model.bootstrap import intervals
from mlops_nb.model.scores import Predictions, score


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_classes_of_few_rows_have_intervals(rows):
    random = np.random.default_rng(0)
    classes = tuple(f"class {number:03d}" for number in range(60))
    truth = np.repeat(np.array(classes, dtype=object), rows)
    known = np.repeat(np.eye(60), rows, axis=0)
    probabilities = 0.3 * known + 0.7 * random.dirichlet(np.ones(60), len(truth))
    predicted = np.array(classes, dtype=object)[probabilities.argmax(axis=1)]
    found = Predictions("multiclass", truth, predicted, probabilities, classes)
    bounds = intervals(found, draws=100)
    for name in score(found):
        low, high = bounds[name]
        assert np.isfinite([low, high]).all(), name
        assert low <= high, name
    low, high = bounds["roc_auc"]
    assert low - 0.02 <= score(found)["roc_auc"] <= high + 0.02
